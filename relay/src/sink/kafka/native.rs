//! The few calls into librdkafka that the `rdkafka` crate has no good form for; all `unsafe` of
//! the sink is here.
//!
//! - Flush: the crate's sleeps to a 100 ms boundary while anything is in flight.
//! - Produce: the crate allocates for the topic's name and for each header's, and looks the topic
//!   up by name, per record.
//! - Producer: the crate's has no place for what a refused transaction needs (`producer`).
//! - Describe: the crate has no request for what we are allowed on topics (`describe`).
//! - Read: the crate drops the offset of an end-of-partition event, the one thing that tells how
//!   far a reader has come past transaction markers.
//!
//! Sound by construction: a handle keeps the client that it belongs to alive.

pub(super) mod describe;
pub(super) mod producer;

use std::{
    ffi::{CStr, CString, c_int, c_void},
    ptr::{self, NonNull},
    slice,
    sync::Arc,
    time::Duration,
};

use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode,
};
use rdkafka_sys as sys;
use sys::rd_kafka_vtype_t as vtype;

pub(super) use self::producer::Producer;
use super::context::Context;

/// [`progress_log::SEAL`](super::progress_log::SEAL), as C has it.
const SEAL: &CStr = c"outbox-relay-seal";

/// A client without a consumer group.
pub(super) type Consumer = BaseConsumer<Context>;

/// A client whose native handle is valid for as long as it lives.
pub(super) trait Client: Send + Sync {
    fn native(&self) -> *mut sys::rd_kafka_t;
}

impl Client for Consumer {
    fn native(&self) -> *mut sys::rd_kafka_t {
        self.client().native_ptr()
    }
}

/// Waits until nothing is queued or in flight, sending at once what waits for its linger time.
/// Returns whether that was reached in time.
pub(super) fn flush(producer: &Producer, timeout: Duration) -> bool {
    // SAFETY: the handle is valid while `producer` is borrowed, and the call is thread-safe.
    let result = unsafe { sys::rd_kafka_flush(producer.native(), millis(timeout)) };
    result == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// A topic known to a client by handle instead of by name.
pub(super) struct Topic<C: Client> {
    handle: NonNull<sys::rd_kafka_topic_t>,
    /// Outlives `handle`, which `drop` gives back.
    client: Arc<C>,
}

// SAFETY: librdkafka's topic handles are reference-counted and thread-safe, as its clients are.
unsafe impl<C: Client> Send for Topic<C> {}

impl<C: Client> Topic<C> {
    /// # Errors
    /// The name holds a NUL, or librdkafka has no memory or refuses the configuration.
    pub(super) fn new(client: &Arc<C>, name: &str) -> Result<Self, RDKafkaErrorCode> {
        let name = CString::new(name).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        // SAFETY: the client is alive, the name is NUL-terminated and copied by the callee, and a
        // null configuration means the client's default.
        let handle =
            unsafe { sys::rd_kafka_topic_new(client.native(), name.as_ptr(), ptr::null_mut()) };
        match NonNull::new(handle) {
            Some(handle) => Ok(Topic { handle, client: Arc::clone(client) }),
            None => Err(last_error()),
        }
    }
}

impl<C: Client> Drop for Topic<C> {
    fn drop(&mut self) {
        // SAFETY: the handle came from `rd_kafka_topic_new`, is given back once, and its client is
        // alive until after this call.
        unsafe { sys::rd_kafka_topic_destroy(self.handle.as_ptr()) };
    }
}

/// A record on its way, but for its headers.
#[derive(Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub key: Option<&'a [u8]>,
    pub payload: Option<&'a [u8]>,
    /// Milliseconds since the Unix epoch; `None` is now.
    pub timestamp_ms: Option<i64>,
    pub partition: i32,
    /// Comes back with the record if it fails.
    pub opaque: usize,
}

impl Topic<Producer> {
    /// Queues a copy of `record`.
    ///
    /// # Errors
    /// It was not queued: the queue is full, it is too large, or the client's state forbids it.
    pub(super) fn produce<'h>(
        &self,
        record: Outgoing<'_>,
        headers: impl Iterator<Item = (&'h str, &'h [u8])> + Clone,
    ) -> Result<(), RDKafkaErrorCode> {
        let headers = Headers::of(headers)?;
        let (key, key_len) = parts(record.key);
        let (payload, payload_len) = parts(record.payload);
        // SAFETY: each tag is followed by arguments of the C types its macro in rdkafka.h names.
        // Key and payload are copied by the call (`F_COPY`), so their borrow may end after it.
        // The headers pass to librdkafka only if the call succeeds (see below).
        let result = unsafe {
            sys::rd_kafka_producev(
                self.client.native(),
                vtype::RD_KAFKA_VTYPE_RKT,
                self.handle.as_ptr(),
                vtype::RD_KAFKA_VTYPE_PARTITION,
                record.partition,
                vtype::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::RD_KAFKA_MSG_F_COPY,
                vtype::RD_KAFKA_VTYPE_VALUE,
                payload,
                payload_len,
                vtype::RD_KAFKA_VTYPE_KEY,
                key,
                key_len,
                vtype::RD_KAFKA_VTYPE_OPAQUE,
                record.opaque as *mut c_void,
                vtype::RD_KAFKA_VTYPE_TIMESTAMP,
                record.timestamp_ms.unwrap_or(0),
                vtype::RD_KAFKA_VTYPE_HEADERS,
                headers.0,
                vtype::RD_KAFKA_VTYPE_END,
            )
        };
        if result == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            std::mem::forget(headers);
            Ok(())
        } else {
            Err(result.into())
        }
    }
}

/// A list of headers, freed unless a produced record took it over. Null when there are none.
struct Headers(*mut sys::rd_kafka_headers_t);

impl Headers {
    fn of<'h>(
        headers: impl Iterator<Item = (&'h str, &'h [u8])> + Clone,
    ) -> Result<Self, RDKafkaErrorCode> {
        let count = headers.clone().count();
        if count == 0 {
            return Ok(Headers(ptr::null_mut()));
        }
        // SAFETY: no precondition; the result is freed by `drop` or owned by librdkafka.
        let list = Headers(unsafe { sys::rd_kafka_headers_new(count) });
        for (name, value) in headers {
            // SAFETY: the list is ours; name and value are copied, their lengths are explicit.
            // A slice's length fits `isize`.
            let result = unsafe {
                sys::rd_kafka_header_add(
                    list.0,
                    name.as_ptr().cast(),
                    name.len().cast_signed(),
                    value.as_ptr().cast(),
                    value.len().cast_signed(),
                )
            };
            if result != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(result.into());
            }
        }
        Ok(list)
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: not taken over by a record, so still ours, and freed once.
            unsafe { sys::rd_kafka_headers_destroy(self.0) };
        }
    }
}

/// Null means "none" to librdkafka; a slice's pointer never is null, not even an empty one's.
fn parts(bytes: Option<&[u8]>) -> (*mut c_void, usize) {
    bytes.map_or((ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast(), bytes.len()))
}

/// Reads one partition from a given offset, without a consumer group.
pub(super) struct PartitionReader {
    topic: Topic<Consumer>,
    partition: i32,
}

/// What a reader came upon.
pub(super) enum Read {
    /// A record.
    Record {
        offset: i64,
        key: Option<Vec<u8>>,
        payload: Option<Vec<u8>>,
        /// Value of the header of that name.
        seal: Option<Vec<u8>>,
    },
    /// Everything before `offset` that this reader may see has been read: with `read_committed`,
    /// that is the last stable offset, past transaction markers and aborted records.
    End { offset: i64 },
    /// Nothing is lost by it; librdkafka goes on, or says it again.
    Error(RDKafkaErrorCode),
}

impl PartitionReader {
    pub(super) fn start(
        topic: Topic<Consumer>,
        partition: i32,
        from: i64,
    ) -> Result<Self, RDKafkaErrorCode> {
        // SAFETY: the handle is valid while `topic` lives, which the reader owns.
        let result = unsafe { sys::rd_kafka_consume_start(topic.handle.as_ptr(), partition, from) };
        if result == 0 { Ok(PartitionReader { topic, partition }) } else { Err(last_error()) }
    }

    /// The next thing, or `None` when nothing came in time.
    pub(super) fn next(&mut self, timeout: Duration) -> Option<Read> {
        // SAFETY: the handle is valid, and `start` has begun consumption of the partition.
        let message = unsafe {
            sys::rd_kafka_consume(self.topic.handle.as_ptr(), self.partition, millis(timeout))
        };
        let message = Message(NonNull::new(message)?);
        // SAFETY: librdkafka returned the message to us; it is freed by `Message`'s drop.
        let fields = unsafe { message.0.as_ref() };
        Some(match fields.err {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Read::Record {
                offset: fields.offset,
                // SAFETY: both point to that many bytes for as long as the message lives.
                key: unsafe { copied(fields.key, fields.key_len) },
                // SAFETY: as above.
                payload: unsafe { copied(fields.payload, fields.len) },
                seal: message.header(SEAL),
            },
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                Read::End { offset: fields.offset }
            }
            other => Read::Error(other.into()),
        })
    }
}

impl Drop for PartitionReader {
    fn drop(&mut self) {
        // SAFETY: consumption was started in `start` and is stopped once, before the topic goes.
        unsafe { sys::rd_kafka_consume_stop(self.topic.handle.as_ptr(), self.partition) };
    }
}

struct Message(NonNull<sys::rd_kafka_message_t>);

impl Message {
    /// A copy of the last value of a header.
    fn header(&self, name: &CStr) -> Option<Vec<u8>> {
        let mut headers = ptr::null_mut();
        let (mut value, mut size) = (ptr::null(), 0);
        let none = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
        // SAFETY: the message is alive; its headers stay its own, and are read while it lives.
        unsafe {
            if sys::rd_kafka_message_headers(self.0.as_ptr(), &raw mut headers) != none {
                return None;
            }
            let (value_out, size_out) = (&raw mut value, &raw mut size);
            if sys::rd_kafka_header_get_last(headers, name.as_ptr(), value_out, size_out) != none {
                return None;
            }
            copied(value, size)
        }
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: returned by `rd_kafka_consume` to be destroyed once by its caller.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) };
    }
}

/// # Safety
/// `bytes` is null or points to `len` readable bytes.
unsafe fn copied(bytes: *const c_void, len: usize) -> Option<Vec<u8>> {
    if bytes.is_null() {
        return None;
    }
    // SAFETY: promised by the caller.
    Some(unsafe { slice::from_raw_parts(bytes.cast::<u8>(), len) }.to_vec())
}

/// The controller's node id, as the newest metadata names it.
pub(super) fn controller(client: &Consumer) -> Option<i32> {
    // SAFETY: the client is alive; with no time to wait the call reads what is known.
    let id = unsafe { sys::rd_kafka_controllerid(client.native(), 0) };
    (id >= 0).then_some(id)
}

fn last_error() -> RDKafkaErrorCode {
    // SAFETY: reads a thread-local, set by the call before on this thread.
    unsafe { sys::rd_kafka_last_error() }.into()
}

fn millis(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX)
}
