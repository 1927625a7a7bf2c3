//! What the RabbitMQ sink can be told.

use std::{path::PathBuf, time::Duration};

use super::{
    address::{self, Address},
    template::Template,
};
use crate::{
    core::{finding::Finding, secret::Secret},
    sink::files,
};

/// Which broker, and how messages are addressed there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the relay; a part of its connection's name.
    pub relay_name: String,
    /// Brokers of one cluster, separated by commas: `amqp://user:password@host:5672/vhost`.
    pub url: Secret,
    /// Where `url` is from: read again for each connection.
    pub url_file: Option<PathBuf>,
    /// Of a record.
    pub exchange: Template,
    /// Of a record.
    pub routing_key: Template,
    /// How many a topic has.
    pub partitions: i32,
    /// Whether several messages of a lane may be unconfirmed.
    pub many_in_flight: bool,
    /// Whether missing exchanges are made, each with a queue for each partition.
    pub declare: bool,
    /// Of a message's body, as the brokers' `max_message_size` is.
    pub message_bytes_max: usize,
    /// Certificates that are trusted, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The relay's own certificate, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// How long a topic that no queue takes is watched for.
    pub topic_grace: Duration,
    /// Patterns of topics that are no destination.
    pub reserved_topics: Vec<String>,
}

impl Settings {
    /// The broker, in a sentence; without what is secret.
    pub fn name(&self) -> String {
        let hosts: Vec<String> = self.addresses().iter().map(ToString::to_string).collect();
        format!("RabbitMQ at {}", hosts.join(", "))
    }

    pub(super) fn addresses(&self) -> Vec<Address> {
        address::all(self.url.expose()).unwrap_or_default()
    }

    /// As the file has them by now: whoever changes passwords rewrites it. While it can't be read, as in the middle of
    /// that, those that were read at the start count.
    pub(super) async fn renewed(&self) -> Vec<Address> {
        let Some(file) = &self.url_file else { return self.addresses() };
        let read = tokio::fs::read_to_string(file).await.map_err(|error| error.to_string());
        match read.and_then(|text| address::all(text.trim()).map_err(str::to_owned)) {
            Ok(addresses) => addresses,
            Err(error) => {
                tracing::warn!(
                    file = %file.display(),
                    error,
                    "sink.rabbitmq.url_file can't be used now; what was read at the start is"
                );
                self.addresses()
            }
        }
    }

    /// What a person corrects where the login is refused.
    pub(super) fn login(&self) -> String {
        match &self.url_file {
            Some(file) => format!(
                "{} (sink.rabbitmq.url_file), which is read again for each connection",
                file.display()
            ),
            None => "sink.rabbitmq.url, and restart the relay".to_owned(),
        }
    }

    /// What can be seen in advance. Connects to nothing.
    pub fn problems(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut problem = |key: &str, what: String, remedy: &str| {
            found.push(Finding { key: key.into(), what, remedy: remedy.into() });
        };
        if let Err(what) = address::all(self.url.expose()) {
            let remedy = "write amqp://user:password@host:5672/vhost, or amqps:// for TLS; several with commas \
                          between";
            let key = if self.url_file.is_some() { "url_file" } else { "url" };
            problem(&format!("sink.rabbitmq.{key}"), what.into(), remedy);
        }
        if !self.exchange.has("{topic}") && !self.routing_key.has("{topic}") {
            let what =
                "neither it nor the routing key has {topic}: events of all topics would be one"
                    .into();
            problem("sink.rabbitmq.exchange", what, "write \"{topic}\", the default");
        }
        let is_default =
            self.exchange == Template::exchange() && self.routing_key == Template::routing_key();
        if self.declare && !is_default {
            let what = "makes exchanges named after topics, with a queue for each partition".into();
            let remedy = "remove it, or sink.rabbitmq.exchange and sink.rabbitmq.routing_key";
            problem("sink.rabbitmq.declare", what, remedy);
        }
        let (certificate, key) = self.certificate.as_ref().map(|(a, b)| (a, b)).unzip();
        found.extend(files::unreadable(
            "sink.rabbitmq",
            [
                ("ca_file", self.ca_file.as_ref()),
                ("certificate_file", certificate),
                ("key_file", key),
            ],
        ));
        found
    }
}

#[cfg(test)]
pub(super) fn example() -> Settings {
    Settings {
        relay_name: "relay".into(),
        url: Secret::new("amqp://relay:secret@a,amqps://relay:secret@b:1/shop"),
        url_file: None,
        exchange: Template::exchange(),
        routing_key: Template::routing_key(),
        partitions: 8,
        many_in_flight: false,
        declare: false,
        message_bytes_max: 1_000_000,
        ca_file: None,
        certificate: None,
        topic_grace: Duration::ZERO,
        reserved_topics: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_user_nor_password_is_in_a_sentence() {
        assert_eq!(example().name(), "RabbitMQ at a:5672, b:1");
        assert_eq!(example().problems(), []);
    }

    #[test]
    fn what_is_wrong_is_told_all_at_once() {
        let plain: Template = "events".parse().expect("a template");
        let wrong = Settings {
            url: Secret::new("rabbit"),
            exchange: plain.clone(),
            routing_key: plain,
            declare: true,
            ca_file: Some("/nowhere/ca.pem".into()),
            ..example()
        };
        let found = wrong.problems();
        let keys: Vec<_> =
            found.iter().map(|it| it.key.trim_start_matches("sink.rabbitmq.")).collect();
        assert_eq!(keys, ["url", "exchange", "declare", "ca_file"]);
    }
}
