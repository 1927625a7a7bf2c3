//! Rebalances: partitions that come are opened, those that go are drained before they go.
//!
//! Called on the poll thread, inside `poll`. No effect depends on it: what is still under way when a
//! partition goes meets the next owner at the inbox, and one of the two waits for the other.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol},
    error::KafkaResult,
    types::RDKafkaRespErr,
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    alert::Alert,
    dispatch::Partition,
    error::InboxError,
    fault::{Point, point},
    processor::Processor,
};

use super::added::Counts;
use super::foreign::Foreign;
use super::patience;
use super::shared::Shared;
use super::topics::{self, ASK, Start};

pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    /// How long a rebalance may wait for what is under way.
    pub(super) drain: Duration,
    pub(super) processor: Processor,
    pub(super) runtime: Handle,
    pub(super) leave: CancellationToken,
    pub(super) group: String,
    pub(super) foreign: Foreign,
    pub(super) counts: Counts,
    /// Where the group has no offset, reading begins at the end.
    pub(super) to_latest: bool,
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
        let ids = topics::ids(consumer, &partitions);
        let committed = topics::committed(consumer, list, &self.shared.seal);
        let known = committed.is_some();
        let mut starts = committed.unwrap_or_default();
        // The database knows better than the group where to continue, if it keeps watermarks.
        for (partition, offset, topic_id) in self.start_offsets(&partitions) {
            begin_at(list, &partition, Offset::Offset(offset));
            starts.insert(partition, Start { offset, topic_id, ours: true });
        }
        if known && self.to_latest {
            self.begin_added(consumer, list, &starts);
        }
        // Where the broker does not say which topics they are now, what they were is to be compared with what
        // it says later.
        for (topic, id) in topics::unanswered(&starts, &ids) {
            if self.shared.topic_id(&topic).is_none() {
                self.shared.topic_is(topic, id);
            }
        }
        for (topic, id) in &ids {
            self.shared.topic_is(topic.as_str().into(), id.clone());
            self.processor.topic_is(topic.as_str().into(), Some(id.clone()));
        }
        self.begin_anew(list, &mut starts, &ids);
        self.foreign.look(&self.processor, &self.group, &starts, &ids);
        tracing::info!(partitions = partitions.len(), "partitions assigned");
        let mut lanes = self.shared.lanes();
        for partition in partitions {
            let start = starts.get(&partition).map(|start| start.offset);
            lanes.assign(partition, start);
        }
    }

    /// What was added while this process runs has nothing of before: at its end, what came until now would be passed
    /// over.
    fn begin_added(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &mut TopicPartitionList,
        starts: &HashMap<Partition, Start>,
    ) {
        if !self.counts.are_known()
            && let Ok(cluster) = consumer.fetch_metadata(None, ASK)
        {
            self.counts.learn(&cluster);
        }
        let mut known = HashMap::new();
        for partition in partitions(list) {
            let (topic, number) = &partition;
            if starts.contains_key(&partition) {
                continue;
            }
            if !self.counts.is_new(topic, *number) {
                let known = known.entry(Arc::clone(topic));
                if *known.or_insert_with(|| is_known(consumer, topic)) {
                    self.pass_over(consumer, list, &partition);
                }
                continue;
            }
            tracing::warn!(
                consumer = self.processor.inbox().consumer(),
                %topic,
                partition = number,
                "the partition was added after this consumer's start, and is read from its beginning, whatever \
                 auto.offset.reset is"
            );
            begin_at(list, &partition, Offset::Beginning);
        }
    }

    /// The group has read others of the topic's partitions, and not this one: it may have been added while no process
    /// ran, or the first one stopped at once. What is there is not read, as was set, so that is said.
    fn pass_over(
        &self,
        consumer: &BaseConsumer<Self>,
        list: &mut TopicPartitionList,
        partition: &Partition,
    ) {
        let (topic, number) = partition;
        let Ok((from, to)) = consumer.fetch_watermarks(topic, *number, ASK) else { return };
        if from >= to {
            return;
        }
        let consumer = self.processor.inbox().consumer().to_owned();
        tracing::warn!(
            consumer,
            %topic,
            partition = number,
            from,
            to,
            "the group has offsets of other partitions of the topic and none of this one, which may have been added \
             while no process ran: with auto.offset.reset=latest its records from offset {from} to before {to} have \
             no effect here. To have them read, stop the consumer, type `{}` and start it again. If they were there \
             before this group began, nothing is to be done",
            self.processor.to_read_from(partition, from, &self.group)
        );
        // Exactly what was said is passed over, whatever comes meanwhile.
        begin_at(list, partition, Offset::Offset(to));
        self.processor.meter().skipped(topic, to - from);
        let (topic, partition) = (topic.to_string(), *number);
        self.processor.raise(&Alert::Skipped { consumer, topic, partition, from, to });
    }

    /// Where a partition would continue may be a place in another topic, which had its name before.
    fn begin_anew(
        &self,
        list: &mut TopicPartitionList,
        starts: &mut HashMap<Partition, Start>,
        ids: &HashMap<String, String>,
    ) {
        starts.retain(|partition, start| {
            let now = ids.get(&*partition.0);
            let Some(now) = now.filter(|now| start.topic_id.as_ref().is_some_and(|id| id != *now))
            else {
                return true;
            };
            let (topic, number) = (partition.0.to_string(), partition.1);
            let consumer = self.processor.inbox().consumer().to_owned();
            topics::say_anew(&consumer, &topic);
            if self.processor.by_partition() {
                let set_back = || self.processor.set_back(partition, now);
                let _until_it_leaves = self.ask("setting a watermark back", set_back);
            }
            begin_at(list, partition, Offset::Beginning);
            let from = start.offset;
            let restarted = Alert::Restarted { consumer, topic, partition: number, from, to: 0 };
            self.processor.raise(&restarted);
            false
        });
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions = partitions(list);
        // Of lost partitions another one is the owner already: nothing to wait for, and no offset
        // of ours would be taken.
        let lost = consumer.assignment_lost();
        if !lost {
            point(Point::Revoking);
            let left = self.shared.queue.drain(&partitions, self.drain);
            if left > 0 {
                tracing::warn!(left, "partitions go while messages are under way");
            }
            point(Point::Drained);
            commit(consumer, &self.shared);
        }
        tracing::info!(partitions = partitions.len(), lost, "partitions revoked");
        let mut lanes = self.shared.lanes();
        lanes.close(&partitions);
        lanes.forget(&partitions);
    }

    /// Blocks until the database answers, or the runner is to leave.
    fn start_offsets(&self, partitions: &[Partition]) -> Vec<(Partition, i64, Option<String>)> {
        if !self.processor.by_partition() {
            self.processor.may_be_marked(partitions);
            return Vec::new();
        }
        let read = || self.processor.start_offsets(partitions);
        self.ask("reading the watermarks", read).unwrap_or_default()
    }

    fn ask<T, F, Fut>(&self, doing: &'static str, ask: F) -> Option<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, InboxError>>,
    {
        patience::ask((&self.runtime, &self.leave), (&self.processor, &self.shared), doing, ask)
    }
}

/// Commits where each partition would be resumed, and waits for it.
pub(super) fn commit(consumer: &BaseConsumer<Context>, shared: &Shared) {
    let offsets = list(shared);
    if offsets.count() == 0 {
        return;
    }
    if let Err(error) = consumer.commit(&offsets, CommitMode::Sync) {
        tracing::debug!(%error, "offsets were not committed");
    }
}

/// What can be committed, each offset with its topic's id: the broker keeps an offset of a topic that was
/// recreated, if a member commits it that does not know yet. And that it is ours.
pub(super) fn list(shared: &Shared) -> TopicPartitionList {
    let offsets = shared.lanes().committable();
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for ((topic, partition), offset) in offsets {
        let mut added = list.add_partition(&topic, partition);
        added.set_offset(Offset::Offset(offset)).expect("an offset from the broker is one");
        added.set_metadata(topics::mark(shared.topic_id(&topic).as_deref(), &shared.seal));
    }
    list
}

/// Whether the group has committed an offset of any of the topic's partitions.
fn is_known(consumer: &BaseConsumer<Context>, topic: &str) -> bool {
    let Ok(cluster) = consumer.fetch_metadata(Some(topic), ASK) else { return false };
    let mut list = TopicPartitionList::new();
    for partition in cluster.topics().iter().flat_map(|topic| topic.partitions()) {
        list.add_partition(topic, partition.id());
    }
    let committed = consumer.committed_offsets(list, ASK);
    let is_offset = |offset| matches!(offset, Offset::Offset(_));
    committed.is_ok_and(|found| found.elements().iter().any(|one| is_offset(one.offset())))
}

fn begin_at(list: &mut TopicPartitionList, (topic, partition): &Partition, offset: Offset) {
    let set = list.set_partition_offset(topic, *partition, offset);
    set.expect("a partition of the list, and an offset that came from the broker");
}

fn partitions(list: &TopicPartitionList) -> Vec<Partition> {
    list.elements().iter().map(|one| (one.topic().into(), one.partition())).collect()
}
