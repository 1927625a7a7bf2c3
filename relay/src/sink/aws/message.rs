//! From a record to a message: which queue or topic it goes to, what is in it, how large it is, or why it can't be one. Pure.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use outbox_relay_aws::Entry;

use super::{
    attributes::{attributes, is_text},
    identifiers::fifo,
    settings::Settings,
};
use crate::{
    core::{
        header::{ENCODING, PARTITION},
        printable,
        record::Record,
    },
    sink::message::{ANOTHER, Refusal, added, is_no_state},
};

/// The text of a message whose record has no payload, or an empty one: a message can't be empty.
const NOTHING: &str = "null";
/// Each attribute says that it is text.
const TYPE: &str = "String";

/// A record as a message.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// A queue's name, a topic's ARN.
    pub(super) destination: String,
    pub(super) entry: Entry,
    /// As the services count.
    pub(super) bytes: usize,
}

/// # Errors
/// Why a record can't be a message, wherever it goes.
pub(super) fn message(settings: &Settings, record: &Record<'_>) -> Result<Message, Refusal> {
    is_no_state(record.topic, &settings.reserved_topics)?;
    let destination = settings.destination.of(settings.kind, record.topic).map_err(|rule| {
        let topic = printable::short(record.topic);
        let what = settings.noun();
        ("invalid_topic", format!("the topic {topic:?} makes no {what} ({rule}): {ANOTHER}"))
    })?;
    let (body, encoding) = body(record.payload);
    let partition = record.partition.map(|partition| partition.to_string());
    let added: Vec<_> = added(record, |key| !key.is_empty() && is_text(key)).collect();
    let own = added.iter().map(|(name, value)| (*name, value.as_bytes()));
    let partition = partition.iter().map(|it| (PARTITION, it.as_bytes()));
    let encoding = encoding.iter().map(|it| (ENCODING, it.as_bytes()));
    let headers: Vec<_> = record.headers().chain(own).chain(partition).chain(encoding).collect();
    let attributes = attributes(&headers);
    let of_attributes =
        attributes.iter().map(|(name, value)| name.len() + value.len() + TYPE.len());
    let bytes = body.len() + of_attributes.sum::<usize>();
    let fifo = settings.is_fifo().then(|| fifo(record));
    let entry = Entry { body: body.into_owned(), attributes, fifo };
    Ok(Message { destination, entry, bytes })
}

fn body(payload: Option<&[u8]>) -> (Cow<'_, str>, Option<&'static str>) {
    let Some(payload) = payload else { return (NOTHING.into(), None) };
    if payload.is_empty() {
        return (NOTHING.into(), Some("empty"));
    }
    match std::str::from_utf8(payload).ok().filter(|text| is_text(text)) {
        Some(text) => (text.into(), None),
        None => (BASE64.encode(payload).into(), Some("base64")),
    }
}

/// # Errors
/// It is larger than its queue or topic takes.
pub(super) fn fits(
    settings: &Settings,
    message: &Message,
    bytes_max: usize,
) -> Result<(), Refusal> {
    if message.bytes <= bytes_max {
        return Ok(());
    }
    let (what, setting) = (settings.noun(), settings.key("message_bytes_max"));
    let error = format!(
        "payload and attributes have {} bytes, and the {what} {} takes {bytes_max} (MaximumMessageSize, {setting}): raise \
         it, to 1 MiB at most, or publish a reference to the data",
        message.bytes, message.destination
    );
    Err(("too_large", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::record::RecordHead,
        sink::aws::{
            example::{HEAD, with},
            settings::example,
        },
    };

    fn made(head: RecordHead<'_>) -> Result<Message, Refusal> {
        with(head, &[("outbox-id", "7")], |record| message(&example(), &record))
    }

    #[test]
    fn a_payload_that_is_text_is_the_body_as_it_is() {
        let message = made(RecordHead { key: Some(b"42"), ..HEAD }).expect("a message");
        assert_eq!(message.destination, "orders.fifo");
        assert_eq!(message.entry.body, "{}");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(message.entry.attributes, [pair("outbox-id", "7"), pair("outbox-key", "42")]);
        // Names, values, and the word `String`, as the services count.
        assert_eq!(message.bytes, 2 + (9 + 1 + 6) + (10 + 2 + 6));
    }

    #[test]
    fn a_body_that_may_not_be_is_marked() {
        for (payload, body, mark) in [
            (None, "null", ("outbox-tombstone", "1")),
            (Some(&b""[..]), "null", ("outbox-encoding", "empty")),
            (Some(b"\x01"), "AQ==", ("outbox-encoding", "base64")),
            (Some(b"\xff"), "/w==", ("outbox-encoding", "base64")),
        ] {
            let message = made(RecordHead { payload, ..HEAD }).expect("a message");
            assert_eq!(message.entry.body, body);
            let mark = (mark.0.to_owned(), mark.1.to_owned());
            assert!(message.entry.attributes.contains(&mark), "{:?}", message.entry);
        }
        let named = made(RecordHead { partition: Some(3), ..HEAD }).expect("a message");
        assert!(named.entry.attributes.contains(&("outbox-partition".into(), "3".into())));
    }

    #[test]
    fn a_topic_that_makes_no_name_and_a_message_that_is_too_large_are_refused() {
        let (reason, error) = made(RecordHead { topic: "a b", ..HEAD }).expect_err("no name");
        assert!(reason == "invalid_topic" && error.contains("--topic"), "{error}");
        let (reason, _) = made(RecordHead { topic: "__x", ..HEAD }).expect_err("reserved");
        assert_eq!(reason, "reserved_topic");
        let message = made(HEAD).expect("a message");
        assert_eq!(fits(&example(), &message, message.bytes), Ok(()));
        let (reason, error) = fits(&example(), &message, message.bytes - 1).expect_err("too large");
        assert!(reason == "too_large" && error.contains("sink.sqs.message_bytes_max"), "{error}");
    }
}
