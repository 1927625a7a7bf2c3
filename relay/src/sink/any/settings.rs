//! What is known of each kind of sink before it is opened.

use std::error::Error;

use outbox_migrations::grants::{Grant, RELAY, RELAY_PROGRESS};

use crate::{
    core::{finding::Finding, progress_home::ProgressHome},
    sink::{
        aws,
        doctor::{Examined, Expected, Foreseen},
        file, kafka, nats, progress_table, pulsar, rabbitmq,
    },
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
    /// `sink.kind = "sqs"` or `"sns"`.
    Aws(aws::Settings),
    /// `sink.kind = "pulsar"`.
    Pulsar(pulsar::Settings),
}

impl Settings {
    /// What can be seen to be wrong. Connects to nothing.
    pub fn problems(&self) -> Vec<Finding> {
        match self {
            Settings::Kafka(settings) => settings.problems(),
            Settings::File(settings) => settings.problems(),
            Settings::Nats(settings) => settings.problems(),
            Settings::Rabbit(settings) => settings.problems(),
            Settings::Aws(settings) => settings.problems(),
            Settings::Pulsar(settings) => settings.problems(),
        }
    }

    /// The broker, in a sentence.
    pub fn name(&self) -> String {
        match self {
            Settings::Kafka(_) => "Kafka".into(),
            Settings::File(settings) => settings.name(),
            Settings::Nats(settings) => settings.name(),
            Settings::Rabbit(settings) => settings.name(),
            Settings::Aws(settings) => settings.name(),
            Settings::Pulsar(settings) => settings.name(),
        }
    }

    /// Whether the brokers answer, as the clients of a start hear; `None` where nothing was heard.
    pub fn answers(&self) -> Option<bool> {
        match self {
            Settings::Kafka(settings) => settings.reach.answers(),
            Settings::File(_)
            | Settings::Nats(_)
            | Settings::Rabbit(_)
            | Settings::Aws(_)
            | Settings::Pulsar(_) => None,
        }
    }

    /// What a call waits for that takes long, in a sentence; `None` where it waits for nothing known.
    pub fn waits_for(&self) -> Option<String> {
        match self {
            Settings::Kafka(settings) => settings.reach.waits_for(),
            Settings::File(_)
            | Settings::Nats(_)
            | Settings::Rabbit(_)
            | Settings::Aws(_)
            | Settings::Pulsar(_) => None,
        }
    }

    /// That the stored progress takes long to read, and what helps; `None` where it is not being read.
    pub fn long_reading(&self) -> Option<(String, String)> {
        match self {
            Settings::Kafka(settings) => kafka::long_reading(settings),
            Settings::File(_)
            | Settings::Nats(_)
            | Settings::Rabbit(_)
            | Settings::Aws(_)
            | Settings::Pulsar(_) => None,
        }
    }

    /// By what the brokers slow the relay down, and what helps; `None` where they don't.
    pub fn throttled(&self) -> Option<(String, String)> {
        match self {
            Settings::Kafka(settings) => settings.throttled(),
            Settings::Aws(settings) => settings.throttled(),
            Settings::File(_) | Settings::Nats(_) | Settings::Rabbit(_) | Settings::Pulsar(_) => {
                None
            }
        }
    }

    /// Whether an error says that no one answers.
    pub fn is_silence(&self, error: &(dyn Error + 'static)) -> bool {
        match self {
            Settings::Kafka(_) => kafka::is_silence(error),
            Settings::File(_)
            | Settings::Nats(_)
            | Settings::Rabbit(_)
            | Settings::Aws(_)
            | Settings::Pulsar(_) => false,
        }
    }

    /// Who does not answer, and since when.
    pub fn silent(&self) -> String {
        match self {
            Settings::Kafka(settings) => settings.silent(),
            Settings::File(settings) => settings.name(),
            Settings::Nats(settings) => settings.name(),
            Settings::Rabbit(settings) => settings.name(),
            Settings::Aws(settings) => settings.name(),
            Settings::Pulsar(settings) => settings.name(),
        }
    }

    /// More than an error of the broker says, for a person, where more is known. `is_silent` says whether
    /// no one has answered for long.
    pub fn explained(&self, error: &(dyn Error + 'static), is_silent: bool) -> Option<String> {
        match self {
            Settings::Kafka(settings) => kafka::explained(settings, error, is_silent),
            Settings::File(_)
            | Settings::Nats(_)
            | Settings::Rabbit(_)
            | Settings::Aws(_)
            | Settings::Pulsar(_) => None,
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
            Settings::File(_)
            | Settings::Nats(_)
            | Settings::Rabbit(_)
            | Settings::Aws(_)
            | Settings::Pulsar(_) => None,
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
            Settings::Aws(settings) => aws::examine(settings).await,
            Settings::Pulsar(settings) => pulsar::examine(settings).await,
        }
    }

    /// What a run would meet with these events. Nothing is sent and nothing created.
    pub async fn foresee(&self, expected: Expected) -> Foreseen {
        match self {
            Settings::Kafka(settings) => Some(kafka::foresee(settings.clone(), expected).await),
            Settings::Aws(settings) => Some(aws::foresee(settings.clone(), expected).await),
            Settings::Pulsar(settings) => Some(pulsar::foresee(settings.clone(), expected).await),
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
            Settings::Aws(settings) => settings.kind(),
            Settings::Pulsar(_) => "Pulsar",
        }
    }

    /// Where progress is kept, in a sentence.
    pub fn progress_place(&self) -> &'static str {
        if self.keeps_progress_in_database() { "outbox.progress" } else { self.kind() }
    }

    /// As [`Settings::progress_place`], with what a person can do there.
    pub fn progress_home(&self) -> ProgressHome {
        match self {
            Settings::Kafka(settings) if settings.keeps_progress() => settings.progress_home(),
            Settings::Nats(settings) => settings.progress_home(),
            Settings::Kafka(_)
            | Settings::File(_)
            | Settings::Rabbit(_)
            | Settings::Aws(_)
            | Settings::Pulsar(_) => progress_table::home(),
        }
    }

    /// Whether progress is in the app's database, which can't see what the broker has lost.
    pub fn keeps_progress_in_database(&self) -> bool {
        match self {
            Settings::Kafka(settings) => !settings.keeps_progress(),
            Settings::File(_) | Settings::Rabbit(_) | Settings::Aws(_) | Settings::Pulsar(_) => {
                true
            }
            Settings::Nats(_) => false,
        }
    }

    /// Whether what the broker has lost is published again, since it is known by the progress that went with it.
    pub fn repairs_broker_loss(&self) -> bool {
        matches!(self, Settings::Nats(settings) if settings.repairs_broker_loss)
    }

    /// The stream that has records and progress together, where the broker has such.
    pub fn stream(&self) -> Option<&str> {
        match self {
            Settings::Nats(settings) => Some(&settings.stream),
            Settings::Kafka(_)
            | Settings::File(_)
            | Settings::Rabbit(_)
            | Settings::Aws(_)
            | Settings::Pulsar(_) => None,
        }
    }

    /// What the relay's role needs in the database.
    pub fn grants(&self) -> Vec<Grant> {
        if self.keeps_progress_in_database() {
            return [RELAY, RELAY_PROGRESS].concat();
        }
        RELAY.to_vec()
    }
}
