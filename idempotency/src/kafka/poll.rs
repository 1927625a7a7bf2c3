//! The one thread that speaks with Kafka: it polls, whatever happens, until it is told to stop.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use tokio_util::sync::CancellationToken;

use super::{
    context::{self, Context},
    error::RunError,
    identity::IdHeaders,
    native::{Fetched, Place, Queue, Record},
    reader::Reader,
    shared::Shared,
    topics::Topics,
};
use crate::{
    dispatch::Limits,
    fault::{Point, point},
    heap,
    processor::{Processor, Stop},
};

/// How long a poll waits when nothing comes.
const POLL: Duration = Duration::from_millis(50);
/// After so long without an answer from any broker that is said; the client tries on by itself.
const FIRST_ANSWER: Duration = Duration::from_secs(3);
/// Most events of partitions between two looks at what the group has to say.
const BURST: usize = 64;
/// Between two looks for room, where there is none.
const REST: Duration = Duration::from_millis(1);
/// How long nothing is taken before fetching is paused. What is there lasts longer than that by then,
/// and so longer than librdkafka takes to fetch again: up to a second, since what it has fetched of
/// a paused partition it throws away, and its broker's thread does not wake for a resumption.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often offsets are handed to librdkafka, which commits them at its own interval.
const STORE: Duration = Duration::from_millis(100);

pub(super) struct Poll {
    pub(super) consumer: BaseConsumer<Context>,
    pub(super) shared: Arc<Shared>,
    pub(super) processor: Processor,
    pub(super) topics: Vec<String>,
    pub(super) id_headers: IdHeaders,
    pub(super) config: ClientConfig,
    pub(super) limits: Limits,
    pub(super) drain: Duration,
    /// As they were given.
    pub(super) brokers: String,
    pub(super) stop: CancellationToken,
}

/// Whether anything more is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    /// Nothing is polled, which librdkafka bears for a while: it continues fetching up to its limit.
    Full {
        since: Instant,
    },
    /// Nothing is fetched, of this assignment's partitions; polled all the same, for rebalances.
    Paused {
        assignments: u64,
    },
}

impl Poll {
    /// Blocks until told to stop.
    pub(super) fn run(self) -> Result<(), RunError> {
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        self.consumer.subscribe(&topics).map_err(RunError::Client)?;
        match self.consumer.fetch_metadata(None, FIRST_ANSWER) {
            Ok(cluster) => self.consumer.context().counts.learn(&cluster),
            Err(error) => tracing::warn!(
                brokers = self.brokers,
                %error,
                "no Kafka broker has answered yet, and nothing is consumed until one does; is \
                 bootstrap.servers right? Trying again"
            ),
        }
        let outcome = self.poll();
        let refused = self.shared.refusal().map(|error| Stop::Inbox(error).into());
        self.leave();
        outcome.and(refused.map_or(Ok(()), Err))
    }

    fn poll(&self) -> Result<(), RunError> {
        let fetched = Queue::new(&self.consumer).expect("a runner's consumer has a group");
        let mut reader = Reader::new(self.id_headers.clone());
        let mut topics = Topics::new(self.processor.clone(), &self.config, self.stop.clone());
        let (mut flow, mut stored) = (Flow::Open, Instant::now());
        while !self.stop.is_cancelled() {
            match flow {
                Flow::Full { .. } => std::thread::sleep(REST),
                Flow::Open | Flow::Paused { .. } => {
                    self.serve(&fetched, &mut reader, &topics)?;
                    self.receive(&fetched, &mut reader, &mut topics)?;
                }
            }
            flow = self.regulate(flow);
            if stored.elapsed() >= STORE {
                stored = Instant::now();
                self.store();
                self.processor.say_what_is_slow();
                topics.ask(&self.consumer, &self.shared, &fetched);
                let (messages, bytes) = self.shared.lanes().load();
                self.processor.meter().in_flight(messages, bytes, flow != Flow::Open);
            }
        }
        Ok(())
    }

    /// What the group has to say. Of a partition that has come, all that was fetched before it was
    /// adopted is here, and must be taken before what comes to its own queue.
    fn serve(&self, fetched: &Queue, reader: &mut Reader, topics: &Topics) -> Result<(), RunError> {
        loop {
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(record)) => {
                    if let Some(record) = Record::of(&record) {
                        self.take(record, reader, topics);
                    }
                }
                // Said again by the partition's own queue, and with the place.
                Some(Err(KafkaError::PartitionEOF(_))) | None => {}
                Some(Err(error)) => survivable(error)?,
            }
            let came = self.shared.lanes().adopt();
            for (topic, partition) in &came {
                fetched.adopt(&self.consumer, topic, *partition);
            }
            if (came.is_empty() && fetched.of_group() == 0) || self.stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// What comes of partitions: some of it, so that the group is served in between.
    fn receive(
        &self,
        fetched: &Queue,
        reader: &mut Reader,
        topics: &mut Topics,
    ) -> Result<(), RunError> {
        let mut wait = POLL;
        for _ in 0..BURST {
            let Some(event) = fetched.next(wait) else { return Ok(()) };
            wait = Duration::ZERO;
            match event.fetched() {
                Fetched::Record(record) => self.take(record, reader, topics),
                Fetched::End(Place { topic, partition, offset }) => {
                    let partition = (reader.topic(&topic), partition);
                    topics.goes_on(&self.consumer, &self.shared, &partition, offset);
                    self.shared.lanes().passed(&partition, offset);
                }
                Fetched::Failed(at, code, text) => topics.failed(at, code, &text)?,
                Fetched::Ids(ids) => topics.told(&self.consumer, &self.shared, ids),
                Fetched::Nothing => {}
            }
            if self.is_full() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn take(&self, record: Record<'_>, reader: &mut Reader, topics: &Topics) {
        point(Point::Polled);
        if record.is_large() {
            heap::large_blocks_apart();
        }
        let message = reader.message(&record);
        let partition = (Arc::clone(&message.source.topic), record.partition());
        topics.goes_on(&self.consumer, &self.shared, &partition, record.offset());
        let lane = self.processor.lane(&message);
        self.shared.queue.push(message, lane);
    }

    fn is_full(&self) -> bool {
        self.limits.are_reached(self.shared.lanes().load())
    }

    /// Takes nothing more in at the limit, and continues below half of it.
    fn regulate(&self, flow: Flow) -> Flow {
        let (load, assignments) = {
            let lanes = self.shared.lanes();
            (lanes.load(), lanes.assignments())
        };
        let (full, low) = (self.limits.are_reached(load), self.limits.have_room_again(load));
        let paused = Flow::Paused { assignments };
        let (outcome, next) = match flow {
            Flow::Open if full => return Flow::Full { since: Instant::now() },
            Flow::Full { .. } if low => return Flow::Open,
            Flow::Full { since } if since.elapsed() >= PATIENCE => {
                (self.all(|c, list| c.pause(list)), paused)
            }
            Flow::Paused { .. } if low => (self.all(|c, list| c.resume(list)), Flow::Open),
            // Partitions that came meanwhile are not paused.
            Flow::Paused { .. } if flow != paused => (self.all(|c, list| c.pause(list)), paused),
            same => return same,
        };
        match outcome {
            Ok(()) => next,
            Err(error) => {
                tracing::warn!(%error, "fetching was not paused or resumed; trying again");
                flow
            }
        }
    }

    fn all(
        &self,
        change: impl Fn(&BaseConsumer<Context>, &rdkafka::TopicPartitionList) -> KafkaResult<()>,
    ) -> KafkaResult<()> {
        change(&self.consumer, &self.consumer.assignment()?)
    }

    fn store(&self) {
        let offsets = context::list(&self.shared);
        if offsets.count() == 0 {
            return;
        }
        match self.consumer.store_offsets(&offsets) {
            Ok(()) => point(Point::OffsetsStored),
            Err(error) => tracing::debug!(%error, "offsets were not stored"),
        }
    }

    /// Finishes what is under way, commits, and leaves the group.
    fn leave(self) {
        let partitions = self.shared.lanes().partitions();
        let left = self.shared.queue.drain(&partitions, self.drain);
        if left > 0 {
            tracing::warn!(left, "stopping while messages are under way; they are rolled back");
        }
        context::commit(&self.consumer, &self.shared);
        point(Point::Leaving);
        // Nothing is left for the revocation that closing brings.
        self.shared.lanes().forget(&partitions);
        drop(self.consumer);
    }
}

/// What a person looks at first.
fn look_at(error: &KafkaError) -> &'static str {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, Resolve};
    match error {
        KafkaError::MessageConsumption(AllBrokersDown | BrokerTransportFailure | Resolve) => {
            "are the brokers up, and is bootstrap.servers right?"
        }
        _ => "is each topic there?",
    }
}

/// Most errors pass: brokers that are away, a topic that is not there yet.
fn survivable(error: KafkaError) -> Result<(), RunError> {
    match error {
        KafkaError::MessageConsumptionFatal(_) => Err(RunError::Fatal(error)),
        KafkaError::MessageConsumption(
            RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed,
        ) => Err(RunError::Fatal(error)),
        error => {
            tracing::warn!(%error, "Kafka has an error for the consumer, which continues; {}", look_at(&error));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_connection_asks_for_the_brokers_and_any_other_for_the_topics() {
        let look = |code| look_at(&KafkaError::MessageConsumption(code));
        for code in [RDKafkaErrorCode::AllBrokersDown, RDKafkaErrorCode::BrokerTransportFailure] {
            assert!(look(code).contains("bootstrap.servers"), "{code}");
        }
        assert!(look(RDKafkaErrorCode::UnknownTopicOrPartition).contains("topic"));
    }
}
