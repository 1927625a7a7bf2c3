//! When a message was sent, and who says so.

use std::time::SystemTime;

/// A message's time. Where the message is parked or a dead letter it is kept to the microsecond, from 1970 to
/// 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Timestamp {
    /// By its producer's clock, and the same in each copy: Kafka's `CreateTime`, AMQP's property `timestamp`.
    Produced(SystemTime),
    /// By the broker's clock, when it stored the message: a copy that is sent again has another. Kafka's
    /// `LogAppendTime`, `SentTimestamp` of SQS, the time of a message of JetStream.
    Stored(SystemTime),
}

impl Timestamp {
    /// The time, whoever says it.
    pub fn time(self) -> SystemTime {
        match self {
            Timestamp::Produced(time) | Timestamp::Stored(time) => time,
        }
    }

    /// The producer's time.
    pub fn produced(self) -> Option<SystemTime> {
        match self {
            Timestamp::Produced(time) => Some(time),
            Timestamp::Stored(_) => None,
        }
    }

    /// The broker's time.
    pub fn stored(self) -> Option<SystemTime> {
        match self {
            Timestamp::Stored(time) => Some(time),
            Timestamp::Produced(_) => None,
        }
    }
}
