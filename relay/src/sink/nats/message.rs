//! From a record to a message: its subject, its headers, or why it can't be one. Pure.

use async_nats::HeaderMap;
use bytes::Bytes;

use super::{
    settings::{PROGRESS_PREFIX, Settings},
    stream::Stream,
    subject::is_valid,
};
use crate::{
    core::{printable, record::Record},
    sink::message::{ANOTHER, CORRECT, Refusal, added, is_no_state, partition, reserved},
};

/// Headers that begin so tell the server what to do, as to delete what was stored.
const SERVERS_PREFIX: &str = "nats-";
/// `NATS/1.0\r\n` and the empty line behind the headers.
const HEADERS_FRAME: usize = 12;
/// `: ` and `\r\n`.
const HEADER_FRAME: usize = 4;
/// Room for the headers of a batch.
const BATCH_HEADERS: usize = 160;
/// JetStream keeps the length of a message's headers in 16 bits; no setting raises that.
const HEADERS_MAX: usize = 65_535;
/// Of a subject. The server closes a connection that sends a longer line than its `max_control_line`, which is 4,096
/// bytes unless it is set. The line also has where the server answers, and two sizes.
const SUBJECT_MAX: usize = 4_000;

/// A message of a batch.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
}

/// What a message is judged by.
pub(super) struct Rules<'a> {
    pub(super) settings: &'a Settings,
    pub(super) stream: &'a Stream,
    pub(super) progress_subject: &'a str,
    pub(super) bytes_max: usize,
}

impl Rules<'_> {
    /// # Errors
    /// Why it can't be a message of this stream.
    pub(super) fn message(&self, record: &Record<'_>) -> Result<Outgoing, Refusal> {
        let subject = self.subject(record)?;
        let mut headers = HeaderMap::new();
        let mut bytes = HEADERS_FRAME + BATCH_HEADERS;
        let mut add = |name: &str, value: &str| {
            bytes += name.len() + value.len() + HEADER_FRAME;
            headers.append(name, value);
        };
        for (name, value) in record.headers() {
            let value = checked(name, value)?;
            add(name, value);
        }
        added(record, is_plain).for_each(|(name, value)| add(name, &value));
        if bytes > HEADERS_MAX {
            let error = format!(
                "headers, key and type have {bytes} bytes, and those of a message in a stream have {HEADERS_MAX} at most: \
                 put the data into the payload"
            );
            return Err(("too_large", error));
        }
        bytes += record.payload.map_or(0, <[u8]>::len);
        if bytes > self.bytes_max {
            let error = format!(
                "the message has {bytes} bytes, and the stream {} takes {} (its max_msg_size, the server's \
                 max_payload): raise the lower one, or publish a reference to the data",
                self.settings.stream, self.bytes_max
            );
            return Err(("too_large", error));
        }
        let payload = Bytes::copy_from_slice(record.payload.unwrap_or_default());
        Ok(Outgoing { subject, headers, payload })
    }

    fn subject(&self, record: &Record<'_>) -> Result<String, Refusal> {
        let Record { topic, .. } = record;
        if !is_valid(topic) {
            let error = format!(
                "{:?} is no part of a subject: tokens with dots between, without spaces, '*' and '>': {ANOTHER}",
                printable::short(topic)
            );
            return Err(("invalid_topic", error));
        }
        if topic.starts_with('$') {
            return Err(reserved(topic, "the server's own subjects begin with $"));
        }
        is_no_state(topic, &self.settings.reserved_topics)?;
        let partition = partition(record, self.settings.partitions, "sink.nats.partitions")?;
        let subject = self.settings.subject.subject(topic, partition);
        if subject == self.progress_subject || subject.starts_with(PROGRESS_PREFIX) {
            return Err(reserved(topic, "relays keep their progress there"));
        }
        if subject.len() > SUBJECT_MAX {
            let error = format!(
                "the subject would have {} bytes, and the relay sends {SUBJECT_MAX} at most: {ANOTHER}",
                subject.len()
            );
            return Err(("invalid_topic", error));
        }
        if !self.stream.takes(&subject) {
            let error = format!(
                "the stream {} takes no subject {subject}: add it to the stream's subjects, or {ANOTHER}",
                self.settings.stream
            );
            return Err(("unknown_topic", error));
        }
        Ok(subject)
    }
}

/// A header that a message can have.
fn checked<'v>(name: &str, value: &'v [u8]) -> Result<&'v str, Refusal> {
    let refused = |reason, what: &str| {
        let name = printable::short(name);
        Err((reason, format!("the header {name:?} {what}: {CORRECT}")))
    };
    let start = name.as_bytes().get(..SERVERS_PREFIX.len()).unwrap_or_default();
    if start.eq_ignore_ascii_case(SERVERS_PREFIX.as_bytes()) {
        return refused(
            "reserved_header",
            "tells a NATS server what to do, which is not for events",
        );
    }
    let fits = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    if name.is_empty() || !name.bytes().all(fits) {
        return refused(
            "invalid_characters",
            "has a name that NATS can't carry: visible ASCII without ':'",
        );
    }
    match std::str::from_utf8(value) {
        Ok(value) if !value.contains(['\r', '\n']) => Ok(value),
        _ => refused(
            "invalid_characters",
            "has a value that NATS can't carry: text without line breaks",
        ),
    }
}

/// Whether readers find it as it is: none of them may trim it or take it for the end of the line.
fn is_plain(key: &str) -> bool {
    key.trim() == key && !key.chars().any(char::is_control)
}
