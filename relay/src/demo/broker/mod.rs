//! The demo's broker, and how its records are read.

mod kafka;
mod nats;

use std::path::Path;

use anyhow::Result;

use self::{
    kafka::{Kafka, KafkaReader},
    nats::{Nats, NatsReader},
};
use super::count::Order;

/// Which broker is to be shown.
#[derive(Clone, Debug)]
pub enum Sink {
    /// These brokers, or librdkafka's mock cluster.
    Kafka(Option<String>),
    /// The server at this address, or an installed one that is started in a directory of its own.
    Nats(Option<String>),
}

/// A broker, and what the demo makes in it.
pub(super) enum Broker {
    Kafka(Kafka),
    Nats(Nats),
}

impl Broker {
    /// Finds or starts it; what is started keeps its files in `dir`, and goes with this process.
    pub(super) async fn obtain(sink: &Sink, dir: &Path) -> Result<Self> {
        match sink {
            Sink::Kafka(given) => Ok(Broker::Kafka(Kafka::obtain(given.as_deref())?)),
            Sink::Nats(given) => Ok(Broker::Nats(Nats::obtain(given.as_deref(), dir).await?)),
        }
    }

    /// Whether it is Kafka's mock, which has no transactions.
    pub(super) fn is_mock(&self) -> bool {
        matches!(self, Broker::Kafka(kafka) if kafka.is_mock())
    }

    /// What it is, for a person.
    pub(super) fn describe(&self) -> String {
        match self {
            Broker::Kafka(kafka) => kafka.describe(),
            Broker::Nats(nats) => nats.describe(),
        }
    }

    /// Why a consumer sees nothing that was not committed, in a word or two.
    pub(super) fn seen_by(&self) -> &'static str {
        match self {
            Broker::Kafka(kafka) if kafka.is_mock() => "mock: no transactions",
            Broker::Kafka(_) => "read_committed",
            Broker::Nats(_) => "atomic batches",
        }
    }

    /// The relay's settings from `[sink]` on, as TOML; `topic` is the one that was created.
    pub(super) fn settings(&self, topic: &str, partitions: u8) -> String {
        match self {
            Broker::Kafka(kafka) => kafka.settings(),
            Broker::Nats(nats) => nats.settings(topic, partitions),
        }
    }

    /// Creates what the relay publishes to.
    pub(super) async fn create(&self, topic: &str, partitions: u8, progress: &str) -> Result<()> {
        match self {
            Broker::Kafka(kafka) => kafka.create(topic, partitions.into(), progress).await,
            Broker::Nats(nats) => nats.create(topic, progress).await,
        }
    }

    /// Deletes what was created, and what the relay has.
    pub(super) async fn delete(&self, topic: &str, progress: &str) -> Result<()> {
        match self {
            Broker::Kafka(kafka) => kafka.delete(&[topic, progress]).await,
            Broker::Nats(nats) => nats.delete(topic).await,
        }
    }

    pub(super) fn reader(&self, topic: &str, partitions: u8) -> Result<Reader> {
        match self {
            Broker::Kafka(kafka) => Ok(Reader::Kafka(kafka.reader(topic, partitions)?)),
            Broker::Nats(nats) => Ok(Reader::Nats(nats.reader(topic))),
        }
    }
}

/// Reads all records from the first on, and remembers how far it has come.
pub(super) enum Reader {
    Kafka(KafkaReader),
    Nats(NatsReader),
}

impl Reader {
    /// Waits for the next records, up to `max` of them. Cancel safe.
    ///
    /// # Errors
    /// The broker's, or a record is not as it was written.
    pub(super) async fn next(&mut self, max: usize) -> Result<Vec<Order>> {
        match self {
            Reader::Kafka(kafka) => kafka.next(max).await,
            Reader::Nats(nats) => nats.next(max).await,
        }
    }

    /// The next records, up to `max`, of what the broker has now; `None` at the end. Nothing is written meanwhile.
    ///
    /// # Errors
    /// As [`Reader::next`].
    pub(super) async fn rest(&mut self, max: usize) -> Result<Option<Vec<Order>>> {
        match self {
            Reader::Kafka(kafka) => kafka.rest(max).await,
            Reader::Nats(nats) => nats.rest(max).await,
        }
    }
}
