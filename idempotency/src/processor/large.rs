//! Large messages take turns where they are stored or read back: each takes several times its size on
//! its way through the driver.
//!
//! A turn is taken before a connection, since whoever has one must not wait for it, and never lasts
//! through a handler, which may take any time.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

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
    pub(super) async fn turn(&self) -> Turn<'_> {
        Turn { _held: self.turn.lock().await, used: true }
    }

    /// If no one holds it now, it is kept for whoever needs it next.
    pub(super) fn try_turn(&self) -> Option<Turn<'_>> {
        Some(Turn { _held: self.turn.try_lock().ok()?, used: false })
    }

    /// To handle a parked one, if not as many are handled as may be.
    pub(super) fn try_parked(&self) -> Option<SemaphorePermit<'_>> {
        self.parked.try_acquire().ok()
    }
}

/// Until it is dropped.
pub(super) struct Turn<'a> {
    _held: MutexGuard<'a, ()>,
    used: bool,
}

impl Turn<'_> {
    /// It was needed, if this is so.
    pub(super) fn used(&mut self, used: bool) {
        self.used = used;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.used {
            give_back();
        }
    }
}

/// What was freed is mostly kept by glibc, for each thread, in case it is asked for as much again: several
/// messages' sizes that no one uses. It takes as long as a small transaction.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn give_back() {
    // SAFETY: it takes any number, may be called on any thread, and touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn give_back() {}
