//! What a consumer finds in a topic, from the beginning of each partition to its end at this moment.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
    types::RDKafkaErrorCode,
};

use crate::{kafka::Kafka, wait};

/// How long one question to the broker may take.
pub(super) const ASK: Duration = Duration::from_secs(10);

/// Which records a consumer is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isolation {
    /// What is committed, up to the first open transaction.
    Committed,
    /// Also what is in an open transaction, or was taken back.
    Uncommitted,
}

impl Isolation {
    /// As `isolation.level` has it.
    pub(super) const fn level(self) -> &'static str {
        match self {
            Isolation::Committed => "read_committed",
            Isolation::Uncommitted => "read_uncommitted",
        }
    }
}

/// A record as a consumer sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it was found.
    pub topic: String,
    /// Where it was found.
    pub partition: i32,
    /// Where it was found.
    pub offset: i64,
    /// `None` where it has none.
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub payload: Option<Vec<u8>>,
    /// In their order; text, as all of ours are.
    pub headers: Vec<(String, String)>,
    /// Milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
}

impl Record {
    /// The value of the header `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The event's id, with either style of headers.
    pub fn id(&self) -> Option<&str> {
        self.header("outbox-id").or_else(|| self.header("ce_id")).or_else(|| self.header("id"))
    }
}

/// A consumer of all partitions from their beginnings.
pub(super) struct Reader {
    consumer: BaseConsumer,
    pub(super) partitions: usize,
    /// Partitions whose end was reached, and nothing came since.
    pub(super) ended: BTreeSet<i32>,
    pub(super) records: Vec<Record>,
    pub(super) deadline: Instant,
}

impl Reader {
    pub(super) fn open(kafka: &Kafka, topic: &str, isolation: Isolation) -> Result<Self> {
        let consumer: BaseConsumer = kafka
            .client()
            .set("group.id", "unused: partitions are assigned by hand")
            .set("enable.auto.commit", "false")
            .set("isolation.level", isolation.level())
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "20")
            .create()?;
        // It also tells the leaders: a client that does not know one yet asks for its beginning 500 ms later.
        let there = partitions(topic, &consumer)?;
        let partitions = there.with_context(|| format!("no topic {topic}"))?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        Ok(Reader {
            consumer,
            partitions: usize::try_from(partitions)?,
            ended: BTreeSet::new(),
            records: Vec::new(),
            deadline: Instant::now() + wait::PATIENCE,
        })
    }

    /// Takes what comes next: a record, or the news that a partition holds no more. What an open
    /// transaction hides is past that end.
    pub(super) fn poll(&mut self) -> Result<()> {
        match self.consumer.poll(Duration::from_millis(20)) {
            Some(Ok(message)) => {
                self.ended.remove(&message.partition());
                self.records.push(record(&message));
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(self.ended.insert(partition)),
            Some(Err(error)) => return Err(error).context("reading"),
            None if Instant::now() >= self.deadline => {
                bail!("read {} records and no more came", self.records.len())
            }
            None => {}
        }
        Ok(())
    }
}

/// Number of a topic's partitions, `None` when there is no such topic. The consumer knows their leaders afterwards.
pub(super) fn partitions(topic: &str, consumer: &BaseConsumer) -> Result<Option<i32>> {
    // Of this one alone: a broker of a whole run has thousands. The client's settings keep this from creating it.
    let metadata = consumer.fetch_metadata(Some(topic), ASK)?;
    let found = metadata.topics().first().context("an answer about the topic")?;
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(Some(i32::try_from(found.partitions().len()).context("partitions")?)),
        Some(
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::InvalidTopic,
        ) => Ok(None),
        Some(error) => bail!("{topic}: {error}"),
    }
}

fn record(message: &rdkafka::message::BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map(|headers| {
        headers
            .iter()
            .map(|header| {
                let value = header.value.map(|value| String::from_utf8_lossy(value).into_owned());
                (header.key.to_owned(), value.unwrap_or_default())
            })
            .collect()
    });
    Record {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        payload: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
        timestamp_ms: message.timestamp().to_millis(),
    }
}
