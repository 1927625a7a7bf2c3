//! The client that delivers: it is polled by a thread of its own, and it can hold back the answer
//! to the end of a transaction (`hold`), for which the crate's producer has no place.

use std::{
    cell::RefCell,
    ffi::{CStr, c_char, c_int, c_void},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext as _,
    client::Client as CrateClient,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    types::RDKafkaType,
};
use rdkafka_sys as sys;
use sys::rd_kafka_resp_err_t as err;

use super::client::{Client, millis};
use crate::sink::kafka::context::{Context, Failure};

/// A poll that nothing ends lasts so long; dropping waits for one.
const POLL: Duration = Duration::from_millis(100);
/// What is taken back when the producer is dropped is reported by then.
const DROP_FLUSH: Duration = Duration::from_millis(500);
/// Of the request that ends a transaction, in Kafka's protocol.
const END_TXN: i16 = 26;

/// A producer. Dropping it gives up what is queued or in flight.
pub(in super::super) struct Producer {
    inner: Arc<Inner>,
    stop: Arc<AtomicBool>,
    poller: Option<JoinHandle<()>>,
}

struct Inner {
    client: CrateClient<Context>,
    queue: Queue,
    /// Read by librdkafka's threads, which end with `client`.
    hold: Arc<AtomicU64>,
}

/// What librdkafka answers to a call of its transactional interface.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(in super::super) struct TransactionError {
    pub(in super::super) code: RDKafkaErrorCode,
    text: String,
    /// The same call may be made again, and takes up what it left.
    pub(in super::super) may_call_again: bool,
    /// The transaction failed, and the producer did not.
    pub(in super::super) wants_abort: bool,
}

impl Producer {
    /// Waits for no broker.
    ///
    /// # Errors
    /// librdkafka refuses the configuration.
    pub(in super::super) fn new(
        config: &ClientConfig,
        context: Context,
    ) -> Result<Self, KafkaError> {
        let native = config.create_native_config()?;
        let hold = Arc::new(AtomicU64::new(0));
        let events = sys::RD_KAFKA_EVENT_DR
            | sys::RD_KAFKA_EVENT_STATS
            | sys::RD_KAFKA_EVENT_ERROR
            | sys::RD_KAFKA_EVENT_OAUTHBEARER_TOKEN_REFRESH;
        // SAFETY: the configuration is alive and not yet used. `hold` is kept by `Inner` until after
        // the client is destroyed, with which librdkafka's calls of the interceptor end.
        unsafe {
            sys::rd_kafka_conf_set_events(native.ptr(), events);
            // It is no event, but called by whoever polls the queue: by `serve` alone.
            sys::rd_kafka_conf_set_throttle_cb(native.ptr(), Some(on_throttle));
            let hold = Arc::as_ptr(&hold).cast_mut().cast();
            let name = c"hold".as_ptr();
            sys::rd_kafka_conf_interceptor_add_on_new(native.ptr(), name, Some(on_new), hold);
        }
        let client = CrateClient::new(config, native, RDKafkaType::RD_KAFKA_PRODUCER, context)?;
        let queue = Queue::main(&client);
        let inner = Arc::new(Inner { client, queue, hold });
        let stop = Arc::new(AtomicBool::new(false));
        let poller = std::thread::Builder::new()
            .name("producer polling".into())
            .spawn({
                let (inner, stop) = (Arc::clone(&inner), Arc::clone(&stop));
                move || {
                    while !stop.load(Ordering::Relaxed) {
                        inner.serve();
                    }
                }
            })
            .map_err(|error| KafkaError::ClientCreation(format!("its polling thread: {error}")))?;
        Ok(Producer { inner, stop, poller: Some(poller) })
    }

    pub(in super::super) fn client(&self) -> &CrateClient<Context> {
        &self.inner.client
    }

    pub(in super::super) fn context(&self) -> &Context {
        self.inner.client.context()
    }

    pub(in super::super) fn init_transactions(
        &self,
        timeout: Duration,
    ) -> Result<(), TransactionError> {
        // SAFETY: the client is alive, and the call thread-safe; so below.
        told(unsafe { sys::rd_kafka_init_transactions(self.native(), millis(timeout)) })
    }

    pub(in super::super) fn begin_transaction(&self) -> Result<(), TransactionError> {
        // SAFETY: as above.
        told(unsafe { sys::rd_kafka_begin_transaction(self.native()) })
    }

    pub(in super::super) fn commit_transaction(
        &self,
        timeout: Duration,
    ) -> Result<(), TransactionError> {
        // SAFETY: as above.
        told(unsafe { sys::rd_kafka_commit_transaction(self.native(), millis(timeout)) })
    }

    pub(in super::super) fn abort_transaction(
        &self,
        timeout: Duration,
    ) -> Result<(), TransactionError> {
        // SAFETY: as above.
        told(unsafe { sys::rd_kafka_abort_transaction(self.native(), millis(timeout)) })
    }

    /// Waits until nothing is queued or in flight, sending at once what waits for its linger time.
    /// Returns whether that was reached in time.
    pub(in super::super) fn flush(&self, timeout: Duration) -> bool {
        // SAFETY: as above.
        let result = unsafe { sys::rd_kafka_flush(self.native(), millis(timeout)) };
        result == err::RD_KAFKA_RESP_ERR_NO_ERROR
    }

    /// Gives up what is queued or in flight.
    pub(in super::super) fn purge(&self) {
        let flags = sys::RD_KAFKA_PURGE_F_QUEUE | sys::RD_KAFKA_PURGE_F_INFLIGHT;
        // SAFETY: as above. It fails only for a consumer.
        unsafe { sys::rd_kafka_purge(self.native(), flags) };
    }

    /// From now on, librdkafka learns so much later that a transaction has ended. Zero is at once.
    ///
    /// A coordinator says that a transaction is aborted a moment before it has written so to the
    /// partitions, and gives no new epoch meanwhile. librdkafka asks for one in the same millisecond,
    /// and once it was told to wait, it waits for half a second.
    pub(in super::super) fn hold(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.inner.hold.store(micros, Ordering::Relaxed);
    }
}

impl Client for Producer {
    fn native(&self) -> *mut sys::rd_kafka_t {
        self.inner.client.native_ptr()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.purge();
        self.flush(DROP_FLUSH);
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(_)) = self.poller.take().map(JoinHandle::join) {
            tracing::error!("the thread that polls the producer ended in a panic");
        }
    }
}

impl Inner {
    /// Waits for an event, and tells the context of it.
    fn serve(&self) {
        // SAFETY: the queue is alive.
        let event = unsafe { sys::rd_kafka_queue_poll(self.queue.0.as_ptr(), millis(POLL)) };
        for (broker, wait) in THROTTLED.take() {
            self.client.context().throttles(broker, wait);
        }
        let Some(event) = NonNull::new(event).map(Event) else { return };
        let context = self.client.context();
        // SAFETY: the event is alive; what it points to lives as long.
        unsafe {
            let event = event.0.as_ptr();
            match sys::rd_kafka_event_type(event) {
                sys::RD_KAFKA_EVENT_DR => {
                    while let Some(message) = sys::rd_kafka_event_message_next(event).as_ref() {
                        if message.err != err::RD_KAFKA_RESP_ERR_NO_ERROR {
                            let opaque = message._private as usize;
                            context.note(Failure { opaque, code: message.err.into() });
                        }
                    }
                }
                sys::RD_KAFKA_EVENT_LOG => {
                    let (mut facility, mut line, mut level) =
                        (std::ptr::null(), std::ptr::null(), 0);
                    let (f, l) = (&raw mut facility, &raw mut line);
                    if sys::rd_kafka_event_log(event, f, l, &raw mut level) == 0 {
                        context.log(severity(level), &text(facility), &text(line));
                    }
                }
                sys::RD_KAFKA_EVENT_ERROR => {
                    let error = KafkaError::Global(sys::rd_kafka_event_error(event).into());
                    context.error(error, &text(sys::rd_kafka_event_error_string(event)));
                }
                _ => {}
            }
        }
    }
}

/// The queue of a client's events.
struct Queue(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues are reference-counted and thread-safe, as its clients are.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    fn main(client: &CrateClient<Context>) -> Self {
        // SAFETY: the client is alive. Its queue is given back once, by `drop`.
        let queue = unsafe { sys::rd_kafka_queue_get_main(client.native_ptr()) };
        Queue(NonNull::new(queue).expect("a client has a main queue"))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: taken once, given back once. It may outlive its client.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) };
    }
}

struct Event(NonNull<sys::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: polled from a queue, to be destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

thread_local! {
    /// What [`on_throttle`] was told during a poll: broker and time. librdkafka gives it no place of ours, for the
    /// client's opaque is the crate's.
    static THROTTLED: RefCell<Vec<(String, Duration)>> = const { RefCell::new(Vec::new()) };
}

/// Called by librdkafka from within a poll of the producer's queue, after an answer that says so.
unsafe extern "C" fn on_throttle(
    _client: *mut sys::rd_kafka_t,
    broker: *const c_char,
    _broker_id: i32,
    wait_ms: c_int,
    _opaque: *mut c_void,
) {
    // SAFETY: null or a string, by librdkafka's word.
    let broker = unsafe { text(broker) };
    let wait = Duration::from_millis(u64::try_from(wait_ms).unwrap_or(0));
    THROTTLED.with_borrow_mut(|throttled| throttled.push((broker, wait)));
}

/// Called by librdkafka while it makes a client.
unsafe extern "C" fn on_new(
    client: *mut sys::rd_kafka_t,
    _config: *const sys::rd_kafka_conf_t,
    hold: *mut c_void,
    _text: *mut c_char,
    _text_size: usize,
) -> err {
    // SAFETY: `client` is being made, the one moment at which interceptors may be added.
    unsafe {
        sys::rd_kafka_interceptor_add_on_response_received(
            client,
            c"hold".as_ptr(),
            Some(on_response),
            hold,
        )
    }
}

/// Called on the thread of the connection that an answer came by, before anybody else sees it. The
/// transaction coordinator's carries nothing but its own requests.
unsafe extern "C" fn on_response(
    _client: *mut sys::rd_kafka_t,
    _socket: c_int,
    _broker: *const c_char,
    _broker_id: i32,
    request: i16,
    _version: i16,
    _correlation: i32,
    _size: usize,
    _round_trip: i64,
    error: err,
    hold: *mut c_void,
) -> err {
    if request == END_TXN && error == err::RD_KAFKA_RESP_ERR_NO_ERROR {
        // SAFETY: points to `Inner::hold`, which outlives the client.
        let hold = unsafe { &*hold.cast::<AtomicU64>() };
        std::thread::sleep(Duration::from_micros(hold.load(Ordering::Relaxed)));
    }
    err::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// Takes over what a call returned: null is success.
fn told(error: *mut sys::rd_kafka_error_t) -> Result<(), TransactionError> {
    let Some(error) = NonNull::new(error).map(NonNull::as_ptr) else { return Ok(()) };
    // SAFETY: the error is ours until it is destroyed, once.
    Err(unsafe {
        let wants_abort = sys::rd_kafka_error_txn_requires_abort(error) != 0;
        let retriable = sys::rd_kafka_error_is_retriable(error) != 0;
        let fatal = sys::rd_kafka_error_is_fatal(error) != 0;
        let told = TransactionError {
            code: sys::rd_kafka_error_code(error).into(),
            text: text(sys::rd_kafka_error_string(error)),
            may_call_again: retriable && !fatal && !wants_abort,
            wants_abort,
        };
        sys::rd_kafka_error_destroy(error);
        told
    })
}

/// # Safety
/// `text` is null or a NUL-terminated string.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

/// Of a level as syslog has it.
fn severity(level: c_int) -> RDKafkaLogLevel {
    match level {
        0 => RDKafkaLogLevel::Emerg,
        1 => RDKafkaLogLevel::Alert,
        2 => RDKafkaLogLevel::Critical,
        3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}
