//! The desk as the poll thread and the workers share it.

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::desk::{Desk, Item, Partition};
use crate::{error::InboxError, message::RawMessage};

/// A clock has no time after some three hundred years.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

#[derive(Default)]
pub(super) struct Shared {
    desk: Mutex<Desk>,
    /// The broker's ids of topics, as of what is at the desk.
    topic_ids: Mutex<HashMap<Arc<str>, String>>,
    /// Why the runner is to end, where that was found out on the poll thread.
    refused: Mutex<Option<InboxError>>,
    /// For workers: a lane is ready. One permit at most, so whoever takes one passes it on.
    ready: Notify,
    /// For the poll thread: something was finished.
    finished: Condvar,
}

impl Shared {
    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn topic_is(&self, topic: Arc<str>, id: String) {
        self.topic_ids.lock().unwrap_or_else(PoisonError::into_inner).insert(topic, id);
    }

    pub(super) fn topic_id(&self, topic: &str) -> Option<String> {
        self.topic_ids.lock().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    pub(super) fn refuse(&self, error: InboxError) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    pub(super) fn refusal(&self) -> Option<InboxError> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn push(&self, message: RawMessage, lane: uuid::Uuid) {
        self.desk().push(message, lane);
        self.ready.notify_one();
    }

    /// Waits for messages, at most `max` of them. Cancel safe.
    pub(super) async fn take(&self, max: usize) -> Vec<Item> {
        loop {
            let (items, more) = {
                let mut desk = self.desk();
                (desk.take(max), desk.has_ready())
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

    pub(super) fn done(&self, items: &[Item], finished: bool) {
        let more = {
            let mut desk = self.desk();
            desk.done(items, finished);
            desk.has_ready()
        };
        if more {
            self.ready.notify_one();
        }
        self.finished.notify_all();
    }

    /// Takes nothing more of these partitions, and waits until workers have none of their messages;
    /// how many are left after `patience`. Blocks.
    pub(super) fn drain(&self, partitions: &[Partition], patience: Duration) -> usize {
        let deadline = Instant::now() + patience.min(FOREVER);
        let mut desk = self.desk();
        desk.close(partitions);
        loop {
            let left = desk.running(partitions);
            let wait = deadline.saturating_duration_since(Instant::now());
            if left == 0 || wait.is_zero() {
                return left;
            }
            let waited = self.finished.wait_timeout(desk, wait);
            (desk, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}
