//! A listener that no client can keep from the others: one request a connection, so many bytes and
//! so much time for it, and the oldest connection makes room for a new one.
//!
//! A probe must be answered whatever else is connected: silent clients, slow ones, and those that
//! ask again and again. Nothing here waits for a client that gives nothing.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    net::{Shutdown, SocketAddr},
    os::fd::AsFd as _,
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::serve::Listener;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// More than the probes, scrapers and open pages of one relay.
const CONNECTIONS_MAX: usize = 256;
/// From the connection to the end of its answer: many times what a scraper far away needs.
const LIFE_MAX: Duration = Duration::from_secs(10);
/// A request's line and headers, to within one read; nothing here takes a body.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// The end of a request's headers.
const REQUEST_END: &[u8] = b"\r\n\r\n";
/// A client has so long to ask before it makes room for others: they connect and ask in one go, but a
/// busy machine may let some time pass between the two.
const ASK_MIN: Duration = Duration::from_millis(100);
/// Whoever has asked is answered at once. One that is still here after so long does not take its
/// answer, and makes room as well.
const ANSWER_MAX: Duration = Duration::from_secs(1);

pub(super) struct Limited {
    listener: TcpListener,
    free: Arc<Semaphore>,
    life_max: Duration,
    /// Oldest first; of those that have ended some are still here.
    connections: VecDeque<Weak<Connection>>,
}

impl Limited {
    pub(super) fn new(listener: TcpListener) -> Self {
        Limited::within(listener, CONNECTIONS_MAX, LIFE_MAX)
    }

    fn within(listener: TcpListener, connections_max: usize, life_max: Duration) -> Self {
        let free = Arc::new(Semaphore::new(connections_max));
        Limited { listener, free, life_max, connections: VecDeque::with_capacity(connections_max) }
    }

    /// A place for a new connection: a free one, or that of the oldest whose client keeps us waiting.
    async fn place(&mut self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                return permit;
            }
            self.connections.retain(|connection| connection.strong_count() > 0);
            let now = Instant::now();
            let live = self.connections.iter().filter_map(Weak::upgrade);
            let mut live = live.filter(|connection| !connection.end.is_cancelled());
            if let Some(overdue) = live.find(|connection| connection.is_overdue(now)) {
                overdue.end.cancel();
            }
            // A place is free as soon as one has ended, be it by itself.
            let freed = timeout(ASK_MIN / 4, Arc::clone(&self.free).acquire_owned()).await;
            if let Ok(permit) = freed {
                return permit.expect("the semaphore is never closed");
            }
        }
    }
}

/// What the listener and the stream of a connection share.
struct Connection {
    stream: TcpStream,
    since: Instant,
    /// Since when its whole request is here.
    asked: OnceLock<Instant>,
    /// Ends it.
    end: CancellationToken,
}

impl Connection {
    /// Whether it is its client's fault that it is still here.
    fn is_overdue(&self, now: Instant) -> bool {
        let over = |since: Instant, max| now.saturating_duration_since(since) >= max;
        match self.asked() {
            Some(asked) => over(asked, ANSWER_MAX),
            None => over(self.since, ASK_MIN),
        }
    }

    /// Since when it waits for its answer. The kernel has its request the moment it came, however late
    /// this process gets to read it.
    fn asked(&self) -> Option<Instant> {
        if self.asked.get().is_none() {
            let mut bytes = [0; 4 << 10];
            let stream = self.stream.as_fd().try_clone_to_owned().map(std::net::TcpStream::from);
            let unread = stream.and_then(|stream| stream.peek(&mut bytes)).unwrap_or(0);
            self.saw(bytes.get(..unread).unwrap_or_default());
        }
        self.asked.get().copied()
    }

    fn saw(&self, bytes: &[u8]) {
        if bytes.windows(REQUEST_END.len()).any(|end| end == REQUEST_END) {
            let _ = self.asked.set(Instant::now()); // If it is set, it was before.
        }
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
                    let connection = Arc::new(Connection {
                        stream,
                        since: Instant::now(),
                        asked: OnceLock::new(),
                        end: CancellationToken::new(),
                    });
                    self.connections.push_back(Arc::downgrade(&connection));
                    return (LimitedStream::new(connection, self.life_max, permit), peer);
                }
                // Too many open files, for one: trying again at once would only burn the CPU.
                Err(error) => {
                    let remedy = (error.raw_os_error() == Some(libc::EMFILE)).then_some(
                        "this process has as many files open as it may: raise its limit (`ulimit -n`)",
                    );
                    tracing::warn!(%error, remedy, "the admin address can't accept a connection");
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
    connection: Arc<Connection>,
    deadline: Pin<Box<Sleep>>,
    evicted: Pin<Box<WaitForCancellationFutureOwned>>,
    bytes_read: usize,
    _permit: OwnedSemaphorePermit,
}

impl LimitedStream {
    fn new(connection: Arc<Connection>, life_max: Duration, permit: OwnedSemaphorePermit) -> Self {
        LimitedStream {
            deadline: Box::pin(sleep(life_max)),
            evicted: Box::pin(connection.end.clone().cancelled_owned()),
            connection,
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
        loop {
            ready!(self.connection.stream.poll_read_ready(cx))?;
            match self.connection.stream.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(read) => {
                    self.connection.saw(buf.initialize_unfilled().get(..read).unwrap_or_default());
                    buf.advance(read);
                    self.bytes_read += read;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        loop {
            ready!(self.connection.stream.poll_write_ready(cx))?;
            match self.connection.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // Nothing is held back here.
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.connection.stream).shutdown(Shutdown::Write))
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
    async fn who_has_asked_is_answered_before_it_makes_room_however_many_come_after_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut limited = Limited::within(listener, 2, AGES);
        let mut clients = Vec::new();
        let mut accepted = Vec::new();
        // No one reads here: only the kernel knows that the first one has asked.
        for sent in ["GET /livez HTTP/1.1\r\n\r\n", "GET / HT"] {
            let mut client = TcpStream::connect(address).await.expect("connected");
            client.write_all(sent.as_bytes()).await.expect("sent");
            clients.push(client);
            accepted.push(limited.accept().await.0);
        }
        clients.push(TcpStream::connect(address).await.expect("connected"));
        let silent = accepted.pop().expect("two were accepted");
        let ended = silent.connection.end.clone();
        let makes_room = tokio::spawn(async move {
            ended.cancelled().await;
            drop(silent);
        });
        accepted.push(timeout(PATIENCE, limited.accept()).await.expect("in time").0);
        makes_room.await.expect("no panic");
        let first = accepted.first().expect("it is kept");
        assert!(!first.connection.end.is_cancelled(), "it has asked, and is not answered yet");
        drop(clients);
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
