//! What exists at the broker: topics, partitions, watermarks. Creates nothing.
//!
//! Shared by the sink's thread and by probes; librdkafka's clients are thread-safe.

use std::time::Duration;

use rdkafka::{
    consumer::Consumer as _,
    error::{KafkaError, RDKafkaErrorCode},
    metadata::Metadata,
};

use super::{
    context::Context,
    native::{self, Consumer, Facts},
    settings::Settings,
};

/// How long librdkafka must have had nothing to say.
const PATIENCE: Duration = Duration::from_millis(10);

/// A client for look-ups.
pub(super) struct Lookup {
    client: Consumer,
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

/// The cluster, as one broker sees it.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub brokers: Vec<String>,
    pub id: Option<String>,
}

impl Lookup {
    pub(super) fn new(settings: &Settings) -> Result<Self, KafkaError> {
        let client = settings.lookup_config().create_with_context(Context::new("lookup"))?;
        Ok(Lookup { client })
    }

    pub(super) fn find(&self, topic: &str, timeout: Duration) -> Result<Found, KafkaError> {
        found(&self.metadata(topic, timeout)?, topic)
    }

    /// Like [`Lookup::find`], and whether we may write to it and it is not the broker's own, where
    /// the broker tells. Asked before, because a transaction ends its producer when a partition is
    /// not let in.
    pub(super) fn find_writable(
        &self,
        topic: &str,
        timeout: Duration,
    ) -> Result<Found, KafkaError> {
        let metadata = self.metadata(topic, timeout)?;
        let found = found(&metadata, topic)?;
        if !matches!(found, Found::Partitions(_)) || !self.is_controlled(&metadata) {
            return Ok(found);
        }
        Ok(match native::describe(&self.client, topic, timeout) {
            Some(Facts { internal: true, .. }) => Found::Internal,
            Some(Facts { may_write: Some(false), .. }) => Found::NotAuthorised,
            Some(_) | None => found,
        })
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
        let brokers =
            metadata.brokers().iter().map(|b| format!("{}:{}", b.host(), b.port())).collect();
        Ok(Cluster { brokers, id: self.client.client().fetch_cluster_id(timeout) })
    }

    fn metadata(&self, topic: &str, timeout: Duration) -> Result<Metadata, KafkaError> {
        self.client.fetch_metadata(Some(topic), timeout).map_err(|error| self.explained(error))
    }

    /// A call that reached nobody, and why if brokers are there and don't let us in.
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
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Ok(Found::Missing),
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => Ok(Found::NotAuthorised),
        Some(RDKafkaErrorCode::InvalidTopic) => Ok(Found::Invalid),
        Some(other) => Err(KafkaError::MetadataFetch(other)),
    }
}
