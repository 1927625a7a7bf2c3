//! The settings of `[sink.rabbitmq]`.

use super::{Checker, value_or};
use crate::{
    config::{
        Kind, Purpose, problem::Origin, rabbitmq::RabbitConfig, reader::Opt, sizes::Size,
        written::WrittenRabbit,
    },
    core::secret::Secret,
    sink::rabbitmq::Template,
};

/// As brokers of version 4 have it.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

impl Checker<'_> {
    /// `None` where the kind is another one.
    pub(in crate::config) fn rabbitmq(
        &mut self,
        given: WrittenRabbit,
        kind: Kind,
        purpose: Purpose,
    ) -> Option<RabbitConfig> {
        const URL: &str = "sink.rabbitmq.url";
        if kind != Kind::Rabbit {
            self.no_rabbitmq(&given);
            return None;
        }
        if purpose == Purpose::Relay && given.url.is_none() && !self.is_reported(URL) {
            let remedy = "name the broker, such as amqp://relay:secret@rabbit:5672";
            self.problem(URL, &Origin::Default, "is not set", remedy);
        }
        let exchange = self.template("exchange", given.exchange, Template::exchange());
        let routing_key = self.template("routing_key", given.routing_key, Template::routing_key());
        let mut partitions = 1;
        if let Some(given) = &given.partitions {
            match i32::try_from(given.value) {
                Ok(number @ 1..=100_000) => partitions = number,
                _ => {
                    let what = format!("{} is out of range", given.value);
                    let key = "sink.rabbitmq.partitions";
                    self.problem(key, &given.origin, what, "use 1 to 100000");
                }
            }
        }
        let mut message_bytes_max = MESSAGE_BYTES_MAX;
        if let Some(given) = &given.message_bytes_max {
            let Size(bytes) = given.value;
            match usize::try_from(bytes) {
                Ok(bytes) if (1 << 10..=512 << 20).contains(&bytes) => message_bytes_max = bytes,
                _ => {
                    let what = format!("{} is out of range", given.value);
                    let key = "sink.rabbitmq.message_bytes_max";
                    self.problem(key, &given.origin, what, "use 1 KiB to 512 MiB");
                }
            }
        }
        let certificate = match (given.certificate_file, given.key_file) {
            (Some(certificate), Some(key)) => Some((certificate.value, key.value)),
            (Some(alone), None) => {
                let (key, what) = ("certificate_file", "has no sink.rabbitmq.key_file beside it");
                let remedy = "name the certificate's key as well";
                self.problem(&format!("sink.rabbitmq.{key}"), &alone.origin, what, remedy);
                None
            }
            (None, Some(alone)) => {
                let (key, what) = ("key_file", "has no sink.rabbitmq.certificate_file beside it");
                let remedy = "name the key's certificate as well";
                self.problem(&format!("sink.rabbitmq.{key}"), &alone.origin, what, remedy);
                None
            }
            (None, None) => None,
        };
        Some(RabbitConfig {
            url: Secret::new(value_or(given.url, String::new())),
            exchange,
            routing_key,
            partitions,
            many_in_flight: value_or(given.many_in_flight, false),
            declare: value_or(given.declare, false),
            message_bytes_max,
            ca_file: given.ca_file.map(|it| it.value),
            certificate,
        })
    }

    fn template(&mut self, key: &str, given: Opt<String>, default: Template) -> Template {
        let Some(given) = given else { return default };
        match given.value.parse() {
            Ok(parsed) => parsed,
            Err(what) => {
                let remedy = format!("write such as \"{default}\", the default");
                self.problem(&format!("sink.rabbitmq.{key}"), &given.origin, what, remedy);
                default
            }
        }
    }

    fn no_rabbitmq(&mut self, given: &WrittenRabbit) {
        let origins = [
            ("url", given.url.as_ref().map(|it| &it.origin)),
            ("exchange", given.exchange.as_ref().map(|it| &it.origin)),
            ("routing_key", given.routing_key.as_ref().map(|it| &it.origin)),
            ("partitions", given.partitions.as_ref().map(|it| &it.origin)),
            ("in_flight_per_lane", given.many_in_flight.as_ref().map(|it| &it.origin)),
            ("declare", given.declare.as_ref().map(|it| &it.origin)),
            ("message_bytes_max", given.message_bytes_max.as_ref().map(|it| &it.origin)),
            ("ca_file", given.ca_file.as_ref().map(|it| &it.origin)),
            ("certificate_file", given.certificate_file.as_ref().map(|it| &it.origin)),
            ("key_file", given.key_file.as_ref().map(|it| &it.origin)),
        ];
        for (key, origin) in origins {
            let Some(origin) = origin else { continue };
            let (key, what) =
                (format!("sink.rabbitmq.{key}"), "is for sink.kind = \"rabbitmq\" only");
            self.problem(&key, origin, what, "remove it, or set sink.kind");
        }
    }
}
