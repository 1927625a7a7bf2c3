//! What a worker of parked lanes has in its hands, from one run of a transaction to the next.

use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::taken::{Head, Which};

/// A parked message.
pub(super) struct Parked {
    pub(super) lane: Uuid,
    pub(super) head: Head,
}

#[derive(Default)]
pub(super) struct Hands {
    blamed: Mutex<Option<Parked>>,
    next: Mutex<Option<Which>>,
}

impl Hands {
    /// This message is to be blamed if that can't be said in its own transaction.
    pub(super) fn blame(&self, lane: Uuid, head: &Head) {
        *held(&self.blamed) = Some(Parked { lane, head: head.clone() });
    }

    pub(super) fn take_blamed(&self) -> Option<Parked> {
        held(&self.blamed).take()
    }

    /// The worker continues with this lane.
    pub(super) fn keep(&self, next: Which) {
        *held(&self.next) = Some(next);
    }

    /// Once: whatever goes wrong then, the next look is at all lanes.
    pub(super) fn take_next(&self) -> Option<Which> {
        held(&self.next).take()
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
