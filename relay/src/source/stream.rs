//! Owns the replication socket: WAL in, standby status out.
//!
//! One task, which waits only for the socket, a timer, the pipeline's hand-over and the stop.
//! While a batch is being delivered it fills the next; when that is full it stops reading, so TCP
//! holds the walsender, and status updates go on, so `wal_sender_timeout` never fires.
//!
//! Reads coalesce without a timer: while the sink is busy there is no use in waking for a few
//! bytes, so the socket's low-water mark is raised; when the sink is free it is one byte again.
//! The server sends each row by itself, and waking a reader costs it more than decoding does.

use std::{collections::HashMap, io, time::Duration};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    copy,
    handover::Giver,
    intake::{Intake, IntakeError},
    pgoutput::{
        self, LogicalMessage, Message,
        frame::{Frame, XLOG_DATA_HEADER_BYTES, decode_frame, encode_status},
    },
};
use crate::{
    admin::{Board, Phase},
    charset::Charset,
    fault::{self, Point},
    lsn::Lsn,
    position::{Confirmable, Position, RowPosition},
    postgres::socket::Socket,
    row::{Malformed, Relation, Row},
};

/// Bytes that must have come in before a read while the sink is busy.
const COALESCED_READ_BYTES: usize = 128 << 10;
/// Reads coalesce for no longer than this after a batch was handed over.
const COALESCE_MAX: Duration = Duration::from_secs(1);
/// Spare room offered to each read.
const READ_BYTES: usize = 256 << 10;
/// A WAL message above this announces nothing, and is not stored: ours take some 200 bytes, and any
/// role may write one of a gigabyte.
const MESSAGE_BYTES_MAX: usize = 1 << 10;
/// How much of such a message is kept: enough for flags, LSN and our prefix.
const MESSAGE_PREFIX_BYTES: usize = 64;
/// How much of a row above the size limit is kept, to read its id, topic and key.
const OVERSIZED_PREFIX_BYTES: usize = 64 << 10;
/// The server is told the confirmed position, and the stream's health is looked at, at least this often.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// What a delivery confirms is told at once, but no more often than this: receipts, retention and
/// commits that wait for the relay wait for it, and each costs the walsender a wake-up.
const STATUS_MIN: Duration = Duration::from_millis(5);
/// Silence after which the server is asked for a reply.
const ASK_AFTER: Duration = Duration::from_secs(5);
/// Silence after which the connection is given up. A walsender that decodes a huge transaction
/// of other tables may be silent for long, so this is no shorter than PostgreSQL's own default;
/// an outage is noticed much earlier by the control session.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Progress is stored at most this often while no record moves it.
const IDLE_PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// A status message that can't be written for this long means a dead connection.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// Why the stream ended. Nothing is lost: what was not stored is sent again after a reconnect.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection broke: reconnect.
    #[error("the replication connection broke")]
    Connection(#[from] io::Error),
    /// The server ended the stream: reconnect.
    #[error("the server ended the replication stream: {message} (SQLSTATE {code})")]
    Server {
        /// SQLSTATE, empty when the stream ended without an error.
        code: String,
        /// The server's words.
        message: String,
    },
    /// The server was silent: reconnect.
    #[error("no word from the server for {} s", .0.as_secs())]
    Silent(Duration),
    /// The bytes don't follow the protocol: reconnect, and report it.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The stream went backwards; nothing after it can be trusted: reconcile.
    #[error("the replication stream went back from {reached} to {sent}")]
    Regression {
        /// Where the relay is.
        reached: Position,
        /// What came.
        sent: RowPosition,
    },
    /// A table doesn't fit (any more).
    #[error(transparent)]
    Intake(#[from] IntakeError),
}

/// A transaction whose Commit has not come yet.
#[derive(Clone, Copy, Debug)]
struct OpenTransaction {
    commit: Lsn,
    commit_time_us: i64,
    xid: u32,
    next_ordinal: u64,
}

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
}

/// What stands between bytes and batches; no socket and no clock in it.
pub(crate) struct Decoder<I> {
    pub(crate) giver: Giver,
    intake: I,
    /// Of tables that are not ours nothing is kept: anybody may make many.
    relations: HashMap<u32, Option<Relation>>,
    open: Option<OpenTransaction>,
    /// How far the stream has come, delivered or not.
    reached: Position,
    /// Bytes of an oversized frame that are still to be thrown away.
    skip_bytes: usize,
    /// Frames above this are not stored.
    frame_bytes_max: usize,
    /// Of names.
    charset: Charset,
}

/// What a run of frames asked for.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Heard {
    reply_requested: bool,
    wal_end: Option<Lsn>,
}

impl<I: Intake> Stream<I> {
    /// Takes over a connection on which `START_REPLICATION` was accepted. `unread` are bytes that
    /// were read past that answer; `from` is where streaming starts; `record_bytes_max` bounds
    /// a row in memory; a snapshot counts once the stream has passed where it is `awaited`.
    #[expect(clippy::too_many_arguments, reason = "each is a different part, joined only here")]
    pub fn new(
        socket: Socket,
        unread: BytesMut,
        giver: Giver,
        intake: I,
        from: Position,
        record_bytes_max: usize,
        confirmed: watch::Receiver<Confirmable>,
        awaited: watch::Receiver<Lsn>,
        board: Board,
    ) -> Self {
        let decoder = Decoder::new(giver, intake, from, record_bytes_max);
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
        }
    }

    /// The same, with names in the server's encoding.
    #[must_use]
    pub fn in_charset(mut self, charset: Charset) -> Self {
        self.decoder.charset = charset;
        self
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
                    let (reason, remedy) = (what.clone(), remedy.clone());
                    self.board.phase(Phase::Halted { reason, remedy });
                }
                // A person may have to mend it, and that may take long.
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
            let untold = self.confirmed.borrow().lsn() > self.told.0;
            let tell_at = self.told.1 + STATUS_MIN;
            if self.reply_due || (untold && Instant::now() >= tell_at) {
                self.send_status(false).await?;
                continue;
            }
            if self.decoder.giver.sink_is_free() && self.batch_is_due() {
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
            self.board.received(open.commit);
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

    /// Records are due at once; a position alone at most once a second, and so are announcements, which
    /// anybody may forge.
    fn batch_is_due(&self) -> bool {
        let batch = &self.decoder.giver.filling;
        !batch.is_empty()
            || ((batch.position.is_some() || !batch.announced.is_empty())
                && self.given_at.elapsed() >= IDLE_PROGRESS_INTERVAL)
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
        Ok(())
    }

    async fn on_tick(&mut self, reading: bool) -> Result<(), StreamError> {
        if !reading {
            // Nothing is read while a full batch waits, so silence says nothing.
            self.last_heard = Instant::now();
        }
        let silence = self.last_heard.elapsed();
        if silence >= SILENCE_MAX {
            return Err(StreamError::Silent(silence));
        }
        // A keepalive says how far the server has come without anything to send. By itself it sends
        // one only once half of its own time-out has passed.
        let reached = self.decoder.reached.resume_lsn();
        let awaits = reading && self.decoder.open.is_none() && *self.awaited.borrow() > reached;
        self.send_status(awaits || silence >= ASK_AFTER).await
    }

    async fn send_status(&mut self, ask_for_reply: bool) -> Result<(), StreamError> {
        let confirmed = self.confirmed.borrow_and_update().lsn();
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
        self.board.confirmed(confirmed);
        Ok(())
    }

    /// Lets the delivery under way end, confirms it, and says goodbye so that the server has read
    /// the confirmation before the connection closes.
    async fn finish(mut self) -> Result<(), StreamError> {
        drop(self.decoder); // The pipeline takes nothing more, and ends after its delivery.
        while self.confirmed.changed().await.is_ok() {}
        fault::point(Point::Finishing);
        let confirmed = self.confirmed.borrow().lsn();
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
        self.board.confirmed(confirmed);
        Ok(())
    }
}

impl<I: Intake> Decoder<I> {
    /// Nothing is received past `from`; a frame above `frame_bytes_max` is not stored.
    pub(crate) fn new(giver: Giver, intake: I, from: Position, frame_bytes_max: usize) -> Self {
        Decoder {
            giver,
            intake,
            relations: HashMap::new(),
            open: None,
            reached: from,
            skip_bytes: 0,
            frame_bytes_max,
            charset: Charset::AsItIs,
        }
    }

    /// Decodes whole frames until the batch is full or the bytes end.
    pub(crate) fn decode(&mut self, unread: &mut BytesMut) -> Result<Heard, StreamError> {
        let mut heard = Heard::default();
        let mut done = 0;
        loop {
            if self.skip_bytes > 0 {
                let skipped = self.skip_bytes.min(unread.len() - done);
                done += skipped;
                self.skip_bytes -= skipped;
            }
            if self.giver.filling.is_full() {
                break;
            }
            let rest = unread.get(done..).unwrap_or_default();
            let Some((tag, body_bytes)) = copy::header(rest)? else { break };
            let Some(kept_bytes) = self.kept_bytes(rest, body_bytes) else { break };
            let Some(body) = rest.get(copy::HEADER_BYTES..copy::HEADER_BYTES + kept_bytes) else {
                break;
            };
            self.frame(tag, body, body_bytes, &mut heard)?;
            self.skip_bytes = body_bytes - kept_bytes;
            done += copy::HEADER_BYTES + kept_bytes;
        }
        unread.advance(done);
        Ok(heard)
    }

    /// How much of the frame at the beginning of `rest` is stored; `None` while too little of it is
    /// there to tell.
    fn kept_bytes(&self, rest: &[u8], body_bytes: usize) -> Option<usize> {
        const TAG_AT: usize = copy::HEADER_BYTES + XLOG_DATA_HEADER_BYTES;
        if body_bytes <= MESSAGE_BYTES_MAX {
            return Some(body_bytes);
        }
        let is_wal_data = *rest.get(copy::HEADER_BYTES)? == b'w';
        Some(match *rest.get(TAG_AT)? {
            b'M' if is_wal_data => MESSAGE_PREFIX_BYTES,
            _ if body_bytes > self.frame_bytes_max => OVERSIZED_PREFIX_BYTES.min(body_bytes),
            _ => body_bytes,
        })
    }

    fn frame(
        &mut self,
        tag: u8,
        body: &[u8],
        size_bytes: usize,
        heard: &mut Heard,
    ) -> Result<(), StreamError> {
        match tag {
            b'd' => match decode_frame(body)? {
                Frame::XLogData(wal) => {
                    heard.wal_end = Some(wal.wal_end);
                    if body.len() < size_bytes {
                        return self.oversized(wal.data, size_bytes);
                    }
                    self.message(pgoutput::decode(wal.data, &self.charset)?, size_bytes)
                }
                Frame::Keepalive(keepalive) => {
                    heard.reply_requested |= keepalive.reply_requested;
                    heard.wal_end = Some(keepalive.wal_end);
                    // Past an open transaction this would lose its rows.
                    if self.open.is_none() {
                        self.reach(keepalive.wal_end);
                    }
                    Ok(())
                }
            },
            b'E' => {
                let (code, message) = copy::error_response(body);
                Err(StreamError::Server { code, message })
            }
            b'c' => Err(StreamError::Server {
                code: String::new(),
                message: "the stream was ended".into(),
            }),
            b'N' | b'S' => Ok(()), // Notice, parameter status.
            other => Err(Malformed::byte("tag of a message", 0, other).into()),
        }
    }

    /// Only the beginning of the message was kept. It counts, and a row is refused by name.
    fn oversized(&mut self, data: &[u8], size_bytes: usize) -> Result<(), StreamError> {
        if let Some(insert) = pgoutput::decode_insert_prefix(data)? {
            self.message(Message::Insert(insert), size_bytes)?;
        } else if let Some((transactional, prefix)) = pgoutput::decode_message_prefix(data)? {
            if transactional {
                self.next_position("Message")?;
            }
            if prefix.starts_with(b"outbox\0") {
                self.intake.ignored("too_large");
            }
        }
        Ok(())
    }

    fn message(&mut self, message: Message<'_>, size_bytes: usize) -> Result<(), StreamError> {
        match message {
            Message::Begin(begin) => {
                let sent = RowPosition { commit: begin.final_lsn, ordinal: 0 };
                let reached = self.reached;
                // A transaction cut by a reconnect comes again from its Begin.
                let again = matches!(reached, Position::Row(row) if row.commit == begin.final_lsn);
                if reached.covers(sent) && !again {
                    return Err(StreamError::Regression { reached, sent });
                }
                self.open = Some(OpenTransaction {
                    commit: begin.final_lsn,
                    commit_time_us: begin.commit_time_us,
                    xid: begin.xid,
                    next_ordinal: 0,
                });
            }
            Message::Commit(commit) => {
                if let Some(open) = self.open.take() {
                    let end = RowPosition { commit: open.commit, ordinal: open.next_ordinal };
                    self.intake.commit(end, &mut self.giver.filling);
                }
                self.reach(commit.end_lsn);
            }
            Message::Relation(relation) => {
                let mapped = self.intake.relation(&relation)?;
                self.relations.insert(relation.id, mapped.then_some(relation));
            }
            Message::Insert(insert) => {
                let (position, open) = self.next_position("Insert")?;
                let relation = self
                    .relations
                    .get(&insert.relation_id)
                    .ok_or(Malformed::new("table of an Insert without its Relation", 1))?;
                let Some(relation) = relation else { return Ok(()) };
                let tuple = insert.tuple;
                let row = Row {
                    position,
                    relation,
                    commit_time_us: open.commit_time_us,
                    writer: Some(open.xid),
                    tuple,
                    charset: &self.charset,
                    size_bytes,
                };
                self.intake.row(&row, &mut self.giver.filling);
            }
            Message::Message(LogicalMessage { transactional, prefix, content, .. }) => {
                let ours = prefix == b"outbox";
                if transactional {
                    let (position, OpenTransaction { xid, .. }) = self.next_position("Message")?;
                    if ours {
                        self.intake.message(position, xid, content);
                    }
                } else if ours {
                    self.intake.ignored("not_transactional");
                }
            }
            Message::Origin
            | Message::Type
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Truncate => {}
        }
        Ok(())
    }

    /// The place of what was sent, and the transaction that it is in.
    fn next_position(
        &mut self,
        what: &'static str,
    ) -> Result<(RowPosition, OpenTransaction), Malformed> {
        let open = self.open.as_mut().ok_or(Malformed::new(what, 0))?;
        let position = RowPosition { commit: open.commit, ordinal: open.next_ordinal };
        open.next_ordinal += 1;
        Ok((position, *open))
    }

    /// Everything up to `end` has been received. A server that starts to stream may report less
    /// than where we asked it to start; that takes nothing back.
    fn reach(&mut self, end: Lsn) {
        let end = Position::UpTo(end);
        if end.includes(self.reached) && end != self.reached {
            self.reached = end;
            self.giver.filling.position = Some(end);
        }
    }
}
