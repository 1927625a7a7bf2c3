//! The settings of the sink.

use std::{collections::BTreeMap, path::PathBuf};

use crate::config::{
    CreateTopics, Delivery, Kind, Progress, Properties, Purpose,
    checker::{Checker, value, value_or},
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
                format!("{} can't take records and progress in one step", in_words(kind)),
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
                "Kafka can't take records and a row of PostgreSQL in one step".to_owned(),
                "set sink.delivery to \"at-least-once\" as well, or write \"broker\"",
            ),
            (Kind::Nats, Progress::Postgres) => (
                "records and progress are one batch of a stream, which is exactly-once".to_owned(),
                "write \"broker\", or remove it",
            ),
            (kind, Progress::Broker) if default == Progress::Postgres => (
                format!("the relay keeps no progress in {}", in_words(kind)),
                "write \"postgres\", or remove it",
            ),
            (_, progress) => return progress,
        };
        self.problem("sink.progress", &given.origin, what, remedy);
        default
    }

    pub(super) fn file_path(&mut self, given: Opt<PathBuf>, kind: Kind) -> Option<PathBuf> {
        if kind == Kind::File {
            self.needed("sink.file.path", &given, "name the file, such as events.jsonl");
        }
        value(given)
    }

    /// What means something to one kind only is no setting of another.
    pub(super) fn foreign(&mut self, kind: Kind, origins: &BTreeMap<String, Origin>) {
        for (key, origin) in origins {
            let Some(owner) = owner(key).filter(|owner| *owner != kind) else { continue };
            if !self.is_reported(key) {
                let what = format!("is for sink.kind = \"{}\" only", owner.name());
                self.problem(key, origin, what, "remove it, or set sink.kind");
            }
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

/// The kind that alone has this setting; `None` where all have it.
fn owner(key: &str) -> Option<Kind> {
    let name = key.strip_prefix("sink.")?;
    match name.split_once('.') {
        Some(("properties" | "create_topics", _)) => Some(Kind::Kafka),
        Some((section, _)) => Kind::ALL.into_iter().find(|kind| kind.name() == section),
        None => (name == "properties_file").then_some(Kind::Kafka),
    }
}

/// Its name in a sentence.
fn in_words(kind: Kind) -> &'static str {
    match kind {
        Kind::Kafka => "Kafka",
        Kind::Nats => "NATS",
        Kind::Rabbit => "RabbitMQ",
        Kind::Sqs => "SQS",
        Kind::Sns => "SNS",
        Kind::Pulsar => "Pulsar",
        Kind::File | Kind::Stdout => "a file",
    }
}
