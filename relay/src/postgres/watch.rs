//! Notices a line that has died without a word, whatever is being waited for.
//!
//! A server may work on one request for hours: making a slot behind open transactions, a sort, a
//! lock. So silence alone proves nothing. Where an answer is due and nothing comes for a while, the
//! server is asked over a line of its own what its process does: one that waits for our next request,
//! or is gone, has answered, and the answer is lost. Used by `sql` for every session, and by
//! `source::connect` for the commands before the stream.

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
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{
    SimpleQueryMessage,
    tls::{ChannelBinding, TlsStream},
};

use super::{conninfo::ConnectSettings, dial::Route, error::ConnectError, socket::Socket, sql};
use crate::core::secret::Secret;

/// Silence after which the server is asked.
pub(crate) const ASK_AFTER: Duration = Duration::from_secs(5);
/// A server that does not answer that within so long is gone.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Between the server's word that it has answered and the verdict that the answer is lost.
const UNDER_WAY_MAX: Duration = Duration::from_secs(1);

/// Asks a server, over a new line, what one of its processes does.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) settings: Arc<ConnectSettings>,
    pub(crate) route: Route,
    pub(crate) password: Option<Secret>,
    pub(crate) pid: i32,
}

impl Probe {
    /// Whether an answer may still come. A server that answers at all, but not this, leaves it open.
    pub(crate) async fn works(&self) -> bool {
        match timeout(ANSWER_MAX, self.ask()).await {
            Ok(Ok(waits_for_us)) => !waits_for_us,
            Ok(Err(error)) => error.sqlstate().is_some(),
            Err(_elapsed) => false,
        }
    }

    /// Whether the process is gone, or waits for a request.
    async fn ask(&self) -> Result<bool, ConnectError> {
        // Processes of the role that logged in are shown to that one, whatever it has become.
        let query = format!(
            "set role none; select not exists (select from pg_catalog.pg_stat_activity \
             where pid = {} and (wait_event = 'ClientRead') is not true)",
            self.pid
        );
        let (socket, _) = Metered::new(self.route.reopen().await?);
        let (client, connection) =
            sql::open(&self.settings, "outbox-relay", socket, self.password.as_ref()).await?;
        let answer = async { client.simple_query(&query).await.map_err(sql::connect_error) };
        let answer = tokio::select! {
            answer = answer => answer?,
            _ended = connection => return Err(ConnectError::transient("the connection has ended")),
        };
        let first = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten(),
            _ => None,
        });
        Ok(first == Some("t"))
    }
}

/// What is due on a line.
#[derive(Debug)]
pub(crate) struct Meter {
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
    pub(crate) fn begin(&self) {
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
    fn silent_for(&self) -> Duration {
        if !self.is_due() {
            return Duration::ZERO;
        }
        let moved = Duration::from_millis(self.moved_ms.load(Relaxed));
        self.begun.elapsed().saturating_sub(moved)
    }

    /// Returns when an answer is lost, with how long it was waited for. Cancel safe.
    pub(crate) async fn lost(&self, probe: &Probe) -> Duration {
        loop {
            let silent_for = self.silent_for();
            if silent_for < ASK_AFTER {
                sleep(ASK_AFTER - silent_for).await;
                continue;
            }
            if probe.works().await {
                sleep(ASK_AFTER).await;
                continue;
            }
            sleep(UNDER_WAY_MAX).await;
            if self.silent_for() >= silent_for {
                return self.silent_for();
            }
        }
    }
}

/// A line on which requests and answers are counted.
#[derive(Debug)]
pub(crate) struct Metered {
    socket: Socket,
    meter: Arc<Meter>,
    outgoing: Frames,
    incoming: Frames,
}

impl Metered {
    pub(crate) fn new(socket: Socket) -> (Self, Arc<Meter>) {
        let meter = Arc::new(Meter::new());
        let (outgoing, incoming) = (Frames::default(), Frames::default());
        (Metered { socket, meter: Arc::clone(&meter), outgoing, incoming }, meter)
    }

    /// Whether the line is encrypted.
    pub(crate) fn is_tls(&self) -> bool {
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
