//! `[sink.nats]`.

use std::path::PathBuf;

use super::common::{Common, without_secrets};
use crate::{
    config::{
        Purpose,
        checker::{Checker, value, value_or},
        reader::{Opt, Reader},
        shown::{path, quoted},
    },
    core::secret::{MASK, Secret},
    sink::nats::{Settings, Template},
};

/// All of it, each as it was given. No `Debug`: there are secrets in it.
pub(in crate::config) struct WrittenNats {
    url: Opt<String>,
    stream: Opt<String>,
    subject: Opt<String>,
    partitions: Opt<u64>,
    progress_subject: Opt<String>,
    on_broker_loss: Opt<bool>,
    credentials_file: Opt<PathBuf>,
    nkey_file: Opt<PathBuf>,
    ca_file: Opt<PathBuf>,
    certificate_file: Opt<PathBuf>,
    key_file: Opt<PathBuf>,
}

impl WrittenNats {
    pub(in crate::config) fn read(from: &mut Reader<'_>) -> Self {
        WrittenNats {
            url: from.text("sink.nats.url"),
            stream: from.text("sink.nats.stream"),
            subject: from.text("sink.nats.subject"),
            partitions: from.number("sink.nats.partitions"),
            progress_subject: from.text("sink.nats.progress_subject"),
            on_broker_loss: from
                .choice("sink.nats.on_broker_loss", &[("repair", true), ("halt", false)]),
            credentials_file: from.path("sink.nats.credentials_file"),
            nkey_file: from.path("sink.nats.nkey_file"),
            ca_file: from.path("sink.nats.ca_file"),
            certificate_file: from.path("sink.nats.certificate_file"),
            key_file: from.path("sink.nats.key_file"),
        }
    }
}

impl Checker<'_> {
    pub(super) fn nats(
        &mut self,
        given: WrittenNats,
        purpose: Purpose,
        common: &Common,
    ) -> Settings {
        if purpose == Purpose::Relay {
            self.needed("sink.nats.url", &given.url, "name the server, such as nats://nats:4222");
            let remedy = "name the stream that takes the records, such as ORDERS";
            self.needed("sink.nats.stream", &given.stream, remedy);
        }
        let remedy = "write such as \"{topic}.{partition}\", the default";
        Settings {
            relay_name: common.relay_name.clone(),
            url: Secret::new(value_or(given.url, String::new())),
            stream: value_or(given.stream, String::new()),
            subject: self.parsed("sink.nats.subject", given.subject, Template::default(), remedy),
            partitions: self.count("sink.nats.partitions", given.partitions, 1, 100_000),
            progress_subject: value(given.progress_subject),
            repairs_broker_loss: value_or(given.on_broker_loss, true),
            credentials_file: value(given.credentials_file),
            nkey_file: value(given.nkey_file),
            ca_file: value(given.ca_file),
            certificate: self.certificate("sink.nats", given.certificate_file, given.key_file),
            topic_grace: common.topic_grace,
            reserved_topics: common.reserved_topics.clone(),
        }
    }
}

pub(super) fn shown(settings: &Settings, name: &str) -> Option<String> {
    let (certificate, key) = settings.certificate.as_ref().map(|(a, b)| (path(a), path(b))).unzip();
    match name {
        "url" => Some(quoted(&hidden(settings.url.expose()))),
        "stream" => Some(quoted(&settings.stream)),
        "subject" => Some(quoted(&settings.subject.to_string())),
        "partitions" => Some(settings.partitions.to_string()),
        "progress_subject" => settings.progress_subject.as_deref().map(quoted),
        "on_broker_loss" => {
            Some(quoted(if settings.repairs_broker_loss { "repair" } else { "halt" }))
        }
        "credentials_file" => settings.credentials_file.as_deref().map(path),
        "nkey_file" => settings.nkey_file.as_deref().map(path),
        "ca_file" => settings.ca_file.as_deref().map(path),
        "certificate_file" => certificate,
        "key_file" => key,
        _ => None,
    }
}

/// A token, or user and password, may stand before a host without a scheme too.
fn hidden(urls: &str) -> String {
    without_secrets(urls, |bare| match bare.rsplit_once('@') {
        Some((_, host)) => format!("{MASK}@{host}"),
        None => bare.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_password_nor_token_is_shown() {
        let shown = hidden("nats://relay:se@cret@a:4222, tls://token@b, c:4222");
        assert_eq!(shown, format!("nats://{MASK}@a:4222,tls://{MASK}@b,c:4222"));
    }
}
