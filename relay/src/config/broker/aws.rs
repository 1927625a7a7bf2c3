//! `[sink.sqs]` and `[sink.sns]`. Nothing in them is secret: the AWS SDK finds credentials by itself.

use std::{path::PathBuf, sync::Arc};

use super::common::Common;
use crate::{
    config::{
        Purpose,
        checker::{Checker, value},
        reader::{Opt, Reader},
        shown::{path, quoted, size},
        sizes::Size,
    },
    sink::aws::{BYTES_MAX, Kind, Settings, Template},
};

/// A request takes some ten milliseconds and ten messages.
const REQUESTS_IN_FLIGHT: usize = 32;
const REQUESTS_IN_FLIGHT_MAX: usize = 256;

/// All of it, each as it was given.
pub(in crate::config) struct WrittenAws {
    /// `queue` or `topic`.
    destination: Opt<String>,
    region: Opt<String>,
    endpoint: Opt<String>,
    /// Of queues only.
    account: Opt<String>,
    credentials_file: Opt<PathBuf>,
    ca_file: Opt<PathBuf>,
    message_bytes_max: Opt<Size>,
    requests_in_flight: Opt<u64>,
}

impl WrittenAws {
    pub(in crate::config) fn read(from: &mut Reader<'_>, kind: Kind) -> Self {
        let key = |name: &str| format!("sink.{}.{name}", section(kind));
        let is_sqs = kind == Kind::Sqs;
        WrittenAws {
            destination: from.text(&key(destination(kind))),
            region: from.text(&key("region")),
            endpoint: from.text(&key("endpoint")),
            account: is_sqs.then(|| from.text(&key("account"))).flatten(),
            credentials_file: from.path(&key("credentials_file")),
            ca_file: from.path(&key("ca_file")),
            message_bytes_max: from.size(&key("message_bytes_max")),
            requests_in_flight: from.number(&key("requests_in_flight")),
        }
    }
}

/// Of the settings file.
pub(super) fn section(kind: Kind) -> &'static str {
    match kind {
        Kind::Sqs => "sqs",
        Kind::Sns => "sns",
    }
}

/// What a message's destination is called there.
fn destination(kind: Kind) -> &'static str {
    match kind {
        Kind::Sqs => "queue",
        Kind::Sns => "topic",
    }
}

impl Checker<'_> {
    pub(super) fn aws(
        &mut self,
        given: WrittenAws,
        kind: Kind,
        purpose: Purpose,
        common: &Common,
    ) -> Settings {
        let key = |name: &str| format!("sink.{}.{name}", section(kind));
        let place = key(destination(kind));
        if purpose == Purpose::Relay && kind == Kind::Sns {
            let remedy = "name it, such as arn:aws:sns:eu-west-1:123456789012:{topic}.fifo";
            self.needed(&place, &given.destination, remedy);
        }
        let remedy = "write such as {topic}.fifo: a queue or topic for each topic of the outbox";
        let text = |given: Opt<String>| value(given).filter(|it| !it.is_empty());
        Settings {
            kind,
            destination: self.parsed(&place, given.destination, Template::queue(), remedy),
            region: text(given.region),
            endpoint: text(given.endpoint),
            account: text(given.account),
            credentials_file: value(given.credentials_file),
            ca_file: value(given.ca_file),
            message_bytes_max: self.bytes(
                &key("message_bytes_max"),
                given.message_bytes_max,
                BYTES_MAX,
                BYTES_MAX,
            ),
            requests_in_flight: self.count(
                &key("requests_in_flight"),
                given.requests_in_flight,
                REQUESTS_IN_FLIGHT,
                REQUESTS_IN_FLIGHT_MAX,
            ),
            topic_grace: common.topic_grace,
            reserved_topics: common.reserved_topics.clone(),
            throttle: Arc::default(),
        }
    }
}

pub(super) fn shown(settings: &Settings, name: &str) -> Option<String> {
    match name {
        name if name == destination(settings.kind) => {
            Some(quoted(&settings.destination.to_string()))
        }
        "region" => settings.region.as_deref().map(quoted),
        "endpoint" => settings.endpoint.as_deref().map(quoted),
        "account" => settings.account.as_deref().map(quoted),
        "credentials_file" => settings.credentials_file.as_deref().map(path),
        "ca_file" => settings.ca_file.as_deref().map(path),
        "message_bytes_max" => Some(size(settings.message_bytes_max)),
        "requests_in_flight" => Some(settings.requests_in_flight.to_string()),
        _ => None,
    }
}
