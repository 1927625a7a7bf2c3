//! The few calls into librdkafka that the `rdkafka` crate has no good form for; all `unsafe` of the
//! runner is here.
//!
//! - Headers: the crate panics at a name that is not UTF-8, which any producer may give.
//! - Events of partitions: the crate drops the topic and the offset of an end and of an error. The
//!   first tells how far a reader has come past transaction markers, the second what to type.
//! - Ids of topics: the crate has no request for them.
//!
//! A queue or an event must not outlive its consumer: all are locals of the thread that owns it.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    marker::PhantomData,
    ptr::{self, NonNull},
    slice,
    time::Duration,
};

use bytes::Bytes;
use rdkafka::{
    Timestamp, bindings as sys,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::RDKafkaErrorCode,
    message::BorrowedMessage,
};
use sys::rd_kafka_resp_err_t as err;

use crate::message::{Headers, LARGE};

/// A record that librdkafka keeps for as long as `'a` lasts.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    message: NonNull<sys::rd_kafka_message_t>,
    owner: PhantomData<&'a ()>,
}

impl<'a> Record<'a> {
    pub(super) fn of(message: &'a BorrowedMessage<'_>) -> Option<Self> {
        Some(Record { message: NonNull::new(message.ptr())?, owner: PhantomData })
    }

    fn fields(&self) -> &'a sys::rd_kafka_message_t {
        // SAFETY: the message is valid and not written to while its owner is borrowed.
        unsafe { self.message.as_ref() }
    }

    pub(super) fn topic(&self) -> &'a str {
        // SAFETY: a record that was fetched has a topic, whose name ends with a zero byte.
        let name = unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(self.fields().rkt)) };
        name.to_str().unwrap_or_default() // Kafka's names are ASCII.
    }

    pub(super) fn partition(&self) -> i32 {
        self.fields().partition
    }

    pub(super) fn offset(&self) -> i64 {
        self.fields().offset
    }

    pub(super) fn key(&self) -> Option<Vec<u8>> {
        // SAFETY: it points to that many bytes of the message.
        unsafe { copied(self.fields().key, self.fields().key_len) }
    }

    pub(super) fn payload(&self) -> Option<Bytes> {
        // SAFETY: it points to that many bytes of the message.
        unsafe { copied(self.fields().payload, self.fields().len) }.map(Bytes::from)
    }

    /// Whether its payload alone makes it a large message.
    pub(super) fn is_large(&self) -> bool {
        self.fields().len > LARGE
    }

    pub(super) fn timestamp(&self) -> Timestamp {
        use sys::rd_kafka_timestamp_type_t as kind;
        let mut of = kind::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid, and `of` is ours.
        match unsafe { sys::rd_kafka_message_timestamp(self.message.as_ptr(), &raw mut of) } {
            -1 => Timestamp::NotAvailable,
            ms => match of {
                kind::RD_KAFKA_TIMESTAMP_CREATE_TIME => Timestamp::CreateTime(ms),
                kind::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => Timestamp::LogAppendTime(ms),
                kind::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE => Timestamp::NotAvailable,
            },
        }
    }

    /// Of a name that is no UTF-8, what is none becomes U+FFFD. One that has a zero byte ends with it:
    /// librdkafka tells no more of it, and another's header is not to be taken for the one whose name it
    /// begins with.
    pub(super) fn headers(&self) -> Headers {
        let mut all = ptr::null_mut();
        // SAFETY: the message is valid, and owns what `all` points to then.
        let found = unsafe { sys::rd_kafka_message_headers(self.message.as_ptr(), &raw mut all) };
        let (mut headers, mut whole) = (Vec::new(), Vec::new());
        if found != err::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Headers(headers);
        }
        loop {
            let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
            // SAFETY: `all` is valid as above; behind the last header the call says so.
            let found = unsafe {
                let (name, value, len) = (&raw mut name, &raw mut value, &raw mut len);
                sys::rd_kafka_header_get_all(all, headers.len(), name, value, len)
            };
            if found != err::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Headers(headers);
            }
            // SAFETY: a name ends with a zero byte, and is kept with the message.
            let known = unsafe { CStr::from_ptr(name) };
            let mut name = known.to_string_lossy().into_owned();
            // SAFETY: `all` is valid as above, and `value` of this header.
            if unsafe { is_whole(all, known, &whole, value) } {
                whole.push(known);
            } else {
                name.push('\0');
            }
            // SAFETY: it points to `len` bytes of the message.
            headers.push((name, unsafe { copied(value, len) }));
        }
    }
}

/// Where something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
}

/// What came of a partition.
pub(super) enum Fetched<'a> {
    Record(Record<'a>),
    /// All before the offset that this consumer may see has come; the offset itself may be behind
    /// transaction markers and records of aborted transactions.
    End(Place),
    Failed(Place, RDKafkaErrorCode, String),
    /// Ids of topics that were asked for, by their names.
    Ids(Vec<(String, String)>),
    Nothing,
}

/// Where events of partitions come, apart from the group's.
pub(super) struct Queue {
    own: NonNull<sys::rd_kafka_queue_t>,
    /// The consumer's.
    group: NonNull<sys::rd_kafka_queue_t>,
}

impl Queue {
    /// `None` where the consumer has no group.
    pub(super) fn new<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<Self> {
        let client = consumer.client().native_ptr();
        // SAFETY: the consumer is alive; both handles are destroyed once, by `drop`.
        let (own, group) =
            unsafe { (sys::rd_kafka_queue_new(client), sys::rd_kafka_queue_get_consumer(client)) };
        Some(Queue { own: NonNull::new(own)?, group: NonNull::new(group)? })
    }

    /// How much the consumer's own queue has.
    pub(super) fn of_group(&self) -> usize {
        // SAFETY: the handle is ours.
        unsafe { sys::rd_kafka_queue_length(self.group.as_ptr()) }
    }

    /// Has what is fetched of a partition come here, until the partition goes.
    pub(super) fn adopt<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        topic: &str,
        partition: i32,
    ) {
        let Ok(topic) = CString::new(topic) else { return };
        // SAFETY: the consumer and our queue are alive; the partition's handle is destroyed once.
        unsafe {
            let client = consumer.client().native_ptr();
            let from = sys::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition);
            if !from.is_null() {
                sys::rd_kafka_queue_forward(from, self.own.as_ptr());
                sys::rd_kafka_queue_destroy(from);
            }
        }
    }

    /// Asks for ids of topics; the answer comes here.
    pub(super) fn ask_ids<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>, names: &[&str]) {
        let names: Vec<CString> = names.iter().filter_map(|n| CString::new(*n).ok()).collect();
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: consumer and queue are alive; the collection copies the names, the request copies
        // the collection, which is destroyed once. Without options there are the defaults.
        unsafe {
            let topics =
                sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
            let client = consumer.client().native_ptr();
            sys::rd_kafka_DescribeTopics(client, topics, ptr::null(), self.own.as_ptr());
            sys::rd_kafka_TopicCollection_destroy(topics);
        }
    }

    /// The next event, waiting for one at most `timeout`.
    pub(super) fn next(&self, timeout: Duration) -> Option<Event> {
        let ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the handle is ours; an event that is returned is ours to destroy.
        let event = unsafe { sys::rd_kafka_queue_poll(self.own.as_ptr(), ms) };
        NonNull::new(event).map(Event)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: both are ours, destroyed once, before their consumer.
        unsafe {
            sys::rd_kafka_queue_destroy(self.own.as_ptr());
            sys::rd_kafka_queue_destroy(self.group.as_ptr());
        }
    }
}

pub(super) struct Event(NonNull<sys::rd_kafka_event_t>);

impl Event {
    pub(super) fn fetched(&self) -> Fetched<'_> {
        let event = self.0.as_ptr();
        // SAFETY: the event is alive in all of this; what is read of it belongs to it, but for the
        // place, which is ours to destroy.
        unsafe {
            match sys::rd_kafka_event_type(event) {
                sys::RD_KAFKA_EVENT_FETCH => {
                    let message = sys::rd_kafka_event_message_next(event).cast_mut();
                    let record = |message| Record { message, owner: PhantomData };
                    NonNull::new(message).map_or(Fetched::Nothing, |m| Fetched::Record(record(m)))
                }
                sys::RD_KAFKA_EVENT_ERROR => self.failed(),
                sys::RD_KAFKA_EVENT_DESCRIBETOPICS_RESULT => self.ids(),
                _ => Fetched::Nothing,
            }
        }
    }

    fn failed(&self) -> Fetched<'_> {
        let event = self.0.as_ptr();
        // SAFETY: as in `fetched`.
        let (code, text, place) = unsafe {
            let text = CStr::from_ptr(sys::rd_kafka_event_error_string(event));
            let place = NonNull::new(sys::rd_kafka_event_topic_partition(event)).map(|found| {
                let sys::rd_kafka_topic_partition_s { topic, partition, offset, .. } =
                    *found.as_ref();
                let topic = CStr::from_ptr(topic).to_string_lossy().into_owned();
                sys::rd_kafka_topic_partition_destroy(found.as_ptr());
                Place { topic, partition, offset }
            });
            (sys::rd_kafka_event_error(event), text.to_string_lossy().into_owned(), place)
        };
        match place {
            Some(place) if code == err::RD_KAFKA_RESP_ERR__PARTITION_EOF => Fetched::End(place),
            Some(place) => Fetched::Failed(place, code.into(), text),
            None => Fetched::Nothing,
        }
    }

    fn ids(&self) -> Fetched<'_> {
        let mut count = 0;
        // SAFETY: as in `fetched`; the array has `count` members, and each its name, error and id.
        let ids = unsafe {
            let result = sys::rd_kafka_event_DescribeTopics_result(self.0.as_ptr());
            if result.is_null() {
                return Fetched::Nothing;
            }
            let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            let topics = if topics.is_null() { &[] } else { slice::from_raw_parts(topics, count) };
            let id = |topic: &*const sys::rd_kafka_TopicDescription_t| {
                let error = sys::rd_kafka_TopicDescription_error(*topic);
                let id = sys::rd_kafka_TopicDescription_topic_id(*topic);
                if sys::rd_kafka_error_code(error) != err::RD_KAFKA_RESP_ERR_NO_ERROR
                    || id.is_null()
                {
                    return None;
                }
                let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(*topic));
                let high = sys::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned();
                let low = sys::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned();
                let id = (u128::from(high) << 64) | u128::from(low);
                // Of a broker that has no ids it is zero.
                (id != 0).then(|| (name.to_string_lossy().into_owned(), format!("{id:032x}")))
            };
            topics.iter().filter_map(id).collect()
        };
        Fetched::Ids(ids)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours, destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

/// Ids of topics by their names, of those that the broker knows and tells within `patience`.
pub(super) fn topic_ids<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    names: &[&str],
    patience: Duration,
) -> Vec<(String, String)> {
    let Some(queue) = Queue::new(consumer) else { return Vec::new() };
    queue.ask_ids(consumer, names);
    let answer = queue.next(patience);
    match answer.as_ref().map(Event::fetched) {
        Some(Fetched::Ids(ids)) => ids,
        _ => Vec::new(),
    }
}

/// The first offset that a partition still has, as the last fetch told it.
pub(super) fn first_offset<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
) -> Option<i64> {
    let topic = CString::new(topic).ok()?;
    let (mut first, mut end) = (-1, -1);
    // SAFETY: the consumer is alive; both numbers are ours. Nothing is sent.
    let found = unsafe {
        let client = consumer.client().native_ptr();
        let (first, end) = (&raw mut first, &raw mut end);
        sys::rd_kafka_get_watermark_offsets(client, topic.as_ptr(), partition, first, end)
    };
    (found == err::RD_KAFKA_RESP_ERR_NO_ERROR && first >= 0).then_some(first)
}

/// Whether the header with this value has this name, and not a longer one with a zero byte behind it:
/// the look-up by a name compares lengths too. `whole` are names of headers in front of it that are.
///
/// # Safety
/// `all` is valid, and `value` is of one of its headers.
unsafe fn is_whole(
    all: *const sys::rd_kafka_headers_t,
    name: &CStr,
    whole: &[&CStr],
    value: *const c_void,
) -> bool {
    let before = whole.iter().filter(|other| **other == name).count();
    let (mut found, mut len) = (ptr::null(), 0);
    // SAFETY: as the caller says; name and places for the answer are ours.
    let known = unsafe {
        sys::rd_kafka_header_get(all, before, name.as_ptr(), &raw mut found, &raw mut len)
    };
    known == err::RD_KAFKA_RESP_ERR_NO_ERROR && found == value
}

/// # Safety
/// `from` is null, or points to `len` bytes.
unsafe fn copied(from: *const c_void, len: usize) -> Option<Vec<u8>> {
    if from.is_null() {
        return None;
    }
    // SAFETY: as the caller says.
    Some(unsafe { slice::from_raw_parts(from.cast::<u8>(), len) }.to_vec())
}
