//! Where records go that no one refuses: a file, a stream of NATS, an exchange of RabbitMQ, or a topic of Kafka.

use std::path::PathBuf;

use outbox_harness::{
    Harness, file,
    nats::Stream,
    rabbit::Exchange,
    relay::Settings,
    servers,
    topic::{Record, Topic},
};
use serde_json::json;

use super::{Delivery, PARTITIONS};

/// Where records go that no one refuses.
pub(super) enum Place {
    File(PathBuf),
    Nats(Stream),
    Rabbit(Exchange),
    Kafka(Topic),
    #[cfg(feature = "pulsar")]
    Pulsar(outbox_harness::pulsar::PulsarTopic),
    /// And a file of credentials.
    #[cfg(feature = "aws")]
    Sqs(outbox_harness::aws::Queue, PathBuf),
}

impl Place {
    /// `None` where it is a topic of Kafka.
    pub(super) async fn of(delivery: Delivery, t: &Harness) -> Option<Self> {
        match delivery {
            Delivery::File => Some(Place::File(t.dir().join("records.jsonl"))),
            Delivery::Nats => {
                let (name, server) = (t.database().name().to_owned(), servers::nats().await);
                let subjects = [format!("{name}.*"), format!("outbox-relay-progress.{name}")];
                let subjects = subjects.each_ref().map(String::as_str);
                Some(Place::Nats(server.stream(&name, &subjects, &json!({})).await))
            }
            Delivery::Rabbit => {
                let broker = servers::rabbit().await;
                Some(Place::Rabbit(broker.exchange(t.database().name(), PARTITIONS).await))
            }
            #[cfg(feature = "aws")]
            Delivery::Sqs => {
                let name = format!("{}.fifo", t.database().name());
                let queue = servers::elasticmq().await.queue(&name, PARTITIONS).await;
                Some(Place::Sqs(queue, outbox_harness::aws::credentials(t.dir())))
            }
            #[cfg(feature = "pulsar")]
            Delivery::Pulsar => {
                let name = t.database().name();
                Some(Place::Pulsar(servers::pulsar().await.topic(name, PARTITIONS).await))
            }
            Delivery::KafkaRecords => {
                Some(Place::Kafka(t.topic("orders").create(PARTITIONS).await))
            }
            Delivery::ExactlyOnce | Delivery::AtLeastOnce => None,
        }
    }

    pub(super) fn topic(&self) -> &str {
        match self {
            Place::File(_) => "orders",
            Place::Nats(stream) => stream.name(),
            Place::Rabbit(exchange) => exchange.name(),
            Place::Kafka(topic) => topic.name(),
            #[cfg(feature = "pulsar")]
            Place::Pulsar(topic) => topic.name(),
            #[cfg(feature = "aws")]
            Place::Sqs(queue, _) => queue.topic(),
        }
    }

    pub(super) fn settings(&self, base: Settings) -> Settings {
        const BROKERS: &str = "sink.properties.\"bootstrap.servers\"";
        let brokers = base.value(BROKERS);
        let base = base.without(BROKERS);
        match self {
            Place::Kafka(_) => base
                .set(BROKERS, &brokers)
                .set("sink.delivery", "at-least-once")
                .set("sink.progress", "postgres"),
            #[cfg(feature = "aws")]
            Place::Sqs(queue, credentials) => {
                crate::contract::aws::to_sqs(&queue.endpoint(), credentials, base)
            }
            #[cfg(feature = "pulsar")]
            Place::Pulsar(topic) => crate::contract::pulsar::to_pulsar(&topic.url(), base),
            Place::File(path) => {
                base.set("sink.kind", "file").set("sink.file.path", path.to_str().expect("UTF-8"))
            }
            Place::Nats(stream) => base
                .set("sink.kind", "nats")
                .set("sink.nats.url", stream.server())
                .set("sink.nats.stream", stream.name())
                .set_toml("sink.nats.partitions", &PARTITIONS.to_string()),
            Place::Rabbit(exchange) => base
                .set("sink.kind", "rabbitmq")
                .set("sink.rabbitmq.url", &exchange.url())
                .set_toml("sink.rabbitmq.partitions", &PARTITIONS.to_string()),
        }
    }

    pub(super) async fn records(&self) -> Vec<Record> {
        match self {
            Place::File(path) => file::records(path, PARTITIONS),
            Place::Nats(stream) => stream.records(&format!("{}.*", stream.name())).await,
            Place::Rabbit(exchange) => exchange.records().await,
            Place::Kafka(topic) => topic.records().await,
            #[cfg(feature = "pulsar")]
            Place::Pulsar(topic) => topic.records().await,
            #[cfg(feature = "aws")]
            Place::Sqs(queue, _) => queue.records().await,
        }
    }
}
