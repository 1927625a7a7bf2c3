//! What every step of the daemon is given: the settings, what is made of them, and where its state is shown.

use std::sync::Arc;

use crate::{
    config::{Config, parts::Parts},
    core::record::BatchLimits,
    state::Board,
};

/// Made once, and passed along; a task that is spawned has a clone.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) config: Arc<Config>,
    /// Those of this attempt: files with passwords are read again before each.
    pub(super) parts: Arc<Parts>,
    pub(super) board: Board,
}

impl Context {
    /// Of each batch, in the stream and in a repair.
    pub(super) fn batch_limits(&self) -> BatchLimits {
        let batch = &self.config.batch;
        BatchLimits { records_max: batch.records_max, bytes_max: batch.bytes_max }
    }
}
