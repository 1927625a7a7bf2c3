//! What every step of a start does in the same way: says what it is doing, and stores progress.

use super::ended::Ended;
use crate::{
    core::progress::Progress,
    sink::{ProgressStore as _, any::AnySink},
    state::{Board, Phase},
};

/// Says what the relay is doing, for `/status` and `/readyz`.
pub(super) fn doing(board: &Board, doing: &str) {
    tracing::debug!("{doing}");
    board.phase(Phase::Starting { doing: doing.to_owned() });
}

/// Stores progress alone.
pub(super) async fn store(sink: &mut AnySink, progress: &Progress) -> Result<(), Ended> {
    let stored = sink.store(progress.encode()).await;
    stored.map(drop).map_err(|e| Ended::sink("storing progress", e))
}
