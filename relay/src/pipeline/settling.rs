//! When progress is stored that could not be stored together with its records.
//!
//! Storing costs a commit of the database, and whoever stores waits for it: so it takes no more than a
//! share of the time, and a crash repeats what was delivered since. Progress of which nothing was
//! delivered waits longer: storing it moves the WAL, and an idle relay must not be kept busy by its
//! own writes. Pure but for the clock.

use std::time::{Duration, Instant};

use crate::core::lsn::Lsn;

/// Time between two stores, at least.
const PAUSE: Duration = Duration::from_millis(20);
/// Of the time, one part in so many is spent on storing; unless it takes so long that a crash would repeat more than
/// a second's events: one stall must not make the next wait long as well.
const SHARE: u32 = 32;
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Time between two stores of progress alone, where other writers have moved the WAL by
/// [`MOVED_BYTES`], which the server then keeps for the relay, or the one before had events; and where
/// neither is so.
const ALONE_PAUSE: Duration = Duration::from_secs(1);
const IDLE_PAUSE: Duration = Duration::from_secs(60);
const MOVED_BYTES: u64 = 1 << 20;

/// What is delivered and not stored yet.
#[derive(Debug)]
pub(super) struct Settling {
    /// `None` when all is stored.
    open: Option<Open>,
    /// When progress was last stored, how long that took, and up to where.
    stored_at: Instant,
    took: Duration,
    stored: Lsn,
    /// Whether what was stored last had events: the snapshot that shows them comes a second later, and a
    /// repair without it would publish them again.
    after_events: bool,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    /// Events were delivered or parked.
    events: bool,
    /// Up to where.
    reached: Lsn,
}

impl Settling {
    /// Nothing is open; `stored` is where the WAL is read from.
    pub(super) fn new(stored: Lsn) -> Self {
        let stored_at = Instant::now();
        Settling { open: None, stored_at, took: Duration::ZERO, stored, after_events: false }
    }

    /// Progress has come as far as `reached`, and is not stored; `events`: because of some.
    pub(super) fn delivered(&mut self, events: bool, reached: Lsn) {
        let before = self.open.is_some_and(|open| open.events);
        self.open = Some(Open { events: events || before, reached });
    }

    /// All that was delivered is stored, at `now`, which took so long.
    pub(super) fn stored(&mut self, now: Instant, took: Duration) {
        if let Some(open) = self.open.take() {
            self.stored = open.reached;
            self.after_events = open.events;
        }
        (self.stored_at, self.took) = (now, took);
    }

    /// Whether there is something to store.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// When what is open is to be stored.
    pub(super) fn due_at(&self) -> Option<Instant> {
        let open = self.open?;
        let moved = open.reached.bytes_since(self.stored);
        let least = match open.events {
            true => PAUSE,
            false if moved >= MOVED_BYTES || self.after_events => ALONE_PAUSE,
            false => IDLE_PAUSE,
        };
        Some(self.stored_at + least.max((self.took * SHARE).min(PAUSE_MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(settling: &Settling) -> Option<Duration> {
        settling.due_at().map(|at| at - settling.stored_at)
    }

    #[test]
    fn storing_takes_a_small_share_of_the_time() {
        let mut settling = Settling::new(Lsn::new(100));
        assert_eq!(after(&settling), None);
        settling.delivered(true, Lsn::new(200));
        assert_eq!(after(&settling), Some(PAUSE));
        settling.stored(Instant::now(), 5 * MS);
        assert_eq!(after(&settling), None);
        settling.delivered(true, Lsn::new(300));
        assert_eq!(after(&settling), Some(160 * MS));
        settling.stored(Instant::now(), 3_000 * MS);
        settling.delivered(true, Lsn::new(400));
        assert_eq!(after(&settling), Some(PAUSE_MAX), "however long the last one took");
    }

    #[test]
    fn what_no_event_is_part_of_waits() {
        let mut settling = Settling::new(Lsn::new(100));
        settling.delivered(false, Lsn::new(900));
        assert_eq!(after(&settling), Some(IDLE_PAUSE), "its own writes move the WAL so far");
        settling.delivered(false, Lsn::new(100 + MOVED_BYTES));
        assert_eq!(after(&settling), Some(ALONE_PAUSE), "the server keeps it for the relay");
        settling.delivered(true, Lsn::new(200 + MOVED_BYTES));
        settling.delivered(false, Lsn::new(300 + MOVED_BYTES));
        assert_eq!(after(&settling), Some(PAUSE), "an event was among it");
        settling.stored(Instant::now(), MS);
        settling.delivered(false, Lsn::new(400 + MOVED_BYTES));
        assert_eq!(after(&settling), Some(ALONE_PAUSE), "it has the snapshot that shows the event");
        settling.stored(Instant::now(), MS);
        settling.delivered(false, Lsn::new(500 + MOVED_BYTES));
        assert_eq!(after(&settling), Some(IDLE_PAUSE), "counted from what is stored");
    }
}
