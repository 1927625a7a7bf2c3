//! The settings of `[sink.pulsar]`.

use super::{Checker, value_or};
use crate::{
    config::{
        Kind, Purpose, problem::Origin, pulsar::PulsarConfig, sizes::Size, written::WrittenPulsar,
    },
    sink::pulsar::Template,
};

/// As brokers have it.
const MESSAGE_BYTES_MAX: usize = 5 << 20;

impl Checker<'_> {
    /// `None` where the kind is another one.
    pub(in crate::config) fn pulsar(
        &mut self,
        given: WrittenPulsar,
        kind: Kind,
        purpose: Purpose,
    ) -> Option<PulsarConfig> {
        const URL: &str = "sink.pulsar.url";
        if kind != Kind::Pulsar {
            self.no_pulsar(&given);
            return None;
        }
        if purpose == Purpose::Relay && given.url.is_none() && !self.is_reported(URL) {
            let remedy = "name a broker, such as pulsar://pulsar:6650";
            self.problem(URL, &Origin::Default, "is not set", remedy);
        }
        let mut topic = Template::in_default_namespace();
        if let Some(given) = given.topic {
            match given.value.parse() {
                Ok(parsed) => topic = parsed,
                Err(what) => {
                    let remedy = "write such as persistent://public/default/{topic}, the default";
                    self.problem("sink.pulsar.topic", &given.origin, what, remedy);
                }
            }
        }
        let mut message_bytes_max = MESSAGE_BYTES_MAX;
        if let Some(given) = &given.message_bytes_max {
            let Size(bytes) = given.value;
            match usize::try_from(bytes) {
                Ok(bytes) if (1 << 10..=512 << 20).contains(&bytes) => message_bytes_max = bytes,
                _ => {
                    let what = format!("{} is out of range", given.value);
                    let key = "sink.pulsar.message_bytes_max";
                    self.problem(key, &given.origin, what, "use 1 KiB to 512 MiB");
                }
            }
        }
        let certificate = match (given.certificate_file, given.key_file) {
            (Some(certificate), Some(key)) => Some((certificate.value, key.value)),
            (None, None) => None,
            (certificate, key) => {
                let (alone, other) = match certificate.is_some() {
                    true => ("certificate_file", "key_file"),
                    false => ("key_file", "certificate_file"),
                };
                if let Some(given) = certificate.or(key) {
                    let what = format!("has no sink.pulsar.{other} beside it");
                    let remedy = "name both the certificate and its key";
                    self.problem(&format!("sink.pulsar.{alone}"), &given.origin, what, remedy);
                }
                None
            }
        };
        Some(PulsarConfig {
            url: value_or(given.url, String::new()),
            topic,
            exclusive: value_or(given.exclusive, true),
            one_broker: value_or(given.one_broker, false),
            message_bytes_max,
            token_file: given.token_file.map(|it| it.value),
            ca_file: given.ca_file.map(|it| it.value),
            certificate,
        })
    }

    fn no_pulsar(&mut self, given: &WrittenPulsar) {
        let origins = [
            ("url", given.url.as_ref().map(|it| &it.origin)),
            ("topic", given.topic.as_ref().map(|it| &it.origin)),
            ("exclusive", given.exclusive.as_ref().map(|it| &it.origin)),
            ("one_broker", given.one_broker.as_ref().map(|it| &it.origin)),
            ("message_bytes_max", given.message_bytes_max.as_ref().map(|it| &it.origin)),
            ("token_file", given.token_file.as_ref().map(|it| &it.origin)),
            ("ca_file", given.ca_file.as_ref().map(|it| &it.origin)),
            ("certificate_file", given.certificate_file.as_ref().map(|it| &it.origin)),
            ("key_file", given.key_file.as_ref().map(|it| &it.origin)),
        ];
        for (key, origin) in origins {
            let Some(origin) = origin else { continue };
            let key = format!("sink.pulsar.{key}");
            let what = "is for sink.kind = \"pulsar\" only";
            self.problem(&key, origin, what, "remove it, or set sink.kind");
        }
    }
}
