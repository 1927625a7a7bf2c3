//! The server: its WAL, what it sends of it, its slot, and the clients that write it.

use rand::Rng;

use super::{
    catalog::COLUMNS,
    world::{Event, World},
};
use crate::{
    core::{
        leaves::Leaves,
        lsn::Lsn,
        position::RowPosition,
        progress::SnapshotRecord,
        published::Published,
        row::{Column, Relation, Value},
    },
    dead_letter::Message,
    source::pgoutput::encode,
};

const LANES: usize = 4;
/// Milliseconds between two transactions, for the clock.
const TICK_US: i64 = 50_000;
/// When the first event was created, in microseconds since the Unix epoch: 2026-11-24 00:00.
const EPOCH_US: i64 = 1_795_478_400_000_000;
/// WAL records begin at multiples of it.
const ALIGNMENT: u64 = 8;

/// A committed transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    /// Start of its commit record.
    pub(super) commit: Lsn,
    /// End of it.
    pub(super) end: Lsn,
    /// Begin, rows and messages, Commit, each as the plugin's message.
    pub(super) messages: Vec<Vec<u8>>,
    /// The table that its rows are in.
    pub(super) table: u32,
    /// There was no publication when it was written: before PostgreSQL 18 the stream ends here.
    pub(super) is_end: bool,
}

#[derive(Debug)]
pub(super) struct Server {
    pub(super) wal: Vec<Transaction>,
    pub(super) confirmed: Lsn,
    /// Where the slot's stream begins; `None` where there is no slot.
    pub(super) slot: Option<Lsn>,
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
            slot: Some(first),
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

    /// `pg_current_snapshot()`: here transactions commit in the order of their ids.
    pub(super) fn snapshot(&self) -> String {
        let next = self.next_xid();
        format!("{next}:{next}:")
    }

    /// The transaction that is written next.
    pub(super) fn next_xid(&self) -> u64 {
        self.wal.len() as u64 + 770
    }

    /// The database's clock, in milliseconds since the Unix epoch.
    pub(super) fn now_ms(&self) -> i64 {
        i64::try_from(self.wal.len()).unwrap() * 1000
    }
}

/// The table of our migration.
pub(super) fn relation(table: u32) -> Relation {
    let column = |(name, type_oid): (&str, u32)| Column { name: name.into(), type_oid };
    Relation {
        id: table,
        schema: "outbox".into(),
        table: "events".into(),
        columns: COLUMNS.map(column).into(),
    }
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
            messages.extend(self.event(RowPosition { commit, ordinal }));
            if self.once_in(10) && self.catalog.publishes() {
                messages.push(self.moved());
            }
        }
        self.commit(commit, end, messages, true);
    }

    /// A transaction that announces a release, and sometimes has rows too.
    pub(super) fn announce(&mut self, release: &str) {
        let (commit, end) = self.next_commit();
        let mut messages = Vec::new();
        let has_row = self.once_in(4);
        if has_row {
            messages.extend(self.event(RowPosition { commit, ordinal: 0 }));
        }
        let message = Message { relay: "sim".into(), release: release.parse().unwrap() };
        let content = serde_json::to_vec(&message).unwrap();
        messages.push(encode::message(true, commit.get(), b"outbox", &content));
        self.commit(commit, end, messages, has_row);
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
        let gap = if self.once_in(3) { 0 } else { self.random.random_range(1..7) * ALIGNMENT };
        let commit = self.server.end().get() + gap;
        (Lsn::new(commit), Lsn::new(commit + ALIGNMENT * self.random.random_range(1..3)))
    }

    /// `has_changes`: of some table, so that the server asks for the publication.
    fn commit(&mut self, commit: Lsn, end: Lsn, rows: Vec<Vec<u8>>, has_changes: bool) {
        self.tell(|| format!("commit at {commit}, end {end}, {} messages", rows.len()));
        let time_us = i64::try_from(self.server.wal.len()).unwrap() * TICK_US;
        let xid = u32::try_from(self.server.next_xid()).unwrap();
        let mut messages = vec![encode::begin(commit.get(), time_us, xid)];
        messages.extend(rows);
        messages.push(encode::commit(commit.get(), end.get(), time_us));
        let is_end = has_changes && !self.catalog.has_publication() && !self.passes_over;
        let table = self.catalog.table;
        self.server.wal.push(Transaction { commit, end, messages, table, is_end });
    }

    /// A row of an earlier transaction comes into another partition.
    fn moved(&mut self) -> Vec<u8> {
        let id = self.random.random_range(0..self.events.len());
        self.tell(|| format!("event {id} is moved"));
        let event = Event { xid: self.server.next_xid() - 1, fit: true, ..self.events[id].clone() };
        encode::insert(self.catalog.table, &row(id, &event).each_ref().map(value))
    }

    /// An event is written; what the stream has of it, if anything.
    fn event(&mut self, position: RowPosition) -> Option<Vec<u8>> {
        let id = self.events.len();
        let lane = (!self.once_in(8)).then(|| self.random.random_range(0..LANES));
        let lanes = lane.map(|lane| self.lanes.entry(lane).or_default());
        let sequence = lanes.map_or(0, |events| {
            events.push(id);
            events.len() as u64 - 1
        });
        let bad = self.faults && self.once_in(12);
        let fit = !(self.faults && self.once_in(40));
        let hidden = !self.catalog.publishes();
        self.tell(|| {
            format!(
                "event {id} at {position}, lane {lane:?}, bad {bad}, fit {fit}, hidden {hidden}"
            )
        });
        let event = Event {
            lane,
            sequence,
            position,
            delivered: false,
            discarded: false,
            refused: false,
            bad,
            was_bad: bad || !fit,
            fit,
            xid: self.server.next_xid(),
            table: self.catalog.table,
            hidden,
            deleted: false,
            again: false,
            left_out: false,
        };
        let message = encode::insert(self.catalog.table, &row(id, &event).each_ref().map(value));
        self.events.push(event);
        (!hidden).then_some(message)
    }

    /// Makes a slot, as of now: its snapshot, and how the tables are published in it.
    pub(super) fn make_slot(&mut self) -> (SnapshotRecord, Published) {
        let lsn = self.server.end();
        self.server.slot = Some(lsn);
        self.server.confirmed = lsn;
        self.tell(|| format!("a slot is made at {lsn}"));
        let snapshot = SnapshotRecord {
            lsn,
            taken_ms: self.server.now_ms(),
            snapshot: self.server.snapshot(),
            leaves: Leaves::default(),
        };
        (snapshot, self.catalog.published())
    }

    pub(super) fn drop_slot(&mut self) {
        self.tell(|| "the slot is dropped".to_owned());
        self.server.slot = None;
    }
}

/// When it was created, in microseconds since the Unix epoch.
pub(super) fn created_us(id: usize) -> i64 {
    EPOCH_US + i64::try_from(id).unwrap() * 1_001
}

fn value(text: &Option<String>) -> Value<'_> {
    text.as_ref().map_or(Value::Null, |text| Value::Text(text.as_bytes()))
}

/// Of lane 0 the broker can tell which record it refuses.
fn row(id: usize, event: &Event) -> [Option<String>; COLUMNS.len()] {
    let us = created_us(id) - EPOCH_US;
    let created_at = format!("2026-11-24 00:00:{:02}.{:06}+00", us / 1_000_000, us % 1_000_000);
    let text = |text: &str| Some(text.to_owned());
    [
        Some(uuid(id)),
        text("orders"),
        event.lane.map(|lane| lane.to_string()),
        None,
        text("{}"),
        text(if event.fit { "{}" } else { r#"{"a": 1}"# }),
        None,
        Some(created_at),
        Some(event.xid.to_string()),
    ]
}

/// The row as a statement reads it: its values as a tuple of the stream has them.
pub(super) fn tuple(id: usize, event: &Event) -> Vec<u8> {
    let message = encode::insert(event.table, &row(id, event).each_ref().map(value));
    // Its kind, the table, what follows, and the number of columns.
    message[1 + 4 + 1 + 2..].to_vec()
}
