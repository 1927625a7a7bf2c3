//! Delivers a range of a batch, records first, then progress: the half of [`Outlet`] that needs no
//! transaction, and the queueing of records that both halves do.
//!
//! Blocking; lives on the sink's own thread. Every wait ends at the delivery's deadline or when a stop is
//! requested, whichever comes first; after either the outcome is uncertain and the producer done.

use std::{collections::HashMap, time::Instant};

use bytes::Bytes;

use super::{
    context::Failure,
    errors::{Verdict, is_refusal},
    limits,
    native::Outgoing,
    outlet::{GONE, HANDLES_MAX, Load, OnRefusal, Outlet, REFRESH_TIMEOUT, Undelivered},
    topics::{Topics, now_ms},
};
use crate::{
    core::{header, record::Record},
    fault::{self, Point},
    sink::{Rest, SinkError, message::created_at},
};

impl Outlet {
    /// Records, then progress, if it is to be stored by now. Records that are refused leave the others
    /// stored, and no progress.
    pub(super) fn deliver_plain(
        &mut self,
        load: &Load<'_>,
        topics: &mut Topics,
        progress: Option<&Bytes>,
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
                // Each was in a batch of its own, also where others of its partition were refused.
                Verdict::Refused(mut records) => {
                    records.iter_mut().for_each(|record| record.certain = true);
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
        let Some(progress) = progress else { return Ok(()) };
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
        self.send(load, topics, deadline, on_refusal)
    }

    /// Queues the records, waits for them, and judges the failures.
    pub(super) fn send(
        &mut self,
        load: &Load<'_>,
        topics: &mut Topics,
        deadline: Instant,
        on_refusal: OnRefusal,
    ) -> Result<Verdict, SinkError> {
        if !self.queue_load(load, topics, deadline, on_refusal)? {
            return Ok(GONE);
        }
        self.settle_load(load, topics, deadline).inspect(|_| fault::point(Point::RecordsStored))
    }

    /// Queues the records in order. One that can't be queued is noted as failed. Where a topic
    /// takes smaller batches than the producer makes, what is queued for it is stored before there
    /// is more than that. Returns `false`, early, when a topic is gone meanwhile.
    fn queue_load(
        &mut self,
        load: &Load<'_>,
        topics: &mut Topics,
        deadline: Instant,
        on_refusal: OnRefusal,
    ) -> Result<bool, SinkError> {
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
                    let target = topics.target(record.topic).cloned();
                    let target = target.expect("all topics of a delivery are looked up before it");
                    self.open(record.topic)?;
                    let max = topics.batch_bytes_max(&target);
                    (target, max)
                }
            };
            let partition = target.partition(&record);
            if let Some(max) = batch_bytes_max
                && queued.is_full(&record, partition, max)
            {
                if !self.flush_load(load, topics, deadline)? {
                    return Ok(false);
                }
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
        Ok(true)
    }
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
