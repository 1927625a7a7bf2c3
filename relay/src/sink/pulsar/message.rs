//! From a record to a message: where it goes, what it holds, or why it can't be one. Pure.

use outbox_relay_pulsar::Message;

use super::settings::Settings;
use crate::{
    core::{printable, record::Record},
    sink::message::{ANOTHER, CORRECT, Refusal, is_no_state, partition, reserved},
};

/// Behind it a partition's number stands in the name of its own topic.
const PARTITION: &str = "-partition-";

/// The topic of a record that can be a message.
///
/// # Errors
/// Why it can't.
pub(super) fn judge(settings: &Settings, record: &Record<'_>) -> Result<String, Refusal> {
    let Record { topic, .. } = record;
    is_no_state(topic, &settings.reserved_topics)?;
    let is_partition = topic.rsplit_once(PARTITION).is_some_and(|(_, number)| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    if is_partition {
        return Err(reserved(topic, "it is the name of a partition: name the topic"));
    }
    // A slash would name another namespace.
    if topic.is_empty() || topic.contains('/') || topic.chars().any(char::is_control) {
        let error = format!(
            "the topic {:?} has a name that Pulsar can't have, with a slash or a control character: {ANOTHER}",
            printable::short(topic)
        );
        return Err(("invalid_topic", error));
    }
    for (name, value) in record.headers() {
        if std::str::from_utf8(value).is_err() {
            let error = format!(
                "the header {:?} is not UTF-8, and Pulsar's properties are: {CORRECT}",
                printable::short(name)
            );
            return Err(("invalid_characters", error));
        }
    }
    let bytes = message(record).bytes();
    if bytes > settings.message_bytes_max {
        let error = format!(
            "the message has {bytes} bytes, and sink.pulsar.message_bytes_max is {}: raise it, and the brokers' maxMessageSize, \
             or publish a reference to the data",
            settings.message_bytes_max
        );
        return Err(("too_large", error));
    }
    Ok(settings.topic.of(topic))
}

/// The topic itself, or that of the record's partition.
///
/// # Errors
/// The row names a partition that there is not.
pub(super) fn place(
    record: &Record<'_>,
    topic: &str,
    partitions: Option<u32>,
) -> Result<String, Refusal> {
    let count = partitions.map_or(1, |count| i32::try_from(count).unwrap_or(i32::MAX));
    let partition = partition(record, count, "the topic's number of partitions")?;
    Ok(match partitions {
        Some(_) => format!("{topic}{PARTITION}{partition}"),
        None => topic.to_owned(),
    })
}

/// What a record that was judged is as a message.
pub(super) fn message<'a>(record: &Record<'a>) -> Message<'a> {
    let text =
        |(name, value): (&'a str, &'a [u8])| (name, std::str::from_utf8(value).unwrap_or_default());
    Message {
        key: record.key,
        payload: record.payload,
        properties: record.headers().map(text).collect(),
        event_time_ms: record.timestamp_ms.and_then(|time| u64::try_from(time).ok()),
    }
}
