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
    producer::Producer as _,
};

use super::{
    context::{Context, Failure, PROGRESS_OPAQUE},
    errors::{Verdict, judge, refusal, sort, unavailable},
    native::{self, Outgoing, Producer, Topic},
    progress_log,
    settings::Settings,
    stop::{SLICE, Stop},
    topics::Topics,
};
use crate::{
    fault::{self, Point},
    record::Batch,
    sink::{Rest, SinkError},
};

/// Topic handles kept; beyond that all are given back.
const HANDLES_MAX: usize = 10_000;

/// A producer, and what it has learned of topics.
pub(super) struct Outlet {
    handles: HashMap<String, Topic<Producer>>,
    progress: Topic<Producer>,
    pub(super) client: Arc<Producer>,
    /// Under which progress is stored.
    pub(super) progress_key: String,
    /// Of a delivery, from its first record to its end.
    pub(super) limit: Duration,
    pub(super) stop: Stop,
}

/// The records of one delivery.
#[derive(Clone)]
pub(super) struct Load<'a> {
    pub batch: &'a Batch,
    pub range: Range<usize>,
}

impl Outlet {
    pub(super) fn new(
        settings: &Settings,
        config: &ClientConfig,
        stop: &Stop,
    ) -> Result<Self, SinkError> {
        let doing = "making a producer";
        let client: Producer = config
            .create_with_context(Context::new("producer"))
            .map_err(|error| sort(doing, error, None))?;
        let client = Arc::new(client);
        let progress = Topic::new(&client, &settings.progress_topic())
            .map_err(|code| sort(doing, KafkaError::MessageProduction(code), None))?;
        Ok(Outlet {
            handles: HashMap::new(),
            progress,
            client,
            progress_key: progress_log::key(&settings.relay_name, None),
            limit: settings.delivery_limit(),
            stop: stop.clone(),
        })
    }

    /// Records, then progress. Records that are refused leave the others stored, and no progress.
    pub(super) fn deliver_plain(
        &mut self,
        load: &Load<'_>,
        topics: &mut Topics,
        progress: &Bytes,
        careful: impl FnOnce() -> Result<Outlet, SinkError>,
    ) -> Result<(), SinkError> {
        match self.store(load, topics, OnRefusal::Stop)? {
            Verdict::Stored => {}
            Verdict::Refused(records) if load.range.len() == 1 => {
                return Err(SinkError::Refused { records, rest: Rest::Stored });
            }
            // A broker refuses a batch of the wire as a whole. Storing everything once more, a
            // record at a time, names the guilty, and leaves the innocent in their order.
            Verdict::Refused(_) => match careful()?.store(load, topics, OnRefusal::GoOn)? {
                Verdict::Stored => {}
                Verdict::Refused(records) => {
                    return Err(SinkError::Refused { records, rest: Rest::Stored });
                }
                Verdict::Failed(code) => return Err(self.failed(load.range.len(), code)),
            },
            Verdict::Failed(code) => return Err(self.failed(load.range.len(), code)),
        }
        let deadline = Instant::now() + self.limit;
        self.send_progress(progress, deadline)?;
        fault::point(Point::ProgressFollows);
        match self.settle(deadline)? {
            Verdict::Stored => Ok(()),
            Verdict::Refused(_) => Err(self.failed(0, None)),
            Verdict::Failed(code) => Err(self.failed(0, code)),
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
        self.settle(deadline).inspect(|_| fault::point(Point::RecordsStored))
    }

    /// Queues the records in order. One that can't be queued is noted as failed.
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
        let mut last = None;
        for (index, record) in load.range.clone().filter_map(|i| Some((i, load.batch.get(i)?))) {
            let target = match last {
                Some((topic, target)) if topic == record.topic => target,
                _ => {
                    let target = topics.target(record.topic).ok_or_else(|| {
                        unavailable(format!("storing to {}", record.topic), "it was not looked up")
                    })?;
                    self.open(record.topic)?;
                    last = Some((record.topic, target));
                    target
                }
            };
            let Some(handle) = self.handles.get(record.topic) else { continue };
            let outgoing = Outgoing {
                key: record.key,
                payload: record.payload,
                timestamp_ms: record.timestamp_ms,
                partition: target.partition(&record),
                opaque: index,
            };
            let sent = self.queue(deadline, || handle.produce(outgoing, record.headers()))?;
            if let Err(code) = sent {
                self.client.context().note(Failure { opaque: index, code });
                if on_refusal == OnRefusal::Stop || refusal(code).is_none() {
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
        if let Err(code) =
            self.queue(deadline, || self.progress.produce(outgoing, iter::empty()))?
        {
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

    /// Waits until every queued record is stored or failed, and judges the failures.
    pub(super) fn settle(&self, deadline: Instant) -> Result<Verdict, SinkError> {
        // The native flush, never the crate's: that one sleeps to a 100 ms boundary, and so would
        // the commit that calls it while anything is in flight.
        while !native::flush(&self.client, SLICE) {
            self.may_go_on(deadline, "waiting for the brokers to store records")?;
        }
        Ok(judge(&self.client.context().take_failures()))
    }

    pub(super) fn failed(&self, count: usize, code: Option<RDKafkaErrorCode>) -> SinkError {
        let doing = match count {
            0 => "storing progress".to_owned(),
            _ => format!("storing {count} records"),
        };
        self.sorted(&doing, KafkaError::MessageProduction(code.unwrap_or(RDKafkaErrorCode::Fail)))
    }

    pub(super) fn sorted(&self, doing: &str, error: KafkaError) -> SinkError {
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
