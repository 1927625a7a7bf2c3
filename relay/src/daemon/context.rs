//! What every step of the daemon is given: the settings, what is made of them, and where its state is shown.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    config::{Config, parts::Parts},
    core::{record::BatchLimits, streamed::Streamed},
    dead_letter::notice::Notice,
    state::{Board, boards::OfRelay},
};

/// Made once, and passed along; a task that is spawned has a clone.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) config: Arc<Config>,
    /// Those of this attempt: files with passwords are read again before each.
    pub(super) parts: Arc<Parts>,
    pub(super) board: Board,
    /// Which rows the stream has sent lately, in whichever attempt.
    pub(super) streamed: Arc<Mutex<Streamed>>,
    /// Losses of parked events that were told: whoever deletes their rows does not end that.
    pub(super) losses: Arc<Mutex<Vec<Notice>>>,
}

impl Context {
    pub(super) fn new(config: Config, parts: Parts) -> Self {
        let (name, slot, version) =
            (&config.name, &config.postgres.slot, env!("CARGO_PKG_VERSION"));
        let board = match config.route {
            Some(_) => Board::of_route(name, slot, version),
            None => Board::new(name, slot, version),
        };
        let (streamed, losses) = Default::default();
        let (config, parts) = (Arc::new(config), Arc::new(parts));
        Context { config, parts, board, streamed, losses }
    }

    /// Its board, as one of the process's.
    pub(super) fn of_relay(&self) -> OfRelay {
        let route = self.config.route.as_ref();
        OfRelay {
            route: route.map(|route| route.name.clone()),
            required: route.is_none_or(|route| route.required),
            board: self.board.clone(),
        }
    }

    /// Never held across an await.
    pub(super) fn streamed(&self) -> MutexGuard<'_, Streamed> {
        self.streamed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never held across an await.
    pub(super) fn losses(&self) -> MutexGuard<'_, Vec<Notice>> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of each batch, in the stream and in a repair.
    pub(super) fn batch_limits(&self) -> BatchLimits {
        let batch = &self.config.batch;
        BatchLimits { records_max: batch.records_max, bytes_max: batch.bytes_max }
    }
}
