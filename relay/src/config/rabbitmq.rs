//! The settings below `[sink.rabbitmq]`, checked.

use std::path::{Path, PathBuf};

use super::{Config, print::quoted, sizes::Size};
use crate::{
    core::secret::{MASK, Secret},
    sink::rabbitmq::{Settings, Template},
};

/// A broker, and how messages are addressed there.
#[derive(Clone, Debug)]
pub struct RabbitConfig {
    /// Brokers, separated by commas; it may hold a password.
    pub url: Secret,
    /// How exchanges are named.
    pub exchange: Template,
    /// How routing keys are made.
    pub routing_key: Template,
    /// How many a topic has.
    pub partitions: i32,
    /// Whether several messages of a lane may be unconfirmed.
    pub many_in_flight: bool,
    /// Whether missing exchanges are made.
    pub declare: bool,
    /// Bytes of a payload.
    pub message_bytes_max: usize,
    /// Certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// The relay's own certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl Config {
    pub(super) fn rabbitmq(&self, rabbitmq: &RabbitConfig) -> Settings {
        Settings {
            relay_name: self.name.clone(),
            url: rabbitmq.url.clone(),
            exchange: rabbitmq.exchange.clone(),
            routing_key: rabbitmq.routing_key.clone(),
            partitions: rabbitmq.partitions,
            many_in_flight: rabbitmq.many_in_flight,
            declare: rabbitmq.declare,
            message_bytes_max: rabbitmq.message_bytes_max,
            ca_file: rabbitmq.ca_file.clone(),
            certificate: rabbitmq.certificate.clone(),
            topic_grace: self.sink.topic_grace,
            reserved_topics: self.sink.reserved_topics.clone(),
        }
    }
}

impl RabbitConfig {
    /// A setting as `config` shows it.
    pub(super) fn shown(&self, key: &str) -> Option<String> {
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let own = |part: fn(&(PathBuf, PathBuf)) -> &PathBuf| {
            self.certificate.as_ref().map(|it| path(part(it)))
        };
        match key {
            "sink.rabbitmq.url" => Some(quoted(&without_secrets(self.url.expose()))),
            "sink.rabbitmq.exchange" => Some(quoted(&self.exchange.to_string())),
            "sink.rabbitmq.routing_key" => Some(quoted(&self.routing_key.to_string())),
            "sink.rabbitmq.partitions" => Some(self.partitions.to_string()),
            "sink.rabbitmq.in_flight_per_lane" => {
                Some(quoted(if self.many_in_flight { "many" } else { "1" }))
            }
            "sink.rabbitmq.declare" => Some(self.declare.to_string()),
            "sink.rabbitmq.message_bytes_max" => {
                let bytes = u64::try_from(self.message_bytes_max).unwrap_or(u64::MAX);
                Some(quoted(&Size(bytes).to_string()))
            }
            "sink.rabbitmq.ca_file" => self.ca_file.as_deref().map(path),
            "sink.rabbitmq.certificate_file" => own(|(certificate, _)| certificate),
            "sink.rabbitmq.key_file" => own(|(_, key)| key),
            _ => None,
        }
    }
}

/// The brokers, with user and password hidden.
fn without_secrets(url: &str) -> String {
    let one = |url: &str| match url.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, place)) => format!("{scheme}://{MASK}@{place}"),
            None => url.to_owned(),
        },
        // Whatever it is.
        None => MASK.to_owned(),
    };
    url.split(',').map(|url| one(url.trim())).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        let shown = without_secrets("amqp://relay:se@cret@a:5672/%2f, amqps://b,relay:secret@c");
        assert_eq!(shown, format!("amqp://{MASK}@a:5672/%2f,amqps://b,{MASK}"));
    }
}
