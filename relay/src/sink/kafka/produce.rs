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
    error::{KafkaError, RDKafkaError, RDKafkaErrorCode},
    producer::{Producer as _, PurgeConfig},
};

use super::{
    context::{Context, Failure, PROGRESS_OPAQUE},
    errors::{Verdict, judge, refusal, refused, sort, unavailable},
    native::{self, Outgoing, Producer, Topic},
    settings::Settings,
    stop::{SLICE, Stop},
    topics::Topics,
};
use crate::{
    record::Batch,
    sink::{Rest, SinkError},
};

/// How long making ourselves the only producer may take: brokers abort what an older one left.
const FENCE_LIMIT: Duration = Duration::from_secs(30);
/// How long taking a delivery back may take, and how long when we are asked to stop meanwhile.
const ABORT_LIMIT: Duration = Duration::from_secs(5);
const ABORT_LIMIT_STOPPING: Duration = Duration::from_millis(1_000);
/// Topic handles kept; beyond that all are given back.
const HANDLES_MAX: usize = 10_000;

/// A producer, and what it has learned of topics.
pub(super) struct Outlet {
    handles: HashMap<String, Topic<Producer>>,
    progress: Topic<Producer>,
    client: Arc<Producer>,
    relay_name: String,
    limit: Duration,
    stop: Stop,
    /// The newest progress this producer stored.
    stored: Option<Bytes>,
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
            relay_name: settings.relay_name.clone(),
            limit: settings.delivery_limit(),
            stop: stop.clone(),
            stored: None,
        })
    }

    /// Takes the transactional id over: older producers are fenced, their transaction aborted.
    pub(super) fn fence(&self) -> Result<(), SinkError> {
        let deadline = Instant::now() + FENCE_LIMIT;
        self.until(deadline, "taking over the transactional id", |slice| {
            self.client.init_transactions(slice)
        })
    }

    /// Records and progress in one transaction.
    pub(super) fn deliver_transaction(
        &mut self,
        load: &Load<'_>,
        topics: &mut Topics,
        progress: &Bytes,
    ) -> Result<(), SinkError> {
        let count = load.range.len();
        let deadline = Instant::now() + self.limit;
        self.client
            .begin_transaction()
            .map_err(|error| self.sorted("beginning a transaction", error))?;
        // Progress first: its partition is then registered with the transaction in the same
        // request as the others'. Order across partitions means nothing inside a transaction.
        let verdict = self
            .send_progress(progress, deadline)
            .and_then(|()| self.send(load, topics, deadline, OnRefusal::Stop))
            .and_then(|()| self.settle(deadline));
        let error = match verdict {
            Ok(Verdict::Stored) => match self.commit(deadline, count) {
                Ok(()) => {
                    self.stored = Some(progress.clone());
                    return Ok(());
                }
                Err(error) => error,
            },
            Ok(Verdict::Refused(records)) => {
                self.abort()?;
                return Err(SinkError::Refused { records, rest: Rest::NotStored });
            }
            Ok(Verdict::Failed(Some(code))) => {
                let error = KafkaError::MessageProduction(code);
                Problem::from(self.sorted(&format!("storing {count} records"), error))
            }
            // All were taken back, because of something that only the transaction can tell.
            Ok(Verdict::Failed(None)) => match self.commit(deadline, count) {
                Ok(()) => Problem::from(unavailable(
                    format!("storing {count} records"),
                    "they were taken back, and the transaction does not say why",
                )),
                Err(error) => error,
            },
            Err(error) => Problem::from(error),
        };
        let aborted = self.abort();
        if error.not_authorised && !load.range.is_empty() && aborted.is_ok() {
            return Err(self.not_authorised(load, error.error));
        }
        Err(error.error)
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
        self.settle(deadline)
    }

    /// Queues the records in order. One that can't be queued is noted as failed.
    fn send(
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

    fn send_progress(&self, progress: &Bytes, deadline: Instant) -> Result<(), SinkError> {
        let outgoing = Outgoing {
            key: Some(self.relay_name.as_bytes()),
            payload: Some(progress),
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
    fn settle(&self, deadline: Instant) -> Result<Verdict, SinkError> {
        // The native flush, never the crate's: that one sleeps to a 100 ms boundary, and so would
        // the commit that calls it while anything is in flight.
        while !native::flush(&self.client, SLICE) {
            self.may_go_on(deadline, "waiting for the brokers to store records")?;
        }
        Ok(judge(&self.client.context().take_failures()))
    }

    fn commit(&self, deadline: Instant, count: usize) -> Result<(), Problem> {
        let doing = format!("committing a transaction of {count} records");
        self.slices(deadline, &doing, |slice| self.client.commit_transaction(slice))
    }

    /// Takes the open transaction back, so that nothing of it will ever be read.
    fn abort(&self) -> Result<(), SinkError> {
        self.client.purge(PurgeConfig::default().queue().inflight());
        let limit = if self.stop.requested() { ABORT_LIMIT_STOPPING } else { ABORT_LIMIT };
        let deadline = Instant::now() + limit;
        let aborted = loop {
            match self.client.abort_transaction(SLICE) {
                Err(error) if may_call_again(&error) && Instant::now() < deadline => {}
                Err(error) => break Err(self.sorted("aborting a transaction", error)),
                Ok(()) => break Ok(()),
            }
        };
        // What the purge took back is no failure of the next delivery.
        native::flush(&self.client, SLICE);
        self.client.context().take_failures();
        aborted
    }

    /// The broker would not let a partition into the transaction. It does not say which: if the
    /// progress topic is still ours, it was one of the records'.
    fn not_authorised(&mut self, load: &Load<'_>, error: SinkError) -> SinkError {
        let Some(progress) = self.stored.clone() else { return error };
        let nothing = Batch::new(crate::record::BatchLimits { records_max: 0, bytes_max: 0 });
        let empty = Load { batch: &nothing, range: 0..0 };
        let mut no_topics = Topics::none();
        if self.deliver_transaction(&empty, &mut no_topics, &progress).is_err() {
            return error;
        }
        let records = load.range.clone().filter_map(|index| {
            let topic = load.batch.get(index)?.topic;
            let text =
                format!("the relay may not write to {topic}, or to another topic of its batch");
            Some(refused(index, "not_authorised", text))
        });
        SinkError::Refused { records: records.collect(), rest: Rest::NotStored }
    }

    fn failed(&self, count: usize, code: Option<RDKafkaErrorCode>) -> SinkError {
        let doing = match count {
            0 => "storing progress".to_owned(),
            _ => format!("storing {count} records"),
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

    fn until(
        &self,
        deadline: Instant,
        doing: &str,
        call: impl FnMut(Duration) -> Result<(), KafkaError>,
    ) -> Result<(), SinkError> {
        self.slices(deadline, doing, call).map_err(|problem| problem.error)
    }

    /// Repeats a call that may be taken up again, until it ends or the time is over.
    fn slices(
        &self,
        deadline: Instant,
        doing: &str,
        mut call: impl FnMut(Duration) -> Result<(), KafkaError>,
    ) -> Result<(), Problem> {
        loop {
            match call(SLICE) {
                Ok(()) => return Ok(()),
                Err(error) if may_call_again(&error) => {
                    if self.stop.requested() || Instant::now() >= deadline {
                        return Err(self.sorted(doing, error).into());
                    }
                }
                Err(error) => {
                    let not_authorised = error.rdkafka_error_code()
                        == Some(RDKafkaErrorCode::TopicAuthorizationFailed);
                    return Err(Problem { error: self.sorted(doing, error), not_authorised });
                }
            }
        }
    }
}

/// What to do with the records after one that librdkafka itself refuses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnRefusal {
    Stop,
    GoOn,
}

/// Why a transaction could not be committed.
struct Problem {
    error: SinkError,
    /// A partition was not let into the transaction.
    not_authorised: bool,
}

impl From<SinkError> for Problem {
    fn from(error: SinkError) -> Self {
        Problem { error, not_authorised: false }
    }
}

/// A call of the transaction API that ran out of time goes on in the background, and calling it
/// again takes it up.
fn may_call_again(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => is_retriable(error),
        KafkaError::Flush(code) => *code == RDKafkaErrorCode::OperationTimedOut,
        _ => false,
    }
}

fn is_retriable(error: &RDKafkaError) -> bool {
    error.is_retriable() && !error.is_fatal() && !error.txn_requires_abort()
}
