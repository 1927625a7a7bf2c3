//! The progress record: how far delivery has come, stored in the broker beside the records.
//!
//! One JSON object, its format fixed by `version`; any change of shape is a new version, and a
//! newer one than this relay knows is refused with its number. What is confirmed to PostgreSQL
//! never passes what a stored record covers. `sink` stores the bytes without reading them.

use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::core::{
    landmark::Landmark, leaves::Leaves, lsn::Lsn, position::Position, published::Published,
    snapshot, witness::Witness,
};

mod parked;
mod partitions;
mod slot;
mod taken;
mod topics;

pub use self::{
    parked::{PARKED_IDS_MAX, ParkedId, ParkedRecord},
    partitions::{DepartedRecord, NOT_SENT_MAX, NotSentRecord},
    topics::{FormerTopics, TOPICS_BYTES_MAX, TopicsRecord},
};

/// Of the whole record.
const BYTES_MAX: usize = 64 << 10;
/// A stored snapshot's text; some 70 open transactions have room in it.
const SNAPSHOT_BYTES_MAX: usize = 800;
/// Those that are stored where there is little room.
const SNAPSHOTS_LEFT: usize = 12;
/// Of the snapshot at which a repair ends, which can't be cut: some 2,600 open transactions.
pub const UPPER_BYTES_MAX: usize = 28 << 10;
/// Of an id in a repair's cursor.
pub const CURSOR_BYTES_MAX: usize = 1 << 10;

/// The format that this relay writes. It reads those before it: what they lack has a default.
pub const VERSION: u32 = 6;

/// How far delivery has come, and what a repair or a restart needs to continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Always [`VERSION`].
    pub version: u32,
    /// Delivered position; `None` in the record that announces that the slot is about to be made.
    pub position: Option<Position>,
    /// Replication slot that the position belongs to.
    pub slot: String,
    /// `system_identifier` of the cluster, decimal, as text: it does not fit a JSON number.
    pub system_id: String,
    /// Timeline on which the position was reached.
    pub timeline: u32,
    /// How the tables were published all the time since the slot was made, as far as is known; `None`
    /// takes what is there, as after a person's decision or a record of version 1.
    #[serde(default)]
    pub published: Option<Published>,
    /// Why rows that were committed since the newest snapshot may be missing from the stream, as was
    /// seen before it could be corrected.
    #[serde(default)]
    pub gap: Option<String>,
    /// Newest first. Empty only before the slot is made.
    pub snapshots: Vec<SnapshotRecord>,
    /// Releases of parked events that are delivered or under way, until their rows are gone.
    pub releases: Vec<ReleaseRecord>,
    /// A repair under way.
    pub repair: Option<RepairRecord>,
    /// What of the relay's positions can be compared with one another: 0, or the time of the decision
    /// since which they may be lower than before, in seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "is_first")]
    pub era: u64,
    /// The newest commit that the position is past: it must be in the WAL that the next start streams.
    /// `None` where that is not known, as in a record of before, or after a person's decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landmark: Option<Landmark>,
    /// The published event of the highest transaction id, by which a repair knows the tables again.
    /// `None` where that is not known: then the snapshots are believed as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<Witness>,
    /// Where the WAL of a volume that was rolled back ended, or was another one, when that was first
    /// seen. It grows past the old end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<Lsn>,
    /// What was parked when that was last counted; `None` where nothing was. What lies in the database
    /// alone is remembered here, so that it is missed when its table is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<ParkedRecord>,
    /// Rows of partitions that were attached, which the stream does not have: the first few partitions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_sent: Vec<NotSentRecord>,
    /// Partitions that are none any more, or were none for a while: those that left last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub departed: Vec<DepartedRecord>,
    /// What it takes, as one of several routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topics: Option<TopicsRecord>,
}

fn is_first(era: &u64) -> bool {
    *era == 0
}

/// Which transactions were visible at a moment that delivery has passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRecord {
    /// `pg_current_wal_insert_lsn()`, read after the snapshot; delivery has passed it.
    pub lsn: Lsn,
    /// Milliseconds since the Unix epoch, the database's clock.
    pub taken_ms: i64,
    /// `pg_current_snapshot()` as text.
    pub snapshot: String,
    /// The partitions that it shows; stored of the newest alone.
    #[serde(default, skip_serializing_if = "Leaves::is_empty")]
    pub leaves: Leaves,
}

/// A release of parked events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRecord {
    /// The release's id.
    pub id: String,
    /// Start of the commit record of the transaction that announced it.
    pub commit: Lsn,
    /// How many of its events are delivered.
    pub delivered: u64,
    /// Whether all are.
    pub complete: bool,
}

/// A repair of a lost slot: rows visible in `upper` and not in `lower` are read from the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairRecord {
    /// Where the new slot's stream begins; `0/0` in the record that announces that the slot is about
    /// to be made, where `upper` is empty.
    pub consistent_point: Lsn,
    /// `pg_snapshot` text of the newest valid snapshot before the loss; `None` reads from the
    /// table's beginning.
    pub lower: Option<String>,
    /// `pg_snapshot` text of the new slot's exported snapshot.
    pub upper: String,
    /// `created_at` in microseconds since the Unix epoch, and id, of the last row delivered.
    pub cursor: Option<(i64, String)>,
    /// How many rows are delivered: the next one's ordinal.
    pub delivered: u64,
    /// The partitions that `upper` shows.
    #[serde(default, skip_serializing_if = "Leaves::is_empty")]
    pub leaves: Leaves,
}

impl RepairRecord {
    /// The slot is about to be made; nothing is known of it.
    pub fn announced(lower: Option<String>) -> Self {
        let (consistent_point, upper) = (Lsn::ZERO, String::new());
        RepairRecord {
            consistent_point,
            lower,
            upper,
            cursor: None,
            delivered: 0,
            leaves: Leaves::default(),
        }
    }

    /// Whether the slot is made, and rows may be delivered.
    pub fn is_begun(&self) -> bool {
        self.consistent_point != Lsn::ZERO
    }
}

/// The stored bytes can't be used. Nothing was delivered or confirmed on their account.
#[derive(Debug, thiserror::Error)]
pub enum ProgressError {
    /// Written by a newer relay.
    #[error("the progress record has format version {found}, and this relay knows {VERSION}")]
    NewerVersion {
        /// The record's version.
        found: u64,
    },
    /// Not a progress record.
    #[error("the progress record can't be read")]
    Unreadable(#[source] serde_json::Error),
}

/// As a reason why rows are missing: somebody has decided so.
const LEFT_OUT: &str = "`resume --at now` leaves out what the slot has";

impl Progress {
    /// Nothing is delivered, and the slot is about to be made.
    pub fn before_first_start(slot: &str) -> Self {
        Progress {
            version: VERSION,
            position: None,
            slot: slot.to_owned(),
            system_id: String::new(),
            timeline: 0,
            published: None,
            gap: None,
            snapshots: vec![],
            releases: vec![],
            repair: None,
            era: 0,
            landmark: None,
            witness: None,
            rolled_back: None,
            parked: None,
            not_sent: vec![],
            departed: vec![],
            topics: None,
        }
    }

    /// The slot's stream begins at `begins`, and nothing of it is delivered.
    pub fn begin(&mut self, begins: Lsn) {
        self.position = Some(Position::UpTo(begins));
        self.landmark = Some(Landmark::beginning(begins));
        // What was left out, or read from the tables, may be of later transactions than any streamed.
        self.witness = None;
    }

    /// A person has decided that whatever the slot still has is left out, and the relay starts over. To be
    /// stored before the slot is dropped: whoever finds it later knows that it is to be.
    pub fn leave_slot_out(&mut self) {
        self.position = None;
        self.gap = Some(LEFT_OUT.to_owned());
    }

    /// A person has decided that what `lower` does not show is published from the tables, with a new slot.
    /// The server's WAL reaches `end`.
    pub fn repair_after(&mut self, lower: String, end: Lsn, now: SystemTime) {
        let taken_ms = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        self.snapshots = vec![SnapshotRecord {
            lsn: end,
            taken_ms: i64::try_from(taken_ms).unwrap_or(i64::MAX),
            snapshot: lower.clone(),
            leaves: Leaves::default(),
        }];
        self.repair = Some(RepairRecord::announced(Some(lower)));
        self.departed.clear();
    }

    /// What was created after this is not known to be published, in milliseconds since the Unix epoch;
    /// `None` where that is not known. Of the newest published event it is what that says of itself, but
    /// a writer may say a time to come: so never later than the server's clock at the newest snapshot.
    pub fn published_until_ms(&self) -> Option<i64> {
        let (witness, newest) = (self.witness?, self.snapshots.first()?);
        Some(witness.created_ms.min(newest.taken_ms))
    }

    /// Whether the slot, if it is still there, is to be dropped and none of it published.
    pub fn leaves_slot_out(&self) -> bool {
        self.position.is_none() && self.gap.as_deref() == Some(LEFT_OUT)
    }

    /// The server's WAL ends at `end`, before what is delivered, or is another one there. To be stored
    /// before anything else is decided.
    pub fn note_rollback(&mut self, end: Lsn) {
        self.rolled_back = Some(end);
        // Transaction ids are given again: a snapshot of before tells nothing of rows that come now.
        self.departed.clear();
    }

    /// Positions that are given from now on may be lower than those before. By the clock, so that it
    /// is a later era also where the record of the one before was lost.
    pub fn begin_era(&mut self, now: SystemTime) {
        let now_s = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.era = now_s.max(self.era.saturating_add(1));
    }

    /// A release is about to be delivered, or to be continued; its transaction commits at `commit`.
    /// Returns how many of its places are done.
    pub fn begin_release(&mut self, id: &str, commit: Lsn) -> u64 {
        if let Some(known) = self.releases.iter_mut().find(|release| release.id == id) {
            known.commit = commit;
            known.complete = false;
            return known.delivered;
        }
        let release = ReleaseRecord { id: id.to_owned(), commit, delivered: 0, complete: false };
        self.releases.push(release);
        0
    }

    /// The first `delivered` places of a release are done.
    pub fn deliver_release(&mut self, id: &str, delivered: u64) {
        self.releases.iter_mut().filter(|r| r.id == id).for_each(|r| r.delivered = delivered);
    }

    /// All places of a release are done.
    pub fn complete_release(&mut self, id: &str) {
        self.releases.iter_mut().filter(|r| r.id == id).for_each(|r| r.complete = true);
    }

    /// The bytes to store: below 64 KiB, whatever is open in the database. Snapshots that name many
    /// open transactions are cut to such as show less.
    pub fn encode(&self) -> Bytes {
        let json =
            |progress: &Self| serde_json::to_vec(progress).expect("plain data has a JSON form");
        let cut = self.cut();
        let stored = json(cut.as_ref().unwrap_or(self));
        if stored.len() < BYTES_MAX {
            return stored.into();
        }
        let mut cut = cut.unwrap_or_else(|| self.clone());
        cut.published = cut.published.as_ref().map(Published::digested);
        if let Some(repair) = &mut cut.repair {
            repair.leaves = Leaves::default();
        }
        cut.departed.clear();
        cut.snapshots.truncate(SNAPSHOTS_LEFT);
        json(&cut).into()
    }

    /// `None` where nothing is long.
    fn cut(&self) -> Option<Self> {
        let long = |s: &&SnapshotRecord| s.snapshot.len() > SNAPSHOT_BYTES_MAX;
        let older = self.snapshots.iter().skip(1);
        let published = self.published.as_ref().and_then(Published::cut);
        let departed = |departed: &DepartedRecord| departed.snapshot.len() > SNAPSHOT_BYTES_MAX;
        if published.is_none()
            && !self.departed.iter().any(departed)
            && older.clone().all(|older| older.leaves.is_empty())
            && !self.snapshots.iter().any(|snapshot| long(&snapshot))
        {
            return None;
        }
        let mut cut = self.clone();
        cut.published = published.or(cut.published);
        cut.snapshots.iter_mut().skip(1).for_each(|older| older.leaves = Leaves::default());
        let snapshots = cut.snapshots.iter_mut().map(|record| &mut record.snapshot);
        for long in snapshots.chain(cut.departed.iter_mut().map(|record| &mut record.snapshot)) {
            if let Some(shorter) = snapshot::cut(long, SNAPSHOT_BYTES_MAX) {
                *long = shorter;
            }
        }
        Some(cut)
    }

    /// Reads stored bytes.
    ///
    /// # Errors
    /// [`ProgressError`]; stop, and let a person look.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProgressError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        let Versioned { version } =
            serde_json::from_slice(bytes).map_err(ProgressError::Unreadable)?;
        if version > u64::from(VERSION) {
            return Err(ProgressError::NewerVersion { found: version });
        }
        let mut progress: Progress =
            serde_json::from_slice(bytes).map_err(ProgressError::Unreadable)?;
        progress.version = VERSION;
        Ok(progress)
    }
}

#[cfg(test)]
mod tests;
