//! A listener that slow clients can't pile up on: so many connections at once, and each is closed
//! when it has been silent for a while.

use std::{
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
    time::{Instant, Sleep},
};

/// More than the probes, scrapers and open pages of one relay.
const CONNECTIONS_MAX: usize = 64;
/// A connection that was written nothing for so long is closed: an idle one, or one that sends
/// its request byte by byte.
const SILENCE_MAX: Duration = Duration::from_secs(20);

pub(super) struct Limited {
    listener: TcpListener,
    free: Arc<Semaphore>,
    silence_max: Duration,
}

impl Limited {
    pub(super) fn new(listener: TcpListener) -> Self {
        Limited::within(listener, CONNECTIONS_MAX, SILENCE_MAX)
    }

    fn within(listener: TcpListener, connections_max: usize, silence_max: Duration) -> Self {
        Limited { listener, free: Arc::new(Semaphore::new(connections_max)), silence_max }
    }
}

impl Listener for Limited {
    type Io = LimitedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (LimitedStream, SocketAddr) {
        let free = Arc::clone(&self.free);
        let permit = free.acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let silence_max = self.silence_max;
                    let deadline = Box::pin(tokio::time::sleep(silence_max));
                    let stream = LimitedStream { stream, deadline, silence_max, _permit: permit };
                    return (stream, peer);
                }
                // Too many open files, for one: trying again at once would only burn the CPU.
                Err(error) => {
                    tracing::warn!(%error, "the admin address can't accept a connection");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with a deadline that every write moves.
pub(super) struct LimitedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    silence_max: Duration,
    _permit: OwnedSemaphorePermit,
}

impl LimitedStream {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for LimitedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        let deadline = Instant::now() + self.silence_max;
        self.deadline.as_mut().reset(deadline);
        Poll::Ready(Ok(written))
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
    use axum::{Router, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    #[tokio::test]
    async fn silent_clients_are_cut_off_and_make_room_for_the_next_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let limited = Limited::within(listener, 1, Duration::from_millis(50));
        let router = Router::new().route("/", get(|| async { "here" }));
        let server = tokio::spawn(axum::serve(limited, router).into_future());
        let mut slow = TcpStream::connect(address).await.expect("connected");
        slow.write_all(b"GET / HT").await.expect("sent");
        let mut next = TcpStream::connect(address).await.expect("connected");
        next.write_all(b"GET / HTTP/1.0\r\n\r\n").await.expect("sent");

        let patience = Duration::from_secs(10);
        let mut answer = String::new();
        timeout(patience, next.read_to_string(&mut answer)).await.expect("in time").expect("read");
        assert!(answer.ends_with("here"), "{answer}");
        let mut rest = Vec::new();
        let closed = timeout(patience, slow.read_to_end(&mut rest)).await.expect("in time");
        assert!(closed.is_err() || !rest.starts_with(b"HTTP/1.1 200"));
        server.abort();
    }
}
