//! The server: its WAL, what it sends of it, and the clients that write it.

use rand::Rng;

use super::world::{Event, World};
use crate::{
    core::{
        lsn::Lsn,
        position::RowPosition,
        row::{Column, Relation, Value},
    },
    dead_letter::Message,
    source::pgoutput::encode,
};

const TABLE: u32 = 7;
const LANES: usize = 4;
/// Milliseconds between two transactions, for the clock.
const TICK_US: i64 = 50_000;

/// A committed transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    /// Start of its commit record.
    pub(super) commit: Lsn,
    /// End of it.
    pub(super) end: Lsn,
    /// Begin, rows and messages, Commit, each as the plugin's message.
    pub(super) messages: Vec<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) wal: Vec<Transaction>,
    pub(super) confirmed: Lsn,
    /// The session that holds the leader's lock.
    pub(super) leader: Option<u64>,
    pub(super) sessions: u64,
    /// Commits that announce a release, and were not lost.
    announcements: Vec<Lsn>,
    first: Lsn,
}

impl Server {
    pub(super) fn new() -> Self {
        let first = Lsn::new(1000);
        Server {
            wal: Vec::new(),
            confirmed: first,
            leader: None,
            sessions: 0,
            announcements: Vec::new(),
            first,
        }
    }

    pub(super) fn end(&self) -> Lsn {
        self.wal.last().map_or(self.first, |last| last.end)
    }

    /// Index of the first transaction that a stream from `from` sends.
    pub(super) fn first_after(&self, from: Lsn) -> usize {
        let start = from.max(self.confirmed);
        self.wal.partition_point(|transaction| transaction.commit < start)
    }
}

/// The table of our migration.
pub(super) fn relation() -> Vec<u8> {
    let column = |(name, type_oid): (&str, u32)| Column { name: name.into(), type_oid };
    let columns = [
        ("id", 2950),
        ("topic", 25),
        ("key", 25),
        ("type", 25),
        ("payload", 3802),
        ("headers", 3802),
        ("partition", 23),
        ("created_at", 1184),
        ("xid", 5069),
    ]
    .map(column);
    encode::relation(&Relation {
        id: TABLE,
        schema: "outbox".into(),
        table: "events".into(),
        columns: columns.into(),
    })
}

/// As CopyData carries it.
pub(super) fn frame(tag: u8, lsn: Lsn, message: &[u8], out: &mut Vec<u8>) {
    let mut body = vec![tag];
    body.extend(lsn.get().to_be_bytes());
    if tag == b'w' {
        body.extend(lsn.get().to_be_bytes());
    }
    body.extend(0_i64.to_be_bytes());
    body.extend(message);
    out.push(b'd');
    out.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    out.extend(body);
}

pub(super) fn uuid(id: usize) -> String {
    format!("00000000-0000-7000-8000-{id:012x}")
}

impl World {
    /// Somebody commits a few events, or changes of other tables.
    pub(super) fn write(&mut self) {
        let count = match self.random.random_range(0..8) {
            0 => 0,
            1 => self.random.random_range(5..12),
            _ => self.random.random_range(1..4),
        };
        let (commit, end) = self.next_commit();
        let mut messages = Vec::new();
        for _ in 0..count {
            let ordinal = messages.len() as u64;
            messages.push(self.event(RowPosition { commit, ordinal }));
            if self.once_in(10) {
                messages.push(self.moved());
            }
        }
        self.commit(commit, end, messages);
    }

    /// A transaction that announces a release, and sometimes has rows too.
    pub(super) fn announce(&mut self, release: &str) {
        let (commit, end) = self.next_commit();
        let mut messages = Vec::new();
        if self.once_in(4) {
            messages.push(self.event(RowPosition { commit, ordinal: 0 }));
        }
        let message = Message { relay: "sim".into(), release: release.parse().unwrap() };
        let content = serde_json::to_vec(&message).unwrap();
        messages.push(encode::message(true, commit.get(), b"outbox", &content));
        self.commit(commit, end, messages);
        self.server.announcements.push(commit);
    }

    /// As with a slot that is recreated: what was announced and is not confirmed is not in its stream.
    pub(super) fn lose_announcements(&mut self) {
        let confirmed = self.server.confirmed;
        for commit in std::mem::take(&mut self.server.announcements) {
            if commit < confirmed {
                continue;
            }
            self.tell(|| format!("the announcement at {commit} is lost"));
            let at = self.server.wal.partition_point(|transaction| transaction.commit < commit);
            let messages = &mut self.server.wal[at].messages;
            let announcement = messages.len() - 2; // Before the Commit.
            messages[announcement] = encode::message(true, commit.get(), b"other", b"");
        }
    }

    /// Often the next commit record starts where the last one ended.
    fn next_commit(&mut self) -> (Lsn, Lsn) {
        let gap = if self.once_in(3) { 0 } else { self.random.random_range(1..50) };
        let commit = self.server.end().get() + gap;
        (Lsn::new(commit), Lsn::new(commit + self.random.random_range(1..9)))
    }

    fn commit(&mut self, commit: Lsn, end: Lsn, rows: Vec<Vec<u8>>) {
        self.tell(|| format!("commit at {commit}, end {end}, {} messages", rows.len()));
        let time_us = i64::try_from(self.server.wal.len()).unwrap() * TICK_US;
        let mut messages = vec![encode::begin(commit.get(), time_us, self.xid())];
        messages.extend(rows);
        messages.push(encode::commit(commit.get(), end.get(), time_us));
        self.server.wal.push(Transaction { commit, end, messages });
    }

    /// Of the transaction that is written.
    fn xid(&self) -> u32 {
        u32::try_from(self.server.wal.len()).unwrap() + 770
    }

    /// A row of an earlier transaction comes into another partition.
    fn moved(&mut self) -> Vec<u8> {
        let id = self.random.random_range(0..self.events.len());
        let lane = self.events[id].lane;
        self.tell(|| format!("event {id} is moved"));
        row(id, lane, false, self.xid() - 1)
    }

    fn event(&mut self, position: RowPosition) -> Vec<u8> {
        let id = self.events.len();
        let lane = (!self.once_in(8)).then(|| self.random.random_range(0..LANES));
        let lanes = lane.map(|lane| self.lanes.entry(lane).or_default());
        let sequence = lanes.map_or(0, |events| {
            events.push(id);
            events.len() as u64 - 1
        });
        let bad = self.faults && self.once_in(12);
        let unfit = self.faults && self.once_in(40);
        self.tell(|| format!("event {id} at {position}, lane {lane:?}, bad {bad}, unfit {unfit}"));
        self.events.push(Event {
            lane,
            sequence,
            position,
            delivered: false,
            discarded: false,
            refused: false,
            bad,
            was_bad: bad || unfit,
        });
        row(id, lane, unfit, self.xid())
    }
}

/// Of lane 0 the broker can tell which record it refuses.
fn row(id: usize, lane: Option<usize>, unfit: bool, xid: u32) -> Vec<u8> {
    let (id, key, xid) = (uuid(id), lane.map(|lane| lane.to_string()), xid.to_string());
    let text = |text: &'static str| Value::Text(text.as_bytes());
    encode::insert(
        TABLE,
        &[
            Value::Text(id.as_bytes()),
            text("orders"),
            key.as_ref().map_or(Value::Null, |key| Value::Text(key.as_bytes())),
            Value::Null,
            text("{}"),
            text(if unfit { r#"{"a": 1}"# } else { "{}" }),
            Value::Null,
            text("2026-11-24 00:01:27.123456+00"),
            Value::Text(xid.as_bytes()),
        ],
    )
}
