//! A message as a handler sees it.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{message_id::MessageId, timestamp::Timestamp};

/// What came from the broker. A handler takes it apart, `Message { payload, .. }`; a source of messages, or a
/// test, makes one with [`Message::new`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Message<T> {
    /// Its identity, the same in every copy.
    pub id: MessageId,
    /// Its key: messages of one key are handled in order, one at a time.
    pub key: Option<Vec<u8>>,
    /// What it says.
    pub payload: T,
    /// As the broker gave them.
    pub headers: Headers,
    /// When it was sent, if anybody says so.
    pub timestamp: Option<Timestamp>,
    /// Where it was found; of a message that was parked or replayed, where it was found first.
    pub source: Source,
    /// 1 the first time, then 2, …; a message that waited behind another begins with 1.
    pub attempt: u32,
}

/// A message with its payload as the broker has it; `None` is a tombstone. Copies share it.
pub type RawMessage = Message<Option<Bytes>>;

/// From here on a message is large: it takes several times its size on its way through the driver.
pub(crate) const LARGE: usize = 1 << 20;

impl RawMessage {
    /// Roughly what it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let headers = self.headers.0.iter();
        let header = |(name, value): &(String, Option<Vec<u8>>)| {
            64 + name.len() + value.as_ref().map_or(0, Vec::len)
        };
        let len = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let (key, payload) = (len(self.key.as_deref()), len(self.payload.as_deref()));
        256 + headers.map(header).sum::<usize>() + key + payload
    }

    pub(crate) fn is_large(&self) -> bool {
        self.bytes() > LARGE
    }
}

/// Where a message was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Source {
    /// Topic, queue, stream: whatever the broker calls it.
    pub topic: Arc<str>,
    /// Partition, of a broker that has them.
    pub partition: Option<i32>,
    /// Offset or sequence number, of a broker that has them.
    pub offset: Option<i64>,
}

/// Headers in their order; names may repeat. Bytes of a name that are not UTF-8 become U+FFFD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub(crate) Vec<(String, Option<Vec<u8>>)>);

impl Source {
    /// A record of a partitioned topic.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32, offset: i64) -> Self {
        Source { partition: Some(partition), offset: Some(offset), ..Source::of_queue(topic) }
    }

    /// Of a broker without partitions and offsets, such as RabbitMQ or SQS.
    pub fn of_queue(name: impl Into<Arc<str>>) -> Self {
        Source { topic: name.into(), partition: None, offset: None }
    }

    /// Partition and offset, where it has both.
    pub(crate) fn place(&self) -> Option<(i32, i64)> {
        self.partition.zip(self.offset)
    }
}

/// `orders/3@17`, or as much of it as there is.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.topic)?;
        if let Some(partition) = self.partition {
            write!(f, "/{partition}")?;
        }
        self.offset.map_or(Ok(()), |offset| write!(f, "@{offset}"))
    }
}

impl<N: Into<String>, V: Into<Vec<u8>>> FromIterator<(N, Option<V>)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, Option<V>)>>(headers: I) -> Self {
        let header = |(name, value): (N, Option<V>)| (name.into(), value.map(Into::into));
        Headers(headers.into_iter().map(header).collect())
    }
}

impl Headers {
    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_deref()))
    }

    /// Adds one behind the others.
    pub fn push(&mut self, name: impl Into<String>, value: Option<Vec<u8>>) {
        self.0.push((name.into(), value));
    }

    /// In the place of all of that name, this one behind the others.
    pub fn set(&mut self, name: &str, value: Option<Vec<u8>>) {
        self.0.retain(|(found, _)| found != name);
        self.push(name, value);
    }

    /// The first header of that name, if it has a value.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name)?;
        value.as_deref()
    }

    /// The first header of that name, if its value is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.bytes(name)?).ok()
    }

    /// The event's type as the relay gives it.
    pub fn event_type(&self) -> Option<&str> {
        self.text("outbox-type").or_else(|| self.text("ce_type"))
    }
}

impl<T> Message<T> {
    /// A message without key, headers and timestamp, at its first attempt.
    pub fn new(id: MessageId, source: Source, payload: T) -> Self {
        let headers = Headers::default();
        Message { id, key: None, payload, headers, timestamp: None, source, attempt: 1 }
    }

    /// With a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With other headers.
    #[must_use]
    pub fn with_headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    /// With the time at which it was sent.
    #[must_use]
    pub fn with_timestamp(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// The same with another payload.
    pub(crate) fn with<U>(self, payload: U) -> Message<U> {
        let Message { id, key, headers, timestamp, source, attempt, .. } = self;
        Message { id, key, payload, headers, timestamp, source, attempt }
    }
}
