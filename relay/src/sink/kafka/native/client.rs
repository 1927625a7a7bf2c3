//! What the others of this folder share: a client's handle, and times as C has them.

use std::{ffi::c_int, time::Duration};

use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    error::RDKafkaErrorCode,
};
use rdkafka_sys as sys;

use crate::sink::kafka::context::Context;

/// A client without a consumer group.
pub(in super::super) type Consumer = BaseConsumer<Context>;

/// A client whose native handle is valid for as long as it lives.
pub(in super::super) trait Client: Send + Sync {
    fn native(&self) -> *mut sys::rd_kafka_t;
}

impl Client for Consumer {
    fn native(&self) -> *mut sys::rd_kafka_t {
        self.client().native_ptr()
    }
}

/// The controller's node id, as the newest metadata names it.
pub(in super::super) fn controller(client: &Consumer) -> Option<i32> {
    // SAFETY: the client is alive; with no time to wait the call reads what is known.
    let id = unsafe { sys::rd_kafka_controllerid(client.native(), 0) };
    (id >= 0).then_some(id)
}

pub(super) fn last_error() -> RDKafkaErrorCode {
    // SAFETY: reads a thread-local, set by the call before on this thread.
    unsafe { sys::rd_kafka_last_error() }.into()
}

pub(super) fn millis(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX)
}
