//! A producer, and what the deliveries that go through it share: queueing, waiting, judging.

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
    errors::{Verdict, judge, sort},
    lookup::Lookup,
    native::{Outgoing, Producer, Topic},
    progress_log::{self, Sealer},
    settings::Settings,
    stop::{SLICE, Stop},
    topics::Topics,
};
use crate::{
    core::{
        printable::counted,
        record::{Batch, RefusedRecord},
    },
    sink::{Rest, SinkError, unavailable},
};

/// Topic handles kept; beyond that all are given back.
pub(super) const HANDLES_MAX: usize = 10_000;

/// A delivery that has not ended after this time has its topics looked up: one may be gone.
const LOOK_AFTER: Duration = Duration::from_secs(1);

pub(super) const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);

/// Of a delivery of which a topic is gone.
pub(super) const GONE: Verdict = Verdict::Stale(RDKafkaErrorCode::UnknownTopicOrPartition);

/// Between two looks at whether a record of the delivery under way has failed, and how long the
/// answers for others that are in flight are waited for then.
const LOAD_SLICE: Duration = Duration::from_millis(20);

/// How long brokers may need, at first and at most, for writing to the partitions that a transaction
/// is aborted; see [`Producer::hold`].
const MARKERS_LEAST: Duration = Duration::from_millis(10);

/// A producer, and what it has learned of topics.
pub(super) struct Outlet {
    pub(super) handles: HashMap<String, Topic<Producer>>,
    /// `None` where progress is kept elsewhere.
    progress: Option<Topic<Producer>>,
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

/// What to do with the records after one that librdkafka itself refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OnRefusal {
    Stop,
    GoOn,
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
        let progress = settings
            .keeps_progress()
            .then(|| Topic::new(&client, &settings.progress_topic()))
            .transpose()
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

    pub(super) fn open(&mut self, topic: &str) -> Result<(), SinkError> {
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
        let Some(progress) = &self.progress else {
            return Err(unavailable("storing progress", "these settings keep none in a topic"));
        };
        let seal = self.sealer.seal(key.as_bytes(), payload);
        let headers = || iter::once((progress_log::SEAL, seal.as_bytes()));
        if let Err(code) = self.queue(deadline, || progress.produce(outgoing, headers()))? {
            self.client.context().note(Failure { opaque: PROGRESS_OPAQUE, code });
        }
        Ok(())
    }

    /// Queues one record, waiting for room if there is none: the queue is sized so that there is.
    pub(super) fn queue(
        &self,
        deadline: Instant,
        mut produce: impl FnMut() -> Result<(), RDKafkaErrorCode>,
    ) -> Result<Result<(), RDKafkaErrorCode>, SinkError> {
        loop {
            match produce() {
                Err(RDKafkaErrorCode::QueueFull) => {
                    self.may_go_on(deadline, "waiting for room in the producer's queue")?;
                    self.client.flush(SLICE);
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
        if !self.flush_load(load, topics, deadline)? {
            return Ok(GONE);
        }
        Ok(judge(&self.client.context().take_failures(), |index| {
            let record = load.batch.get(index)?;
            Some((record.topic, topics.peek(record.topic)?.partition(&record)))
        }))
    }

    /// As [`Outlet::flush`], for records. Returns `false`, early, when a topic is gone meanwhile: librdkafka
    /// holds its records until their time is over.
    pub(super) fn flush_load(
        &self,
        load: &Load<'_>,
        topics: &mut Topics,
        deadline: Instant,
    ) -> Result<bool, SinkError> {
        let mut look = Instant::now() + LOOK_AFTER;
        let mut failed = false;
        while !self.has_settled(&mut failed) {
            self.may_go_on(deadline, "waiting for the brokers to store records")?;
            if Instant::now() >= look {
                if !topics.are_there(load.batch, load.range.clone(), load.lookup) {
                    return Ok(false);
                }
                look = Instant::now() + LOOK_AFTER;
            }
        }
        Ok(true)
    }

    /// Waits until every queued record is stored or failed, and judges the failures.
    pub(super) fn settle(&self, deadline: Instant) -> Result<Verdict, SinkError> {
        self.flush(deadline)?;
        Ok(judge(&self.client.context().take_failures(), |_| Some(())))
    }

    /// Waits until nothing is queued or in flight.
    pub(super) fn flush(&self, deadline: Instant) -> Result<(), SinkError> {
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
        if self.client.flush(LOAD_SLICE) {
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
