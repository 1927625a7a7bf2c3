//! Says once, in the log and after `ok` in `/readyz`, that the stream is late or does not move.

use std::time::{Duration, Instant};

use crate::state::Board;

/// A stream that catches up sooner, as after a restart, is not worth a word.
const LASTS: Duration = Duration::from_secs(10);

/// From one look to the next.
#[derive(Default)]
pub(super) struct Late {
    /// The log knows.
    told: bool,
    since: Option<Instant>,
}

impl Late {
    /// Tells of what has changed since the last look.
    pub(super) fn tell(&mut self, board: &Board) {
        let ready = board.readiness().is_ok();
        // Where the brokers or a lock are why, that is said elsewhere.
        let late = board.lateness().filter(|late| late.still || ready);
        let lasts = late.as_ref().map(|_| self.since.get_or_insert_with(Instant::now).elapsed());
        if late.is_none() {
            self.since = None;
        }
        let late = late.filter(|late| late.still || lasts >= Some(LASTS));
        board.late(late.as_ref().filter(|_| ready).map(|late| late.words.clone()));
        match (&late, self.told) {
            (Some(late), false) => tracing::warn!(reason = %late.words, "events are late"),
            (None, true) if ready => tracing::info!("events are late no more"),
            _ => return,
        }
        self.told = late.is_some();
    }
}
