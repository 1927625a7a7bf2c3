//! `[sink.pulsar]`. Nothing in it is secret: the token is in a file.

use std::path::PathBuf;

use super::common::Common;
use crate::{
    config::{
        Purpose,
        checker::{Checker, value, value_or},
        reader::{Opt, Reader},
        shown::{path, quoted, size},
        sizes::Size,
    },
    sink::pulsar::{Settings, Template},
};

/// As brokers have it.
const MESSAGE_BYTES_MAX: usize = 5 << 20;

/// All of it, each as it was given.
pub(in crate::config) struct WrittenPulsar {
    url: Opt<String>,
    topic: Opt<String>,
    exclusive: Opt<bool>,
    one_broker: Opt<bool>,
    message_bytes_max: Opt<Size>,
    token_file: Opt<PathBuf>,
    ca_file: Opt<PathBuf>,
    certificate_file: Opt<PathBuf>,
    key_file: Opt<PathBuf>,
}

impl WrittenPulsar {
    pub(in crate::config) fn read(from: &mut Reader<'_>) -> Self {
        WrittenPulsar {
            url: from.text("sink.pulsar.url"),
            topic: from.text("sink.pulsar.topic"),
            exclusive: from.flag("sink.pulsar.exclusive", "true or false"),
            one_broker: from.flag("sink.pulsar.one_broker", "true or false"),
            message_bytes_max: from.size("sink.pulsar.message_bytes_max"),
            token_file: from.path("sink.pulsar.token_file"),
            ca_file: from.path("sink.pulsar.ca_file"),
            certificate_file: from.path("sink.pulsar.certificate_file"),
            key_file: from.path("sink.pulsar.key_file"),
        }
    }
}

impl Checker<'_> {
    pub(super) fn pulsar(
        &mut self,
        given: WrittenPulsar,
        purpose: Purpose,
        common: &Common,
    ) -> Settings {
        if purpose == Purpose::Relay {
            let remedy = "name a broker, such as pulsar://pulsar:6650";
            self.needed("sink.pulsar.url", &given.url, remedy);
        }
        let topic = Template::in_default_namespace();
        let remedy = "write such as persistent://public/default/{topic}, the default";
        Settings {
            relay_name: common.relay_name.clone(),
            url: value_or(given.url, String::new()),
            one_broker: value_or(given.one_broker, false),
            topic: self.parsed("sink.pulsar.topic", given.topic, topic, remedy),
            exclusive: value_or(given.exclusive, true),
            message_bytes_max: self.bytes(
                "sink.pulsar.message_bytes_max",
                given.message_bytes_max,
                MESSAGE_BYTES_MAX,
                512 << 20,
            ),
            token_file: value(given.token_file),
            ca_file: value(given.ca_file),
            certificate: self.certificate("sink.pulsar", given.certificate_file, given.key_file),
            topic_grace: common.topic_grace,
            reserved_topics: common.reserved_topics.clone(),
        }
    }
}

pub(super) fn shown(settings: &Settings, name: &str) -> Option<String> {
    let (certificate, key) = settings.certificate.as_ref().map(|(a, b)| (path(a), path(b))).unzip();
    match name {
        "url" => Some(quoted(&settings.url)),
        "topic" => Some(quoted(&settings.topic.to_string())),
        "exclusive" => Some(settings.exclusive.to_string()),
        "one_broker" => Some(settings.one_broker.to_string()),
        "message_bytes_max" => Some(size(settings.message_bytes_max)),
        "token_file" => settings.token_file.as_deref().map(path),
        "ca_file" => settings.ca_file.as_deref().map(path),
        "certificate_file" => certificate,
        "key_file" => key,
        _ => None,
    }
}
