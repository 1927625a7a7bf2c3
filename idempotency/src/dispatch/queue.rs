//! The lanes as a runner and its workers share them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::lanes::{Acknowledgement, InFlight, LaneScheduler};

pub(crate) struct DispatchQueue<A: Acknowledgement> {
    lanes: Mutex<LaneScheduler<A>>,
    /// For workers: a lane is ready. One permit at most, so whoever takes one passes it on.
    ready: Notify,
    /// For a thread that drains: something was finished.
    pub(super) finished: Condvar,
    /// For a task that tells the broker: the same, or something was returned.
    news: Notify,
    /// For a task that waits for room, or for the end: something was finished.
    room: Notify,
}

impl<A: Acknowledgement + Default> Default for DispatchQueue<A> {
    fn default() -> Self {
        DispatchQueue::new(LaneScheduler::default())
    }
}

impl<A: Acknowledgement> DispatchQueue<A> {
    pub(super) fn new(lanes: LaneScheduler<A>) -> Self {
        DispatchQueue {
            lanes: Mutex::new(lanes),
            ready: Notify::new(),
            finished: Condvar::new(),
            news: Notify::new(),
            room: Notify::new(),
        }
    }

    pub(crate) fn lanes(&self) -> MutexGuard<'_, LaneScheduler<A>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something comes or goes.
    pub(super) fn change(&self, change: impl FnOnce(&mut LaneScheduler<A>)) {
        change(&mut self.lanes());
        self.ready.notify_one();
        self.news.notify_one();
    }

    /// Waits for messages, at most `max` of them. Cancel safe.
    async fn next(&self, max: usize) -> Vec<InFlight<A::Token>> {
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

    /// Waits for messages, at most `max` of them. Cancel safe.
    pub(super) async fn take(&self, max: usize) -> Taken<'_, A> {
        Taken { items: self.next(max).await, queue: self, finished: false }
    }

    fn done(&self, items: &[InFlight<A::Token>], finished: bool) {
        let more = {
            let mut lanes = self.lanes();
            lanes.done(items, finished);
            lanes.has_ready()
        };
        if more {
            self.ready.notify_one();
        }
        self.finished.notify_all();
        self.news.notify_one();
        self.room.notify_one();
    }

    /// Ends when there may be news since the last time. For one task.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Ends when something may have been finished since the last time. For one task.
    pub(super) async fn room(&self) {
        self.room.notified().await;
    }
}

/// Messages that a worker has. Dropped before they are finished, they are given up.
pub(super) struct Taken<'a, A: Acknowledgement> {
    items: Vec<InFlight<A::Token>>,
    queue: &'a DispatchQueue<A>,
    finished: bool,
}

impl<A: Acknowledgement> Taken<'_, A> {
    pub(super) fn items(&self) -> &[InFlight<A::Token>] {
        &self.items
    }

    pub(super) fn are_finished(mut self) {
        self.finished = true;
    }
}

impl<A: Acknowledgement> Drop for Taken<'_, A> {
    fn drop(&mut self) {
        self.queue.done(&self.items, self.finished);
    }
}
