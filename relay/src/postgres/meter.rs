//! A line on which requests and answers are counted: whether one is due, and how long nothing has come.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use super::socket::Socket;

/// What is due on a line.
#[derive(Debug)]
pub(super) struct Meter {
    begun: Instant,
    counting: AtomicBool,
    asked: AtomicU64,
    answered: AtomicU64,
    /// In milliseconds since `begun`: when an answer became due, or its last byte came.
    moved_ms: AtomicU64,
}

impl Meter {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        let (begun, counting) = (Instant::now(), AtomicBool::new(false));
        Meter { begun, counting, asked: zero(), answered: zero(), moved_ms: zero() }
    }

    /// The start-up is over: from now on messages have tags.
    pub(super) fn begin(&self) {
        self.counting.store(true, Relaxed);
    }

    fn is_due(&self) -> bool {
        self.asked.load(Relaxed) > self.answered.load(Relaxed)
    }

    fn moved(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(now, Relaxed);
    }

    /// How long nothing has come although an answer is due.
    pub(super) fn silent_for(&self) -> Duration {
        if !self.is_due() {
            return Duration::ZERO;
        }
        let moved = Duration::from_millis(self.moved_ms.load(Relaxed));
        self.begun.elapsed().saturating_sub(moved)
    }
}

/// A line on which requests and answers are counted.
#[derive(Debug)]
pub(super) struct Metered {
    socket: Socket,
    meter: Arc<Meter>,
    outgoing: Frames,
    incoming: Frames,
}

impl Metered {
    pub(super) fn new(socket: Socket) -> (Self, Arc<Meter>) {
        let meter = Arc::new(Meter::new());
        let (outgoing, incoming) = (Frames::default(), Frames::default());
        (Metered { socket, meter: Arc::clone(&meter), outgoing, incoming }, meter)
    }

    /// Whether the line is encrypted.
    pub(super) fn is_tls(&self) -> bool {
        self.socket.is_tls()
    }
}

/// Where in the run of messages a stream of bytes is: each has a tag and the length of the rest.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; 5],
    header_bytes: usize,
    skip_bytes: usize,
}

impl Frames {
    /// Goes on by these bytes, and counts the messages that begin in them and whose tag is wanted.
    fn count(&mut self, bytes: &[u8], wanted: impl Fn(u8) -> bool) -> u64 {
        let (mut rest, mut found) = (bytes, 0);
        while !rest.is_empty() {
            if self.skip_bytes > 0 {
                let skipped = self.skip_bytes.min(rest.len());
                self.skip_bytes -= skipped;
                rest = rest.get(skipped..).unwrap_or_default();
                continue;
            }
            let missing = self.header.get_mut(self.header_bytes..).unwrap_or_default();
            let taken = missing.len().min(rest.len());
            let (now, later) = rest.split_at(taken);
            missing.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            rest = later;
            self.header_bytes += taken;
            if let ([tag, a, b, c, d], 5) = (self.header, self.header_bytes) {
                let length = u32::from_be_bytes([a, b, c, d]);
                // The length counts itself and not the tag.
                self.skip_bytes = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(4);
                self.header_bytes = 0;
                found += u64::from(wanted(tag));
            }
        }
        found
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.socket).poll_read(cx, buffer);
        let read = buffer.filled().get(before..).unwrap_or_default();
        if !read.is_empty() && this.meter.counting.load(Relaxed) {
            this.meter.moved();
            let answers = this.incoming.count(read, |tag| tag == b'Z'); // ReadyForQuery
            this.meter.answered.fetch_add(answers, Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.socket).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = &polled
            && this.meter.counting.load(Relaxed)
        {
            if !this.meter.is_due() {
                this.meter.moved();
            }
            let written = bytes.get(..*written).unwrap_or_default();
            let requests = this.outgoing.count(written, |tag| matches!(tag, b'Q' | b'S')); // Query, Sync
            this.meter.asked.fetch_add(requests, Relaxed);
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

impl TlsStream for Metered {
    fn channel_binding(&self) -> ChannelBinding {
        let bound = self.socket.channel_binding();
        bound.map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_their_bytes_are_cut() {
        // Two queries, a Sync, and one of which the body is still to come.
        let bytes = [
            &b"Q\0\0\0\x08abc\0"[..],
            b"P\0\0\0\x04",
            b"S\0\0\0\x04",
            b"Q\0\0\0\x06a\0",
            b"Q\0\0\0\xff",
        ]
        .concat();
        for cut in 1..=bytes.len() {
            let mut frames = Frames::default();
            let counted = bytes.chunks(cut).map(|run| frames.count(run, |tag| tag != b'P'));
            assert_eq!(counted.sum::<u64>(), 4, "cut at {cut}");
            assert_eq!(frames.skip_bytes, 251);
        }
    }

    #[tokio::test]
    async fn silence_counts_from_the_first_request_that_is_not_answered() {
        let mut meter = Meter::new();
        let minute = Duration::from_secs(60);
        meter.begun = meter.begun.checked_sub(minute).expect("the machine runs for longer");
        assert_eq!(meter.silent_for(), Duration::ZERO, "nothing is due");
        meter.asked.fetch_add(1, Relaxed);
        assert!(meter.silent_for() >= minute, "asked at the beginning");
        meter.moved();
        assert!(meter.silent_for() < minute, "something has come");
        meter.answered.fetch_add(1, Relaxed);
        assert_eq!(meter.silent_for(), Duration::ZERO);
    }
}
