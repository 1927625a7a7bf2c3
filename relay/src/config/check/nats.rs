//! The settings of `[sink.nats]`.

use super::{Checker, value_or};
use crate::{
    config::{Kind, Purpose, nats::NatsConfig, problem::Origin, written::WrittenNats},
    core::secret::Secret,
    sink::nats::Template,
};

impl Checker<'_> {
    /// `None` where the kind is another one.
    pub(in crate::config) fn nats(
        &mut self,
        given: WrittenNats,
        kind: Kind,
        purpose: Purpose,
    ) -> Option<NatsConfig> {
        if kind != Kind::Nats {
            self.no_nats(&given);
            return None;
        }
        let required = purpose == Purpose::Relay;
        for (key, is_given, remedy) in [
            ("sink.nats.url", given.url.is_some(), "name the server, such as nats://nats:4222"),
            (
                "sink.nats.stream",
                given.stream.is_some(),
                "name the stream that takes the records, such as ORDERS",
            ),
        ] {
            if required && !is_given && !self.is_reported(key) {
                self.problem(key, &Origin::Default, "is not set", remedy);
            }
        }
        let mut subject = Template::default();
        if let Some(given) = &given.subject {
            match given.value.parse() {
                Ok(parsed) => subject = parsed,
                Err(what) => {
                    let remedy = "write such as \"{topic}.{partition}\", the default";
                    self.problem("sink.nats.subject", &given.origin, what, remedy);
                }
            }
        }
        let mut partitions = 1;
        if let Some(given) = &given.partitions {
            match i32::try_from(given.value) {
                Ok(number @ 1..=100_000) => partitions = number,
                _ => {
                    let what = format!("{} is out of range", given.value);
                    self.problem("sink.nats.partitions", &given.origin, what, "use 1 to 100000");
                }
            }
        }
        let certificate = match (given.certificate_file, given.key_file) {
            (Some(certificate), Some(key)) => Some((certificate.value, key.value)),
            (Some(given), None) => {
                let remedy = "name the certificate's key as well";
                self.problem(
                    "sink.nats.certificate_file",
                    &given.origin,
                    "has no sink.nats.key_file beside it",
                    remedy,
                );
                None
            }
            (None, Some(given)) => {
                let remedy = "name the key's certificate as well";
                self.problem(
                    "sink.nats.key_file",
                    &given.origin,
                    "has no sink.nats.certificate_file beside it",
                    remedy,
                );
                None
            }
            (None, None) => None,
        };
        Some(NatsConfig {
            url: Secret::new(value_or(given.url, String::new())),
            stream: value_or(given.stream, String::new()),
            subject,
            partitions,
            progress_subject: given.progress_subject.map(|it| it.value),
            repairs_broker_loss: value_or(given.on_broker_loss, true),
            credentials_file: given.credentials_file.map(|it| it.value),
            nkey_file: given.nkey_file.map(|it| it.value),
            ca_file: given.ca_file.map(|it| it.value),
            certificate,
        })
    }

    fn no_nats(&mut self, given: &WrittenNats) {
        let texts = [
            ("url", &given.url),
            ("stream", &given.stream),
            ("subject", &given.subject),
            ("progress_subject", &given.progress_subject),
        ];
        let files = [
            ("credentials_file", &given.credentials_file),
            ("nkey_file", &given.nkey_file),
            ("ca_file", &given.ca_file),
            ("certificate_file", &given.certificate_file),
            ("key_file", &given.key_file),
        ];
        let texts = texts.into_iter().filter_map(|(key, it)| Some((key, &it.as_ref()?.origin)));
        let files = files.into_iter().filter_map(|(key, it)| Some((key, &it.as_ref()?.origin)));
        let partitions = given.partitions.as_ref().map(|it| ("partitions", &it.origin));
        let on_loss = given.on_broker_loss.as_ref().map(|it| ("on_broker_loss", &it.origin));
        for (key, origin) in texts.chain(files).chain(partitions).chain(on_loss) {
            let (key, what) = (format!("sink.nats.{key}"), "is for sink.kind = \"nats\" only");
            self.problem(&key, origin, what, "remove it, or set sink.kind");
        }
    }
}
