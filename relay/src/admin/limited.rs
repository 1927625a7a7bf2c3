//! A listener that no client can keep from the others: one request a connection, so many bytes and
//! so much time for it, and the oldest connection makes room for a new one.
//!
//! A probe must be answered whatever else is connected: silent clients, slow ones, and those that
//! ask again and again. Nothing here waits for a client that gives nothing.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// More than the probes, scrapers and open pages of one relay.
const CONNECTIONS_MAX: usize = 64;
/// From the connection to the end of its answer: many times what a scraper far away needs.
const LIFE_MAX: Duration = Duration::from_secs(10);
/// A request's line and headers, to within one read; nothing here takes a body.
const REQUEST_BYTES_MAX: usize = 16 << 10;

pub(super) struct Limited {
    listener: TcpListener,
    free: Arc<Semaphore>,
    life_max: Duration,
    /// What ends each connection, oldest first; of those that have ended some are still here.
    oldest: VecDeque<CancellationToken>,
}

impl Limited {
    pub(super) fn new(listener: TcpListener) -> Self {
        Limited::within(listener, CONNECTIONS_MAX, LIFE_MAX)
    }

    fn within(listener: TcpListener, connections_max: usize, life_max: Duration) -> Self {
        let free = Arc::new(Semaphore::new(connections_max));
        Limited { listener, free, life_max, oldest: VecDeque::with_capacity(connections_max) }
    }

    /// A place for a new connection: a free one, or that of the oldest.
    async fn place(&mut self) -> OwnedSemaphorePermit {
        // One that has ended has cancelled its token itself.
        self.oldest.retain(|connection| !connection.is_cancelled());
        if self.free.available_permits() == 0
            && let Some(oldest) = self.oldest.pop_front()
        {
            oldest.cancel();
        }
        let free = Arc::clone(&self.free);
        free.acquire_owned().await.expect("the semaphore is never closed")
    }
}

impl Listener for Limited {
    type Io = LimitedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (LimitedStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let permit = self.place().await;
                    let end = CancellationToken::new();
                    self.oldest.push_back(end.clone());
                    return (LimitedStream::new(stream, self.life_max, end, permit), peer);
                }
                // Too many open files, for one: trying again at once would only burn the CPU.
                Err(error) => {
                    tracing::warn!(%error, "the admin address can't accept a connection");
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends by itself: at its deadline, when another needs its place, or when it has
/// sent more than a request.
pub(super) struct LimitedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    evicted: Pin<Box<WaitForCancellationFutureOwned>>,
    end: CancellationToken,
    bytes_read: usize,
    _permit: OwnedSemaphorePermit,
}

impl LimitedStream {
    fn new(
        stream: TcpStream,
        life_max: Duration,
        end: CancellationToken,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        LimitedStream {
            stream,
            deadline: Box::pin(sleep(life_max)),
            evicted: Box::pin(end.clone().cancelled_owned()),
            end,
            bytes_read: 0,
            _permit: permit,
        }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let ended =
            self.deadline.as_mut().poll(cx).is_ready() || self.evicted.as_mut().poll(cx).is_ready();
        if ended { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Drop for LimitedStream {
    fn drop(&mut self) {
        self.end.cancel(); // So that nobody takes it for the oldest that is still there.
    }
}

impl AsyncRead for LimitedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        if self.bytes_read >= REQUEST_BYTES_MAX {
            return Poll::Ready(Err(io::Error::other("the request is too large")));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.bytes_read += buf.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, http::header::CONNECTION, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::JoinHandle,
        time::timeout,
    };

    const PATIENCE: Duration = Duration::from_secs(10);
    /// Longer than any test waits: what ends a connection is not its deadline.
    const AGES: Duration = Duration::from_secs(600);

    struct Server(SocketAddr, JoinHandle<io::Result<()>>);

    impl Drop for Server {
        fn drop(&mut self) {
            self.1.abort();
        }
    }

    async fn server(connections_max: usize, life_max: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let limited = Limited::within(listener, connections_max, life_max);
        let answer = || async { ([(CONNECTION, "close")], "here") };
        let router = Router::new().route("/", get(answer));
        Server(address, tokio::spawn(axum::serve(limited, router).into_future()))
    }

    impl Server {
        async fn send(&self, bytes: &[u8]) -> TcpStream {
            let mut stream = TcpStream::connect(self.0).await.expect("connected");
            stream.write_all(bytes).await.expect("sent");
            stream
        }

        async fn answers(&self) {
            let answer = rest(self.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
        }
    }

    /// What comes until the server closes.
    async fn rest(mut stream: TcpStream) -> String {
        let mut bytes = Vec::new();
        // A reset is as good as an end.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("in time");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[tokio::test]
    async fn the_oldest_connection_makes_room_for_a_new_one() {
        let server = server(4, AGES).await;
        let oldest = server.send(b"GET / HT").await;
        let mut others = Vec::new();
        for _ in 0..3 {
            others.push(server.send(b"").await);
        }
        server.answers().await;
        assert_eq!(rest(oldest).await, "");
        for mut other in others {
            other.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
            assert!(rest(other).await.ends_with("here"));
        }
    }

    #[tokio::test]
    async fn a_client_that_asks_again_and_again_gets_one_answer_a_connection() {
        let server = server(4, AGES).await;
        let twice = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let answers = rest(server.send(twice).await).await;
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 1, "{answers}");
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_request_is_cut_off() {
        let server = server(4, Duration::from_millis(50)).await;
        let silent = server.send(b"GET / HT").await;
        assert_eq!(rest(silent).await, "");
    }

    #[tokio::test]
    async fn a_request_that_does_not_end_is_not_read_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let flood = tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("connected");
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        });
        let (mut stream, _) = Limited::within(listener, 1, AGES).accept().await;
        let (mut read, mut buffer) = (0, [0; 1024]);
        while let Ok(some) = timeout(PATIENCE, stream.read(&mut buffer)).await.expect("in time") {
            read += some;
        }
        assert!((REQUEST_BYTES_MAX..REQUEST_BYTES_MAX + buffer.len()).contains(&read), "{read}");
        drop(stream);
        timeout(PATIENCE, flood).await.expect("in time").expect("no panic");
    }
}
