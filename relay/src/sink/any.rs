//! The sinks that there are, as one: the place where a kind is added.

use std::{error::Error, fmt, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use outbox_migrations::grants::{Grant, RELAY, RELAY_PROGRESS};

use super::{
    ProgressStore, Publisher, Receipt, SinkError, Stored, StoredProgress,
    apart::Apart,
    doctor::{Examined, Expected, Foreseen},
    file::{self, FileSink},
    kafka::{self, KafkaSink},
    nats::{self, NatsSink},
    progress_table::{self, ProgressTable},
    rabbitmq::{self, RabbitSink},
};
use crate::{
    core::{progress_home::ProgressHome, record::Batch},
    postgres::sql::SqlSession,
    seal::SealKey,
};

/// What a sink of any kind is made from.
#[derive(Clone, Debug)]
pub enum Settings {
    /// `sink.kind = "kafka"`.
    Kafka(kafka::Settings),
    /// `sink.kind = "file"` or `"stdout"`.
    File(file::Settings),
    /// `sink.kind = "nats"`.
    Nats(nats::Settings),
    /// `sink.kind = "rabbitmq"`.
    Rabbit(rabbitmq::Settings),
}

impl Settings {
    /// The broker, in a sentence.
    pub fn name(&self) -> String {
        match self {
            Settings::Kafka(_) => "Kafka".into(),
            Settings::File(settings) => settings.name(),
            Settings::Nats(settings) => settings.name(),
            Settings::Rabbit(settings) => settings.name(),
        }
    }

    /// Whether the brokers answer, as the clients of a start hear; `None` where nothing was heard.
    pub fn answers(&self) -> Option<bool> {
        match self {
            Settings::Kafka(settings) => settings.reach.answers(),
            Settings::File(_) | Settings::Nats(_) | Settings::Rabbit(_) => None,
        }
    }

    /// What a call waits for that takes long, in a sentence; `None` where it waits for nothing known.
    pub fn waits_for(&self) -> Option<String> {
        match self {
            Settings::Kafka(settings) => settings.reach.waits_for(),
            Settings::File(_) | Settings::Nats(_) | Settings::Rabbit(_) => None,
        }
    }

    /// By what the brokers slow the relay down, and what helps; `None` where they don't.
    pub fn throttled(&self) -> Option<(String, String)> {
        match self {
            Settings::Kafka(settings) => settings.throttled(),
            Settings::File(_) | Settings::Nats(_) | Settings::Rabbit(_) => None,
        }
    }

    /// Whether an error says that no one answers.
    pub fn is_silence(&self, error: &(dyn Error + 'static)) -> bool {
        match self {
            Settings::Kafka(_) => kafka::is_silence(error),
            Settings::File(_) | Settings::Nats(_) | Settings::Rabbit(_) => false,
        }
    }

    /// Who does not answer, and since when.
    pub fn silent(&self) -> String {
        match self {
            Settings::Kafka(settings) => settings.silent(),
            Settings::File(settings) => settings.name(),
            Settings::Nats(settings) => settings.name(),
            Settings::Rabbit(settings) => settings.name(),
        }
    }

    /// More than an error of the broker says, for a person, where more is known. `is_silent` says whether
    /// no one has answered for long.
    pub fn explained(&self, error: &(dyn Error + 'static), is_silent: bool) -> Option<String> {
        match self {
            Settings::Kafka(settings) => kafka::explained(settings, error, is_silent),
            Settings::File(_) | Settings::Nats(_) | Settings::Rabbit(_) => None,
        }
    }

    /// Whether a delivery waits by itself until something can be written: no error tells of it.
    pub fn waits_within(&self) -> bool {
        matches!(self, Settings::File(_))
    }

    /// Whose word is taken for the brokers' certificates; `None` without TLS, or where that is not known.
    pub fn trust(&self) -> Option<String> {
        match self {
            Settings::Kafka(settings) => settings.trust(),
            Settings::File(_) | Settings::Nats(_) | Settings::Rabbit(_) => None,
        }
    }

    /// Takes over what is known of the brokers by settings that these replace.
    pub(crate) fn remember(&mut self, before: &Settings) {
        if let (Settings::Kafka(now), Settings::Kafka(before)) = (self, before) {
            now.reach.clone_from(&before.reach);
        }
    }

    /// Looks at what the relay needs of the broker, and changes nothing. Ends within about ten seconds.
    pub async fn examine(&self) -> Examined {
        match self {
            Settings::Kafka(settings) => kafka::examine(settings).await,
            Settings::File(settings) => settings.examine(),
            Settings::Nats(settings) => nats::examine(settings).await,
            Settings::Rabbit(settings) => rabbitmq::examine(settings).await,
        }
    }

    /// What a run would meet with these events. Nothing is sent and nothing created.
    pub async fn foresee(&self, expected: Expected) -> Foreseen {
        match self {
            Settings::Kafka(settings) => Some(kafka::foresee(settings.clone(), expected).await),
            Settings::File(_) | Settings::Nats(_) | Settings::Rabbit(_) => None,
        }
    }

    /// The kind, in a word for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Settings::Kafka(_) => "Kafka",
            Settings::File(_) => "file",
            Settings::Nats(_) => "NATS",
            Settings::Rabbit(_) => "RabbitMQ",
        }
    }

    /// Where progress is kept, in a sentence.
    pub fn progress_place(&self) -> &'static str {
        match self {
            Settings::Kafka(_) => "Kafka",
            Settings::File(_) | Settings::Rabbit(_) => "outbox.progress",
            Settings::Nats(_) => "NATS",
        }
    }

    /// As [`Settings::progress_place`], with what a person can do there.
    pub fn progress_home(&self) -> ProgressHome {
        match self {
            Settings::Kafka(settings) => settings.progress_home(),
            Settings::File(_) | Settings::Rabbit(_) => progress_table::home(),
            Settings::Nats(settings) => settings.progress_home(),
        }
    }

    /// Whether progress is in the app's database, which can't see what the broker has lost.
    pub fn keeps_progress_in_database(&self) -> bool {
        matches!(self, Settings::File(_) | Settings::Rabbit(_))
    }

    /// Whether what the broker has lost is published again, since it is known by the progress that went with it.
    pub fn repairs_broker_loss(&self) -> bool {
        matches!(self, Settings::Nats(settings) if settings.repairs_broker_loss)
    }

    /// The stream that has records and progress together, where the broker has such.
    pub fn stream(&self) -> Option<&str> {
        match self {
            Settings::Nats(settings) => Some(&settings.stream),
            Settings::Kafka(_) | Settings::File(_) => None,
        }
    }

    /// What the relay's role needs in the database.
    pub fn grants(&self) -> Vec<Grant> {
        match self {
            Settings::Kafka(_) | Settings::Nats(_) => RELAY.to_vec(),
            Settings::File(_) | Settings::Rabbit(_) => [RELAY, RELAY_PROGRESS].concat(),
        }
    }
}

/// A sink of any kind, with its progress.
#[derive(Debug)]
pub enum AnySink {
    /// Keeps progress itself.
    Kafka(KafkaSink),
    /// Progress is in the database.
    File(Apart<FileSink, ProgressTable>),
    /// Keeps progress itself.
    Nats(NatsSink),
    /// Progress is in the database.
    Rabbit(Apart<RabbitSink, ProgressTable>),
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
                KafkaSink::start(settings.clone(), key).map(AnySink::Kafka)
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
        }
    }

    /// A handle that asks whether the broker answers; it works while a delivery is under way.
    pub fn probe(&self) -> AnyProbe {
        match self {
            AnySink::Kafka(sink) => AnyProbe::Kafka(sink.probe()),
            AnySink::File(apart) => AnyProbe::File(apart.sink.probe()),
            AnySink::Nats(sink) => AnyProbe::Nats(sink.probe()),
            AnySink::Rabbit(apart) => AnyProbe::Rabbit(apart.sink.probe()),
        }
    }

    /// A handle that looks for destinations that are missing; it works while a delivery is under way.
    pub fn watch(&self) -> AnyWatch {
        match self {
            AnySink::Kafka(sink) => AnyWatch::Kafka(sink.watch()),
            AnySink::File(_) => AnyWatch::None,
            AnySink::Nats(sink) => AnyWatch::Nats(sink.probe()),
            AnySink::Rabbit(apart) => AnyWatch::Rabbit(apart.sink.probe()),
        }
    }

    /// Ends its threads and clients, within two seconds also when no broker answers. A delivery under
    /// way is given up: finish it first.
    pub async fn stop(self) {
        match self {
            AnySink::Kafka(sink) => sink.stop().await,
            AnySink::File(_) | AnySink::Nats(_) | AnySink::Rabbit(_) => {}
        }
    }
}

/// Calls the same method of whichever it is.
macro_rules! each {
    ($sink:expr, $it:ident => $call:expr) => {
        match $sink {
            AnySink::Kafka($it) => $call,
            AnySink::File($it) => $call,
            AnySink::Nats($it) => $call,
            AnySink::Rabbit($it) => $call,
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
            AnyProbe::File(_) | AnyProbe::Rabbit(_) => Ok(()),
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
            AnyWatch::None => Ok(topics.to_vec()),
        }
    }
}
