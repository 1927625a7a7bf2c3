//! The sinks that there are, as one: the place where a kind is added.

mod settings;

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;

pub use self::settings::Settings;
use super::{
    ProgressStore, Publisher, Receipt, SinkError, Stored, StoredProgress,
    apart::Apart,
    aws::{self, AwsSink},
    file::{self, FileSink},
    kafka::{self, KafkaSink},
    nats::{self, NatsSink},
    progress_table::ProgressTable,
    pulsar::{self, PulsarSink},
    rabbitmq::{self, RabbitSink},
};
use crate::{core::record::Batch, postgres::sql::SqlSession, seal::SealKey};

/// A sink of any kind, with its progress.
#[derive(Debug)]
pub enum AnySink {
    /// Keeps progress itself.
    Kafka(KafkaSink),
    /// Progress is in the database.
    KafkaRecords(Apart<KafkaSink, ProgressTable>),
    /// Progress is in the database.
    File(Apart<FileSink, ProgressTable>),
    /// Keeps progress itself.
    Nats(NatsSink),
    /// Progress is in the database.
    Rabbit(Apart<RabbitSink, ProgressTable>),
    /// Progress is in the database.
    Aws(Apart<AwsSink, ProgressTable>),
    /// Progress is in the database.
    Pulsar(Apart<PulsarSink, ProgressTable>),
}

impl AnySink {
    /// Makes the sink; waits for no broker. `key` is what tells this relay's progress from what others
    /// store where they can; `session` is the one that holds the leader's lock, or will.
    ///
    /// # Errors
    /// `Misconfigured` if the settings can't be used.
    pub fn start(
        settings: &Settings,
        relay: &str,
        key: SealKey,
        session: &Arc<SqlSession>,
    ) -> Result<Self, SinkError> {
        match settings {
            Settings::Kafka(settings) => {
                let sink = KafkaSink::start(settings.clone(), key)?;
                if !settings.keeps_progress() {
                    let progress = ProgressTable::new(Arc::clone(session), relay);
                    return Ok(AnySink::KafkaRecords(Apart::new(sink, progress)));
                }
                Ok(AnySink::Kafka(sink))
            }
            Settings::File(settings) => {
                let sink = FileSink::new(settings);
                let progress = ProgressTable::new(Arc::clone(session), relay);
                Ok(AnySink::File(Apart::new(sink, progress)))
            }
            Settings::Nats(settings) => Ok(AnySink::Nats(NatsSink::new(settings.clone(), key))),
            Settings::Rabbit(settings) => {
                let sink = RabbitSink::new(settings.clone());
                let progress = ProgressTable::new(Arc::clone(session), relay);
                Ok(AnySink::Rabbit(Apart::new(sink, progress)))
            }
            Settings::Aws(settings) => {
                let sink = AwsSink::new(settings.clone());
                let progress = ProgressTable::new(Arc::clone(session), relay);
                Ok(AnySink::Aws(Apart::new(sink, progress)))
            }
            Settings::Pulsar(settings) => {
                let sink = PulsarSink::new(settings.clone());
                let progress = ProgressTable::new(Arc::clone(session), relay);
                Ok(AnySink::Pulsar(Apart::new(sink, progress)))
            }
        }
    }

    /// A handle that asks whether the broker answers; it works while a delivery is under way.
    pub fn probe(&self) -> AnyProbe {
        match self {
            AnySink::Kafka(sink) => AnyProbe::Kafka(sink.probe()),
            AnySink::KafkaRecords(apart) => AnyProbe::Kafka(apart.sink.probe()),
            AnySink::File(apart) => AnyProbe::File(apart.sink.probe()),
            AnySink::Nats(sink) => AnyProbe::Nats(sink.probe()),
            AnySink::Rabbit(apart) => AnyProbe::Rabbit(apart.sink.probe()),
            AnySink::Aws(apart) => AnyProbe::Aws(apart.sink.probe()),
            AnySink::Pulsar(apart) => AnyProbe::Pulsar(apart.sink.probe()),
        }
    }

    /// A handle that looks for destinations that are missing; it works while a delivery is under way.
    pub fn watch(&self) -> AnyWatch {
        match self {
            AnySink::Kafka(sink) => AnyWatch::Kafka(sink.watch()),
            AnySink::KafkaRecords(apart) => AnyWatch::Kafka(apart.sink.watch()),
            AnySink::File(_) => AnyWatch::None,
            AnySink::Nats(sink) => AnyWatch::Nats(sink.probe()),
            AnySink::Rabbit(apart) => AnyWatch::Rabbit(apart.sink.probe()),
            AnySink::Aws(apart) => AnyWatch::Aws(apart.sink.probe()),
            AnySink::Pulsar(apart) => AnyWatch::Pulsar(apart.sink.probe()),
        }
    }

    /// Ends its threads and clients, within two seconds also when no broker answers. A delivery under
    /// way is given up: finish it first.
    pub async fn stop(self) {
        match self {
            AnySink::Kafka(sink) => sink.stop().await,
            AnySink::KafkaRecords(apart) => apart.sink.stop().await,
            AnySink::File(_)
            | AnySink::Nats(_)
            | AnySink::Rabbit(_)
            | AnySink::Aws(_)
            | AnySink::Pulsar(_) => {}
        }
    }
}

/// Calls the same method of whichever it is.
macro_rules! each {
    ($sink:expr, $it:ident => $call:expr) => {
        match $sink {
            AnySink::Kafka($it) => $call,
            AnySink::KafkaRecords($it) => $call,
            AnySink::File($it) => $call,
            AnySink::Nats($it) => $call,
            AnySink::Rabbit($it) => $call,
            AnySink::Aws($it) => $call,
            AnySink::Pulsar($it) => $call,
        }
    };
}

impl ProgressStore for AnySink {
    async fn peek(&mut self) -> Result<StoredProgress, SinkError> {
        each!(self, it => it.peek().await)
    }

    async fn fence(&mut self) -> Result<(), SinkError> {
        each!(self, it => it.fence().await)
    }

    async fn read(&mut self) -> Result<StoredProgress, SinkError> {
        each!(self, it => it.read().await)
    }

    async fn store(&mut self, progress: Bytes) -> Result<Stored, SinkError> {
        each!(self, it => it.store(progress).await)
    }
}

impl Publisher for AnySink {
    fn delivery_limit(&self) -> Option<Duration> {
        each!(self, it => it.delivery_limit())
    }

    fn is_apart(&self) -> bool {
        each!(self, it => it.is_apart())
    }

    fn records_max(&self) -> usize {
        each!(self, it => it.records_max())
    }

    async fn publish(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        progress: Option<Bytes>,
    ) -> Result<Receipt, SinkError> {
        each!(self, it => it.publish(batch, range, progress).await)
    }
}

/// Asks whether the broker answers. Cheap; for readiness.
#[derive(Clone, Debug)]
pub enum AnyProbe {
    /// Of Kafka's brokers.
    Kafka(kafka::Probe),
    /// Of a file.
    File(file::Probe),
    /// Of a stream of NATS.
    Nats(nats::Probe),
    /// Of RabbitMQ.
    Rabbit(rabbitmq::Probe),
    /// Of SQS or SNS.
    Aws(aws::Probe),
    /// Of Pulsar.
    Pulsar(pulsar::Probe),
}

impl AnyProbe {
    /// Asks, within some seconds. Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` if no one answers.
    pub async fn check(&self) -> Result<(), SinkError> {
        match self {
            AnyProbe::Kafka(probe) => probe.check().await,
            AnyProbe::File(probe) => probe.check().await,
            AnyProbe::Nats(probe) => probe.check().await,
            AnyProbe::Rabbit(probe) => probe.check().await,
            AnyProbe::Aws(probe) => probe.check().await,
            AnyProbe::Pulsar(probe) => probe.check().await,
        }
    }
}

impl AnyProbe {
    /// Looks whether what keeps progress still does, as its settings are by now. Cancel safe.
    ///
    /// # Errors
    /// `Misconfigured` if not.
    pub async fn progress_topic(&self) -> Result<(), SinkError> {
        match self {
            AnyProbe::Kafka(probe) => probe.progress_topic().await,
            AnyProbe::File(_) | AnyProbe::Rabbit(_) | AnyProbe::Aws(_) | AnyProbe::Pulsar(_) => {
                Ok(())
            }
            AnyProbe::Nats(probe) => probe.progress_topic().await,
        }
    }
}

/// Tells when missing destinations appear.
#[derive(Clone)]
pub enum AnyWatch {
    /// Kafka's topics.
    Kafka(kafka::Watch),
    /// Subjects of a stream of NATS.
    Nats(nats::Probe),
    /// Topics that a queue of RabbitMQ may take.
    Rabbit(rabbitmq::Probe),
    /// Queues of SQS, topics of SNS.
    Aws(aws::Probe),
    /// Topics of Pulsar.
    Pulsar(pulsar::Probe),
    /// No destination is ever missing.
    None,
}

impl fmt::Debug for AnyWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyWatch").finish_non_exhaustive()
    }
}

impl AnyWatch {
    /// How long a destination is watched for after its first event was parked.
    pub fn grace(&self) -> Duration {
        match self {
            AnyWatch::Kafka(watch) => watch.grace(),
            AnyWatch::Nats(watch) => watch.grace(),
            AnyWatch::Rabbit(watch) => watch.grace(),
            AnyWatch::Aws(watch) => watch.grace(),
            AnyWatch::Pulsar(watch) => watch.grace(),
            AnyWatch::None => Duration::ZERO,
        }
    }

    /// Those of `topics` that exist. Blocking, for some seconds at most.
    ///
    /// # Errors
    /// `Unavailable` if no broker answers.
    pub fn appeared(&self, topics: &[String]) -> Result<Vec<String>, SinkError> {
        match self {
            AnyWatch::Kafka(watch) => watch.appeared(topics),
            AnyWatch::Nats(watch) => {
                tokio::runtime::Handle::current().block_on(watch.appeared(topics))
            }
            AnyWatch::Rabbit(watch) => {
                tokio::runtime::Handle::current().block_on(watch.appeared(topics))
            }
            AnyWatch::Aws(watch) => {
                tokio::runtime::Handle::current().block_on(watch.appeared(topics))
            }
            AnyWatch::Pulsar(watch) => {
                tokio::runtime::Handle::current().block_on(watch.appeared(topics))
            }
            AnyWatch::None => Ok(topics.to_vec()),
        }
    }
}
