//! Reads one partition, and tells how far it has come past transaction markers.

use std::{
    ffi::{CStr, c_void},
    ptr::{self, NonNull},
    slice,
    time::Duration,
};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as sys;

use super::{
    client::{Consumer, last_error, millis},
    topic::Topic,
};

/// [`progress_log::SEAL`](crate::sink::kafka::progress_log::SEAL), as C has it.
const SEAL: &CStr = c"outbox-relay-seal";

/// Reads one partition from a given offset, without a consumer group.
pub(in super::super) struct PartitionReader {
    topic: Topic<Consumer>,
    partition: i32,
}

/// What a reader came upon.
pub(in super::super) enum Read {
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
    /// Nothing is lost by it; librdkafka continues, or says it again.
    Error(RDKafkaErrorCode),
}

impl PartitionReader {
    pub(in super::super) fn start(
        topic: Topic<Consumer>,
        partition: i32,
        from: i64,
    ) -> Result<Self, RDKafkaErrorCode> {
        // SAFETY: the handle is valid while `topic` lives, which the reader owns.
        let result = unsafe { sys::rd_kafka_consume_start(topic.handle.as_ptr(), partition, from) };
        if result == 0 { Ok(PartitionReader { topic, partition }) } else { Err(last_error()) }
    }

    /// The next thing, or `None` when nothing came in time.
    pub(in super::super) fn next(&mut self, timeout: Duration) -> Option<Read> {
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
