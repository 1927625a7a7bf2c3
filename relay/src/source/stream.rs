//! Owns the replication socket: WAL in, standby status out.
//!
//! One task, which waits only for the socket, a timer, the pipeline's hand-over and the stop.
//! While a batch is being delivered it fills the next; when that is full it stops reading, so TCP
//! holds the walsender, and status updates continue, so `wal_sender_timeout` never fires.
//!
//! Reads coalesce without a timer: while the sink is busy there is no use in waking for a few
//! bytes, so the socket's low-water mark is raised; when the sink is free it is one byte again.
//! The server sends each row by itself, and waking a reader costs it more than decoding does.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    connect::Accepted,
    copy,
    decoder::{Decoder, StreamError},
    intake::{Intake, IntakeError},
    pgoutput::frame::encode_status,
};
use crate::{
    core::{lsn::Lsn, position::Confirmable, record::Batch},
    fault::{self, Point},
    postgres::socket::Socket,
    state::{Board, Phase},
};

/// Bytes that must have come in before a read while the sink is busy.
const COALESCED_READ_BYTES: usize = 128 << 10;
/// Reads coalesce for no longer than this after a batch was handed over.
const COALESCE_MAX: Duration = Duration::from_secs(1);
/// Spare room offered to each read.
const READ_BYTES: usize = 256 << 10;
/// The server is told the confirmed position, and the stream's health is looked at, at least this often.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// What a delivery confirms is told at once, but no more often than this: receipts, retention and
/// commits that wait for the relay wait for it, and each costs the walsender a wake-up.
const STATUS_MIN: Duration = Duration::from_millis(5);
/// Silence after which the server is asked for a reply.
const ASK_AFTER: Duration = Duration::from_secs(5);
/// Silence after which the connection is given up at first. A walsender that decodes a huge transaction
/// of other tables may be silent for long, so this is no shorter than PostgreSQL's own default;
/// an outage is noticed much earlier by the control session.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Progress is stored at most this often while no record moves it.
const IDLE_PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// A status message that can't be written for this long means a dead connection.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// The stream, from its first byte on.
pub struct Stream<I> {
    socket: Socket,
    unread: BytesMut,
    decoder: Decoder<I>,
    confirmed: watch::Receiver<Confirmable>,
    /// What was last told, and when.
    told: (Lsn, Instant),
    /// Where the newest snapshot lies that delivery has yet to pass.
    awaited: watch::Receiver<Lsn>,
    board: Board,
    last_heard: Instant,
    given_at: Instant,
    reply_due: bool,
    silence_max: Duration,
}

impl<I: Intake> Stream<I> {
    /// Takes over a connection. Nothing is confirmed while the decoder's recognition is under way, so
    /// that a slot that was put back with its volume stays where it is; a snapshot counts once the
    /// stream has passed where it is `awaited`.
    pub(crate) fn new(
        Accepted { socket, unread }: Accepted,
        decoder: Decoder<I>,
        confirmed: watch::Receiver<Confirmable>,
        awaited: watch::Receiver<Lsn>,
        board: Board,
    ) -> Self {
        let now = Instant::now();
        Stream {
            socket,
            unread,
            decoder,
            confirmed,
            told: (Lsn::ZERO, now),
            awaited,
            board,
            last_heard: now,
            given_at: now,
            reply_due: false,
            silence_max: SILENCE_MAX,
        }
    }

    /// Gives the connection up after so long a silence, instead of [`SILENCE_MAX`].
    #[must_use]
    pub(crate) fn patient(self, silence_max: Duration) -> Self {
        Stream { silence_max, ..self }
    }

    /// Streams until told to stop, or until the connection or the pipeline ends. Told to stop, it
    /// reads nothing more, waits for the delivery under way and confirms it before it returns.
    ///
    /// # Errors
    /// [`StreamError`]; each asks for a reconnect, after reconciling. What precedes a row that does
    /// not fit is delivered and confirmed by then.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StreamError> {
        match self.stream(stop).await {
            Ok(()) => self.finish().await,
            Err(StreamError::Intake(misfit)) => {
                if let IntakeError::DoesNotFit { what, remedy } = &misfit {
                    let reason = what.clone();
                    let remedy = format!(
                        "{remedy}; once all events before these rows are delivered, the relay says what else helps"
                    );
                    self.board.phase(Phase::Halted { reason, remedy });
                }
                // A person may have to correct it, and that may take long.
                if self.decoder.giver.until_sink_is_free().await {
                    self.give();
                }
                self.finish().await?;
                Err(misfit.into())
            }
            Err(error) => Err(error),
        }
    }

    async fn stream(&mut self, stop: CancellationToken) -> Result<(), StreamError> {
        let mut status = interval(STATUS_INTERVAL);
        status.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut low_water = 0;
        loop {
            self.decode()?;
            let untold = self.confirmable() > self.told.0;
            let tell_at = self.told.1 + STATUS_MIN;
            if self.reply_due || (untold && Instant::now() >= tell_at) {
                self.send_status(false).await?;
                continue;
            }
            if self.decoder.giver.sink_is_free() && self.is_due() {
                self.give();
                continue;
            }
            let wanted = if self.coalesces() { COALESCED_READ_BYTES } else { 1 };
            if wanted != low_water {
                self.socket.set_read_low_water(wanted)?;
                low_water = wanted;
            }
            let has_room = !self.decoder.giver.filling.is_full();
            self.make_room();
            tokio::select! {
                biased; // Stop first; then the timer, so that neither a full batch nor a busy
                        // socket can starve the status updates; the sink before more reads.
                () = stop.cancelled() => return Ok(()),
                _ = status.tick() => self.on_tick(has_room).await?,
                () = sleep_until(tell_at), if untold => {}
                // Cancel safe: the value is looked at again above.
                changed = self.confirmed.changed(), if !untold => {
                    if changed.is_err() {
                        return Ok(()); // As below.
                    }
                }
                // Cancel safe: a batch received is kept in the giver.
                alive = self.decoder.giver.until_sink_is_free(),
                    if !self.decoder.giver.sink_is_free() =>
                {
                    if !alive {
                        return Ok(()); // The pipeline has ended, and says why itself.
                    }
                }
                // Cancel safe: `read_buf` reads once or not at all.
                read = self.socket.read_buf(&mut self.unread), if has_room => {
                    self.on_read(read?)?;
                }
            }
        }
    }

    fn decode(&mut self) -> Result<(), StreamError> {
        let heard = self.decoder.decode(&mut self.unread)?;
        self.reply_due |= heard.reply_requested;
        if let Some(wal_end) = heard.wal_end {
            self.board.server(wal_end);
        }
        if let Some(open) = &self.decoder.open {
            self.board.received(open.commit.commit);
        } else {
            self.board.received(self.decoder.reached.resume_lsn());
        }
        Ok(())
    }

    /// Whether reads may wait for more bytes. A delivery that takes long is not load but an
    /// outage, and then a keepalive must be heard.
    fn coalesces(&self) -> bool {
        !self.decoder.giver.sink_is_free() && self.given_at.elapsed() < COALESCE_MAX
    }

    fn is_due(&self) -> bool {
        let giver = &self.decoder.giver;
        is_due(&giver.filling, giver.has_released(), self.given_at.elapsed())
    }

    fn give(&mut self) {
        self.given_at = Instant::now();
        self.decoder.giver.give();
        fault::point(Point::BatchGiven);
    }

    fn make_room(&mut self) {
        if self.unread.is_empty() && self.unread.capacity() > 4 * READ_BYTES {
            self.unread = BytesMut::new(); // An outsized row made it grow.
        }
        if self.unread.capacity() - self.unread.len() < READ_BYTES / 4 {
            self.unread.reserve(READ_BYTES);
        }
    }

    fn on_read(&mut self, read_bytes: usize) -> Result<(), StreamError> {
        if read_bytes == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.last_heard = Instant::now();
        self.board.heard(); // Also of a row that is not whole yet.
        Ok(())
    }

    async fn on_tick(&mut self, reading: bool) -> Result<(), StreamError> {
        if !reading {
            // Nothing is read while a full batch waits, so silence says nothing.
            self.last_heard = Instant::now();
        }
        let silence = self.last_heard.elapsed();
        if silence >= self.silence_max {
            return Err(StreamError::Silent(silence));
        }
        // A keepalive says how far the server has come without anything to send. By itself it sends
        // one only once half of its own time-out has passed.
        let reached = self.decoder.reached.resume_lsn();
        let pending = self.decoder.recognition.is_pending() || *self.awaited.borrow() > reached;
        let awaits = reading && self.decoder.open.is_none() && pending;
        self.send_status(awaits || silence >= ASK_AFTER).await
    }

    async fn send_status(&mut self, ask_for_reply: bool) -> Result<(), StreamError> {
        self.confirmed.mark_unchanged();
        let confirmed = self.confirmable();
        let message = encode_status(confirmed, confirmed, confirmed, 0, ask_for_reply);
        timeout(WRITE_MAX, async {
            self.socket.write_all(&message).await?;
            self.socket.flush().await
        })
        .await
        .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        fault::point(Point::StatusSent);
        self.reply_due = false;
        self.told = (confirmed, Instant::now());
        if confirmed > Lsn::ZERO {
            self.board.confirmed(confirmed);
        }
        Ok(())
    }

    /// What the server may be told by now.
    fn confirmable(&self) -> Lsn {
        match self.decoder.recognition.is_pending() {
            true => self.told.0,
            false => self.confirmed.borrow().lsn(),
        }
    }

    /// Lets the delivery under way end, confirms it, and says goodbye so that the server has read
    /// the confirmation before the connection closes.
    async fn finish(mut self) -> Result<(), StreamError> {
        let pending = self.decoder.recognition.is_pending();
        drop(self.decoder); // The pipeline takes nothing more, and ends after its delivery.
        while self.confirmed.changed().await.is_ok() {}
        fault::point(Point::Finishing);
        let confirmed = if pending { self.told.0 } else { self.confirmed.borrow().lsn() };
        let goodbye = async {
            let status = encode_status(confirmed, confirmed, confirmed, 0, false);
            self.socket.write_all(&status).await?;
            self.socket.write_all(copy::COPY_DONE).await?;
            self.socket.flush().await?;
            self.socket.set_read_low_water(1)?;
            // The walsender may be in the middle of a transaction; it ends the copy after that
            // or after the next message it sends. A closed socket is as good an answer.
            loop {
                self.unread.clear();
                self.unread.reserve(READ_BYTES);
                let read = self.socket.read_buf(&mut self.unread).await?;
                if read == 0 || self.unread.ends_with(b"I") {
                    return Ok::<(), io::Error>(());
                }
            }
        };
        if let Ok(Err(error)) = timeout(Duration::from_secs(1), goodbye).await {
            tracing::debug!(%error, "the goodbye to the server was cut short");
        }
        if !pending {
            self.board.confirmed(confirmed);
        }
        Ok(())
    }
}

/// Whether the batch is to be handed over, where the last one was `given` that long ago. Records are
/// due at once; a position alone at most once a second. So are announcements, which anybody may forge,
/// unless the last one was true (`released`), for a release of many comes in many pieces, or there are so many that
/// what comes behind them would have to wait.
fn is_due(batch: &Batch, released: bool, given: Duration) -> bool {
    let announced = !batch.announced.is_empty();
    !batch.is_empty()
        || (announced && (released || batch.is_full()))
        || ((announced || batch.position.is_some()) && given >= IDLE_PROGRESS_INTERVAL)
}

#[cfg(test)]
mod tests;
