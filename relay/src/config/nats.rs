//! The settings below `[sink.nats]`, checked.

use std::path::{Path, PathBuf};

use super::{Config, print::quoted};
use crate::{
    core::secret::{MASK, Secret},
    sink::nats::{Settings, Template},
};

/// A NATS server, and a stream of its.
#[derive(Clone, Debug)]
pub struct NatsConfig {
    /// Servers, separated by commas; it may hold a password.
    pub url: Secret,
    /// The stream that takes records and progress.
    pub stream: String,
    /// How subjects are made.
    pub subject: Template,
    /// How many a topic has.
    pub partitions: i32,
    /// Where progress goes, if not below `outbox-relay-progress`.
    pub progress_subject: Option<String>,
    /// Whether what a server has lost after it confirmed it is published again.
    pub repairs_broker_loss: bool,
    /// User credentials, as NATS's tools make them.
    pub credentials_file: Option<PathBuf>,
    /// An nkey's seed.
    pub nkey_file: Option<PathBuf>,
    /// Certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// The relay's own certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl Config {
    pub(super) fn nats(&self, nats: &NatsConfig) -> Settings {
        Settings {
            relay_name: self.name.clone(),
            url: nats.url.clone(),
            stream: nats.stream.clone(),
            subject: nats.subject.clone(),
            partitions: nats.partitions,
            progress_subject: nats.progress_subject.clone(),
            credentials_file: nats.credentials_file.clone(),
            nkey_file: nats.nkey_file.clone(),
            ca_file: nats.ca_file.clone(),
            certificate: nats.certificate.clone(),
            repairs_broker_loss: nats.repairs_broker_loss,
            topic_grace: self.sink.topic_grace,
            reserved_topics: self.sink.reserved_topics.clone(),
        }
    }
}

impl NatsConfig {
    /// A setting as `config` shows it.
    pub(super) fn shown(&self, key: &str) -> Option<String> {
        let path = |path: &Path| quoted(&path.to_string_lossy());
        let own = |part: fn(&(PathBuf, PathBuf)) -> &PathBuf| {
            self.certificate.as_ref().map(|it| path(part(it)))
        };
        match key {
            "sink.nats.url" => Some(quoted(&without_secrets(self.url.expose()))),
            "sink.nats.stream" => Some(quoted(&self.stream)),
            "sink.nats.subject" => Some(quoted(&self.subject.to_string())),
            "sink.nats.partitions" => Some(self.partitions.to_string()),
            "sink.nats.progress_subject" => self.progress_subject.as_deref().map(quoted),
            "sink.nats.on_broker_loss" => {
                Some(quoted(if self.repairs_broker_loss { "repair" } else { "halt" }))
            }
            "sink.nats.credentials_file" => self.credentials_file.as_deref().map(path),
            "sink.nats.nkey_file" => self.nkey_file.as_deref().map(path),
            "sink.nats.ca_file" => self.ca_file.as_deref().map(path),
            "sink.nats.certificate_file" => own(|(certificate, _)| certificate),
            "sink.nats.key_file" => own(|(_, key)| key),
            _ => None,
        }
    }
}

/// The servers, with what is before an `@` hidden: a password or a token.
fn without_secrets(url: &str) -> String {
    let one = |url: &str| {
        let (scheme, rest) =
            url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
        let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
        match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}{MASK}@{host}"),
            None => format!("{scheme}{rest}"),
        }
    };
    url.split(',').map(|url| one(url.trim())).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_password_nor_token_is_shown() {
        let shown = without_secrets("nats://relay:se@cret@a:4222, tls://token@b, c:4222");
        assert_eq!(shown, format!("nats://{MASK}@a:4222,tls://{MASK}@b,c:4222"));
    }
}
