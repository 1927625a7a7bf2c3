//! NATS JetStream in a soak: one server, one stream.

use anyhow::Result;
use outbox_harness::{
    Harness,
    nats::{Nats, Stream},
    postgres::Postgres,
    proxy::Proxy,
    relay::Settings,
    servers,
    topic::Record,
};
use serde_json::json;

use super::refusal::SCARCE;
use crate::soak::tally::PARTITIONS;

pub(in crate::soak) struct Broker {
    pub(super) server: Nats,
    pub(super) line: Proxy,
    pub(super) stream: Stream,
    pub(super) topic: String,
    read: Vec<Record>,
}

impl Broker {
    pub(super) async fn set(postgres: &'static Postgres) -> Result<(Harness, Self)> {
        let server = Nats::start()?;
        let t = Harness::with(postgres, servers::kafka().await).await;
        let name = t.database().name();
        let topic = format!("{name}.orders");
        let subjects = [format!("{topic}.*"), format!("outbox-relay-progress.{name}")];
        let limit = json!({ "max_msg_size": SCARCE });
        let stream = server.stream(name, &subjects.each_ref().map(String::as_str), &limit).await;
        let line = Proxy::to(&server.address()).await;
        Ok((t, Broker { server, line, stream, topic, read: Vec::new() }))
    }

    pub(super) fn to(&self, settings: Settings) -> Settings {
        settings
            .to("nats")
            .set("sink.nats.url", &format!("nats://{}", self.line.address()))
            .set("sink.nats.stream", self.stream.name())
            .set_toml("sink.nats.partitions", &PARTITIONS.to_string())
    }

    pub(super) async fn records(&mut self) -> Vec<Record> {
        let read_to = self.read.last().map_or(0, |record| record.offset);
        let next = self.stream.records_after(&format!("{}.*", self.topic), read_to).await;
        self.read.extend(next);
        self.read.clone()
    }
}
