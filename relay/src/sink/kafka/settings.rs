//! What the Kafka sink can be told, and the librdkafka configuration that follows from it.
//!
//! Promises that no property can weaken delivery: those that would are refused by name, with the
//! reason ([`Settings::problems`]). The file's shape is `config`'s; this module knows values only.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel, error::KafkaError, producer::BaseProducer};

use super::{
    context::Context,
    files, property,
    reach::Reach,
    roots::{self, Roots, Trust},
};
use crate::core::{finding::Finding, progress_home::ProgressHome};

/// Default of `transaction.timeout.ms`: a dead relay holds `read_committed` readers that long.
const TRANSACTION_TIMEOUT_DEFAULT_MS: u64 = 15_000;

/// What a delivery promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// One Kafka transaction per batch, progress included.
    ExactlyOnce,
    /// Idempotent records first, then progress; a crash between the two repeats records. Only
    /// making this the relay whose progress counts takes a transaction.
    AtLeastOnce,
    /// Idempotent records. Progress is kept elsewhere: neither transactions nor a progress topic are needed.
    RecordsAlone,
}

/// How a missing topic is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicCreation {
    /// Number of partitions.
    pub partitions: i32,
    /// Replication factor; -1 is the broker's default.
    pub replication_factor: i32,
}

/// Everything the sink needs to know. Property values may be secrets and never show in `Debug`.
#[derive(Clone)]
pub struct Settings {
    /// The relay's name, `[a-z0-9_]{1,56}`: transactional id and progress topic derive from it.
    pub relay_name: String,
    /// Transactions or not.
    pub delivery: Delivery,
    /// Any librdkafka property; `bootstrap.servers` is needed.
    pub properties: BTreeMap<String, String>,
    /// Missing topics are created so; with `None` their events are parked until somebody creates them.
    pub create_topics: Option<TopicCreation>,
    /// How many of them one process creates within a day.
    pub created_topics_max: usize,
    /// For how long after an event was parked its missing topic's appearance releases it.
    pub topic_grace: Duration,
    /// Patterns of topics that are no destination, beside those that never are one.
    pub reserved_topics: Vec<String>,
    /// Records in a batch, at most.
    pub records_max: usize,
    /// Bytes in a batch, at most; one record may exceed it alone.
    pub bytes_max: usize,
    /// Bytes of one record, at most.
    pub record_bytes_max: usize,
    /// The system's trusted certificates, once they were needed.
    pub roots: SystemRoots,
    /// Which brokers do not answer, as the clients made from these settings see it.
    pub reach: Reach,
}

/// What this system trusts; looked up once, at the first TLS connection that needs it.
#[derive(Clone, Debug, Default)]
pub struct SystemRoots(Arc<OnceLock<Result<Roots, String>>>);

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden: BTreeMap<&str, &str> =
            self.properties.keys().map(|name| (name.as_str(), "***")).collect();
        f.debug_struct("Settings")
            .field("relay_name", &self.relay_name)
            .field("delivery", &self.delivery)
            .field("properties", &hidden)
            .field("create_topics", &self.create_topics)
            .field("created_topics_max", &self.created_topics_max)
            .field("topic_grace", &self.topic_grace)
            .field("reserved_topics", &self.reserved_topics)
            .field("records_max", &self.records_max)
            .field("bytes_max", &self.bytes_max)
            .field("record_bytes_max", &self.record_bytes_max)
            .finish()
    }
}

impl Settings {
    /// `outbox-relay-<name>`: whoever initialises it last fences the others.
    pub fn transactional_id(&self) -> String {
        format!("outbox-relay-{}", self.relay_name)
    }

    /// `outbox-relay-progress-<name>`.
    pub fn progress_topic(&self) -> String {
        format!("outbox-relay-progress-{}", self.relay_name)
    }

    /// Of a command that a person types.
    pub(in crate::sink) fn servers(&self) -> &str {
        let named = |name| self.properties.get(name);
        let servers = named("bootstrap.servers").or_else(|| named("metadata.broker.list"));
        servers.map_or("HOST:PORT", |servers| servers.trim())
    }

    /// Whether progress is kept in a topic.
    pub(in crate::sink) fn keeps_progress(&self) -> bool {
        self.delivery != Delivery::RecordsAlone
    }

    /// What a person can do at the progress topic.
    pub(in crate::sink) fn progress_home(&self) -> ProgressHome {
        let servers = self.servers();
        ProgressHome {
            name: "the progress topic".into(),
            guard: "leave Write on that topic to the relay's principal alone".into(),
            empty: format!(
                "delete the topic: `kafka-topics --bootstrap-server {servers} --delete --topic {}`",
                self.progress_topic()
            ),
            is_outside: true,
            has_events: false,
        }
    }

    /// Why a broker refuses the relay's login, and the setting to correct, where one does.
    pub fn login_refused(&self) -> Option<(String, &'static str)> {
        self.reach.login_refused()
    }

    /// Who of the brokers does not answer, and why.
    pub fn silent(&self) -> String {
        let names = ["bootstrap.servers", "metadata.broker.list"];
        let servers = names.iter().find_map(|name| self.properties.get(*name));
        self.reach.who(servers.map_or("", |servers| servers.trim()))
    }

    /// `transaction.timeout.ms`, which bounds a delivery in both modes.
    pub fn transaction_timeout(&self) -> Duration {
        let given = self.properties.get("transaction.timeout.ms");
        let ms = given.and_then(|text| text.trim().parse().ok());
        Duration::from_millis(ms.unwrap_or(TRANSACTION_TIMEOUT_DEFAULT_MS))
    }

    /// How long a delivery may take before it is given up: two thirds of the transaction's time,
    /// so that the abort still reaches the broker before the broker aborts by itself.
    pub fn delivery_limit(&self) -> Duration {
        self.transaction_timeout() * 2 / 3
    }

    /// Whether records are compressed on their way.
    pub(super) fn compresses(&self) -> bool {
        let names = ["compression.codec", "compression.type"];
        let given = names.iter().filter_map(|name| self.properties.get(*name));
        given.map(|codec| codec.trim()).any(|codec| !codec.is_empty() && codec != "none")
    }

    /// All that is wrong, in the order of the property names. Creates and drops a client to let
    /// librdkafka check names, values and their combinations; sends nothing that matters.
    pub fn problems(&self) -> Vec<Finding> {
        let mut problems: Vec<Finding> = self
            .properties
            .iter()
            .filter_map(|(name, value)| {
                property::refuse(name, value).or_else(|| files::unreadable(name, value))
            })
            .collect();
        let servers = ["bootstrap.servers", "metadata.broker.list"];
        if !servers
            .iter()
            .any(|name| self.properties.get(*name).is_some_and(|v| !v.trim().is_empty()))
        {
            problems.push(Finding {
                key: "sink.properties.bootstrap.servers".into(),
                what: "no broker is named".into(),
                remedy: "set it to a comma-separated list of host:port".into(),
            });
        }
        if let Some(creation) = self.create_topics
            && (creation.partitions < 1 || !valid_replication(creation.replication_factor))
        {
            problems.push(Finding {
                key: "sink.create_topics".into(),
                what: "partitions and replication_factor must be at least 1".into(),
                remedy: "replication_factor may also be -1, the broker's default".into(),
            });
        }
        if let Some(Err(what)) = self.system_roots() {
            problems.push(Finding {
                key: "sink.properties.ssl.ca.location".into(),
                what: format!("security.protocol asks for TLS, and {what}"),
                remedy: "set it to a file of PEM certificates, or install ca-certificates".into(),
            });
        }
        if problems.is_empty() { self.trial().into_iter().collect() } else { problems }
    }

    /// The system's trusted certificates where brokers are judged by them, or why there are none.
    fn system_roots(&self) -> Option<&Result<Roots, String>> {
        match Trust::of(&self.properties) {
            Trust::System => Some(self.roots.0.get_or_init(roots::system)),
            Trust::Plain | Trust::Named(_) | Trust::Anybody => None,
        }
    }

    /// Whose word is taken for a broker's certificate, for people; `None` without TLS.
    pub fn trust(&self) -> Option<String> {
        match (Trust::of(&self.properties), self.system_roots()) {
            (Trust::Plain, _) => None,
            (Trust::Anybody, _) => {
                Some("no one: enable.ssl.certificate.verification is off".into())
            }
            (Trust::Named(property), _) => Some(format!("what {property} names")),
            (Trust::System, Some(Ok(Roots { count, .. }))) => {
                Some(format!("{count} authorities of {}", roots::place()))
            }
            (Trust::System, found) => found.and_then(|found| found.as_ref().err().cloned()),
        }
    }

    fn trial(&self) -> Option<Finding> {
        let created = self
            .transactional_config()
            .create_with_context::<_, BaseProducer<_>>(Context::new("check", &Reach::default()));
        match created {
            Ok(_) => None,
            Err(KafkaError::ClientConfig(_, reason, name, _)) => Some(Finding {
                what: if property::may_be_secret(&name) {
                    "librdkafka does not take its value".into()
                } else {
                    reason
                },
                remedy: "see librdkafka's CONFIGURATION.md for names and values".into(),
                key: format!("sink.properties.{name}"),
            }),
            Err(KafkaError::ClientCreation(reason)) => Some(Finding {
                key: "sink.properties".into(),
                what: format!("librdkafka refuses the combination: {reason}"),
                remedy: "see librdkafka's CONFIGURATION.md".into(),
            }),
            Err(other) => Some(Finding {
                key: "sink.properties".into(),
                what: other.to_string(),
                remedy: "see librdkafka's CONFIGURATION.md".into(),
            }),
        }
    }

    /// For the client that delivers in transactions, or only fences.
    pub(super) fn transactional_config(&self) -> ClientConfig {
        let mut config = self.producer_config();
        config.set("transactional.id", self.transactional_id());
        config.set("transaction.timeout.ms", self.transaction_timeout().as_millis().to_string());
        config
    }

    /// For the client that delivers without transactions.
    pub(super) fn producer_config(&self) -> ClientConfig {
        let mut config = self.base_config();
        let limit_ms = self.delivery_limit().as_millis().to_string();
        config.set("enable.idempotence", "true");
        config.set("acks", "all");
        config.set("message.timeout.ms", limit_ms);
        // Only failures are reported: a flush that leaves nothing behind and reports none is
        // success, and a report per record would cost the more the faster we are.
        config.set("delivery.report.only.error", "true");
        // Topics are looked up first, by another client. This closes the gap in which one is
        // deleted between look-up and produce: the producer's own look-ups would create it again.
        config.set("allow.auto.create.topics", "false");
        let kilobytes = (self.bytes_max + self.record_bytes_max) / 1024 * 2 + 1024;
        config.set("queue.buffering.max.kbytes", kilobytes.min(i32::MAX as usize).to_string());
        // The progress record takes one place, and the records of a refused delivery may linger.
        let messages = self.records_max.saturating_mul(2).saturating_add(16).min(10_000_000);
        config.set("queue.buffering.max.messages", messages.to_string());
        // Every delivery ends in a flush; until then, sending while records are still being queued
        // is faster than waiting for fuller requests.
        self.set_default(&mut config, "linger.ms", "0");
        self.set_default(&mut config, "batch.size", "1000000");
        self.set_default(&mut config, "batch.num.messages", "100000");
        config.remove("transaction.timeout.ms");
        config
    }

    /// For the producer that stores one record per wire batch, so that a refusal names its record.
    pub(super) fn careful_producer_config(&self) -> ClientConfig {
        let mut config = self.producer_config();
        config.set("batch.num.messages", "1");
        config
    }

    /// For metadata and watermarks: creates no topic, and sees past open transactions.
    pub(super) fn lookup_config(&self) -> ClientConfig {
        let mut config = self.base_config();
        config.remove("transaction.timeout.ms");
        config.set("allow.auto.create.topics", "false");
        // With read_committed, a "high watermark" query answers the last stable offset instead.
        config.set("isolation.level", "read_uncommitted");
        config
    }

    /// For reading the progress topic, without a consumer group.
    pub(super) fn reader_config(&self) -> ClientConfig {
        let mut config = self.lookup_config();
        config.set("isolation.level", "read_committed");
        config.set("enable.partition.eof", "true");
        config.set("auto.offset.reset", "earliest");
        config.set("queued.max.messages.kbytes", "1024");
        // How long fetching rests once that much is queued. The default, a second, is far longer than
        // what is queued lasts, and each start waits for this reader.
        self.set_default(&mut config, "fetch.queue.backoff.ms", "5");
        config.set("fetch.wait.max.ms", "100");
        config
    }

    /// For creating topics and describing their settings.
    pub(super) fn admin_config(&self) -> ClientConfig {
        let mut config = self.base_config();
        config.remove("transaction.timeout.ms");
        config
    }

    fn base_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        self.properties.iter().for_each(|(name, value)| {
            config.set(name.as_str(), value.as_str());
        });
        if let Some(Ok(Roots { pem, .. })) = self.system_roots() {
            config.set("ssl.ca.pem", pem.as_str());
        }
        self.set_default(&mut config, "client.id", &self.transactional_id());
        // A transaction that follows at once finds the last one's markers being written: try again
        // soon, then ever less often.
        self.set_default(&mut config, "retry.backoff.ms", "2");
        self.set_default(&mut config, "retry.backoff.max.ms", "500");
        // Ready again soon after an outage; librdkafka's default lets it wait ten seconds.
        self.set_default(&mut config, "reconnect.backoff.max.ms", "1000");
        self.set_default(&mut config, "log.connection.close", "false");
        let message_max =
            self.record_bytes_max.saturating_add(64 << 10).clamp(1_000_000, 1_000_000_000);
        self.set_default(&mut config, "message.max.bytes", &message_max.to_string());
        let verbose = tracing::enabled!(target: "librdkafka", tracing::Level::DEBUG);
        config.set_log_level(if verbose { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
        config
    }

    fn set_default(&self, config: &mut ClientConfig, name: &str, value: &str) {
        if !self.properties.contains_key(name) {
            config.set(name, value);
        }
    }
}

fn valid_replication(factor: i32) -> bool {
    factor == -1 || (1..=i32::from(i16::MAX)).contains(&factor)
}

#[cfg(test)]
pub(super) fn sample(servers: &str) -> Settings {
    Settings {
        relay_name: "orders".into(),
        delivery: Delivery::ExactlyOnce,
        properties: [("bootstrap.servers".to_owned(), servers.to_owned())].into(),
        create_topics: None,
        created_topics_max: 1_000,
        topic_grace: Duration::from_secs(10),
        reserved_topics: Vec::new(),
        records_max: 10_000,
        bytes_max: 16 << 20,
        record_bytes_max: 16 << 20,
        roots: SystemRoots::default(),
        reach: Reach::default(),
    }
}

#[cfg(test)]
mod tests;
