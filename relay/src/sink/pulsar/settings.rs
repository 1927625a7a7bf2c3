//! What the Pulsar sink can be told.

use std::{path::PathBuf, time::Duration};

use outbox_relay_pulsar::{Access, Address, Place};

use super::{address, template::Template};
use crate::{core::finding::Finding, sink::files};

/// Which cluster, and how messages are addressed there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the relay; brokers show it as the client's version.
    pub relay_name: String,
    /// Brokers or proxies of one cluster: `pulsar://host:6650`.
    pub url: String,
    /// Whether the broker at the address serves all topics, whatever address it gives.
    pub one_broker: bool,
    /// Of a record.
    pub topic: Template,
    /// Whether the relay has the topics to itself.
    pub exclusive: bool,
    /// Of a message, at most, where the brokers take as many.
    pub message_bytes_max: usize,
    /// A file with a token.
    pub token_file: Option<PathBuf>,
    /// Certificates that are trusted, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The relay's own certificate, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// How long a missing topic is watched for.
    pub topic_grace: Duration,
    /// Patterns of topics that are no destination.
    pub reserved_topics: Vec<String>,
}

impl Settings {
    /// The cluster, in a sentence.
    pub fn name(&self) -> String {
        let hosts: Vec<String> = self.addresses().iter().map(address::shown).collect();
        format!("Pulsar at {}", hosts.join(", "))
    }

    pub(super) fn addresses(&self) -> Vec<Address> {
        address::all(&self.url).unwrap_or_default()
    }

    pub(super) fn access(&self) -> Access {
        if self.exclusive { Access::Fencing } else { Access::Shared }
    }

    pub(super) fn place(&self) -> Place {
        Place {
            addresses: self.addresses(),
            one_broker: self.one_broker,
            token_file: self.token_file.clone(),
            ca_file: self.ca_file.clone(),
            certificate: self.certificate.clone(),
            client_name: format!("outbox-relay {}", self.relay_name),
        }
    }

    /// What can be seen in advance. Connects to nothing.
    pub fn problems(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut problem = |key: &str, what: String, remedy: &str| {
            found.push(Finding { key: key.into(), what, remedy: remedy.into() });
        };
        if !outbox_relay_pulsar::HAS_CLIENT {
            let what = "is \"pulsar\", and this program was built without Pulsar's client".into();
            problem("sink.kind", what, "build it with `--features pulsar` (docs/PULSAR.md)");
        }
        if let Err(what) = address::all(&self.url) {
            let remedy =
                "write pulsar://host:6650, or pulsar+ssl:// for TLS; several with commas between";
            problem("sink.pulsar.url", what.into(), remedy);
        }
        if self.addresses().len() > 1 && self.one_broker {
            let what = "names several addresses, and sink.pulsar.one_broker is set".into();
            problem("sink.pulsar.url", what, "name the one broker, or remove the setting");
        }
        let (certificate, key) = self.certificate.as_ref().map(|(a, b)| (a, b)).unzip();
        found.extend(files::unreadable(
            "sink.pulsar",
            [
                ("token_file", self.token_file.as_ref()),
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
        url: "pulsar+ssl://a,b:1".into(),
        one_broker: false,
        topic: Template::in_default_namespace(),
        exclusive: true,
        message_bytes_max: 1_000_000,
        token_file: None,
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
    fn what_is_wrong_is_told_all_at_once() {
        let wrong = Settings {
            url: "pulsar:a".into(),
            token_file: Some("/nowhere/token".into()),
            ca_file: Some("/nowhere/ca.pem".into()),
            ..example()
        };
        let keys = |settings: &Settings| {
            let found = settings.problems();
            let keys = found.into_iter().map(|it| it.key).filter(|key| key != "sink.kind");
            keys.map(|key| key.replace("sink.pulsar.", "")).collect::<Vec<_>>()
        };
        assert_eq!(keys(&wrong), ["url", "token_file", "ca_file"]);
        assert_eq!(keys(&Settings { one_broker: true, ..example() }), ["url"]);
        assert_eq!(keys(&example()), [""; 0]);
        assert_eq!(example().name(), "Pulsar at a:6651, b:1");
    }
}
