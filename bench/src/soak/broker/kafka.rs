//! Kafka in a soak.

use outbox_harness::{
    Harness, kafka::Kafka, local_kafka::LocalKafka, postgres::Postgres, proxy::Proxy,
    relay::Settings, topic::Topic,
};

use super::refusal::{LIMIT, SCARCE};
use crate::soak::tally::PARTITIONS;

pub(in crate::soak) struct Broker {
    pub(super) server: LocalKafka,
    pub(super) line: Proxy,
    pub(super) topic: Topic,
}

impl Broker {
    pub(super) async fn set(postgres: &'static Postgres) -> (Harness, Self) {
        let (kafka, server) = Kafka::start_private(&[]).await;
        let t = Harness::with(postgres, kafka).await;
        let limit = [(LIMIT, &*SCARCE.to_string())];
        let topic = t.topic("orders").create_with(PARTITIONS, &limit).await;
        let line = kafka.line().await;
        (t, Broker { server, line, topic })
    }

    pub(super) fn to(&self, settings: Settings) -> Settings {
        settings.set("sink.properties.\"bootstrap.servers\"", &self.line.address())
    }
}
