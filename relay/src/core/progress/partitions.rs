//! What progress remembers of partitions that come and go.

use serde::{Deserialize, Serialize};

use crate::core::{lsn::Lsn, published::Published};

/// Partitions of which that is remembered.
pub const NOT_SENT_MAX: usize = 4;
const DEPARTED_MAX: usize = 8;

/// A partition that was detached. It may be attached again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepartedRecord {
    /// Its OID.
    pub partition: u32,
    /// The newest snapshot by which it was a partition: the stream has had the rows that this shows.
    pub snapshot: String,
    /// What that does not show was committed after this.
    pub lsn: Lsn,
}

impl DepartedRecord {
    /// Notes those that were partitions at that snapshot, and are `now` no more. `known` is what was noted before.
    pub fn note(
        known: &mut Vec<DepartedRecord>,
        was: impl IntoIterator<Item = u32>,
        (lsn, snapshot): (Lsn, &str),
        now: &Published,
    ) {
        for partition in was {
            if !now.attached.iter().any(|(oid, _)| *oid == partition) {
                known.retain(|it| it.partition != partition);
                known.push(DepartedRecord { partition, snapshot: snapshot.to_owned(), lsn });
            }
        }
        known.drain(..known.len().saturating_sub(DEPARTED_MAX));
    }
}

/// Rows that were inserted into a table before it was attached as a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotSentRecord {
    /// The partition's OID.
    pub partition: u32,
    /// How many.
    pub rows: u64,
    /// Which of its rows: a condition in SQL, of 7,000 bytes at most.
    pub which: String,
    /// It names these rows, and no others.
    pub exact: bool,
}
