//! Kafka, in its three ways.

use std::{marker::PhantomData, time::Duration};

use outbox_harness::{
    Harness,
    proxy::Proxy,
    relay::Settings,
    topic::{Record, Topic},
};
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::kind::{Can, Fence, Kind, Odd, PARTITIONS};

/// `max.message.bytes` of the topic.
const BYTES_MAX: usize = 100_000;
/// A delivery is given up after two thirds of it.
const TRANSACTION_MS: &str = "3000";

pub(crate) struct Kafka<W> {
    way: PhantomData<W>,
    topic: Topic,
    brokers: String,
    line: Option<Proxy>,
}

/// How it delivers.
pub(crate) trait Way {
    const DELIVERY: &str;
    const PROGRESS: &str;
    const FENCE: Fence;
}

/// Records and progress in one transaction.
pub(crate) struct ExactlyOnce;

/// Records first, then progress.
pub(crate) struct AtLeastOnce;

/// Progress is in the database.
pub(crate) struct RecordsAlone;

impl Way for ExactlyOnce {
    const DELIVERY: &str = "exactly-once";
    const PROGRESS: &str = "broker";
    const FENCE: Fence = Fence::Broker;
}

impl Way for AtLeastOnce {
    const DELIVERY: &str = "at-least-once";
    const PROGRESS: &str = "broker";
    const FENCE: Fence = Fence::Claim;
}

impl Way for RecordsAlone {
    const DELIVERY: &str = "at-least-once";
    const PROGRESS: &str = "postgres";
    const FENCE: Fence = Fence::Session;
}

impl<W: Way> Kind for Kafka<W> {
    const CAN: Can = Can {
        one_step: matches!(W::FENCE, Fence::Broker),
        refuses: &[
            (Odd::Missing, "unknown_topic"),
            (Odd::Unnameable, "invalid_topic"),
            (Odd::Reserved, "reserved_topic"),
            (Odd::Nowhere, "no_such_partition"),
            (Odd::Large, "too_large"),
        ],
        record_bytes: Some(BYTES_MAX),
        lines_in_headers: true,
        fence: W::FENCE,
    };

    async fn make(t: &Harness, breakable: bool) -> Self {
        let topic = t.topic("orders");
        let limit = BYTES_MAX.to_string();
        let topic = topic.create_with(PARTITIONS, &[("max.message.bytes", &limit)]).await;
        let line = if breakable { Some(t.kafka().line().await) } else { None };
        let brokers = line.as_ref().map_or_else(|| t.kafka().brokers().to_owned(), Proxy::address);
        Kafka { way: PhantomData, topic, brokers, line }
    }

    fn settings(&self, base: Settings) -> Settings {
        base.set("sink.properties.\"bootstrap.servers\"", &self.brokers)
            .set("sink.properties.\"transaction.timeout.ms\"", TRANSACTION_MS)
            .set("sink.delivery", W::DELIVERY)
            .set("sink.progress", W::PROGRESS)
    }

    fn destination(&self) -> &str {
        self.topic.name()
    }

    async fn found(&self) -> Vec<Record> {
        self.topic.records().await
    }

    /// The broker counts a record below the high watermark once all replicas in sync have it.
    async fn assert_durable(&self, records: usize) {
        const ASK: Duration = Duration::from_secs(10);
        let (mut client, topic) = (self.topic.client(), self.topic.name().to_owned());
        client.set("isolation.level", "read_uncommitted"); // Else it is the end of what is committed.
        let stored = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.create()?;
            (0..PARTITIONS)
                .map(|partition| Ok(consumer.fetch_watermarks(&topic, partition, ASK)?.1))
                .sum::<anyhow::Result<i64>>()
        });
        let stored = stored.await.expect("no panic").expect("the broker answers");
        assert!(usize::try_from(stored).expect("not negative") >= records, "{stored} of {records}");
    }

    fn line(&self) -> Option<&Proxy> {
        self.line.as_ref()
    }
}
