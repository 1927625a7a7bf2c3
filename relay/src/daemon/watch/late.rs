//! Says once, in the log and after `ok` in `/readyz`, that the stream is late or stands still.

use crate::state::Board;

/// Tells of what has changed since the last look; `told` is whether the log knows.
pub(super) fn tell(board: &Board, told: &mut bool) {
    let ready = board.readiness().is_ok();
    // Where the brokers or a lock are why, that is said elsewhere.
    let late = board.lateness().filter(|late| late.still || ready);
    board.late(late.as_ref().filter(|_| ready).map(|late| late.words.clone()));
    match (&late, *told) {
        (Some(late), false) => tracing::warn!(reason = %late.words, "events are late"),
        (None, true) if ready => tracing::info!("events are late no more"),
        _ => return,
    }
    *told = late.is_some();
}
