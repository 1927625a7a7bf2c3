//! How a processor is made: the forms of handlers, and what may be chosen for them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{Dedup, Processor, Shared, large::Large, watch::SLOW};
use crate::{
    alert::{Alert, Alerts},
    failure::BoxError,
    handler::{self, BatchHandler, Handler, Work},
    inbox::Inbox,
    message::RawMessage,
    meter::Meter,
    ordering::OrderBy,
    retry::Retry,
};

impl Processor {
    /// A handler of JSON messages, one at a time.
    pub fn new<T, H>(inbox: Inbox, handler: H) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        H: Handler<T>,
    {
        Self::with(inbox, Arc::new(handler::one(handler, handler::json)), 1)
    }

    /// A handler of JSON messages, up to `max` at a time: as many as have come while the batch
    /// before was handled.
    pub fn batch<T, H>(inbox: Inbox, max: usize, handler: H) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        H: BatchHandler<T>,
    {
        Self::with(inbox, Arc::new(handler::batch(handler, handler::json)), max.max(1))
    }

    /// A handler of messages in any form, such as Avro or Protobuf: `decode` makes of a record what
    /// the handler takes; it must not block. What it refuses is a dead letter with the code
    /// `undecodable`.
    pub fn decoding<T, E, H>(
        inbox: Inbox,
        decode: impl Fn(&RawMessage) -> Result<T, E> + Send + Sync + 'static,
        handler: H,
    ) -> Self
    where
        T: Send + 'static,
        E: Into<BoxError>,
        H: Handler<T>,
    {
        let decode = move |message: &RawMessage| decode(message).map_err(handler::undecodable);
        Self::with(inbox, Arc::new(handler::one(handler, decode)), 1)
    }

    /// As [`Processor::decoding`], up to `max` at a time, as [`Processor::batch`].
    pub fn batch_decoding<T, E, H>(
        inbox: Inbox,
        max: usize,
        decode: impl Fn(&RawMessage) -> Result<T, E> + Send + Sync + 'static,
        handler: H,
    ) -> Self
    where
        T: Send + 'static,
        E: Into<BoxError>,
        H: BatchHandler<T>,
    {
        let decode = move |message: &RawMessage| decode(message).map_err(handler::undecodable);
        Self::with(inbox, Arc::new(handler::batch(handler, decode)), max.max(1))
    }

    /// A handler of payloads as they came: bytes, or `None` for a tombstone.
    pub fn raw<H: Handler<Option<Bytes>>>(inbox: Inbox, handler: H) -> Self {
        Self::decoding(inbox, |message| Ok::<_, Infallible>(message.payload.clone()), handler)
    }

    /// A handler of text in UTF-8; a tombstone is an empty one.
    pub fn text<H: Handler<String>>(inbox: Inbox, handler: H) -> Self {
        let decode = |message: &RawMessage| {
            let payload = message.payload.as_deref().unwrap_or_default();
            std::str::from_utf8(payload).map(str::to_owned)
        };
        Self::decoding(inbox, decode, handler)
    }

    fn with(inbox: Inbox, work: Arc<dyn Work>, batch_max: usize) -> Self {
        let meter = Meter::new(inbox.consumer());
        let shared = Shared {
            inbox,
            work,
            batch_max,
            dedup: Dedup::Rows,
            ordering: OrderBy::Key,
            retry: Retry::default(),
            alerts: Alerts::default(),
            time_limit: None,
            slow_after: SLOW,
            at_work: Arc::default(),
            meter,
            marks: Arc::default(),
            passed: Arc::default(),
            strange: Arc::default(),
            unmarked: Arc::default(),
            topics: Arc::default(),
            large: Large::default(),
            lookout: Arc::default(),
            in_hand: Arc::default(),
            reads: None,
            plans: Arc::default(),
            told: Arc::default(),
            parked: Arc::default(),
            due: Arc::default(),
        };
        Processor { shared: Arc::new(shared) }
    }

    /// With another retry policy.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        Arc::make_mut(&mut self.shared).retry = retry;
        self
    }

    /// With another way to remember messages.
    #[must_use]
    pub fn dedup(mut self, dedup: Dedup) -> Self {
        Arc::make_mut(&mut self.shared).dedup = dedup;
        self
    }

    /// With something else to keep in order. Change it only while nothing is parked.
    #[must_use]
    pub fn order_by(mut self, ordering: OrderBy) -> Self {
        Arc::make_mut(&mut self.shared).ordering = ordering;
        self
    }

    /// Calls `hook` after what a person should hear of; it must not block.
    #[must_use]
    pub fn on_alert(mut self, hook: impl Fn(&Alert) + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.shared).alerts.add(hook);
        self
    }

    /// With another time after which a handler that is at work is spoken of, and again after each
    /// further one ([`Alert::Slow`]): 30 s, and a millisecond at least.
    #[must_use]
    pub fn slow_after(mut self, time: Duration) -> Self {
        Arc::make_mut(&mut self.shared).slow_after = time.max(Duration::from_millis(1));
        self
    }

    /// With a limit to the time of one call of the handler: after it the handler is dropped at its
    /// next `.await`, the transaction is rolled back, and the message has failed with the code
    /// `timed-out`, to be tried again. The server ends statements that take as long. None by default.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        let shared = Arc::make_mut(&mut self.shared);
        shared.time_limit = Some(limit);
        shared.inbox = shared.inbox.clone().statement_limit(limit);
        self
    }
}
