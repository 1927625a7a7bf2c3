//! The settings of `[sink.sqs]` and `[sink.sns]`.

use super::Checker;
use crate::{
    config::{
        Kind, Purpose, aws::AwsConfig, problem::Origin, reader::Opt, sizes::Size,
        written::WrittenAws,
    },
    sink::aws::{self, BYTES_MAX, Template},
};

/// A request takes some ten milliseconds and ten messages.
const REQUESTS_IN_FLIGHT: usize = 32;
const REQUESTS_IN_FLIGHT_MAX: usize = 256;

impl Checker<'_> {
    /// `None` where the kind is another one.
    pub(in crate::config) fn aws(
        &mut self,
        sqs: WrittenAws,
        sns: WrittenAws,
        kind: Kind,
        purpose: Purpose,
    ) -> Option<AwsConfig> {
        let (own, others, kind) = match kind {
            Kind::Sqs => (Some(sqs), vec![("sns", sns)], aws::Kind::Sqs),
            Kind::Sns => (Some(sns), vec![("sqs", sqs)], aws::Kind::Sns),
            _ => (None, vec![("sqs", sqs), ("sns", sns)], aws::Kind::Sqs),
        };
        others.iter().for_each(|(section, given)| self.no_aws(section, given));
        own.map(|own| self.one(own, kind, purpose))
    }

    fn one(&mut self, given: WrittenAws, kind: aws::Kind, purpose: Purpose) -> AwsConfig {
        let key = |name: &str| match kind {
            aws::Kind::Sqs => format!("sink.sqs.{name}"),
            aws::Kind::Sns => format!("sink.sns.{name}"),
        };
        let destination = match kind {
            aws::Kind::Sqs => self.destination(&key("queue"), given.destination),
            aws::Kind::Sns => {
                let topic = key("topic");
                if purpose == Purpose::Relay
                    && given.destination.is_none()
                    && !self.is_reported(&topic)
                {
                    let remedy = "name it, such as arn:aws:sns:eu-west-1:123456789012:{topic}.fifo";
                    self.problem(&topic, &Origin::Default, "is not set", remedy);
                }
                self.destination(&topic, given.destination)
            }
        };
        let mut message_bytes_max = BYTES_MAX;
        if let Some(given) = &given.message_bytes_max {
            let Size(bytes) = given.value;
            match usize::try_from(bytes) {
                Ok(bytes) if (1 << 10..=BYTES_MAX).contains(&bytes) => message_bytes_max = bytes,
                _ => {
                    let what = format!("{} is out of range", given.value);
                    self.problem(
                        &key("message_bytes_max"),
                        &given.origin,
                        what,
                        "use 1 KiB to 1 MiB",
                    );
                }
            }
        }
        let mut requests_in_flight = REQUESTS_IN_FLIGHT;
        if let Some(given) = &given.requests_in_flight {
            match usize::try_from(given.value) {
                Ok(number @ 1..=REQUESTS_IN_FLIGHT_MAX) => requests_in_flight = number,
                _ => {
                    let what = format!("{} is out of range", given.value);
                    let remedy = format!("use 1 to {REQUESTS_IN_FLIGHT_MAX}");
                    self.problem(&key("requests_in_flight"), &given.origin, what, remedy);
                }
            }
        }
        let text = |given: Opt<String>| given.map(|it| it.value).filter(|it| !it.is_empty());
        AwsConfig {
            kind,
            destination,
            region: text(given.region),
            endpoint: text(given.endpoint),
            account: text(given.account),
            credentials_file: given.credentials_file.map(|it| it.value),
            ca_file: given.ca_file.map(|it| it.value),
            message_bytes_max,
            requests_in_flight,
        }
    }

    fn destination(&mut self, key: &str, given: Opt<String>) -> Template {
        let default = Template::queue();
        let Some(given) = given else { return default };
        match given.value.parse() {
            Ok(parsed) => parsed,
            Err(what) => {
                let remedy =
                    "write such as {topic}.fifo: a queue or topic for each topic of the outbox";
                self.problem(key, &given.origin, what, remedy);
                default
            }
        }
    }

    fn no_aws(&mut self, section: &str, given: &WrittenAws) {
        let destination = if section == "sqs" { "queue" } else { "topic" };
        let origins = [
            (destination, given.destination.as_ref().map(|it| &it.origin)),
            ("region", given.region.as_ref().map(|it| &it.origin)),
            ("endpoint", given.endpoint.as_ref().map(|it| &it.origin)),
            ("account", given.account.as_ref().map(|it| &it.origin)),
            ("credentials_file", given.credentials_file.as_ref().map(|it| &it.origin)),
            ("ca_file", given.ca_file.as_ref().map(|it| &it.origin)),
            ("message_bytes_max", given.message_bytes_max.as_ref().map(|it| &it.origin)),
            ("requests_in_flight", given.requests_in_flight.as_ref().map(|it| &it.origin)),
        ];
        for (name, origin) in origins {
            let Some(origin) = origin else { continue };
            let what = format!("is for sink.kind = \"{section}\" only");
            self.problem(
                &format!("sink.{section}.{name}"),
                origin,
                what,
                "remove it, or set sink.kind",
            );
        }
    }
}
