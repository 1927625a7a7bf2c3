//! `[sink.rabbitmq]`.

use std::path::PathBuf;

use super::common::{Common, without_secrets};
use crate::{
    config::{
        Purpose,
        checker::{Checker, value, value_or},
        reader::{Opt, Reader},
        shown::{path, quoted, size},
        sizes::Size,
    },
    core::secret::{MASK, Secret},
    sink::rabbitmq::{Settings, Template},
};

/// As brokers of version 4 have it.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// All of it, each as it was given. No `Debug`: there are secrets in it.
pub(in crate::config) struct WrittenRabbit {
    url: Opt<String>,
    url_file: Opt<PathBuf>,
    exchange: Opt<String>,
    routing_key: Opt<String>,
    partitions: Opt<u64>,
    many_in_flight: Opt<bool>,
    declare: Opt<bool>,
    message_bytes_max: Opt<Size>,
    ca_file: Opt<PathBuf>,
    certificate_file: Opt<PathBuf>,
    key_file: Opt<PathBuf>,
}

impl WrittenRabbit {
    pub(in crate::config) fn read(from: &mut Reader<'_>) -> Self {
        WrittenRabbit {
            url: from.text("sink.rabbitmq.url"),
            url_file: from.path("sink.rabbitmq.url_file"),
            exchange: from.text_or_empty("sink.rabbitmq.exchange"),
            routing_key: from.text_or_empty("sink.rabbitmq.routing_key"),
            partitions: from.number("sink.rabbitmq.partitions"),
            many_in_flight: from
                .choice("sink.rabbitmq.in_flight_per_lane", &[("1", false), ("many", true)]),
            declare: from.flag("sink.rabbitmq.declare", "true or false"),
            message_bytes_max: from.size("sink.rabbitmq.message_bytes_max"),
            ca_file: from.path("sink.rabbitmq.ca_file"),
            certificate_file: from.path("sink.rabbitmq.certificate_file"),
            key_file: from.path("sink.rabbitmq.key_file"),
        }
    }
}

impl Checker<'_> {
    pub(super) fn rabbitmq(
        &mut self,
        given: WrittenRabbit,
        purpose: Purpose,
        common: &Common,
    ) -> Settings {
        let keys = ("sink.rabbitmq.url", "sink.rabbitmq.url_file");
        let found = self.text_or_file(keys, given.url, given.url_file, "the broker's address");
        if found.is_none() && purpose == Purpose::Relay && !self.is_reported(keys.1) {
            let remedy = "name the broker, such as amqp://relay:secret@rabbit:5672, or set \
                          sink.rabbitmq.url_file";
            self.needed(keys.0, &Opt::<String>::None, remedy);
        }
        let (url, url_file) =
            found.map_or_else(Default::default, |(_, url, file)| (url.value, file));
        let mut template = |name: &str, given, default: Template| {
            let remedy = format!("write such as \"{default}\", the default");
            self.parsed(&format!("sink.rabbitmq.{name}"), given, default, &remedy)
        };
        let exchange = template("exchange", given.exchange, Template::exchange());
        let routing_key = template("routing_key", given.routing_key, Template::routing_key());
        Settings {
            relay_name: common.relay_name.clone(),
            url: Secret::new(url),
            url_file,
            exchange,
            routing_key,
            partitions: self.count("sink.rabbitmq.partitions", given.partitions, 1, 100_000),
            many_in_flight: value_or(given.many_in_flight, false),
            declare: value_or(given.declare, false),
            message_bytes_max: self.bytes(
                "sink.rabbitmq.message_bytes_max",
                given.message_bytes_max,
                MESSAGE_BYTES_MAX,
                512 << 20,
            ),
            ca_file: value(given.ca_file),
            certificate: self.certificate("sink.rabbitmq", given.certificate_file, given.key_file),
            topic_grace: common.topic_grace,
            reserved_topics: common.reserved_topics.clone(),
        }
    }
}

pub(super) fn shown(settings: &Settings, name: &str) -> Option<String> {
    let (certificate, key) = settings.certificate.as_ref().map(|(a, b)| (path(a), path(b))).unzip();
    match name {
        "url" => Some(quoted(&hidden(settings.url.expose()))),
        "url_file" => settings.url_file.as_deref().map(path),
        "exchange" => Some(quoted(&settings.exchange.to_string())),
        "routing_key" => Some(quoted(&settings.routing_key.to_string())),
        "partitions" => Some(settings.partitions.to_string()),
        "in_flight_per_lane" => Some(quoted(if settings.many_in_flight { "many" } else { "1" })),
        "declare" => Some(settings.declare.to_string()),
        "message_bytes_max" => Some(size(settings.message_bytes_max)),
        "ca_file" => settings.ca_file.as_deref().map(path),
        "certificate_file" => certificate,
        "key_file" => key,
        _ => None,
    }
}

/// What has no scheme may be anything.
fn hidden(urls: &str) -> String {
    without_secrets(urls, |_| MASK.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        let shown = hidden("amqp://relay:se@cret@a:5672/%2f, amqps://b,relay:secret@c");
        assert_eq!(shown, format!("amqp://{MASK}@a:5672/%2f,amqps://b,{MASK}"));
    }
}
