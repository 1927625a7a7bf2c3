//! Bytes of the stream become rows in the batch that is being filled; no socket and no clock in it.
//!
//! Keeps the stream's order: what a transaction carried, where it ends, and that nothing comes from
//! before what is delivered. Malformed input is an error, never a panic. Fed by `stream`.

use std::{collections::HashMap, io, time::Duration};

use bytes::{Buf, BytesMut};

use super::{
    copy,
    handover::Giver,
    intake::{Intake, IntakeError},
    oversized::Oversized,
    pgoutput::{
        self, LogicalMessage, Message,
        frame::{Frame, XLOG_DATA_HEADER_BYTES, decode_frame},
    },
};
use crate::{
    core::{
        charset::Charset,
        landmark::{AnotherHistory, Landmark, Recognition},
        lsn::Lsn,
        position::{Position, RowPosition},
        row::{Malformed, Relation, Row},
    },
    postgres::error::in_brackets,
};

/// A WAL message above this announces nothing, and is not stored: ours take some 200 bytes, and any
/// role may write one of a gigabyte.
const MESSAGE_BYTES_MAX: usize = 1 << 10;
/// How much of such a message is kept: enough for flags, LSN and our prefix.
const MESSAGE_PREFIX_BYTES: usize = 64;
/// How much of another message above the size limit is kept.
const OVERSIZED_PREFIX_BYTES: usize = 64 << 10;

/// Why the stream ended. Nothing is lost: what was not stored is sent again after a reconnect.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection broke: reconnect.
    #[error("the replication connection broke")]
    Connection(#[from] io::Error),
    /// The server ended the stream: reconnect.
    #[error("the server ended the replication stream: {message}{}", in_brackets(.code))]
    Server {
        /// SQLSTATE, empty when the stream ended without an error.
        code: String,
        /// The server's words.
        message: String,
    },
    /// The server was silent: reconnect.
    #[error(
        "no word from the server for {} s: nothing is lost, and the next time the relay waits for longer, since a \
         server that decodes a large transaction says nothing meanwhile",
        .0.as_secs()
    )]
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
    /// What was delivered is not in this WAL: the volume was put back to an older state. Nothing more
    /// is confirmed.
    #[error(transparent)]
    AnotherHistory(#[from] AnotherHistory),
    /// A table doesn't fit (any more).
    #[error(transparent)]
    Intake(#[from] IntakeError),
}

/// A transaction whose Commit has not come yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenTransaction {
    pub(super) commit: Landmark,
    next_ordinal: u64,
}

impl OpenTransaction {
    /// The place of what comes next.
    fn next(&self) -> RowPosition {
        RowPosition { commit: self.commit.commit, ordinal: self.next_ordinal }
    }
}

/// What is known of a table.
enum Table {
    /// Not ours: nothing is kept of it, for anybody may make many.
    Foreign,
    Ours(Relation),
    /// Ours, as it was for rows that are delivered; it does not fit any more.
    Former(Relation),
}

/// What stands between bytes and batches.
pub(crate) struct Decoder<I> {
    pub(crate) giver: Giver,
    intake: I,
    /// By their OIDs.
    relations: HashMap<u32, Table>,
    pub(super) open: Option<OpenTransaction>,
    /// How far the stream has come, delivered or not.
    pub(super) reached: Position,
    /// Of what was delivered before.
    pub(crate) recognition: Recognition,
    /// Bytes of an oversized frame that are still to be discarded.
    skip_bytes: usize,
    /// A row above the size limit that is coming in.
    oversized: Option<Oversized>,
    /// Frames above this are not stored.
    frame_bytes_max: usize,
    /// Of names.
    charset: Charset,
}

/// What a run of frames asked for.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Heard {
    pub(super) reply_requested: bool,
    pub(super) wal_end: Option<Lsn>,
}

impl<I: Intake> Decoder<I> {
    /// Nothing is received past what `recognition` looks for; a frame above `frame_bytes_max` is not
    /// stored.
    pub(crate) fn new(
        giver: Giver,
        intake: I,
        recognition: Recognition,
        frame_bytes_max: usize,
    ) -> Self {
        Decoder {
            giver,
            intake,
            relations: HashMap::new(),
            open: None,
            reached: recognition.delivered(),
            recognition,
            skip_bytes: 0,
            oversized: None,
            frame_bytes_max,
            charset: Charset::AsItIs,
        }
    }

    /// The same, with names in the server's encoding.
    pub(crate) fn in_charset(self, charset: Charset) -> Self {
        Decoder { charset, ..self }
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
            if let Some(oversized) = &mut self.oversized {
                done += oversized.feed(unread.get(done..).unwrap_or_default())?;
                if !oversized.is_whole() {
                    break;
                }
            }
            if self.giver.filling.is_full() {
                break;
            }
            if let Some(oversized) = self.oversized.take() {
                let (insert, size_bytes) = oversized.into_parts();
                let insert = pgoutput::decode_large_insert(&insert)?;
                self.message(Message::Insert(insert), size_bytes)?;
                continue;
            }
            let rest = unread.get(done..).unwrap_or_default();
            let Some((tag, body_bytes)) = copy::header(rest)? else { break };
            let Some(kept_bytes) = self.kept_bytes(rest, body_bytes) else { break };
            let Some(body) = rest.get(copy::HEADER_BYTES..copy::HEADER_BYTES + kept_bytes) else {
                break;
            };
            self.frame(tag, body, body_bytes, &mut heard)?;
            done += copy::HEADER_BYTES + kept_bytes;
            let left = body_bytes - kept_bytes;
            match kept_bytes {
                XLOG_DATA_HEADER_BYTES if left > 0 => {
                    self.oversized = Some(Oversized::new(left, body_bytes, self.frame_bytes_max));
                }
                _ => self.skip_bytes = left,
            }
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
            // Its columns are read as they come.
            pgoutput::INSERT if is_wal_data && body_bytes > self.frame_bytes_max => {
                XLOG_DATA_HEADER_BYTES
            }
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
                        return self.cut(wal.data);
                    }
                    self.message(pgoutput::decode(wal.data, &self.charset)?, size_bytes)
                }
                Frame::Keepalive(keepalive) => {
                    heard.reply_requested |= keepalive.reply_requested;
                    heard.wal_end = Some(keepalive.wal_end);
                    // Past an open transaction this would lose its rows.
                    if self.open.is_none() {
                        self.recognition.reach(keepalive.wal_end)?;
                        self.reach(keepalive.wal_end, None)?;
                    }
                    Ok(())
                }
            },
            b'E' => {
                let (code, message) = copy::error_response(body);
                Err(StreamError::Server { code, message })
            }
            // CopyDone, and CommandComplete, with which a server that shuts down ends.
            b'c' | b'C' => Err(StreamError::Server {
                code: String::new(),
                message: "without an error, as it does when it shuts down".into(),
            }),
            b'N' | b'S' => Ok(()), // Notice, parameter status.
            other => Err(Malformed::byte("tag of a message", 0, other).into()),
        }
    }

    /// Only the beginning of the message was kept. It counts, and a row is refused by name.
    /// The beginning of a message that is not stored; an Insert's columns come afterwards.
    fn cut(&mut self, data: &[u8]) -> Result<(), StreamError> {
        if data.is_empty() {
            return Ok(());
        }
        if let Some((transactional, prefix)) = pgoutput::decode_message_prefix(data)? {
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
            Message::Begin(begin) => self.begin(Landmark {
                commit: begin.final_lsn,
                xid: begin.xid,
                time_us: begin.commit_time_us,
            })?,
            Message::Commit(commit) => {
                let open = self.open.take();
                if let Some(open) = &open {
                    self.intake.commit(open.next(), &mut self.giver.filling);
                }
                self.reach(commit.end_lsn, open.map(|open| open.commit))?;
            }
            Message::Relation(relation) => self.relation(relation)?,
            Message::Insert(insert) => {
                let (position, open) = self.next_position("Insert")?;
                let relation = match self.relations.get(&insert.relation_id) {
                    Some(Table::Ours(relation)) => relation,
                    Some(Table::Foreign) => return Ok(()),
                    Some(Table::Former(_)) if self.recognition.has(position) => return Ok(()),
                    Some(Table::Former(relation)) => {
                        self.intake.relation(relation)?;
                        return Err(Malformed::new("table of an Insert that did not fit", 1).into());
                    }
                    None => {
                        let what = "table of an Insert without its Relation";
                        return Err(Malformed::new(what, 1).into());
                    }
                };
                let row = Row {
                    position,
                    relation,
                    commit_time_us: open.commit.time_us,
                    writer: Some(open.commit.xid),
                    tuple: insert.tuple,
                    charset: &self.charset,
                    size_bytes,
                };
                self.intake.row(&row, &mut self.giver.filling);
            }
            Message::Message(LogicalMessage { transactional, prefix, content, .. }) => {
                let ours = prefix == b"outbox";
                if transactional {
                    let (position, open) = self.next_position("Message")?;
                    if ours {
                        self.intake.message(position, open.commit.xid, content);
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

    fn begin(&mut self, commit: Landmark) -> Result<(), StreamError> {
        if let Err(missing) = self.intake.reach(commit.commit) {
            self.reach(commit.commit, None)?;
            return Err(missing.into());
        }
        let sent = RowPosition { commit: commit.commit, ordinal: 0 };
        let reached = self.reached;
        let recognising = self.recognition.is_pending();
        self.recognition.begin(commit)?;
        // A transaction cut by a reconnect comes again from its Begin.
        let again = matches!(reached, Position::Row(row) if row.commit == commit.commit);
        if reached.covers(sent) && !again && !recognising {
            return Err(StreamError::Regression { reached, sent });
        }
        self.open = Some(OpenTransaction { commit, next_ordinal: 0 });
        Ok(())
    }

    /// One of before, whose rows are delivered, need not fit: a person may have followed a change.
    fn relation(&mut self, relation: Relation) -> Result<(), StreamError> {
        let next = self.open.map(|open| open.next());
        let (id, wanted) = (relation.id, self.intake.relation(&relation));
        let table = match wanted {
            Ok(true) => Table::Ours(relation),
            Ok(false) => Table::Foreign,
            Err(_) if next.is_some_and(|next| self.recognition.has(next)) => {
                Table::Former(relation)
            }
            Err(misfit) => return Err(misfit.into()),
        };
        self.relations.insert(id, table);
        Ok(())
    }

    /// The place of what was sent, and the transaction that it is in.
    fn next_position(
        &mut self,
        what: &'static str,
    ) -> Result<(RowPosition, OpenTransaction), Malformed> {
        let open = self.open.as_mut().ok_or(Malformed::new(what, 0))?;
        let position = open.next();
        open.next_ordinal += 1;
        Ok((position, *open))
    }

    /// Everything up to `end` has been received. A server that starts to stream may report less
    /// than where we asked it to start; that takes nothing back.
    fn reach(&mut self, end: Lsn, commit: Option<Landmark>) -> Result<(), StreamError> {
        let missing = self.intake.reach(end);
        let end = Position::UpTo(end);
        if end.includes(self.reached) && end != self.reached {
            self.reached = end;
            self.giver.filling.pass(end, commit);
        }
        Ok(missing?)
    }
}
