//! What each kind of broker can be told, a file for each: what may be written below its section, what its sink is told,
//! and how `config` shows that. Kafka's settings are librdkafka's, and a file has a path alone.

mod aws;
mod common;
mod nats;
mod pulsar;
mod rabbitmq;

pub(super) use self::common::Common;
use self::{aws::WrittenAws, nats::WrittenNats, pulsar::WrittenPulsar, rabbitmq::WrittenRabbit};
use super::{Kind, Purpose, checker::Checker, reader::Reader};
use crate::sink::{any as sink, aws::Kind as AwsKind};

/// What is written below the sections of all kinds. No `Debug`: there are secrets in it.
pub(super) struct WrittenBroker {
    nats: WrittenNats,
    rabbitmq: WrittenRabbit,
    sqs: WrittenAws,
    sns: WrittenAws,
    pulsar: WrittenPulsar,
}

impl WrittenBroker {
    pub(super) fn read(from: &mut Reader<'_>) -> Self {
        WrittenBroker {
            nats: WrittenNats::read(from),
            rabbitmq: WrittenRabbit::read(from),
            sqs: WrittenAws::read(from, AwsKind::Sqs),
            sns: WrittenAws::read(from, AwsKind::Sns),
            pulsar: WrittenPulsar::read(from),
        }
    }
}

impl Checker<'_> {
    /// `None` where the kind has no section: Kafka, files.
    pub(super) fn broker(
        &mut self,
        given: WrittenBroker,
        kind: Kind,
        purpose: Purpose,
        common: &Common,
    ) -> Option<sink::Settings> {
        let settings = match kind {
            Kind::Kafka | Kind::File | Kind::Stdout => return None,
            Kind::Nats => sink::Settings::Nats(self.nats(given.nats, purpose, common)),
            Kind::Rabbit => sink::Settings::Rabbit(self.rabbitmq(given.rabbitmq, purpose, common)),
            Kind::Sqs => sink::Settings::Aws(self.aws(given.sqs, AwsKind::Sqs, purpose, common)),
            Kind::Sns => sink::Settings::Aws(self.aws(given.sns, AwsKind::Sns, purpose, common)),
            Kind::Pulsar => sink::Settings::Pulsar(self.pulsar(given.pulsar, purpose, common)),
        };
        Some(settings)
    }
}

/// The value of a setting as `config` shows it; `None` where it has none, or belongs to another kind.
pub(super) fn shown(settings: &sink::Settings, key: &str) -> Option<String> {
    let (section, name) = key.strip_prefix("sink.")?.split_once('.')?;
    match settings {
        sink::Settings::Nats(settings) if section == "nats" => nats::shown(settings, name),
        sink::Settings::Rabbit(settings) if section == "rabbitmq" => {
            rabbitmq::shown(settings, name)
        }
        sink::Settings::Aws(settings) if section == aws::section(settings.kind) => {
            aws::shown(settings, name)
        }
        sink::Settings::Pulsar(settings) if section == "pulsar" => pulsar::shown(settings, name),
        _ => None,
    }
}
