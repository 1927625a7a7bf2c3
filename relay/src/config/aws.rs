//! The settings below `[sink.sqs]` and `[sink.sns]`, checked.

use std::{path::PathBuf, sync::Arc};

use super::{Config, print::quoted, sizes::Size};
use crate::sink::aws::{Kind, Settings, Template};

/// A service, and how messages are addressed there. Nothing in it is secret: the AWS SDK finds credentials by itself.
#[derive(Clone, Debug)]
pub struct AwsConfig {
    /// Which of the two services.
    pub kind: Kind,
    /// How queues or topics are named.
    pub destination: Template,
    /// As the AWS SDK finds it where it is not given.
    pub region: Option<String>,
    /// A URL in place of the region's own.
    pub endpoint: Option<String>,
    /// Who owns the queues, where it is another account.
    pub account: Option<String>,
    /// A file of profiles.
    pub credentials_file: Option<PathBuf>,
    /// Certificates that are trusted.
    pub ca_file: Option<PathBuf>,
    /// Bytes of a message.
    pub message_bytes_max: usize,
    /// Requests that are under way at once.
    pub requests_in_flight: usize,
}

impl Config {
    pub(super) fn aws(&self, aws: &AwsConfig) -> Settings {
        Settings {
            kind: aws.kind,
            destination: aws.destination.clone(),
            region: aws.region.clone(),
            endpoint: aws.endpoint.clone(),
            account: aws.account.clone(),
            credentials_file: aws.credentials_file.clone(),
            ca_file: aws.ca_file.clone(),
            message_bytes_max: aws.message_bytes_max,
            requests_in_flight: aws.requests_in_flight,
            topic_grace: self.sink.topic_grace,
            reserved_topics: self.sink.reserved_topics.clone(),
            throttle: Arc::default(),
        }
    }
}

impl AwsConfig {
    /// A setting as `config` shows it.
    pub(super) fn shown(&self, key: &str) -> Option<String> {
        let (section, name) = key.rsplit_once('.')?;
        let (own, destination) = match self.kind {
            Kind::Sqs => ("sink.sqs", "queue"),
            Kind::Sns => ("sink.sns", "topic"),
        };
        if section != own {
            return None;
        }
        let text = |text: &Option<String>| text.as_deref().map(quoted);
        let path = |path: &Option<PathBuf>| path.as_ref().map(|it| quoted(&it.to_string_lossy()));
        match name {
            name if name == destination => Some(quoted(&self.destination.to_string())),
            "region" => text(&self.region),
            "endpoint" => text(&self.endpoint),
            "account" => text(&self.account),
            "credentials_file" => path(&self.credentials_file),
            "ca_file" => path(&self.ca_file),
            "message_bytes_max" => {
                let bytes = u64::try_from(self.message_bytes_max).unwrap_or(u64::MAX);
                Some(quoted(&Size(bytes).to_string()))
            }
            "requests_in_flight" => Some(self.requests_in_flight.to_string()),
            _ => None,
        }
    }
}
