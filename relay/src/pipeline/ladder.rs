//! Which snapshots the progress record keeps: close together when young, far apart when old.
//!
//! A repair needs the newest snapshot that lies before the loss, and after a failover that may
//! be any of them: about 1 s, 10 s, 1 min and 10 min old. Pure: ages are differences of the
//! database's own times.

use crate::core::{lsn::Lsn, progress::SnapshotRecord};

/// At most this many are kept; the spacing rule leaves 19.
const RUNGS_MAX: usize = 24;
/// How many may wait until delivery has passed them: a repair repeats at most about this fraction,
/// twice over, of a backlog that grew while they were taken.
const WAITING_MAX: usize = 32;
/// Nothing is kept for longer once a younger one is older than [`OLDEST_MS`].
const OLDEST_MS: i64 = 600_000;

/// Snapshots, newest first, and those that delivery has not passed yet.
#[derive(Clone, Debug)]
pub struct Ladder {
    rungs: Vec<SnapshotRecord>,
    waiting: Vec<SnapshotRecord>,
}

impl Ladder {
    /// Starts with what the progress record held, newest first.
    pub fn new(rungs: Vec<SnapshotRecord>) -> Self {
        Ladder { rungs, waiting: Vec::new() }
    }

    /// Newest first.
    pub fn rungs(&self) -> &[SnapshotRecord] {
        &self.rungs
    }

    /// A snapshot was taken; it counts from the delivery on that passes its LSN. When too many
    /// wait, the one whose neighbours are closest is dropped: delivery in a backlog passes one
    /// after every few bytes of it, however long it is.
    pub fn offer(&mut self, snapshot: SnapshotRecord) {
        self.waiting.push(snapshot);
        if self.waiting.len() > WAITING_MAX {
            let earlier = self.waiting.iter();
            let gaps = earlier.zip(self.waiting.iter().skip(2));
            let gaps = gaps.map(|(earlier, later)| later.lsn.bytes_since(earlier.lsn));
            let closest = gaps.enumerate().min_by_key(|(_, gap_bytes)| *gap_bytes);
            if let Some((before, _)) = closest {
                self.waiting.remove(before + 1);
            }
        }
    }

    /// The ladder after a delivery up to `delivered`; `None` if that passes no snapshot. It counts
    /// only once the delivery is stored: one that fails may be followed by a shorter one.
    pub fn passed(&self, delivered: Lsn) -> Option<Ladder> {
        self.waiting.first().filter(|waiting| waiting.lsn <= delivered)?;
        let mut ladder = self.clone();
        ladder.pass(delivered);
        Some(ladder)
    }

    fn pass(&mut self, delivered: Lsn) {
        let passed = self.waiting.iter().take_while(|waiting| waiting.lsn <= delivered).count();
        for snapshot in self.waiting.drain(..passed) {
            self.rungs.insert(0, snapshot);
        }
        if passed > 0 {
            self.thin();
        }
    }

    /// Drops what has a neighbour close enough for its age.
    fn thin(&mut self) {
        let Some(now_ms) = self.rungs.first().map(|newest| newest.taken_ms) else { return };
        let age_ms = |snapshot: &SnapshotRecord| now_ms - snapshot.taken_ms;
        let mut kept: Vec<SnapshotRecord> = Vec::with_capacity(self.rungs.len());
        let mut rungs = std::mem::take(&mut self.rungs).into_iter().peekable();
        while let Some(rung) = rungs.next() {
            let younger_ms = kept.last().map(age_ms);
            let older_ms = rungs.peek().map(age_ms);
            let drop = match (younger_ms, older_ms) {
                // Between two that are within half the older one's age of each other.
                (Some(younger), Some(older)) => 2 * (older - younger) <= older,
                (Some(younger), None) => younger >= OLDEST_MS,
                (None, _) => false,
            };
            if !drop {
                kept.push(rung);
            }
        }
        kept.truncate(RUNGS_MAX);
        self.rungs = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::leaves::Leaves;

    fn taken_at(second: i64) -> SnapshotRecord {
        SnapshotRecord {
            lsn: Lsn::new(u64::try_from(second).expect("positive")),
            taken_ms: second * 1000,
            snapshot: String::new(),
            leaves: Leaves::default(),
        }
    }

    #[test]
    fn a_snapshot_counts_only_once_delivery_has_passed_it() {
        let mut ladder = Ladder::new(vec![]);
        ladder.offer(taken_at(5));
        ladder.pass(Lsn::new(4));
        assert!(ladder.rungs().is_empty());
        ladder.pass(Lsn::new(5));
        assert_eq!(ladder.rungs().len(), 1);
    }

    #[test]
    fn delivery_in_a_backlog_is_never_far_past_the_newest_snapshot() {
        for behind in [3, 30, 300, 3000] {
            let mut ladder = Ladder::new(vec![taken_at(0)]);
            for second in 1..4 * behind {
                ladder.offer(taken_at(second));
                // It stays where it is while the backlog grows.
                let delivered = (second - behind).max(0);
                ladder.pass(Lsn::new(u64::try_from(delivered).expect("positive")));
                let newest = ladder.rungs().first().expect("the first").taken_ms / 1000;
                let past = delivered - newest;
                assert!(past <= 1 + behind / 8, "{behind} s behind: {past} s at {second}");
            }
        }
    }

    #[test]
    fn about_a_second_ten_a_minute_and_ten_minutes_are_always_kept() {
        let mut ladder = Ladder::new(vec![]);
        for second in 1..4000 {
            ladder.offer(taken_at(second));
            ladder.pass(Lsn::new(u64::MAX));
            let ages: Vec<i64> =
                ladder.rungs().iter().map(|rung| second - rung.taken_ms / 1000).collect();
            assert!(ages.len() <= RUNGS_MAX, "{ages:?}");
            for (wanted, most) in [(1, 4), (10, 30), (60, 180), (600, 1800)] {
                if second > most {
                    assert!(
                        ages.iter().any(|age| (wanted..=most).contains(age)),
                        "{second}: {ages:?}"
                    );
                }
            }
        }
    }
}
