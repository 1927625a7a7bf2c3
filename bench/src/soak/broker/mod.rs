//! The broker of a soak, of the kind that was asked for: what breaks it, what it refuses, and what is in it.

mod kafka;
mod nats;
mod rabbitmq;
mod refusal;

use anyhow::Result;
use outbox_harness::{Harness, postgres::Postgres, proxy::Proxy, relay::Settings, topic::Record};

pub(super) use self::refusal::Refusal;
use crate::sink::Sink;

/// One broker, which the relays reach through a line.
pub(super) enum Broker {
    Kafka(kafka::Broker),
    Nats(nats::Broker),
    RabbitMq(rabbitmq::Broker),
}

impl Broker {
    /// Starts one, with a topic; and a database in `postgres`.
    pub(super) async fn set(sink: Sink, postgres: &'static Postgres) -> Result<(Harness, Self)> {
        Ok(match sink {
            Sink::Kafka => {
                let (t, broker) = kafka::Broker::set(postgres).await;
                (t, Broker::Kafka(broker))
            }
            Sink::Nats => {
                let (t, broker) = nats::Broker::set(postgres).await?;
                (t, Broker::Nats(broker))
            }
            Sink::Rabbitmq => {
                let (t, broker) = rabbitmq::Broker::set(postgres).await?;
                (t, Broker::RabbitMq(broker))
            }
        })
    }

    /// Of all events.
    pub(super) fn topic(&self) -> &str {
        match self {
            Broker::Kafka(it) => it.topic.name(),
            Broker::Nats(it) => &it.topic,
            Broker::RabbitMq(it) => it.exchange.name(),
        }
    }

    /// A relay's settings, with this broker as its sink.
    pub(super) fn to(&self, settings: Settings) -> Settings {
        match self {
            Broker::Kafka(it) => it.to(settings),
            Broker::Nats(it) => it.to(settings),
            Broker::RabbitMq(it) => it.to(settings),
        }
    }

    pub(super) fn line(&self) -> &Proxy {
        match self {
            Broker::Kafka(it) => &it.line,
            Broker::Nats(it) => &it.line,
            Broker::RabbitMq(it) => &it.line,
        }
    }

    pub(super) fn pid(&self) -> u32 {
        match self {
            Broker::Kafka(it) => it.server.pid(),
            Broker::Nats(it) => it.server.pid(),
            Broker::RabbitMq(it) => it.server.pid(),
        }
    }

    pub(super) fn kill9(&mut self) {
        match self {
            Broker::Kafka(it) => it.server.kill9(),
            Broker::Nats(it) => it.server.kill9(),
            Broker::RabbitMq(it) => it.server.kill9(),
        }
    }

    pub(super) async fn restart(&mut self) {
        match self {
            Broker::Kafka(it) => it.server.restart(),
            Broker::Nats(it) => it.server.restart(),
            Broker::RabbitMq(it) => {
                it.server.restart();
                it.server.wait_ready().await;
            }
        }
    }

    /// What makes it refuse events, and take them again.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Broker::Kafka(it) => Refusal::Size(it.topic.clone()),
            Broker::Nats(it) => Refusal::StreamSize(it.stream.clone()),
            Broker::RabbitMq(it) => Refusal::Binding(std::sync::Arc::clone(&it.exchange)),
        }
    }

    /// Nothing more will break it; whoever counts reads it alone.
    pub(super) async fn all_to_count(&mut self) {
        if let Broker::RabbitMq(it) = self {
            it.stop_consuming().await;
        }
    }

    /// All that a consumer got, each partition in its order.
    pub(super) async fn records(&mut self) -> Vec<Record> {
        match self {
            Broker::Kafka(it) => it.topic.records().await,
            Broker::Nats(it) => it.records().await,
            Broker::RabbitMq(it) => it.exchange.records().await,
        }
    }
}
