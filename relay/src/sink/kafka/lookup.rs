//! What exists at the broker: topics, partitions, settings, watermarks. Creates nothing.
//!
//! Shared by the sink's thread and by probes; librdkafka's clients are thread-safe.

use std::{collections::HashMap, time::Duration};

use rdkafka::{
    consumer::Consumer as _,
    error::{KafkaError, RDKafkaErrorCode},
    metadata::{Metadata, MetadataTopic},
};

use super::{
    context::Context,
    errors::is_silence,
    limits::Limits,
    native::{self, Consumer, describe},
    reach::Reach,
    settings::Settings,
};

/// How long librdkafka must have had nothing to say.
const PATIENCE: Duration = Duration::from_millis(10);
/// A broker that answers does so within this, but for rare cases.
const SOON: Duration = Duration::from_secs(1);
/// Topics asked for in one request.
const ASKED_AT_ONCE: usize = 1_000;

/// A client for look-ups.
pub(super) struct Lookup {
    client: Consumer,
    reach: Reach,
    /// A topic whose metadata is asked for where the cluster itself is meant.
    progress_topic: String,
}

/// Whether a topic exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// With this many partitions, at least 1.
    Partitions(i32),
    Missing,
    /// It may not be described, or not be written to.
    NotAuthorised,
    /// The broker keeps state of its own in it.
    Internal,
    Invalid,
}

/// A topic, and what its settings refuse where they may be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// `None`: the broker can't tell now.
    pub(super) found: Option<Found>,
    pub(super) limits: Option<Limits>,
    /// How many times each record is stored; 0 where that is not known.
    pub(super) replicas: usize,
}

/// What a broker answers of a topic.
type Told = Result<describe::Shape, RDKafkaErrorCode>;

/// The cluster, as one broker sees it.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub brokers: Vec<Broker>,
    pub id: Option<String>,
}

/// A broker, as the others name it to clients: `advertised.listeners`.
#[derive(Clone, Debug)]
pub(super) struct Broker {
    pub id: i32,
    pub host: String,
    pub port: i32,
}

impl std::fmt::Display for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Lookup {
    pub(super) fn new(settings: &Settings) -> Result<Self, KafkaError> {
        let client = settings
            .lookup_config()
            .create_with_context(Context::new("lookup", &settings.reach))?;
        let reach = settings.reach.clone();
        Ok(Lookup { client, reach, progress_topic: settings.progress_topic() })
    }

    /// By name, what is known of each topic: as many requests for a thousand as for one.
    pub(super) fn survey(
        &self,
        names: &[&str],
        timeout: Duration,
    ) -> Result<HashMap<String, Seen>, KafkaError> {
        let mut seen = HashMap::with_capacity(names.len());
        if names.is_empty() {
            return Ok(seen);
        }
        let controlled = self.has_controller(&self.progress_topic, timeout)?;
        for names in names.chunks(ASKED_AT_ONCE) {
            let told = controlled.then(|| describe::topics(&self.client, names, timeout));
            match told {
                Some(Ok(mut told)) => {
                    let told = names.iter().map(|name| ((*name).to_owned(), told.remove(*name)));
                    seen.extend(self.described(told.collect(), timeout));
                }
                // Some brokers know no such request, and without a controller no one answers it.
                _ => {
                    for name in names {
                        let found = self.find(name, timeout).ok();
                        seen.insert((*name).to_owned(), Seen { found, limits: None, replicas: 0 });
                    }
                }
            }
        }
        Ok(seen)
    }

    fn described(
        &self,
        told: Vec<(String, Option<Told>)>,
        timeout: Duration,
    ) -> Vec<(String, Seen)> {
        let found = |told: &Option<Told>| match told {
            Some(Ok(shape)) => refused(shape).or_else(|| {
                let count = i32::try_from(shape.partitions).ok().filter(|count| *count > 0);
                count.map(Found::Partitions)
            }),
            Some(Err(code)) => absent(*code),
            None => Some(Found::Missing),
        };
        let replicas = |told: &Option<Told>| match told {
            Some(Ok(shape)) => shape.replicas,
            _ => 0,
        };
        let found: Vec<(String, Option<Found>, usize)> =
            told.into_iter().map(|(name, told)| (name, found(&told), replicas(&told))).collect();
        let there =
            found.iter().filter(|(_, found, _)| matches!(found, Some(Found::Partitions(_))));
        let there: Vec<&str> = there.map(|(name, ..)| name.as_str()).collect();
        let mut settings = if there.is_empty() {
            HashMap::new()
        } else {
            describe::settings(&self.client, &there, timeout).unwrap_or_default()
        };
        let seen = found.into_iter().map(|(name, found, replicas)| {
            let limits = settings.remove(&name).map(|settings| Limits::of(&settings));
            (name, Seen { found, limits, replicas })
        });
        seen.collect()
    }

    pub(super) fn find(&self, topic: &str, timeout: Duration) -> Result<Found, KafkaError> {
        found(&self.metadata(topic, timeout)?, topic)
    }

    /// A topic, as far as the broker tells.
    pub(super) fn shape(&self, topic: &str, timeout: Duration) -> Option<describe::Shape> {
        let told = describe::topics(&self.client, &[topic], timeout);
        told.ok().and_then(|mut told| told.remove(topic)?.ok())
    }

    /// What one broker says of its own settings; none where they may not be read.
    pub(super) fn broker_settings(&self, id: i32, timeout: Duration) -> HashMap<String, String> {
        describe::broker_settings(&self.client, id, timeout).unwrap_or_default()
    }

    /// Which of Read, Write and DescribeConfigs we lack on a topic.
    pub(super) fn lacks(shape: &describe::Shape) -> Vec<&'static str> {
        let rights = [
            ("Read", shape.may_read),
            ("Write", shape.may_write),
            ("DescribeConfigs", shape.may_describe_configs),
        ];
        rights.into_iter().filter(|(_, may)| *may == Some(false)).map(|(name, _)| name).collect()
    }

    /// Whether there is a controller to answer administrative requests; without one librdkafka
    /// waits for it until they time out.
    pub(super) fn has_controller(
        &self,
        topic: &str,
        timeout: Duration,
    ) -> Result<bool, KafkaError> {
        // One topic, because the metadata of all may be large.
        Ok(self.is_controlled(&self.metadata(topic, timeout)?))
    }

    /// Whether a broker leads partition 0 of a topic that is there.
    pub(super) fn is_led(&self, topic: &str, timeout: Duration) -> Result<bool, KafkaError> {
        let metadata = self.metadata(topic, timeout)?;
        let mut partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        Ok(partitions.any(|partition| partition.id() == 0 && partition.leader() >= 0))
    }

    /// While brokers elect a controller they name none, and the mock cluster names one that it
    /// does not have.
    fn is_controlled(&self, metadata: &Metadata) -> bool {
        let controller = native::controller(&self.client);
        metadata.brokers().iter().any(|broker| Some(broker.id()) == controller)
    }

    /// Offset of the first record of partition 0, and the high watermark: one past the newest
    /// record or marker that is replicated, whether or not its transaction has ended.
    pub(super) fn watermarks(
        &self,
        topic: &str,
        timeout: Duration,
    ) -> Result<(i64, i64), KafkaError> {
        self.client.fetch_watermarks(topic, 0, timeout).map_err(|error| self.explained(error))
    }

    pub(super) fn cluster(&self, topic: &str, timeout: Duration) -> Result<Cluster, KafkaError> {
        let metadata = self.metadata(topic, timeout)?;
        let named = |b: &rdkafka::metadata::MetadataBroker| Broker {
            id: b.id(),
            host: b.host().to_owned(),
            port: b.port(),
        };
        let brokers = metadata.brokers().iter().map(named).collect();
        Ok(Cluster { brokers, id: self.client.client().fetch_cluster_id(timeout) })
    }

    fn metadata(&self, topic: &str, timeout: Duration) -> Result<Metadata, KafkaError> {
        // While a call waits, no one hears what librdkafka says of the brokers.
        let soon = SOON.min(timeout);
        let fetched = match self.client.fetch_metadata(Some(topic), soon) {
            Err(error) if soon < timeout && is_silence(&error) => {
                self.serve();
                self.client.fetch_metadata(Some(topic), timeout - soon)
            }
            fetched => fetched,
        };
        fetched.inspect(|_| self.reach.heard()).map_err(|error| self.explained(error))
    }

    /// A call that reached no one, and why if brokers are there and don't let us in.
    fn explained(&self, error: KafkaError) -> KafkaError {
        self.serve();
        match self.client.context().take_locked_out() {
            Some(code) => KafkaError::Global(code),
            None => error,
        }
    }

    /// Writes out what librdkafka has to say; its messages would pile up otherwise. Waits a moment
    /// for more of them: not between deliveries.
    pub(super) fn serve(&self) {
        // Without a subscription a poll yields events only: log lines, and errors of brokers,
        // which the context has taken note of by then. One without patience ends at the first
        // log line, whatever is behind it.
        while self.client.poll(PATIENCE).is_some() {}
    }
}

fn found(metadata: &Metadata, topic: &str) -> Result<Found, KafkaError> {
    let Some(entry) = metadata.topics().iter().find(|entry| entry.name() == topic) else {
        return Ok(Found::Missing);
    };
    match entry.error().map(RDKafkaErrorCode::from) {
        None => match i32::try_from(entry.partitions().len()) {
            Ok(count) if count > 0 => Ok(Found::Partitions(count)),
            _ => Ok(Found::Missing),
        },
        Some(code) => absent(code).ok_or(KafkaError::MetadataFetch(code)),
    }
}

/// Why a topic that is there is none for us.
fn refused(shape: &describe::Shape) -> Option<Found> {
    if shape.internal {
        return Some(Found::Internal);
    }
    (shape.may_write == Some(false)).then_some(Found::NotAuthorised)
}

/// What a broker's error says of a topic, if it says that there is none for us.
fn absent(code: RDKafkaErrorCode) -> Option<Found> {
    match code {
        RDKafkaErrorCode::UnknownTopicOrPartition => Some(Found::Missing),
        RDKafkaErrorCode::TopicAuthorizationFailed => Some(Found::NotAuthorised),
        RDKafkaErrorCode::InvalidTopic => Some(Found::Invalid),
        _ => None,
    }
}
