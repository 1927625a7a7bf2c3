//! The few calls into librdkafka that the `rdkafka` crate has no good form for; all `unsafe` of the
//! runner is here.
//!
//! - Headers: the crate panics at a name that is not UTF-8, which any producer may give.

use std::{
    ffi::{CStr, c_void},
    ptr, slice,
};

use rdkafka::{bindings as sys, message::BorrowedMessage};

use crate::message::Headers;

/// A record's headers; of a name that is no UTF-8, what is none becomes U+FFFD.
pub(super) fn headers(record: &BorrowedMessage<'_>) -> Headers {
    let mut all = ptr::null_mut();
    // SAFETY: the record's message is valid while it is borrowed, and owns what `all` points to.
    let found = unsafe { sys::rd_kafka_message_headers(record.ptr(), &raw mut all) };
    let mut headers = Vec::new();
    if found != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Headers(headers);
    }
    loop {
        let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `all` is valid as above; behind the last header the call says so and sets nothing.
        let found = unsafe {
            let (name, value, len) = (&raw mut name, &raw mut value, &raw mut len);
            sys::rd_kafka_header_get_all(all, headers.len(), name, value, len)
        };
        if found != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Headers(headers);
        }
        // SAFETY: librdkafka ends a header's name with a zero byte, and keeps it with the message.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        // SAFETY: it points to `len` bytes that belong to the message.
        headers.push((name, unsafe { copied(value, len) }));
    }
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
