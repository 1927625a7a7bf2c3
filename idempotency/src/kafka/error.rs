//! Why a runner ends.

use rdkafka::error::KafkaError;

use crate::processor::Stop;

/// Why a runner ended before it was told to. What was under way is rolled back or finished; the
/// next start continues where this one was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// What the runner was given reads nothing: no group, or no topic.
    #[error("the Kafka consumer can't start: {0}")]
    Setting(&'static str),
    /// The client can't be made from its settings.
    #[error("the Kafka consumer can't start")]
    Client(#[source] KafkaError),
    /// The client can't continue.
    #[error("the Kafka consumer can't continue")]
    Fatal(#[source] KafkaError),
    /// Where the group was in a partition is not in the topic (any more), and `auto.offset.reset` is
    /// `error`, so nothing of the partition would be read.
    #[error(
        "{topic}/{partition}: where the group {group:?} continues is not in the topic, and \
         auto.offset.reset is `error`, so nothing of the partition is read ({text}); to read all that \
         is there, stop all members of the group and type: kafka-consumer-groups.sh --group {group} \
         --topic {topic}:{partition} --reset-offsets --to-earliest --execute; with a watermark, also: \
         update inbox.watermarks set next_offset = 0, topic_id = null where consumer_id = {consumer_id} and \
         topic = '{topic}' and partition = {partition}"
    )]
    #[non_exhaustive]
    OffsetGone {
        /// The group.
        group: String,
        /// The consumer's row of `inbox.consumers`.
        consumer_id: i32,
        /// The partition's topic.
        topic: String,
        /// Its number.
        partition: i32,
        /// What the client says.
        text: String,
    },
    /// See [`Stop`].
    #[error(transparent)]
    Stop(#[from] Stop),
    /// A task panicked: a defect of this crate.
    #[error("a task of the runner panicked")]
    Panicked,
}
