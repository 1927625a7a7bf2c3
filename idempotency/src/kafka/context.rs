//! Rebalances: partitions that come are opened, those that go are drained before they go.
//!
//! Called on the poll thread, inside `poll`. No effect depends on it: what is still under way when a
//! partition goes meets the next owner at the inbox, and one of the two waits for the other.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol},
    error::KafkaResult,
    types::RDKafkaRespErr,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    error::chain,
    fault::{Point, point},
    processor::Processor,
};

use super::desk::Partition;
use super::shared::Shared;
use super::topics;

/// Between two questions while the database is away.
const AGAIN: Duration = Duration::from_millis(500);

pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    /// How long a rebalance may wait for what is under way.
    pub(super) drain: Duration,
    pub(super) processor: Processor,
    pub(super) runtime: Handle,
    pub(super) leave: CancellationToken,
}

impl ClientContext for Context {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        use rdkafka::config::RDKafkaLogLevel as Level;
        match level {
            Level::Emerg | Level::Alert | Level::Critical | Level::Error => {
                tracing::error!(target: "librdkafka", facility, "{message}");
            }
            Level::Warning => tracing::warn!(target: "librdkafka", facility, "{message}"),
            _ => tracing::debug!(target: "librdkafka", facility, "{message}"),
        }
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "Kafka");
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let done = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assigned(consumer, list);
            // In librdkafka a pause outlives the assignment, and whoever paused a partition that it
            // gave away resumes only what it has now.
            if let Err(error) = consumer.resume(list) {
                tracing::warn!(%error, "partitions that came may still be paused");
            }
            if cooperative { consumer.incremental_assign(list) } else { consumer.assign(list) }
        } else {
            self.revoked(consumer, list);
            if cooperative { consumer.incremental_unassign(list) } else { consumer.unassign() }
        };
        if let Err(error) = done {
            tracing::error!(%error, "partitions were not taken over or given away");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // A hint that was not taken: what was finished meanwhile is found to be a duplicate.
            tracing::debug!(%error, "offsets were not committed");
        }
    }
}

impl Context {
    fn assigned(&self, consumer: &BaseConsumer<Self>, list: &mut TopicPartitionList) {
        point(Point::Assigning);
        let partitions = partitions(list);
        let mut starts = topics::committed(consumer, list);
        // The database knows better than the group where to go on, if it keeps watermarks.
        for ((topic, partition), offset) in self.start_offsets(&partitions) {
            let set = list.set_partition_offset(&topic, partition, Offset::Offset(offset));
            set.expect("a partition of the list, and an offset that came from the broker");
            starts.insert((topic, partition), offset);
        }
        tracing::info!(partitions = partitions.len(), "partitions assigned");
        let mut desk = self.shared.desk();
        for partition in partitions {
            let start = starts.get(&partition).copied();
            desk.assign(partition, start);
        }
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions = partitions(list);
        // Of lost partitions another one is the owner already: nothing to wait for, and no offset
        // of ours would be taken.
        let lost = consumer.assignment_lost();
        if !lost {
            point(Point::Revoking);
            let left = self.shared.drain(&partitions, self.drain);
            if left > 0 {
                tracing::warn!(left, "partitions go while messages are under way");
            }
            point(Point::Drained);
            commit(consumer, &self.shared);
        }
        tracing::info!(partitions = partitions.len(), lost, "partitions revoked");
        let mut desk = self.shared.desk();
        desk.close(&partitions);
        desk.forget(&partitions);
    }

    /// Blocks until the database answers, or the runner is to leave.
    fn start_offsets(&self, partitions: &[Partition]) -> Vec<(Partition, i64)> {
        if !self.processor.by_partition() {
            return Vec::new();
        }
        let ask = async {
            loop {
                match self.processor.start_offsets(partitions).await {
                    Ok(offsets) => return offsets,
                    Err(error) => {
                        let error = chain(&error);
                        tracing::warn!(error, "waiting for the watermarks");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.leave.cancelled() => Vec::new(),
                offsets = ask => offsets,
            }
        })
    }
}

/// Commits where each partition would be resumed, and waits for it.
pub(super) fn commit(consumer: &BaseConsumer<Context>, shared: &Shared) {
    let offsets = list(shared.desk().committable());
    if offsets.count() == 0 {
        return;
    }
    if let Err(error) = consumer.commit(&offsets, CommitMode::Sync) {
        tracing::debug!(%error, "offsets were not committed");
    }
}

pub(super) fn list(offsets: Vec<(Partition, i64)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for ((topic, partition), offset) in offsets {
        let added = list.add_partition_offset(&topic, partition, Offset::Offset(offset));
        added.expect("an offset from the broker is one");
    }
    list
}

fn partitions(list: &TopicPartitionList) -> Vec<Partition> {
    list.elements().iter().map(|one| (one.topic().into(), one.partition())).collect()
}
