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

/// Of the whole record.
const BYTES_MAX: usize = 64 << 10;
/// A stored snapshot's text; some 70 open transactions have room in it.
const SNAPSHOT_BYTES_MAX: usize = 800;
/// Of the snapshot at which a repair ends, which can't be cut: some 2,600 open transactions.
pub const UPPER_BYTES_MAX: usize = 28 << 10;
/// Of an id in a repair's cursor.
pub const CURSOR_BYTES_MAX: usize = 1 << 10;

/// The format that this relay writes. It reads those before it: what they lack has a default.
pub const VERSION: u32 = 4;

/// How far delivery has come, and what a repair or a restart needs to go on.
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
    /// seen before it could be mended.
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

/// Ids of parked events that are remembered.
pub const PARKED_IDS_MAX: usize = 20;

/// Events in `outbox.dead_letters` that are not delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParkedRecord {
    /// `pg_class.oid` of the table that has them.
    pub table: u32,
    /// Lanes; an event without one is none.
    pub lanes: u64,
    /// Events, those that are being released included.
    pub events: u64,
    /// Ids of those that were parked last, [`PARKED_IDS_MAX`] at most, of letters, digits and `-_.:` alone.
    pub ids: Vec<String>,
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
}

impl RepairRecord {
    /// The slot is about to be made; nothing is known of it.
    pub fn announced(lower: Option<String>) -> Self {
        let (consistent_point, upper) = (Lsn::ZERO, String::new());
        RepairRecord { consistent_point, lower, upper, cursor: None, delivered: 0 }
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
        }
    }

    /// The slot's stream begins at `begins`, and nothing of it is delivered.
    pub fn begin(&mut self, begins: Lsn) {
        self.position = Some(Position::UpTo(begins));
        self.landmark = Some(Landmark::beginning(begins));
        // What was left out, or read from the tables, may be of later transactions than any streamed.
        self.witness = None;
    }

    /// A person has decided that whatever the slot still has is left out, and the relay begins anew. To be
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
    }

    /// Whether the slot, if it is still there, is to be dropped and none of it published.
    pub fn leaves_slot_out(&self) -> bool {
        self.position.is_none() && self.gap.as_deref() == Some(LEFT_OUT)
    }

    /// The server's WAL ends at `end`, before what is delivered, or is another one there. To be stored
    /// before anything else is decided.
    pub fn note_rollback(&mut self, end: Lsn) {
        self.rolled_back = Some(end);
    }

    /// Positions that are given from now on may be lower than those before. By the clock, so that it
    /// is a later era also where the record of the one before was lost.
    pub fn begin_era(&mut self, now: SystemTime) {
        let now_s = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.era = now_s.max(self.era.saturating_add(1));
    }

    /// A release is about to be delivered, or to go on being; its transaction commits at `commit`.
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
        json(&cut).into()
    }

    /// `None` where nothing is long.
    fn cut(&self) -> Option<Self> {
        let long = |s: &&SnapshotRecord| s.snapshot.len() > SNAPSHOT_BYTES_MAX;
        let older = self.snapshots.iter().skip(1);
        let published = self.published.as_ref().and_then(Published::cut);
        if published.is_none()
            && older.clone().all(|older| older.leaves.is_empty())
            && !self.snapshots.iter().any(|snapshot| long(&snapshot))
        {
            return None;
        }
        let mut cut = self.clone();
        cut.published = published.or(cut.published);
        cut.snapshots.iter_mut().skip(1).for_each(|older| older.leaves = Leaves::default());
        for record in &mut cut.snapshots {
            if let Some(shorter) = snapshot::cut(&record.snapshot, SNAPSHOT_BYTES_MAX) {
                record.snapshot = shorter;
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
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use crate::core::progress::*;
    use crate::core::{position::RowPosition, published::PublishedTable};

    fn sample() -> Progress {
        Progress {
            version: VERSION,
            position: Some(Position::Row(RowPosition {
                commit: Lsn::new(0x1_0000_0010),
                ordinal: 7,
            })),
            slot: "outbox_orders".into(),
            system_id: "7312345678901234567".into(),
            timeline: 1,
            published: Some(Published {
                publication: "16391:733".into(),
                tables: BTreeMap::from([(
                    "outbox.events".into(),
                    PublishedTable {
                        oid: 16385,
                        own: vec!["table 16392:733".into()],
                        above: vec![],
                        stamp: None,
                    },
                )]),
                short: false,
                digests: None,
                whole: "769e".into(),
                attached: vec![],
            }),
            gap: None,
            snapshots: vec![SnapshotRecord {
                lsn: Lsn::new(16),
                taken_ms: 1_790_000_000_000,
                snapshot: "10:20:10,14".into(),
                leaves: Leaves::default(),
            }],
            releases: vec![],
            repair: None,
            era: 0,
            landmark: None,
            witness: None,
            rolled_back: None,
            parked: None,
        }
    }

    /// The stored form is a contract with every relay that comes after this one.
    #[test]
    fn the_stored_form_is_the_documented_one() {
        let stored = concat!(
            r#"{"version":4,"position":{"row":{"commit":"1/10","ordinal":7}},"slot":"outbox_orders","#,
            r#""system_id":"7312345678901234567","timeline":1,"published":{"publication":"16391:733","#,
            r#""tables":{"outbox.events":{"oid":16385,"own":["table 16392:733"],"above":[]}},"#,
            r#""whole":"769e"},"gap":null,"snapshots":[{"lsn":"0/10","#,
            r#""taken_ms":1790000000000,"snapshot":"10:20:10,14"}],"releases":[],"repair":null}"#
        );
        assert_eq!(sample().encode(), stored);
        assert_eq!(Progress::decode(stored.as_bytes()).expect("readable"), sample());
        let known = Landmark { commit: Lsn::new(0x1_0000_0010), xid: 770, time_us: 5 };
        let witness = Witness { commit: Lsn::new(16), xid: 1 << 40, created_ms: 6 };
        let known = Progress { landmark: Some(known), witness: Some(witness), ..sample() };
        let landmark = concat!(
            r#""repair":null,"landmark":{"commit":"1/10","xid":770,"time_us":5},"#,
            r#""witness":{"commit":"0/10","xid":1099511627776,"created_ms":6}}"#
        );
        let stored = stored.replace(r#""repair":null}"#, landmark);
        assert_eq!(known.encode(), stored);
        assert_eq!(Progress::decode(stored.as_bytes()).expect("readable"), known);
    }

    #[test]
    fn records_of_versions_1_to_3_are_read_and_the_first_says_nothing_of_the_publication() {
        let stored = String::from_utf8(sample().encode().to_vec()).expect("text");
        for version in [r#""version":2"#, r#""version":3"#] {
            let older = stored.replace(r#""version":4"#, version);
            assert_eq!(Progress::decode(older.as_bytes()).expect("readable"), sample());
        }
        let stored = concat!(
            r#"{"version":1,"position":{"row":{"commit":"1/10","ordinal":7}},"slot":"outbox_orders","#,
            r#""system_id":"7312345678901234567","timeline":1,"snapshots":[{"lsn":"0/10","#,
            r#""taken_ms":1790000000000,"snapshot":"10:20:10,14"}],"releases":[],"repair":null}"#
        );
        let expected = Progress { published: None, ..sample() };
        assert_eq!(Progress::decode(stored.as_bytes()).expect("readable"), expected);
    }

    #[test]
    fn a_later_era_and_a_rollback_are_stored() {
        let mut progress = sample();
        progress.begin_era(SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000));
        assert_eq!(progress.era, 1_790_000_000);
        let stored = progress.encode();
        assert!(stored.ends_with(br#""repair":null,"era":1790000000}"#), "{stored:?}");
        assert_eq!(Progress::decode(&stored).expect("readable"), progress);
        let mut seen = sample();
        seen.note_rollback(Lsn::new(16));
        let stored = seen.encode();
        assert!(stored.ends_with(br#""repair":null,"rolled_back":"0/10"}"#), "{stored:?}");
        assert_eq!(Progress::decode(&stored).expect("readable"), seen);
        progress.begin_era(SystemTime::UNIX_EPOCH);
        assert_eq!(progress.era, 1_790_000_001, "a clock that was set back begins one as well");
    }

    #[test]
    fn a_newer_version_is_refused_with_its_number() {
        let error = Progress::decode(br#"{"version":5,"anything":{}}"#).expect_err("refused");
        assert!(error.to_string().contains("format version 5"), "{error}");
    }

    /// Brokers refuse records above a megabyte or less, and then nothing could be delivered any more.
    #[test]
    fn the_stored_record_stays_below_64_kib_whatever_is_open_in_the_database() {
        let open: Vec<String> =
            (0..20_000_u64).map(|n| (7_000_000_000 + 2 * n).to_string()).collect();
        let snapshot = format!("7000000000:7000050000:{}", open.join(","));
        let leaves = Leaves::of((0..1_200).map(|n| 4_000_000_000 + 190_000 * n));
        let record =
            SnapshotRecord { lsn: Lsn::new(u64::MAX), taken_ms: i64::MAX, snapshot, leaves };
        let mut progress = sample();
        let published = progress.published.as_mut().expect("it has some");
        for n in 0..200 {
            let way = || "table 4294967295:4294967295".to_owned();
            let own = vec![way(), way(), way()];
            let stamp = Some("4294967295:4294967295".into());
            let table = PublishedTable { oid: u32::MAX, own, above: vec![way()], stamp };
            published.tables.insert(format!("{n}{}", "x".repeat(126)), table);
        }
        published.tables.remove("outbox.events");
        let with_room = Progress::decode(&progress.encode()).expect("readable");
        assert_eq!(with_room.published.expect("it has some").tables.len(), 200);
        progress.snapshots = vec![record; 24];
        for n in 0..50 {
            progress.begin_release(&uuid::Uuid::from_u128(n).to_string(), Lsn::new(u64::MAX));
        }
        progress.parked = Some(ParkedRecord {
            table: u32::MAX,
            lanes: u64::MAX,
            events: u64::MAX,
            ids: vec!["9".repeat(64); PARKED_IDS_MAX],
        });
        progress.repair = Some(RepairRecord {
            consistent_point: Lsn::new(u64::MAX),
            lower: Some("9".repeat(SNAPSHOT_BYTES_MAX)),
            upper: "9".repeat(UPPER_BYTES_MAX),
            cursor: Some((i64::MAX, "9".repeat(CURSOR_BYTES_MAX))),
            delivered: u64::MAX,
        });
        let stored = progress.encode();
        assert!(stored.len() < BYTES_MAX, "{}", stored.len());
        let read = Progress::decode(&stored).expect("readable");
        let newest = &read.snapshots.first().expect("kept").snapshot;
        assert!(!read.snapshots[0].leaves.is_empty() && read.snapshots[1].leaves.is_empty());
        assert!(newest.starts_with("7000000000:70000") && newest.len() > 700, "{newest}");
    }
}
