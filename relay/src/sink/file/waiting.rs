//! What a write waits for, and since when. A write to a pipe that no one reads, or to a file system that
//! hangs, ends when it likes: meanwhile somebody else must be able to tell of it.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;

/// Longer than a write takes where all is well.
pub(super) const WRITE_MAX: Duration = Duration::from_secs(5);

/// The step of a write that is under way.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    since: Mutex<Option<(Instant, Timestamp)>>,
    abandoned: AtomicBool,
}

impl Waiting {
    /// Something is tried now, or has come further.
    pub(super) fn steps(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((Instant::now(), Timestamp::now()));
    }

    /// Nothing is tried any more.
    pub(super) fn ends(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Since when nothing has come of it, where that is too long.
    pub(super) fn too_long_since(&self) -> Option<Timestamp> {
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.filter(|(at, _)| at.elapsed() >= WRITE_MAX).map(|(_, since)| since)
    }

    /// No one wants to know what becomes of it: who waits and can give up does.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Relaxed)
    }
}
