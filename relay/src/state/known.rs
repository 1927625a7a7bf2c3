//! Numbers that may not be known: what is not known is never shown as zero.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A number, or that it is not known. In one atomic: one more than it is; 0 is "not known".
#[derive(Debug, Default)]
pub(super) struct Known(AtomicU64);

impl Known {
    pub(super) fn get(&self) -> Option<u64> {
        self.0.load(Relaxed).checked_sub(1)
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value.saturating_add(1), Relaxed);
    }

    pub(super) fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    /// Takes it where it is more than what was known.
    pub(super) fn raise(&self, value: u64) {
        self.0.fetch_max(value.saturating_add(1), Relaxed);
    }
}

/// A moment, as the time since the board was made; unknown is "never".
#[derive(Debug, Default)]
pub(super) struct Stamp(Known);

impl Stamp {
    pub(super) fn set(&self, now: Duration) {
        self.0.set(u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn clear(&self) {
        self.0.clear();
    }

    pub(super) fn age(&self, now: Duration) -> Option<Duration> {
        Some(now.saturating_sub(Duration::from_micros(self.0.get()?)))
    }
}
