//! Large messages take turns where they are stored or read back: each takes several times its size on
//! its way through the driver.
//!
//! A turn is taken before a connection, since whoever has one must not wait for it, and never lasts
//! through a handler, which may take any time.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use crate::heap;

/// Large parked messages that are handled at once: no runner's setting counts them.
const PARKED_AT_ONCE: usize = 2;

/// Whose turn it is.
#[derive(Clone)]
pub(super) struct Large {
    turn: Arc<Mutex<()>>,
    parked: Arc<Semaphore>,
}

impl Default for Large {
    fn default() -> Self {
        Large { turn: Arc::default(), parked: Arc::new(Semaphore::new(PARKED_AT_ONCE)) }
    }
}

impl Large {
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        heap::large_blocks_apart();
        self.turn.lock().await
    }

    /// If no one holds it now, it is kept for whoever needs it next.
    pub(super) fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.turn.try_lock().ok()
    }

    /// To handle a parked one, if not as many are handled as may be.
    pub(super) fn try_parked(&self) -> Option<SemaphorePermit<'_>> {
        self.parked.try_acquire().ok()
    }
}
