//! When the plans of statements are outgrown that look among parked messages.
//!
//! A session keeps the plan of a prepared statement. Made while next to nothing is parked, it reads the whole
//! table, since that is one page; and it stays so while the table grows, until that is analyzed, by
//! autovacuum after a minute or so. For a backlog of 100,000 messages each of those statements takes a
//! quarter of a second then, instead of a tenth of a millisecond. So all is prepared anew as the backlog grows.
//! Pure.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Messages of which a table is read as fast as an index.
const FEW: i64 = 64;
/// How much a backlog has grown when plans are made anew.
const GROWTH: i64 = 4;

/// How much is parked, as far as this process knows, and how much was when plans were made.
#[derive(Debug, Default)]
pub(super) struct Plans {
    parked: AtomicI64,
    made_for: AtomicI64,
}

impl Plans {
    /// This process has parked so many more. Returns whether plans are outgrown: once.
    pub(super) fn grow(&self, more: usize) -> bool {
        let more = i64::try_from(more).unwrap_or(i64::MAX);
        let parked = self.parked.fetch_add(more, Relaxed).saturating_add(more);
        self.are_outgrown_by(parked)
    }

    /// So much is parked, by whatever process.
    pub(super) fn observe(&self, parked: i64) -> bool {
        self.parked.store(parked, Relaxed);
        // Sessions that are opened from now on make plans for that.
        self.made_for.fetch_min(parked.max(FEW / GROWTH), Relaxed);
        self.are_outgrown_by(parked)
    }

    fn are_outgrown_by(&self, parked: i64) -> bool {
        let outgrown = |made_for: i64| {
            (parked >= FEW && parked >= made_for.saturating_mul(GROWTH)).then_some(parked)
        };
        self.made_for.fetch_update(Relaxed, Relaxed, outgrown).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_outgrown_by_each_fourfold_growth_and_again_after_a_backlog_is_done() {
        let plans = Plans::default();
        let outgrown: Vec<usize> = (1..=2_000).filter(|_| plans.grow(1)).collect();
        assert_eq!(outgrown, [64, 256, 1024]);
        assert!(!plans.observe(2_100));
        assert!(plans.observe(5_000), "others have parked them");
        assert!(!plans.observe(3));
        let again: Vec<usize> = (4..=300).filter(|_| plans.grow(1)).collect();
        assert_eq!(again, [64, 256]);
    }
}
