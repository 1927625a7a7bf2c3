//! An event by which the tables are known again, where no stream tells whose history they are of.
//!
//! A copy of the volume that was put back without its slots gives transaction ids again that were
//! published before. A repair believes a snapshot that names them, so it first looks for the newest
//! published event: where that is in its table as it was, all transactions up to its own are those
//! of before. Of later ones none is published, so that the snapshot counts only up to there. Pure:
//! no clock, no I/O, no task.

use serde::{Deserialize, Serialize};

use crate::core::{lsn::Lsn, snapshot};

/// The published event of the highest transaction id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Witness {
    /// Start of its transaction's commit record.
    pub commit: Lsn,
    /// Its column `xid`: no event that is published has a higher one.
    pub xid: u64,
    /// The latest `created_at` of its published rows, in milliseconds since the Unix epoch. A
    /// transaction that gets the id again comes later.
    pub created_ms: i64,
}

/// The row of a batch that has the highest transaction id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// As in [`Witness`].
    pub commit: Lsn,
    /// As the stream names it, without the epoch.
    pub xid: u32,
    /// `None` where a row of its table can't be found again: its `xid` or its time says nothing.
    pub created_ms: Option<i64>,
}

impl Seen {
    /// The one with the higher id; of one transaction's rows the latest. Ids go in a circle, and those
    /// of a batch are near to one another.
    #[must_use]
    pub fn or(self, earlier: Option<Seen>) -> Seen {
        match earlier {
            Some(earlier) if earlier.xid == self.xid => {
                Seen { created_ms: earlier.created_ms.max(self.created_ms), ..self }
            }
            Some(earlier) if self.xid.wrapping_sub(earlier.xid).cast_signed() < 0 => earlier,
            _ => self,
        }
    }
}

impl Witness {
    /// What is known once `seen` is done, too. `newest` is the newest snapshot stored before. Where
    /// nothing was known, something may be left out that a later transaction than `seen`'s wrote; but
    /// none that the snapshot does not show.
    pub fn after(known: Option<Witness>, seen: Seen, newest: Option<&str>) -> Option<Witness> {
        let (end, xid) =
            newest.and_then(|it| Some((snapshot::end(it)?, snapshot::full(it, seen.xid)?)))?;
        let is_higher = match known {
            Some(known) if xid == known.xid => {
                // The rest of a transaction: its first rows may be deleted before the others.
                let created_ms =
                    seen.created_ms.map_or(known.created_ms, |it| it.max(known.created_ms));
                return Some(Witness { created_ms, ..known });
            }
            Some(known) => xid > known.xid,
            None => xid >= end,
        };
        if !is_higher {
            return known;
        }
        seen.created_ms.map(|created_ms| Witness { commit: seen.commit, xid, created_ms })
    }

    /// When it was created, as a person reads it.
    pub fn created(self) -> String {
        moment(self.created_ms)
    }

    /// What of a snapshot counts: nothing later than this is published.
    pub fn cut(self, snapshot: &str) -> String {
        snapshot::until(snapshot, self.xid).unwrap_or_else(|| snapshot.to_owned())
    }
}

/// Milliseconds since the Unix epoch, as a person reads them.
pub(crate) fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| "an unknown time".to_owned(), |moment| format!("{moment:.3}"))
}

#[cfg(test)]
mod tests {
    use crate::core::witness::*;

    fn seen(xid: u32) -> Seen {
        Seen { commit: Lsn::new(8), xid, created_ms: Some(5) }
    }

    fn witness(xid: u64) -> Witness {
        Witness { commit: Lsn::new(8), xid, created_ms: 5 }
    }

    #[test]
    fn of_a_batch_the_highest_id_counts_across_the_turn_of_the_epoch() {
        let highest = |xids: &[u32]| {
            let next = |so_far: Option<Seen>, xid: &u32| Some(seen(*xid).or(so_far));
            xids.iter().fold(None, next).map(|seen| seen.xid)
        };
        assert_eq!(highest(&[7, 9, 8]), Some(9));
        assert_eq!(highest(&[u32::MAX, 3, u32::MAX - 1]), Some(3));
    }

    #[test]
    fn of_a_transaction_the_latest_row_counts_in_one_batch_and_over_several() {
        let row = |created_ms| Seen { created_ms, ..seen(7) };
        for times in [[Some(5), Some(9)], [Some(9), Some(5)], [None, Some(9)], [Some(9), None]] {
            let [first, second] = times.map(row);
            assert_eq!(second.or(Some(first)).created_ms, Some(9), "{times:?}");
        }
        let later = |created_ms| {
            Witness::after(Some(witness(21)), Seen { created_ms, ..seen(21) }, Some("20:20:"))
        };
        assert_eq!(later(Some(9)), Some(Witness { created_ms: 9, ..witness(21) }));
        assert_eq!(later(Some(3)), Some(witness(21)));
        assert_eq!(later(None), Some(witness(21)));
    }

    #[test]
    fn the_witness_is_the_published_event_of_the_highest_id() {
        let epoch = 1_u64 << 32;
        let snapshot = |xid: u64| format!("{xid}:{xid}:");
        let at =
            |known, xid, newest: u64| Witness::after(known, seen(xid), Some(&snapshot(newest)));
        assert_eq!(at(Some(witness(20)), 21, 20), Some(witness(21)));
        assert_eq!(at(Some(witness(20)), 19, 20), Some(witness(20)), "it began before");
        assert_eq!(at(Some(witness(epoch - 3)), 2, epoch - 1), Some(witness(epoch + 2)));
        // The last one may be from long ago.
        assert_eq!(at(Some(witness(20)), 5, 3 * epoch), Some(witness(3 * epoch + 5)));
        // What somebody left out may be of a later transaction than this one's.
        assert_eq!(at(None, 19, 20), None);
        assert_eq!(at(None, 20, 20), Some(witness(20)));
        assert_eq!(Witness::after(Some(witness(20)), seen(21), None), None);
        // A later event that can't be found again leaves nothing to know by.
        let unknown = Seen { created_ms: None, ..seen(21) };
        assert_eq!(Witness::after(Some(witness(20)), unknown, Some("20:20:")), None);
    }

    #[test]
    fn a_snapshot_counts_up_to_the_newest_published_event() {
        for (whole, xid, counts) in [
            ("10:20:12,15", 30, "10:20:12,15"),
            ("10:20:12,15", 19, "10:20:12,15"),
            ("10:20:12,15", 14, "10:15:12"),
            ("10:20:12,15", 5, "6:6:"),
            ("20:20:", 17, "18:18:"),
        ] {
            assert_eq!(witness(xid).cut(whole), counts, "{whole} up to {xid}");
        }
    }
}
