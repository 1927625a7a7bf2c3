//! An exchange of RabbitMQ with a queue for each partition, and progress in the database.

use outbox_harness::{
    Harness,
    proxy::Proxy,
    rabbit::{Exchange, Rabbit as Broker},
    relay::Settings,
    servers,
    topic::Record,
};

use super::kind::{self, Can, Fence, Kind, Odd, PARTITIONS};

/// One more than `sink.rabbitmq.message_bytes_max`, which is of the payload alone.
const BYTES_MAX: usize = 100_000;

pub(crate) struct Rabbit {
    exchange: Exchange,
    broker: String,
    line: Option<Proxy>,
}

impl Kind for Rabbit {
    /// An exchange may have any name.
    const CAN: Can = Can {
        one_step: false,
        refuses: &[
            (Odd::Missing, "unknown_topic"),
            (Odd::Unnameable, "unknown_topic"),
            (Odd::Reserved, "reserved_topic"),
            (Odd::Nowhere, "no_such_partition"),
            (Odd::Large, "too_large"),
        ],
        record_bytes: Some(BYTES_MAX),
        lines_in_headers: true,
        fence: Fence::Session,
    };

    async fn make(t: &Harness, breakable: bool) -> Self {
        let broker: &'static Broker = servers::rabbit().await;
        let name = format!("{}.orders", t.database().name());
        let exchange = broker.exchange(&name, PARTITIONS).await;
        let (line, broker) = kind::line(breakable, broker.address()).await;
        Rabbit { exchange, broker, line }
    }

    fn settings(&self, base: Settings) -> Settings {
        base.to("rabbitmq")
            .set("sink.rabbitmq.url", &format!("amqp://{}", self.broker))
            .set("sink.rabbitmq.message_bytes_max", &(BYTES_MAX - 1).to_string())
            .set_toml("sink.rabbitmq.partitions", &PARTITIONS.to_string())
    }

    fn destination(&self) -> &str {
        self.exchange.name()
    }

    /// The queues have confirmed them, as quorum queues do: on the disks of a majority.
    async fn found(&self) -> Vec<Record> {
        self.exchange.records().await
    }

    fn line(&self) -> Option<&Proxy> {
        self.line.as_ref()
    }
}
