//! The settings of the sink.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Checker, value_or};
use crate::config::{
    CreateTopics, Delivery, Kind, Progress, Properties, Purpose,
    problem::Origin,
    properties,
    reader::{Given, Opt},
};

impl Checker<'_> {
    /// What the kind can promise.
    pub(super) fn delivery(&mut self, given: Opt<Delivery>, kind: Kind) -> Delivery {
        if kind == Kind::Kafka {
            return value_or(given, Delivery::ExactlyOnce);
        }
        if kind == Kind::Nats {
            if let Some(given) = given.filter(|given| given.value == Delivery::AtLeastOnce) {
                let what = "records and progress are one batch of a stream, which is exactly-once";
                self.problem(
                    "sink.delivery",
                    &given.origin,
                    what,
                    "write \"exactly-once\", or remove it",
                );
            }
            return Delivery::ExactlyOnce;
        }
        if let Some(given) = given.filter(|given| given.value == Delivery::ExactlyOnce) {
            self.problem(
                "sink.delivery",
                &given.origin,
                match kind {
                    Kind::Sqs => "SQS can't take records and progress in one step",
                    Kind::Sns => "SNS can't take records and progress in one step",
                    Kind::Pulsar => "Pulsar can't take records and progress in one step",
                    Kind::Rabbit => "RabbitMQ can't take records and progress in one step",
                    _ => "a file can't take records and progress in one step",
                },
                "write \"at-least-once\": a crash repeats records with the same outbox-id",
            );
        }
        Delivery::AtLeastOnce
    }

    /// Where progress can be with the kind.
    pub(super) fn progress(
        &mut self,
        given: Opt<Progress>,
        kind: Kind,
        delivery: Delivery,
    ) -> Progress {
        let default = match kind {
            Kind::Kafka | Kind::Nats => Progress::Broker,
            Kind::Rabbit | Kind::Sqs | Kind::Sns | Kind::Pulsar | Kind::File | Kind::Stdout => {
                Progress::Postgres
            }
        };
        let Some(given) = given else { return default };
        let (what, remedy) = match (kind, given.value) {
            (Kind::Kafka, Progress::Postgres) if delivery == Delivery::ExactlyOnce => (
                "Kafka can't take records and a row of PostgreSQL in one step",
                "set sink.delivery to \"at-least-once\" as well, or write \"broker\"",
            ),
            (Kind::Nats, Progress::Postgres) => (
                "records and progress are one batch of a stream, which is exactly-once",
                "write \"broker\", or remove it",
            ),
            (Kind::Rabbit, Progress::Broker) => {
                ("RabbitMQ can keep no progress", "write \"postgres\", or remove it")
            }
            (Kind::Pulsar, Progress::Broker) => {
                ("the relay keeps no progress in Pulsar", "write \"postgres\", or remove it")
            }
            (Kind::Sqs | Kind::Sns, Progress::Broker) => {
                ("SQS and SNS can keep no progress", "write \"postgres\", or remove it")
            }
            (Kind::File | Kind::Stdout, Progress::Broker) => {
                ("a file can keep no progress", "write \"postgres\", or remove it")
            }
            (_, progress) => return progress,
        };
        self.problem("sink.progress", &given.origin, what, remedy);
        default
    }

    pub(super) fn file_path(&mut self, given: Opt<PathBuf>, kind: Kind) -> Option<PathBuf> {
        const KEY: &str = "sink.file.path";
        match (&given, kind) {
            (None, Kind::File) if !self.is_reported(KEY) => {
                self.problem(
                    KEY,
                    &Origin::Default,
                    "is not set",
                    "name the file, such as events.jsonl",
                );
            }
            (Some(given), kind) if kind != Kind::File => self.problem(
                KEY,
                &given.origin,
                "is for sink.kind = \"file\" only",
                "remove it, or set sink.kind",
            ),
            _ => {}
        }
        given.map(|given| given.value)
    }

    /// What means something to Kafka only is no setting of another kind.
    pub(super) fn kafkas_own(
        &mut self,
        kind: Kind,
        partitions: &Opt<u64>,
        file: &Opt<PathBuf>,
        properties: &BTreeMap<String, Given<String>>,
    ) {
        if kind == Kind::Kafka {
            return;
        }
        let property = properties.iter().next();
        let given = [
            partitions.as_ref().map(|it| ("sink.create_topics".to_owned(), &it.origin)),
            file.as_ref().map(|it| ("sink.properties_file".to_owned(), &it.origin)),
            property.map(|(name, it)| (format!("sink.properties.{name}"), &it.origin)),
        ];
        for (key, origin) in given.into_iter().flatten() {
            let what = "is for sink.kind = \"kafka\" only";
            self.problem(&key, origin, what, "remove it, or set sink.kind");
        }
    }

    pub(super) fn create_topics(
        &mut self,
        flag: Opt<bool>,
        partitions: Opt<u64>,
        replicas: Opt<u64>,
    ) -> Option<CreateTopics> {
        const HOW: &str = "create_topics = { partitions = 6, replication_factor = 3 }";
        if let Some(flag) = flag.filter(|flag| flag.value) {
            self.problem(
                "sink.create_topics",
                &flag.origin,
                "true does not say how many partitions and replicas",
                format!("write {HOW}"),
            );
        }
        let origin = partitions.as_ref().or(replicas.as_ref())?.origin.clone();
        let mut number = |part: &str, given: Opt<u64>, max: u64| -> i32 {
            let key = format!("sink.create_topics.{part}");
            match given {
                Some(given) if (1..=max).contains(&given.value) => {
                    return i32::try_from(given.value).unwrap_or(1);
                }
                Some(given) => {
                    let what = format!("{} is out of range", given.value);
                    self.problem(&key, &given.origin, what, format!("use 1 to {max}"));
                }
                None if self.is_reported(&key) => {}
                None => self.problem(&key, &origin, "is not set", format!("write {HOW}")),
            }
            1
        };
        let partitions = number("partitions", partitions, 100_000);
        let replication_factor = number("replication_factor", replicas, 32_767);
        Some(CreateTopics { partitions, replication_factor })
    }

    pub(super) fn properties(
        &mut self,
        file: Opt<PathBuf>,
        given: BTreeMap<String, Given<String>>,
        kind: Kind,
        purpose: Purpose,
    ) -> (Properties, Option<(PathBuf, Properties)>) {
        const SERVERS: &str = "bootstrap.servers";
        let mut all = Properties::default();
        let problems_before = self.problems.len();
        if let Some(file) = &file {
            match properties::read_file(&file.value) {
                Ok(found) => all = found,
                Err(errors) => {
                    for error in errors {
                        let what = format!("{}: {error}", file.value.display());
                        let remedy = "name a readable file of key=value lines";
                        self.problem("sink.properties_file", &file.origin, what, remedy);
                    }
                }
            }
        }
        let own: Properties = given.into_iter().map(|(name, given)| (name, given.value)).collect();
        own.iter().for_each(|(name, value)| all.set(name.to_owned(), value.to_owned()));
        let servers = all.get(SERVERS).is_some_and(|servers| !servers.trim().is_empty());
        let file_is_fine = self.problems.len() == problems_before;
        let key = format!("sink.properties.{SERVERS}");
        if !servers
            && kind == Kind::Kafka
            && purpose == Purpose::Relay
            && file_is_fine
            && !self.is_reported(&key)
        {
            self.problem(&key, &Origin::Default, "is not set", "set it, or give --kafka host:9092");
        }
        (all, file.map(|file| (file.value, own)))
    }
}
