//! The one thread that speaks with Kafka: it polls, whatever happens, until it is told to stop.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    Message as _,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
};
use tokio_util::sync::CancellationToken;

use super::{
    Limits, RunError,
    context::{self, Context},
    identity::IdHeaders,
    native,
    shared::Shared,
};
use crate::{
    fault::{Point, point},
    message::{Message, RawMessage, Source},
    processor::Processor,
};

/// How long a poll waits when nothing comes.
const POLL: Duration = Duration::from_millis(50);
/// After so long without an answer from any broker that is said; the client tries on by itself.
const FIRST_ANSWER: Duration = Duration::from_secs(3);
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
    /// Nothing is polled, which librdkafka bears for a while: it goes on fetching up to its limit.
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
        if let Err(error) = self.consumer.fetch_metadata(None, FIRST_ANSWER) {
            tracing::warn!(
                brokers = self.brokers,
                %error,
                "no Kafka broker has answered yet, and nothing is consumed until one does; is \
                 bootstrap.servers right? Trying again"
            );
        }
        let outcome = self.poll();
        self.leave();
        outcome
    }

    fn poll(&self) -> Result<(), RunError> {
        let mut reader = Reader {
            id_headers: self.id_headers.clone(),
            names: HashMap::new(),
            undated: HashSet::new(),
        };
        let (mut flow, mut stored) = (Flow::Open, Instant::now());
        while !self.stop.is_cancelled() {
            let polled = match flow {
                Flow::Full { .. } => {
                    std::thread::sleep(REST);
                    None
                }
                Flow::Open | Flow::Paused { .. } => self.consumer.poll(POLL),
            };
            match polled {
                Some(Ok(record)) => {
                    point(Point::Polled);
                    let message = reader.message(&record);
                    let lane = self.processor.lane(&message);
                    self.shared.push(message, lane);
                }
                Some(Err(error)) => survivable(error)?,
                None => {}
            }
            flow = self.regulate(flow);
            if stored.elapsed() >= STORE {
                stored = Instant::now();
                self.store();
                let (messages, bytes) = self.shared.desk().load();
                self.processor.meter().in_flight(messages, bytes, flow != Flow::Open);
            }
        }
        Ok(())
    }

    /// Takes nothing more in at the limit, and goes on below half of it.
    fn regulate(&self, flow: Flow) -> Flow {
        let ((messages, bytes), assignments) = {
            let desk = self.shared.desk();
            (desk.load(), desk.assignments())
        };
        let Limits { messages: messages_max, bytes: bytes_max } = self.limits;
        let full = messages >= messages_max || bytes >= bytes_max;
        let low = messages <= messages_max / 2 && bytes <= bytes_max / 2;
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
        let offsets = context::list(self.shared.desk().committable());
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
        let partitions = self.shared.desk().partitions();
        let left = self.shared.drain(&partitions, self.drain);
        if left > 0 {
            tracing::warn!(left, "stopping while messages are under way; they are rolled back");
        }
        context::commit(&self.consumer, &self.shared);
        point(Point::Leaving);
        // Nothing is left for the revocation that closing brings.
        self.shared.desk().forget(&partitions);
        drop(self.consumer);
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
            tracing::warn!(%error, "Kafka has an error for the consumer, which goes on; is each topic there?");
            Ok(())
        }
    }
}

/// A record as a message; topics' names are kept once.
struct Reader {
    id_headers: IdHeaders,
    names: HashMap<String, Arc<str>>,
    /// Topics with a record that has no time.
    undated: HashSet<Arc<str>>,
}

impl Reader {
    fn message(&mut self, record: &BorrowedMessage<'_>) -> RawMessage {
        let topic = match self.names.get(record.topic()) {
            Some(topic) => Arc::clone(topic),
            None => {
                let topic: Arc<str> = record.topic().into();
                self.names.insert(record.topic().to_owned(), Arc::clone(&topic));
                topic
            }
        };
        let (partition, offset) = (record.partition(), record.offset());
        let source = Source { topic, partition, offset };
        let headers = native::headers(record);
        let id = self.id_headers.identify(&headers, &source, record.timestamp());
        if !id.is_dated() && self.undated.insert(Arc::clone(&source.topic)) {
            let topic = &*source.topic;
            tracing::error!(
                topic,
                partition,
                offset,
                "a record's id carries no time, and the record no producer's: a copy of it could not \
                 be told from a new message, so it becomes a dead letter with the code `undated`, as \
                 will all others like it. If the topic has message.timestamp.type=LogAppendTime, \
                 type: kafka-configs.sh --alter --topic {topic} --add-config \
                 message.timestamp.type=CreateTime. Else let its producer send timestamps, or ids that \
                 are UUIDs of version 7. Then: outbox-relay inbox dead-letters replay --code undated"
            );
        }
        Message {
            id,
            key: record.key().map(<[u8]>::to_vec),
            payload: record.payload().map(<[u8]>::to_vec),
            headers,
            source,
            attempt: 1,
        }
    }
}
