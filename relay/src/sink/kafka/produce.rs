//! Stores a range of a batch, with its progress, through one producer.
//!
//! Exactly-once: one transaction holds both. At-least-once: records first, then progress. Blocking;
//! lives on the sink's own thread. Every wait ends at the delivery's deadline or when a stop is
//! requested, whichever comes first; after either the outcome is uncertain and the producer done.

use std::{
    collections::HashMap,
    iter,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    context::{Context, Failure, PROGRESS_OPAQUE},
    errors::{Verdict, is_refusal, judge, sort, unavailable},
    limits,
    lookup::Lookup,
    native::{self, Outgoing, Producer, Topic},
    progress_log::{self, Sealer},
    settings::Settings,
    stop::{SLICE, Stop},
    topics::{Topics, now_ms},
    transaction::MARKERS_LEAST,
};
use crate::{
    core::{
        header,
        printable::counted,
        record::{Batch, Record, RefusedRecord},
    },
    fault::{self, Point},
    sink::{Rest, SinkError},
};

/// Topic handles kept; beyond that all are given back.
const HANDLES_MAX: usize = 10_000;
/// A delivery that has not ended after this time has its topics looked up: one may be gone.
const LOOK_AFTER: Duration = Duration::from_secs(1);
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at whether a record of the delivery under way has failed, and how long the
/// answers for others that are in flight are waited for then.
const LOAD_SLICE: Duration = Duration::from_millis(20);

/// A producer, and what it has learned of topics.
pub(super) struct Outlet {
    handles: HashMap<String, Topic<Producer>>,
    progress: Topic<Producer>,
    pub(super) client: Arc<Producer>,
    sealer: Arc<Sealer>,
    /// Under which progress is stored.
    pub(super) progress_key: String,
    /// Of a delivery, from its first record to its end.
    pub(super) limit: Duration,
    pub(super) stop: Stop,
    /// Records of the delivery under way that got another timestamp than their event's.
    pub(super) restamped: u64,
    transactional: bool,
    /// How long brokers seem to take for writing to the partitions that a transaction is aborted.
    pub(super) markers: Duration,
}

/// The records of one delivery.
#[derive(Clone)]
pub(super) struct Load<'a> {
    pub batch: &'a Batch,
    pub range: Range<usize>,
    pub lookup: &'a Lookup,
    /// Some of it may be stored already, behind what comes later: consumers that know events by their
    /// positions must look each of these up by its id.
    pub again: bool,
}

/// Why a delivery was not stored, by what may be done.
pub(super) enum Undelivered {
    /// These records were refused.
    Refused(Vec<RefusedRecord>, Rest),
    /// Exactly-once: nothing of it is stored, for certain. At-least-once: some of it may be. Either
    /// way it may be sent again at once, with fresh knowledge of its topics.
    Again(SinkError),
    /// Nothing is certain: this producer is done.
    Uncertain(SinkError),
}

impl From<SinkError> for Undelivered {
    fn from(error: SinkError) -> Self {
        Undelivered::Uncertain(error)
    }
}

impl Outlet {
    pub(super) fn new(
        settings: &Settings,
        config: &ClientConfig,
        sealer: &Arc<Sealer>,
        stop: &Stop,
    ) -> Result<Self, SinkError> {
        let doing = "making a producer";
        let client = Producer::new(config, Context::new("producer", &settings.reach))
            .map_err(|error| sort(doing, error, None))?;
        let client = Arc::new(client);
        let progress = Topic::new(&client, &settings.progress_topic())
            .map_err(|code| sort(doing, KafkaError::MessageProduction(code), None))?;
        Ok(Outlet {
            handles: HashMap::new(),
            progress,
            client,
            sealer: Arc::clone(sealer),
            progress_key: progress_log::key(&settings.relay_name, None),
            limit: settings.delivery_limit(),
            stop: stop.clone(),
            restamped: 0,
            transactional: config.get("transactional.id").is_some(),
            markers: MARKERS_LEAST,
        })
    }

    /// Has the producer look at topics again: its own knowledge of them is minutes old otherwise,
    /// and a partition that it does not know is none to it.
    pub(super) fn refresh(&self, topics: &[String]) {
        for topic in topics.iter().filter(|topic| self.handles.contains_key(*topic)) {
            if let Err(error) = self.client.client().fetch_metadata(Some(topic), REFRESH_TIMEOUT) {
                tracing::debug!(topic, %error, "the producer could not look the topic up again");
            }
        }
    }

    /// Records, then progress. Records that are refused leave the others stored, and no progress.
    pub(super) fn deliver_plain(
        &mut self,
        load: &Load<'_>,
        topics: &mut Topics,
        progress: &Bytes,
        careful: impl FnOnce() -> Result<Outlet, SinkError>,
    ) -> Result<(), Undelivered> {
        let count = load.range.len();
        match self.store(load, topics, OnRefusal::Stop)? {
            Verdict::Stored => {}
            Verdict::Refused(records) if count == 1 => {
                return Err(Undelivered::Refused(records, Rest::Stored));
            }
            // A broker refuses a batch of the wire as a whole. Storing everything once more, a
            // record at a time, names the guilty, and leaves the innocent in their order.
            Verdict::Refused(_) => match careful()?.store(
                &Load { again: true, ..load.clone() },
                topics,
                OnRefusal::GoOn,
            )? {
                Verdict::Stored => {}
                Verdict::Refused(records) => {
                    return Err(Undelivered::Refused(records, Rest::Stored));
                }
                Verdict::Stale(code) => {
                    return Err(Undelivered::Again(self.failed(count, Some(code))));
                }
                Verdict::Failed(code) => return Err(self.failed(count, code).into()),
            },
            Verdict::Stale(code) => {
                self.client.purge();
                self.settle(Instant::now() + REFRESH_TIMEOUT)?;
                return Err(Undelivered::Again(self.failed(count, Some(code))));
            }
            Verdict::Failed(code) => return Err(self.failed(count, code).into()),
        }
        let deadline = Instant::now() + self.limit;
        self.send_progress(progress, deadline)?;
        fault::point(Point::ProgressFollows);
        match self.settle(deadline)? {
            Verdict::Stored => Ok(()),
            Verdict::Failed(code) => Err(self.failed(0, code).into()),
            Verdict::Refused(_) | Verdict::Stale(_) => Err(self.failed(0, None).into()),
        }
    }

    fn store(
        &mut self,
        load: &Load<'_>,
        topics: &mut Topics,
        on_refusal: OnRefusal,
    ) -> Result<Verdict, SinkError> {
        let deadline = Instant::now() + self.limit;
        self.send(load, topics, deadline, on_refusal)?;
        self.settle_load(load, topics, deadline).inspect(|_| fault::point(Point::RecordsStored))
    }

    /// Queues the records in order. One that can't be queued is noted as failed. Where a topic
    /// takes smaller batches than the producer makes, what is queued for it is stored before there
    /// is more than that.
    pub(super) fn send(
        &mut self,
        load: &Load<'_>,
        topics: &mut Topics,
        deadline: Instant,
        on_refusal: OnRefusal,
    ) -> Result<(), SinkError> {
        if self.handles.len() > HANDLES_MAX {
            self.handles.clear();
        }
        self.restamped = 0;
        let now_ms = now_ms();
        let mut queued = Queued::default();
        let mut last = None;
        for (index, record) in load.range.clone().filter_map(|i| Some((i, load.batch.get(i)?))) {
            let (target, batch_bytes_max) = match last.take() {
                Some((topic, target, max)) if topic == record.topic => (target, max),
                _ => {
                    let target = topics.target(record.topic).cloned().ok_or_else(|| {
                        unavailable(format!("storing to {}", record.topic), "it was not looked up")
                    })?;
                    self.open(record.topic)?;
                    let max = topics.batch_bytes_max(&target);
                    (target, max)
                }
            };
            let partition = target.partition(&record);
            if let Some(max) = batch_bytes_max
                && queued.is_full(&record, partition, max)
            {
                self.flush(deadline)?;
                queued = Queued::default();
                queued.is_full(&record, partition, max);
                if on_refusal == OnRefusal::Stop && self.client.context().has_failures() {
                    break;
                }
            }
            let created_at =
                target.is_stale(&record, now_ms).then(|| created_at(&record)).flatten();
            self.restamped += u64::from(created_at.is_some());
            last = Some((record.topic, target, batch_bytes_max));
            let Some(handle) = self.handles.get(record.topic) else { continue };
            let outgoing = Outgoing {
                key: record.key,
                payload: record.payload,
                timestamp_ms: record.timestamp_ms.filter(|_| created_at.is_none()),
                partition,
                opaque: index,
            };
            let added = created_at.as_ref().filter(|_| !has_time(&record));
            let added = added.map(|time| (header::CREATED_AT, time.as_bytes()));
            let mark = load.again.then(|| mark(&record)).flatten();
            let headers = record.headers().chain(added).chain(mark);
            let sent = self.queue(deadline, || handle.produce(outgoing, headers.clone()))?;
            if let Err(code) = sent {
                self.client.context().note(Failure { opaque: index, code });
                if on_refusal == OnRefusal::Stop || !is_refusal(code) {
                    break;
                }
            }
        }
        fault::point(Point::RecordsProduced);
        Ok(())
    }

    fn open(&mut self, topic: &str) -> Result<(), SinkError> {
        if !self.handles.contains_key(topic) {
            let handle = Topic::new(&self.client, topic).map_err(|code| {
                sort(
                    &format!("opening the topic {topic}"),
                    KafkaError::MessageProduction(code),
                    None,
                )
            })?;
            self.handles.insert(topic.to_owned(), handle);
        }
        Ok(())
    }

    pub(super) fn send_progress(
        &self,
        progress: &Bytes,
        deadline: Instant,
    ) -> Result<(), SinkError> {
        self.send_to_progress(&self.progress_key, Some(progress), deadline)
    }

    /// Queues a record for the progress topic; `None` is a tombstone.
    pub(super) fn send_to_progress(
        &self,
        key: &str,
        payload: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<(), SinkError> {
        let outgoing = Outgoing {
            key: Some(key.as_bytes()),
            payload,
            timestamp_ms: None,
            partition: 0,
            opaque: PROGRESS_OPAQUE,
        };
        let seal = self.sealer.seal(key.as_bytes(), payload);
        let headers = || iter::once((progress_log::SEAL, seal.as_bytes()));
        if let Err(code) = self.queue(deadline, || self.progress.produce(outgoing, headers()))? {
            self.client.context().note(Failure { opaque: PROGRESS_OPAQUE, code });
        }
        Ok(())
    }

    /// Queues one record, waiting for room if there is none: the queue is sized so that there is.
    fn queue(
        &self,
        deadline: Instant,
        mut produce: impl FnMut() -> Result<(), RDKafkaErrorCode>,
    ) -> Result<Result<(), RDKafkaErrorCode>, SinkError> {
        loop {
            match produce() {
                Err(RDKafkaErrorCode::QueueFull) => {
                    self.may_go_on(deadline, "waiting for room in the producer's queue")?;
                    native::flush(&self.client, SLICE);
                }
                other => return Ok(other),
            }
        }
    }

    /// As [`Outlet::settle`], for records; gives up early when a topic is gone meanwhile.
    pub(super) fn settle_load(
        &self,
        load: &Load<'_>,
        topics: &mut Topics,
        deadline: Instant,
    ) -> Result<Verdict, SinkError> {
        let mut look = Instant::now() + LOOK_AFTER;
        let mut failed = false;
        while !self.has_settled(&mut failed) {
            self.may_go_on(deadline, "waiting for the brokers to store records")?;
            if Instant::now() >= look {
                if !topics.are_there(load.batch, load.range.clone(), load.lookup) {
                    return Ok(Verdict::Stale(RDKafkaErrorCode::UnknownTopicOrPartition));
                }
                look = Instant::now() + LOOK_AFTER;
            }
        }
        Ok(judge(&self.client.context().take_failures(), |index| {
            let record = load.batch.get(index)?;
            Some((record.topic, topics.peek(record.topic)?.partition(&record)))
        }))
    }

    /// Waits until every queued record is stored or failed, and judges the failures.
    pub(super) fn settle(&self, deadline: Instant) -> Result<Verdict, SinkError> {
        self.flush(deadline)?;
        Ok(judge(&self.client.context().take_failures(), |_| Some(())))
    }

    /// Waits until nothing is queued or in flight.
    fn flush(&self, deadline: Instant) -> Result<(), SinkError> {
        let mut failed = false;
        while !self.has_settled(&mut failed) {
            self.may_go_on(deadline, "waiting for the brokers to store records")?;
        }
        Ok(())
    }

    /// Waits a moment for nothing to be queued or in flight. In a transaction, which one failure ends,
    /// gives up what is still there a moment after one (`failed`): librdkafka gives up what is queued when a
    /// transaction fails, but once. Records that it queues again after that, because their partition's
    /// numbers have a gap as well, would wait until their time is over, and everybody with them.
    fn has_settled(&self, failed: &mut bool) -> bool {
        if native::flush(&self.client, LOAD_SLICE) {
            return true;
        }
        if self.transactional {
            if *failed {
                self.client.purge();
            }
            *failed = self.client.context().has_failures();
        }
        false
    }

    pub(super) fn failed(&self, count: usize, code: Option<RDKafkaErrorCode>) -> SinkError {
        let doing = match count {
            0 => "storing progress".to_owned(),
            _ => format!("storing {}", counted(count as u64, "record")),
        };
        self.sorted(&doing, KafkaError::MessageProduction(code.unwrap_or(RDKafkaErrorCode::Fail)))
    }

    fn sorted(&self, doing: &str, error: KafkaError) -> SinkError {
        sort(doing, error, self.client.client().fatal_error())
    }

    fn may_go_on(&self, deadline: Instant, doing: &str) -> Result<(), SinkError> {
        if self.stop.requested() {
            return Err(unavailable(doing, "asked to stop"));
        }
        if Instant::now() >= deadline {
            let limit = self.limit;
            return Err(unavailable(
                doing,
                format!("it took longer than {limit:?}, two thirds of transaction.timeout.ms"),
            ));
        }
        match self.client.client().fatal_error() {
            Some(fatal) => {
                let error = KafkaError::Global(RDKafkaErrorCode::Fatal);
                Err(sort(doing, error, Some(fatal)))
            }
            None => Ok(()),
        }
    }
}

/// What to do with the records after one that librdkafka itself refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OnRefusal {
    Stop,
    GoOn,
}

/// What is queued for the partitions of topics that take small batches only.
#[derive(Default)]
struct Queued<'a> {
    bytes: HashMap<(&'a str, i32), usize>,
}

impl<'a> Queued<'a> {
    /// Counts a record. `true`, without counting it, if a batch of `max` bytes can't hold it with
    /// what is queued already.
    fn is_full(&mut self, record: &Record<'a>, partition: i32, max: usize) -> bool {
        // Behind the first, the differences of time and offset take more bytes.
        let bytes = limits::batch_bytes(record) + 12;
        let queued = self.bytes.entry((record.topic, partition)).or_default();
        let full = *queued > 0 && *queued + bytes > max;
        if !full {
            *queued += bytes;
        }
        full
    }
}

/// The event's time as RFC 3339.
fn created_at(record: &Record<'_>) -> Option<String> {
    let moment = jiff::Timestamp::from_millisecond(record.timestamp_ms?).ok()?;
    Some(format!("{moment:.3}"))
}

/// What says that the record may come late; `None` where that is said already.
fn mark(record: &Record<'_>) -> Option<(&'static str, &'static [u8])> {
    let has = |wanted: &str| record.headers().any(|(name, _)| name == wanted);
    let name = match has(header::cloudevents::ID) {
        true => header::cloudevents::REPAIRED,
        false => header::REPAIRED,
    };
    (!has(name)).then_some((name, b"1"))
}

/// Whether the record's headers tell the event's time already.
fn has_time(record: &Record<'_>) -> bool {
    record.headers().any(|(name, _)| name == header::cloudevents::TIME)
}
