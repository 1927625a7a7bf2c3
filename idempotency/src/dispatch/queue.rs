//! The lanes as a runner and its workers share them.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use uuid::Uuid;

use super::lanes::{InFlight, LaneScheduler, Partition};
use crate::message::RawMessage;

/// A clock has no time after some three hundred years.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

#[derive(Default)]
pub(crate) struct DispatchQueue {
    lanes: Mutex<LaneScheduler>,
    /// For workers: a lane is ready. One permit at most, so whoever takes one passes it on.
    ready: Notify,
    /// For the one that drains: something was finished.
    finished: Condvar,
}

impl DispatchQueue {
    pub(crate) fn lanes(&self) -> MutexGuard<'_, LaneScheduler> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, message: RawMessage, lane: Uuid) {
        self.lanes().push(message, lane);
        self.ready.notify_one();
    }

    /// Waits for messages, at most `max` of them. Cancel safe.
    pub(crate) async fn take(&self, max: usize) -> Vec<InFlight> {
        loop {
            let (items, more) = {
                let mut lanes = self.lanes();
                (lanes.take(max), lanes.has_ready())
            };
            if more {
                self.ready.notify_one();
            }
            if !items.is_empty() {
                return items;
            }
            self.ready.notified().await;
        }
    }

    pub(crate) fn done(&self, items: &[InFlight], finished: bool) {
        let more = {
            let mut lanes = self.lanes();
            lanes.done(items, finished);
            lanes.has_ready()
        };
        if more {
            self.ready.notify_one();
        }
        self.finished.notify_all();
    }

    /// Takes nothing more of these partitions, and waits until workers have none of their messages;
    /// how many are left after `patience`. Blocks.
    pub(crate) fn drain(&self, partitions: &[Partition], patience: Duration) -> usize {
        let deadline = Instant::now() + patience.min(FOREVER);
        let mut lanes = self.lanes();
        lanes.close(partitions);
        loop {
            let left = lanes.running(partitions);
            let wait = deadline.saturating_duration_since(Instant::now());
            if left == 0 || wait.is_zero() {
                return left;
            }
            let waited = self.finished.wait_timeout(lanes, wait);
            (lanes, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}
