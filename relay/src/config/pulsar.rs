//! The settings below `[sink.pulsar]`, checked.

use std::path::{Path, PathBuf};

use super::{Config, print::quoted, sizes::Size};
use crate::sink::pulsar::{Settings, Template};

/// A cluster, and how messages are addressed there. Nothing in it is secret: the token is in a file.
#[derive(Clone, Debug)]
pub struct PulsarConfig {
    /// Brokers or proxies, separated by commas.
    pub url: String,
    /// How topics are named.
    pub topic: Template,
    /// Whether the relay has its topics to itself.
    pub exclusive: bool,
    /// Whether the broker at `url` serves all topics.
    pub one_broker: bool,
    /// Bytes of a message.
    pub message_bytes_max: usize,
    /// A token.
    pub token_file: Option<PathBuf>,
    /// Certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// The relay's own certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl Config {
    pub(super) fn pulsar(&self, pulsar: &PulsarConfig) -> Settings {
        Settings {
            relay_name: self.name.clone(),
            url: pulsar.url.clone(),
            one_broker: pulsar.one_broker,
            topic: pulsar.topic.clone(),
            exclusive: pulsar.exclusive,
            message_bytes_max: pulsar.message_bytes_max,
            token_file: pulsar.token_file.clone(),
            ca_file: pulsar.ca_file.clone(),
            certificate: pulsar.certificate.clone(),
            topic_grace: self.sink.topic_grace,
            reserved_topics: self.sink.reserved_topics.clone(),
        }
    }
}

impl PulsarConfig {
    /// A setting as `config` shows it.
    pub(super) fn shown(&self, key: &str) -> Option<String> {
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let own = |part: fn(&(PathBuf, PathBuf)) -> &PathBuf| {
            self.certificate.as_ref().map(|it| path(part(it)))
        };
        match key.strip_prefix("sink.pulsar.")? {
            "url" => Some(quoted(&self.url)),
            "topic" => Some(quoted(&self.topic.to_string())),
            "exclusive" => Some(self.exclusive.to_string()),
            "one_broker" => Some(self.one_broker.to_string()),
            "message_bytes_max" => {
                let bytes = u64::try_from(self.message_bytes_max).unwrap_or(u64::MAX);
                Some(quoted(&Size(bytes).to_string()))
            }
            "token_file" => self.token_file.as_deref().map(path),
            "ca_file" => self.ca_file.as_deref().map(path),
            "certificate_file" => own(|(certificate, _)| certificate),
            "key_file" => own(|(_, key)| key),
            _ => None,
        }
    }
}
