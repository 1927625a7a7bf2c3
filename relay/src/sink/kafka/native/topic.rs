//! Records that go out by a topic's handle instead of its name.

use std::{
    ffi::{CString, c_void},
    ptr::{self, NonNull},
    sync::Arc,
};

use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as sys;
use sys::rd_kafka_vtype_t as vtype;

use super::{
    client::{Client, last_error},
    producer::Producer,
};

/// A topic known to a client by handle instead of by name.
pub(in super::super) struct Topic<C: Client> {
    pub(super) handle: NonNull<sys::rd_kafka_topic_t>,
    /// Outlives `handle`, which `drop` gives back.
    client: Arc<C>,
}

// SAFETY: librdkafka's topic handles are reference-counted and thread-safe, as its clients are.
unsafe impl<C: Client> Send for Topic<C> {}

impl<C: Client> Topic<C> {
    /// # Errors
    /// The name holds a NUL, or librdkafka has no memory or refuses the configuration.
    pub(in super::super) fn new(client: &Arc<C>, name: &str) -> Result<Self, RDKafkaErrorCode> {
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
pub(in super::super) struct Outgoing<'a> {
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
    pub(in super::super) fn produce<'h>(
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
