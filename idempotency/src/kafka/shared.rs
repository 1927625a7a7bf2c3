//! What the poll thread, the group's callbacks and the workers share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    dispatch::{DispatchQueue, LaneScheduler, PrefixOffsets},
    error::InboxError,
};

#[derive(Default)]
pub(super) struct Shared {
    pub(super) queue: DispatchQueue<PrefixOffsets>,
    /// The broker's ids of topics, as of what is in the queue.
    topic_ids: Mutex<HashMap<Arc<str>, String>>,
    /// The consumer's, in each commit.
    pub(super) seal: String,
    /// Why the runner is to end, where that was found out on the poll thread.
    refused: Mutex<Option<InboxError>>,
}

impl Shared {
    /// Of the consumer that has this seal.
    pub(super) fn of(seal: String) -> Self {
        Shared { seal, ..Shared::default() }
    }

    pub(super) fn lanes(&self) -> MutexGuard<'_, LaneScheduler<PrefixOffsets>> {
        self.queue.lanes()
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
}
