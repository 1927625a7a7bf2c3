//! What the sink to SQS or SNS can be told.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use outbox_relay_aws::{HAS_SDK, Kind, Place};

use super::{template::Template, throttle::Throttle};
use crate::{core::finding::Finding, sink::files};

/// What helps a program without the SDK.
const BUILD: &str = "build the relay with it: `cargo install --locked --git https://github.com/outbox-relay/outbox-relay \
                     outbox-relay --features aws`";

/// Which service, and which queues or topics there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which of the two.
    pub kind: Kind,
    /// Of a record: a queue's name, a topic's ARN.
    pub destination: Template,
    /// As the AWS SDK finds it where it is not given.
    pub region: Option<String>,
    /// A URL in place of the region's own.
    pub endpoint: Option<String>,
    /// Who owns the queues, where it is another account.
    pub account: Option<String>,
    /// A file of profiles, in place of the one in the home directory.
    pub credentials_file: Option<PathBuf>,
    /// Certificates that are trusted, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Of a message, at most; less where the queue or topic takes less.
    pub message_bytes_max: usize,
    /// Requests that are under way at once.
    pub requests_in_flight: usize,
    /// How long a topic that has no queue is watched for.
    pub topic_grace: Duration,
    /// Patterns of topics that are no destination.
    pub reserved_topics: Vec<String>,
    /// What the service says of the pace, told by the sink.
    pub throttle: Arc<Throttle>,
}

impl Settings {
    /// The service, in a sentence.
    pub fn name(&self) -> String {
        let place = self.endpoint.as_deref().or(self.region());
        match place {
            Some(place) => format!("{} at {place}", self.kind()),
            None => self.kind().into(),
        }
    }

    /// The service, in a word.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::Sqs => "SQS",
            Kind::Sns => "SNS",
        }
    }

    /// What it has.
    pub(super) fn noun(&self) -> &'static str {
        match self.kind {
            Kind::Sqs => "queue",
            Kind::Sns => "topic",
        }
    }

    /// Of the settings file.
    fn section(&self) -> &'static str {
        match self.kind {
            Kind::Sqs => "sink.sqs",
            Kind::Sns => "sink.sns",
        }
    }

    /// A setting's full name.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.section())
    }

    /// Whether messages of a group stay in order.
    pub(super) fn is_fifo(&self) -> bool {
        self.destination.is_fifo()
    }

    fn region(&self) -> Option<&str> {
        self.region.as_deref().or(self.destination.region())
    }

    /// # Errors
    /// A file can't be read.
    pub(super) fn place(&self) -> Result<Place, String> {
        let read = |file: &PathBuf| {
            std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))
        };
        Ok(Place {
            kind: self.kind,
            region: self.region().map(str::to_owned),
            endpoint: self.endpoint.clone(),
            credentials_file: self.credentials_file.clone(),
            trusted: self.ca_file.as_ref().map(read).transpose()?,
            account: self.account.clone(),
        })
    }

    /// Where messages and signatures go without TLS, off this machine.
    pub(super) fn open_to_the_network(&self) -> Option<&str> {
        let endpoint = self.endpoint.as_deref()?;
        let (scheme, host) = parts(endpoint)?;
        let is_here =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|it| it.is_loopback());
        (scheme == "http" && !is_here).then_some(endpoint)
    }

    /// By what the service slows the relay down, and what helps; `None` where it does not.
    pub fn throttled(&self) -> Option<(String, String)> {
        let told = self.throttle.notable()?;
        let what = format!(
            "{} throttles the relay ({told}). Nothing is lost; events wait in PostgreSQL, and what was not taken is sent \
             again, each event before later ones of its key",
            self.kind()
        );
        let remedy = match self.is_fifo() {
            true => {
                "turn on high throughput for the FIFO queues or topics (FifoThroughputLimit = perMessageGroupId, \
                     FifoThroughputScope = MessageGroup), or ask AWS for a higher quota"
            }
            false => {
                "ask AWS for a higher quota; if a key of KMS throttles, raise KmsDataKeyReusePeriodSeconds"
            }
        };
        Some((what, remedy.into()))
    }

    /// What can be seen in advance. Connects to nothing.
    pub fn problems(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut problem = |key: String, what: String, remedy: &str| {
            found.push(Finding { key, what, remedy: remedy.into() });
        };
        if !HAS_SDK {
            problem("sink.kind".into(), "this program was built without the AWS SDK".into(), BUILD);
        }
        if self.kind == Kind::Sns && !self.destination.is_arn() {
            let remedy = "write such as arn:aws:sns:eu-west-1:123456789012:{topic}.fifo";
            problem(self.key("topic"), "is no ARN of a topic".into(), remedy);
        }
        if let Some(endpoint) = &self.endpoint
            && parts(endpoint).is_none_or(|(scheme, host)| {
                !["http", "https"].contains(&scheme) || host.is_empty() || endpoint.contains('@')
            })
        {
            let remedy =
                "write such as https://sqs.example.internal; credentials are not a part of it";
            problem(self.key("endpoint"), "is no URL of a service".into(), remedy);
        }
        found.extend(files::unreadable(
            self.section(),
            [
                ("credentials_file", self.credentials_file.as_ref()),
                ("ca_file", self.ca_file.as_ref()),
            ],
        ));
        found
    }
}

/// The scheme and the host of a URL.
fn parts(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    Some((scheme, host))
}

#[cfg(test)]
pub(super) fn example() -> Settings {
    Settings {
        kind: Kind::Sqs,
        destination: Template::queue(),
        region: None,
        endpoint: Some("http://127.0.0.1:9324".into()),
        account: None,
        credentials_file: None,
        ca_file: None,
        message_bytes_max: outbox_relay_aws::BYTES_MAX,
        requests_in_flight: 4,
        topic_grace: Duration::ZERO,
        reserved_topics: vec![],
        throttle: Arc::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leaves_this_machine_in_the_open_is_open_to_the_network() {
        for (endpoint, is_open) in [
            ("http://127.0.0.1:9324", false),
            ("http://[::1]:9324/", false),
            ("http://localhost", false),
            ("https://sqs.internal", false),
            ("http://sqs.internal:80/x", true),
            ("http://10.0.0.1", true),
            ("http://localhost.example.org", true),
        ] {
            let settings = Settings { endpoint: Some(endpoint.into()), ..example() };
            assert_eq!(settings.open_to_the_network().is_some(), is_open, "{endpoint}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_all_at_once() {
        let wrong = Settings {
            kind: Kind::Sns,
            endpoint: Some("https://user:secret@sns".into()),
            credentials_file: Some("/nowhere/credentials".into()),
            ca_file: Some("/nowhere/ca.pem".into()),
            ..example()
        };
        let mut found = wrong.problems();
        found.retain(|it| it.key != "sink.kind");
        let keys: Vec<_> = found.iter().map(|it| it.key.trim_start_matches("sink.sns.")).collect();
        assert_eq!(keys, ["topic", "endpoint", "credentials_file", "ca_file"]);
        assert!(found.iter().all(|it| !it.what.contains("secret")));
        assert_eq!(example().problems().len(), usize::from(!HAS_SDK));
        assert_eq!(example().name(), "SQS at http://127.0.0.1:9324");
    }
}
