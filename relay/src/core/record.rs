//! What the sink takes: records, in order, in one arena per batch.
//!
//! A batch owns its bytes, so a record costs no allocation. `route` writes, `sink` reads, the
//! pipeline moves batches between them and gives them back empty.

mod copy;
mod event;
mod headers;
mod refused;

use std::time::Instant;

pub use self::headers::Headers;
pub use self::refused::{Refused, RefusedRecord};

use crate::core::{
    landmark::Landmark,
    lsn::Lsn,
    position::{Position, RowPosition},
    witness::Seen,
};

/// Bounds of a [`Batch`].
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Records in a batch.
    pub records_max: usize,
    /// Bytes of keys, payloads, topics and headers in a batch; one record may fill it alone.
    pub bytes_max: usize,
}

/// Records in order, and the position that is reached when all of them are stored.
#[derive(Debug)]
pub struct Batch {
    arena: Vec<u8>,
    records: Vec<Entry>,
    limits: BatchLimits,
    /// Position once every record here is stored; `None` while nothing was received.
    pub position: Option<Position>,
    /// Commits of the records, ascending, and behind them the newest that the position covers.
    landmarks: Vec<Landmark>,
    /// Of all rows, parked ones too, the one with the highest transaction id.
    pub newest: Option<Seen>,
    /// Those of the records that are none: kept for parking, never delivered. By index, ascending.
    pub unfit: Vec<RefusedRecord>,
    /// Releases of parked events that are said to be announced, in the order of their places. Most
    /// are what they say; whether they are is for the table of dead letters to answer.
    pub announced: Vec<Announced>,
    /// When the first record was received.
    pub first_received: Option<Instant>,
    /// Commit time of the newest record, in microseconds since 2000-01-01 UTC; `None` where the
    /// records are of older commits, as those of a release or a repair.
    pub newest_commit_us: Option<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    position: RowPosition,
    timestamp_ms: Option<i64>,
    partition: Option<i32>,
    xid: Option<u32>,
    /// End offsets in the arena of topic, key, payload and headers; it starts at `start`.
    start: usize,
    topic: usize,
    key: usize,
    payload: usize,
    headers: usize,
    has_key: bool,
    has_payload: bool,
}

/// One record, borrowed from its batch.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Place of the row it was made from.
    pub position: RowPosition,
    /// Destination.
    pub topic: &'a str,
    /// Partition key; `None` when the row has none.
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// Explicit partition of the row, not negative.
    pub partition: Option<i32>,
    /// Record timestamp in milliseconds since the Unix epoch; `None` leaves it to the sink.
    pub timestamp_ms: Option<i64>,
    /// The transaction that wrote the row, as its column `xid` says, without the epoch.
    pub xid: Option<u32>,
    headers: &'a [u8],
}

/// A release of parked events, announced in the WAL by whoever wrote the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The release's id.
    pub id: String,
    /// The transaction that announced it, as the stream names it: without the epoch.
    pub xid: u32,
    /// Where its first event stands: in the announcing transaction, behind what else is in it.
    pub first: RowPosition,
    /// How many of the batch's records precede it.
    pub after: usize,
}

/// So many announcements fill a batch, as records do.
const ANNOUNCED_MAX: usize = 1_000;

impl Batch {
    /// An empty batch. Its arena grows with use and is kept from one fill to the next.
    pub fn new(limits: BatchLimits) -> Self {
        Batch {
            arena: Vec::new(),
            records: Vec::new(),
            limits,
            position: None,
            landmarks: Vec::new(),
            newest: None,
            unfit: Vec::new(),
            announced: Vec::new(),
            first_received: None,
            newest_commit_us: None,
        }
    }

    /// Empties the batch. An arena that a few large records blew up is given back.
    pub fn clear(&mut self) {
        const KEPT_BYTES: usize = 8 << 20;
        self.arena.clear();
        self.arena.shrink_to(KEPT_BYTES);
        self.records.clear();
        self.position = None;
        self.landmarks.clear();
        self.newest = None;
        self.unfit.clear();
        self.announced.clear();
        self.first_received = None;
        self.newest_commit_us = None;
    }

    /// The position is past something of this commit, or all of it; `None` where it has passed none. Of
    /// commits that left no record only the newest is kept.
    pub fn pass(&mut self, position: Position, commit: Option<Landmark>) {
        self.position = Some(position);
        let Some(commit) = commit else { return };
        let Some(last) = self.landmarks.last_mut() else { return self.landmarks.push(commit) };
        if last.commit == commit.commit {
            return;
        }
        match self.records.binary_search_by_key(&last.commit, |record| record.position.commit) {
            Ok(_) => self.landmarks.push(commit),
            Err(_) => *last = commit,
        }
    }

    /// A row of the transaction `xid` is the last record. `findable`: by that and the record's timestamp.
    pub fn see(&mut self, commit: Lsn, xid: u32, findable: bool) {
        let created_ms = self.records.last().and_then(|last| last.timestamp_ms);
        let seen = Seen { commit, xid, created_ms: created_ms.filter(|_| findable) };
        self.newest = Some(seen.or(self.newest));
    }

    /// The newest commit that is reached with the first `end` records, where that is known: what
    /// only moved the position had none.
    pub fn landmark(&self, end: usize) -> Option<Landmark> {
        if end == self.len() {
            return self.landmarks.last().copied();
        }
        let commit = end.checked_sub(1).and_then(|last| self.get(last))?.position.commit;
        let at = self.landmarks.binary_search_by_key(&commit, |landmark| landmark.commit).ok()?;
        self.landmarks.get(at).copied()
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record; the position may have moved all the same.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of all records.
    pub fn size_bytes(&self) -> usize {
        self.arena.len()
    }

    /// Whether nothing more may be added: the next row would have to wait for the next batch.
    pub fn is_full(&self) -> bool {
        self.announced.len() >= ANNOUNCED_MAX
            || self.records.len() >= self.limits.records_max
            || self.arena.len() >= self.limits.bytes_max
    }

    /// The records in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Record<'_>> + '_ {
        self.records.iter().map(|entry| self.view(entry))
    }

    /// The `index`-th record.
    pub fn get(&self, index: usize) -> Option<Record<'_>> {
        self.records.get(index).map(|entry| self.view(entry))
    }

    #[expect(clippy::indexing_slicing, reason = "offsets were taken from this very arena")]
    fn view(&self, entry: &Entry) -> Record<'_> {
        let bytes = &self.arena;
        let topic = &bytes[entry.start..entry.topic];
        Record {
            position: entry.position,
            topic: std::str::from_utf8(topic).expect("a topic is written from a str"),
            key: entry.has_key.then(|| &bytes[entry.topic..entry.key]),
            payload: entry.has_payload.then(|| &bytes[entry.key..entry.payload]),
            partition: entry.partition,
            timestamp_ms: entry.timestamp_ms,
            xid: entry.xid,
            headers: &bytes[entry.payload..entry.headers],
        }
    }

    /// Takes the records from `at` on into a batch of their own, with the batch's position; what
    /// stays has that of its last record. Announcements stay with neither: take them out before.
    pub fn split_off(&mut self, at: usize) -> Batch {
        let mut rest = Batch::new(self.limits);
        for entry in self.records.get(at..).unwrap_or_default() {
            let moved = rest.arena.len().wrapping_sub(entry.start);
            let place = |offset: usize| offset.wrapping_add(moved);
            rest.arena
                .extend_from_slice(self.arena.get(entry.start..entry.headers).unwrap_or_default());
            rest.records.push(Entry {
                start: place(entry.start),
                topic: place(entry.topic),
                key: place(entry.key),
                payload: place(entry.payload),
                headers: place(entry.headers),
                ..*entry
            });
        }
        self.records.truncate(at);
        self.arena.truncate(self.records.last().map_or(0, |last| last.headers));
        let unfit = self.unfit.partition_point(|refused| refused.index < at);
        let later = self.unfit.split_off(unfit);
        let moved = |refused: RefusedRecord| RefusedRecord { index: refused.index - at, ..refused };
        rest.unfit = later.into_iter().map(moved).collect();
        rest.position = self.position;
        rest.landmarks = self.landmarks.clone();
        rest.newest = self.newest.take();
        self.position = self.records.last().map(|last| Position::Row(last.position));
        let last = self.records.last().map(|last| last.position.commit);
        self.landmarks.retain(|landmark| Some(landmark.commit) <= last);
        rest.first_received = self.first_received;
        rest.newest_commit_us = self.newest_commit_us;
        rest
    }

    /// Takes these records out, with what is said of them; `indexes` ascend.
    pub fn leave_out(&mut self, indexes: &[usize]) {
        let is_out = |index: &usize| indexes.binary_search(index).is_ok();
        self.unfit.retain(|refused| !is_out(&refused.index));
        for refused in &mut self.unfit {
            refused.index -= indexes.partition_point(|index| *index < refused.index);
        }
        self.withdraw(|index| !is_out(&index));
    }

    /// Takes records out, in one pass over all of them: those for which `keep` says no. Their bytes
    /// stay until the batch is emptied; the indexes of those after them move up.
    pub fn withdraw(&mut self, mut keep: impl FnMut(usize) -> bool) {
        let mut index = 0;
        self.records.retain(|_| {
            index += 1;
            keep(index - 1)
        });
    }

    /// Begins a record. Write topic, key and payload through the arguments, then headers one by
    /// one; nothing is in the batch until [`RecordWriter::finish`].
    pub fn start_record(&mut self, head: RecordHead<'_>) -> RecordWriter<'_> {
        let start = self.arena.len();
        self.arena.extend_from_slice(head.topic.as_bytes());
        let topic = self.arena.len();
        self.arena.extend_from_slice(head.key.unwrap_or_default());
        let key = self.arena.len();
        self.arena.extend_from_slice(head.payload.unwrap_or_default());
        let payload = self.arena.len();
        let entry = Entry {
            position: head.position,
            timestamp_ms: head.timestamp_ms,
            partition: head.partition,
            xid: None,
            start,
            topic,
            key,
            payload,
            headers: payload,
            has_key: head.key.is_some(),
            has_payload: head.payload.is_some(),
        };
        RecordWriter { batch: self, entry, finished: false }
    }
}

/// What a record is, but for its headers.
#[derive(Clone, Copy, Debug)]
pub struct RecordHead<'a> {
    /// Place of the row.
    pub position: RowPosition,
    /// Destination, not empty.
    pub topic: &'a str,
    /// Partition key.
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// Explicit partition, not negative.
    pub partition: Option<i32>,
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
}

/// Adds headers to a record under way; dropped without `finish`, it takes the record back.
#[derive(Debug)]
pub struct RecordWriter<'b> {
    batch: &'b mut Batch,
    entry: Entry,
    finished: bool,
}

impl RecordWriter<'_> {
    /// The transaction that wrote the row; `None` as long as nothing is said.
    pub fn written_by(&mut self, xid: Option<u32>) {
        self.entry.xid = xid;
    }

    /// Adds a header. Name and value are copied.
    pub fn header(&mut self, name: &str, value: &[u8]) {
        self.header_with(name, |arena| arena.extend_from_slice(value));
    }

    /// Adds a header whose value `write` appends to the arena; it must not touch what is there.
    pub fn header_with(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        let arena = &mut self.batch.arena;
        push_len(arena, name.len());
        let value_len_at = arena.len();
        push_len(arena, 0);
        arena.extend_from_slice(name.as_bytes());
        let value_at = arena.len();
        write(arena);
        let value_len = u32::try_from(arena.len() - value_at).expect("a header is below 4 GiB");
        if let Some(place) = arena.get_mut(value_len_at..value_len_at + 4) {
            place.copy_from_slice(&value_len.to_ne_bytes());
        }
    }

    /// The record is part of the batch.
    pub fn finish(mut self) {
        self.entry.headers = self.batch.arena.len();
        self.batch.records.push(self.entry);
        self.finished = true;
    }
}

impl Drop for RecordWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.batch.arena.truncate(self.entry.start);
        }
    }
}

fn push_len(arena: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("a header is below 4 GiB");
    arena.extend_from_slice(&len.to_ne_bytes());
}

impl<'a> Record<'a> {
    /// Bytes of topic, key, payload and headers.
    pub fn size_bytes(&self) -> usize {
        self.topic.len()
            + self.key.map_or(0, <[u8]>::len)
            + self.payload.map_or(0, <[u8]>::len)
            + self.headers.len()
    }

    /// Headers in the order in which they were written.
    pub fn headers(&self) -> Headers<'a> {
        Headers { rest: self.headers }
    }
}

#[cfg(test)]
mod tests;
