//! How far a repair has come: what each of its deliveries stores.

use crate::{
    core::{
        lsn::Lsn,
        position::RowPosition,
        progress::{CURSOR_BYTES_MAX, Progress, RepairRecord, SnapshotRecord},
        record::Batch,
    },
    pipeline::delivery::{Course, Origin},
    sink::Stored,
};

/// Where the `ordinal`-th repaired row stands: before all that the slot streams, and after all that
/// was streamed before it was made. No commit starts there, for they start at multiples of eight.
pub(super) fn position(under_way: &RepairRecord, ordinal: u64) -> RowPosition {
    RowPosition { commit: Lsn::new(under_way.consistent_point.get() - 1), ordinal }
}

/// A row's place in the order of a repair: `created_at` in microseconds since the Unix epoch (an
/// infinite one is the type's end), and id.
pub(super) type Cursor = (i64, String);

/// What a batch was read from.
#[derive(Debug, Default)]
pub struct Page {
    /// Ordinal of its first row.
    pub(super) first: u64,
    /// Of each row, also of those that were refused.
    pub(super) cursors: Vec<Cursor>,
    /// Of the row behind the last one; `None` where there is none.
    pub(super) next: Option<Cursor>,
}

impl Page {
    /// How many were read.
    pub(super) fn rows(&self) -> usize {
        self.cursors.len()
    }

    /// Whether no row was left.
    pub fn is_empty(&self) -> bool {
        self.cursors.is_empty()
    }

    /// The last row's.
    pub fn last(&self) -> Option<&Cursor> {
        self.cursors.last()
    }

    /// Up to where a reader need not look again once so many rows of the page are delivered; `None` leaves
    /// it where it was. Nothing makes (`created_at`, id) unique, so a cursor must not divide rows that
    /// share both: a repair that is cut short among them repeats those that it had delivered. And an id
    /// without bounds has no room in progress: what lies between it and the last one that has is repeated.
    fn passed(&self, done: usize) -> Option<&Cursor> {
        let following = self.cursors.get(done).or(self.next.as_ref());
        let fits = |cursor: &&Cursor| {
            cursor.1.len() <= CURSOR_BYTES_MAX && following.is_none_or(|next| next != *cursor)
        };
        self.cursors.iter().take(done).rev().find(fits)
    }
}

/// Moves the cursor; the position stays before the loss until all is delivered.
impl Course for Page {
    fn advance(&mut self, progress: &mut Progress, batch: &Batch, end: usize) -> bool {
        let read = self.cursors.len() as u64;
        let done = match end.checked_sub(1).and_then(|last| batch.get(last)) {
            Some(last) if end < batch.len() => last.position.ordinal + 1 - self.first,
            _ => read,
        };
        let Some(repair) = &mut progress.repair else { return false };
        repair.delivered = self.first + done;
        if let Some(cursor) = usize::try_from(done).ok().and_then(|done| self.passed(done)) {
            repair.cursor = Some(cursor.clone());
        }
        true
    }

    fn stored(&mut self, _progress: &Progress, proof: Stored) {
        // It covers no new position.
        drop(proof);
    }

    fn origin(&self) -> Origin<'_> {
        Origin::Repair
    }
}

/// All is delivered: the stream continues where the slot begins, and a later repair after what its
/// snapshot shows.
#[derive(Debug)]
pub struct End {
    /// The database's clock, in milliseconds since the Unix epoch.
    pub now_ms: i64,
}

impl Course for End {
    fn advance(&mut self, progress: &mut Progress, _batch: &Batch, _end: usize) -> bool {
        let Some(repair) = progress.repair.take() else { return false };
        progress.begin(repair.consistent_point);
        let snapshot = SnapshotRecord {
            lsn: repair.consistent_point,
            taken_ms: self.now_ms,
            snapshot: repair.upper,
            leaves: repair.leaves,
        };
        // Older ones stay: a failover may lose the newest.
        progress.snapshots.insert(0, snapshot);
        true
    }

    fn stored(&mut self, _progress: &Progress, proof: Stored) {
        drop(proof); // The next start reads it back.
    }

    fn origin(&self) -> Origin<'_> {
        Origin::Repair
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        leaves::Leaves,
        position::Position,
        record::{BatchLimits, RecordHead},
    };

    fn under_way() -> Progress {
        let repair = RepairRecord {
            consistent_point: Lsn::new(1000),
            upper: "7:7:".into(),
            delivered: 10,
            ..RepairRecord::announced(None)
        };
        Progress { repair: Some(repair), ..Progress::before_first_start("s") }
    }

    fn batch(ordinals: &[u64]) -> Batch {
        let mut batch = Batch::new(BatchLimits { records_max: 9, bytes_max: 99 });
        let repair = under_way().repair.expect("set");
        for ordinal in ordinals {
            let record = batch.start_record(RecordHead {
                position: position(&repair, *ordinal),
                topic: "t",
                key: None,
                payload: None,
                partition: None,
                timestamp_ms: None,
            });
            record.finish();
        }
        batch
    }

    fn page() -> Page {
        let cursors = (10..13).map(|n| (n, format!("id {n}"))).collect();
        Page { first: 10, cursors, next: None }
    }

    #[test]
    fn the_cursor_follows_what_is_stored_whatever_was_parked() {
        // Of 10, 11, 12 the middle one was parked, and is no longer in the batch.
        let batch = batch(&[10, 12]);
        for (end, delivered) in [(1, 11), (2, 13)] {
            let mut progress = under_way();
            assert!(page().advance(&mut progress, &batch, end));
            let repair = progress.repair.expect("under way");
            let last = i64::try_from(delivered).expect("small") - 1;
            assert_eq!(repair.delivered, delivered);
            assert_eq!(repair.cursor, Some((last, format!("id {last}"))));
            assert_eq!(progress.position, None);
        }
        // All were.
        let mut progress = under_way();
        assert!(page().advance(&mut progress, &self::batch(&[]), 0));
        assert_eq!(progress.repair.expect("under way").delivered, 13);
    }

    #[test]
    fn no_cursor_divides_rows_that_share_their_moment_and_id() {
        let same = |n: i64| (n, "id".to_owned());
        let page = |next| Page { first: 10, cursors: vec![same(1), same(2), same(2)], next };
        assert_eq!(page(None).passed(2), Some(&same(1)), "the third is like the second");
        assert_eq!(page(None).passed(3), Some(&same(2)));
        assert_eq!(page(Some(same(3))).passed(3), Some(&same(2)));
        assert_eq!(page(Some(same(2))).passed(3), Some(&same(1)), "the next page begins with one");
        let alike = Page { first: 10, cursors: vec![same(2); 3], next: Some(same(2)) };
        assert_eq!(alike.passed(3), None, "where it was");
    }

    #[test]
    fn at_the_end_the_slots_beginning_is_the_position_and_its_snapshot_the_newest() {
        let mut progress = under_way();
        let leaves = Leaves::of([7, 9]);
        progress.repair.as_mut().expect("set").leaves = leaves.clone();
        let old = SnapshotRecord {
            lsn: Lsn::new(5),
            taken_ms: 1,
            snapshot: "5:5:".into(),
            leaves: Leaves::default(),
        };
        progress.snapshots.push(old);
        assert!(End { now_ms: 2 }.advance(&mut progress, &batch(&[]), 0));
        assert_eq!(progress.position, Some(Position::UpTo(Lsn::new(1000))));
        assert_eq!(progress.repair, None);
        let snapshots: Vec<_> = progress.snapshots.iter().map(|s| s.snapshot.as_str()).collect();
        assert_eq!(snapshots, ["7:7:", "5:5:"]);
        assert_eq!(progress.snapshots[0].leaves, leaves);
    }

    #[test]
    fn repaired_rows_stand_between_what_was_streamed_before_and_what_comes() {
        let repair = under_way().repair.expect("set");
        let at = position(&repair, 3);
        assert!(Position::UpTo(repair.consistent_point).covers(at));
        assert!(at > RowPosition { commit: Lsn::new(992), ordinal: u64::MAX });
    }
}
