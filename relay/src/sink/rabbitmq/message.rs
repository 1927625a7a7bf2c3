//! From a record to a message: where it goes, its properties, or why it can't be one. Pure.

use std::collections::BTreeMap;

use amqprs::{BasicProperties, FieldArray, FieldTable, FieldValue};

use super::{
    settings::Settings,
    template::{NAME_BYTES_MAX, Named},
};
use crate::{
    core::{printable, record::Record},
    sink::message::{ANOTHER, CORRECT, Refusal, added, is_no_state, partition, reserved},
};

/// All headers are in one frame of the protocol. Of a frame, for what else is in it.
const FRAME_OWN: usize = 1_024;
/// Of a header: two lengths, a tag.
const HEADER_OWN: usize = 6;
const PERSISTENT: u8 = 2;

/// Where a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// # Errors
/// Why a record can't be a message.
pub(super) fn judge(
    settings: &Settings,
    frame_bytes: usize,
    record: &Record<'_>,
) -> Result<Destination, Refusal> {
    let destination = destination(settings, record)?;
    let mut bytes = FRAME_OWN + record.key.map_or(0, |key| key.len() * 4 / 3 + 30);
    for (name, value) in record.headers() {
        bytes += name.len() + value.len() + HEADER_OWN;
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            let error = format!(
                "the header {:?} has a name that RabbitMQ can't carry, of 1 to {NAME_BYTES_MAX} bytes: {CORRECT}",
                printable::short(name)
            );
            return Err(("invalid_characters", error));
        }
    }
    if bytes > frame_bytes {
        let error = format!(
            "key and headers have {bytes} bytes, and the broker takes {frame_bytes} (its frame_max): put the data \
             into the payload"
        );
        return Err(("too_large", error));
    }
    let payload = record.payload.map_or(0, <[u8]>::len);
    if payload > settings.message_bytes_max {
        let error = format!(
            "the payload has {payload} bytes, and sink.rabbitmq.message_bytes_max is {}: raise it, and the brokers' \
             max_message_size, or publish a reference to the data",
            settings.message_bytes_max
        );
        return Err(("too_large", error));
    }
    Ok(destination)
}

fn destination(settings: &Settings, record: &Record<'_>) -> Result<Destination, Refusal> {
    let Record { topic, .. } = record;
    is_no_state(topic, &settings.reserved_topics)?;
    let key = match record.key.map(std::str::from_utf8) {
        None => "",
        Some(Ok(key)) => key,
        Some(Err(_)) if settings.exchange.has("{key}") || settings.routing_key.has("{key}") => {
            let error =
                format!("the key is not UTF-8, and is to be a part of the routing key: {CORRECT}");
            return Err(("invalid_characters", error));
        }
        Some(Err(_)) => "",
    };
    let partition = partition(record, settings.partitions, "sink.rabbitmq.partitions")?;
    let named =
        Named { topic, partition, key, event_type: record.event_type().unwrap_or_default() };
    let made = Destination {
        exchange: settings.exchange.of(named),
        routing_key: settings.routing_key.of(named),
    };
    for (what, name) in [("exchange", &made.exchange), ("routing key", &made.routing_key)] {
        if name.len() > NAME_BYTES_MAX {
            let error = format!(
                "the {what} would have {} bytes, and RabbitMQ's have {NAME_BYTES_MAX} at most: {ANOTHER}",
                name.len()
            );
            return Err(("invalid_topic", error));
        }
    }
    if made.exchange.starts_with("amq.rabbitmq.") {
        return Err(reserved(topic, "the broker's own exchanges begin with amq.rabbitmq."));
    }
    Ok(made)
}

/// The event's id, as the property `message_id`: if it is short enough.
pub(super) fn message_id<'a>(record: &Record<'a>) -> Option<&'a str> {
    let id = std::str::from_utf8(record.event_id()?).ok()?;
    (id.len() <= NAME_BYTES_MAX).then_some(id)
}

/// What goes along with the payload of a record that was judged.
pub(super) fn properties(record: &Record<'_>) -> BasicProperties {
    let mut headers: BTreeMap<&str, Vec<FieldValue>> = BTreeMap::new();
    let mut add = |name, value| headers.entry(name).or_default().push(value);
    for (name, value) in record.headers() {
        add(name, field(value));
    }
    added(record, |_| true).for_each(|(name, value)| add(name, FieldValue::from(&*value)));
    let mut properties = BasicProperties::default();
    properties.with_headers(table(headers)).with_delivery_mode(PERSISTENT);
    if let Some(id) = message_id(record) {
        properties.with_message_id(id);
    }
    let short = |text: &&str| text.len() <= NAME_BYTES_MAX;
    if let Some(event_type) = record.event_type().filter(short) {
        properties.with_message_type(event_type);
    }
    if let Some(content_type) = record.content_type().filter(short) {
        properties.with_content_type(content_type);
    }
    // In whole seconds; the header has the rest.
    if let Some(seconds) = record.timestamp_ms.and_then(|ms| u64::try_from(ms / 1_000).ok()) {
        properties.with_timestamp(seconds);
    }
    properties
}

/// A name is in a table once; of several values it has an array.
fn table(headers: BTreeMap<&str, Vec<FieldValue>>) -> FieldTable {
    let mut table = FieldTable::new();
    for (name, mut values) in headers {
        let value = match (values.pop(), values.is_empty()) {
            (Some(value), true) => value,
            (last, _) => {
                values.extend(last);
                // It is shorter than a frame: that was judged.
                FieldArray::try_from(values).map_or(FieldValue::V, FieldValue::A)
            }
        };
        if let Ok(name) = name.try_into() {
            table.insert(name, value);
        }
    }
    table
}

fn field(value: &[u8]) -> FieldValue {
    match std::str::from_utf8(value) {
        Ok(text) => FieldValue::from(text),
        // No value is as long as four gibibytes.
        Err(_) => value.to_vec().try_into().map_or(FieldValue::V, FieldValue::x),
    }
}
