//! Which kind of broker is measured.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::relay::Mode;

/// A kind of broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sink {
    /// Apache Kafka
    #[default]
    Kafka,
    /// NATS JetStream, one server
    Nats,
    /// RabbitMQ, one broker, quorum queues
    Rabbitmq,
}

impl Sink {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Sink::Kafka => "kafka",
            Sink::Nats => "nats",
            Sink::Rabbitmq => "rabbitmq",
        }
    }

    /// How it delivers: as asked, or as its kind does.
    ///
    /// # Errors
    /// Its kind does not.
    pub(crate) fn mode(self, asked: Option<Mode>) -> Result<Mode> {
        let own = match self {
            Sink::Rabbitmq => Mode::AtLeastOnce,
            Sink::Kafka | Sink::Nats => Mode::ExactlyOnce,
        };
        let mode = asked.unwrap_or(own);
        let can = mode == own || self == Sink::Kafka;
        ensure!(can, "--sink {} delivers {} and not otherwise", self.name(), own.name());
        Ok(mode)
    }
}
