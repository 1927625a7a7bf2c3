//! A member of a consumer group without Kafka: the lanes, what workers do, and the offsets, for the
//! suite's model of all that can happen to them. Not part of the product.

use std::{sync::Arc, time::Duration};

use super::shared::Shared;
use crate::{
    dispatch::{Partition, work_once},
    error::InboxError,
    message::RawMessage,
    ordering::OrderBy,
    processor::{Processor, Stop},
};

/// A member. Whoever has it decides what it polls, when it works, and what becomes of its offsets.
#[derive(Default)]
pub struct Offline {
    shared: Shared,
}

impl std::fmt::Debug for Offline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offline").finish_non_exhaustive()
    }
}

impl Offline {
    /// A partition comes.
    pub fn assign(&self, topic: &str, partition: i32) {
        self.shared.lanes().assign((topic.into(), partition), None);
    }

    /// A record was polled; what has one lane of `lanes` is with one worker at a time.
    pub fn push(&self, message: RawMessage, lanes: OrderBy) {
        let lane = lanes.lane(&message);
        self.shared.queue.push(message, lane);
    }

    /// A worker takes at most `max` messages and has them processed; false where there are none.
    ///
    /// # Errors
    /// What `process` says; the messages are not finished.
    pub async fn work<F, Fut>(&self, max: usize, process: F) -> Result<bool, Stop>
    where
        F: FnOnce(Vec<RawMessage>) -> Fut,
        Fut: Future<Output = Result<(), Stop>>,
    {
        if !self.shared.lanes().has_ready() {
            return Ok(false);
        }
        work_once(&self.shared.queue, max, process).await.map(|()| true)
    }

    /// Where each partition would be resumed, if that has changed.
    pub fn committable(&self) -> Vec<(Partition, i64)> {
        self.shared.lanes().committable()
    }

    /// A partition is to go: nothing more of it is taken. The offsets to commit come after this.
    pub fn close(&self, topic: &str, partition: i32) {
        self.shared.queue.drain(&[(topic.into(), partition)], Duration::ZERO);
    }

    /// It has gone.
    pub fn forget(&self, topic: &str, partition: i32) {
        self.shared.lanes().forget(&[(topic.into(), partition)]);
    }
}

/// Where the database says that a partition continues, if it knows.
///
/// # Errors
/// The database's.
pub async fn start_offset(
    processor: &Processor,
    topic: &str,
    partition: i32,
) -> Result<Option<i64>, InboxError> {
    let partition: Partition = (Arc::from(topic), partition);
    let offsets = processor.start_offsets(std::slice::from_ref(&partition)).await?;
    Ok(offsets.first().map(|(_, offset, _)| *offset))
}
