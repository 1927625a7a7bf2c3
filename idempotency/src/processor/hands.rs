//! What a worker of parked lanes has in its hands, from one run of a transaction to the next.

use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::taken::Head;

/// A parked message.
pub(super) struct Parked {
    pub(super) lane: Uuid,
    pub(super) head: Head,
}

/// A lane that the worker has taken a message of, and that has more.
#[derive(Clone, Copy)]
pub(super) struct Streak {
    pub(super) lane: Uuid,
    /// The place of that message: all others have later ones.
    pub(super) behind: i64,
}

#[derive(Default)]
pub(super) struct Hands {
    blamed: Mutex<Option<Parked>>,
    streak: Mutex<Option<Streak>>,
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
    pub(super) fn keep(&self, lane: Uuid, behind: i64) {
        *held(&self.streak) = Some(Streak { lane, behind });
    }

    /// Once: whatever goes wrong then, the next look is at all lanes.
    pub(super) fn take_streak(&self) -> Option<Streak> {
        held(&self.streak).take()
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
