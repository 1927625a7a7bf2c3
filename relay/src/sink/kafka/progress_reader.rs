//! Reads the progress topic. `progress_log` says which record counts.
//!
//! The rule of reading: take the true high
//! watermark H first (a `read_committed` query would answer the last stable offset instead), then
//! read until everything before H has been read *or passed over*. Transaction markers and aborted
//! records take offsets but are never handed out, so the last record's offset proves nothing; the
//! end-of-partition event carries the offset the reader has come to, which under `read_committed`
//! is at most the last stable offset. While it is below H, a transaction is open that may hold a
//! newer record: wait for its end.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{
    context::Context,
    errors::sort,
    hidden::{StableEnd, Waits},
    lookup::Lookup,
    native::{Consumer, PartitionReader, Read, Topic},
    progress_log::{self, Newest},
    settings::Settings,
    stop::{SLICE, Stop},
};
use crate::{
    seal::SealKey,
    sink::{SinkError, unavailable},
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A reader that waits says so, and asks the broker for a sign of life, this often.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// The topic is smaller where the brokers compact it and the relay alone writes to it: some segments, of
/// 16 MiB each where an older version made it.
const USUAL_BYTES_MAX: u64 = 64 << 20;

/// How far the topic is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// To where an open transaction, if there is one, hides what follows.
    Stable,
    /// To the end there is now: waits for open transactions to end.
    Newest,
}

/// Finds the newest progress record; see the module for the rule.
pub(super) fn read(
    settings: &Settings,
    key: &SealKey,
    lookup: &Lookup,
    stop: &Stop,
    until: Until,
) -> Result<progress_log::Found, SinkError> {
    let name = settings.progress_topic();
    let doing = format!("reading the progress topic {name}");
    let failed = |error| sort(&doing, error, None);
    let (low, high) = lookup.watermarks(&name, REQUEST_TIMEOUT).map_err(failed)?;
    if low >= high {
        return Ok(progress_log::Found::default());
    }
    let consumer: std::sync::Arc<Consumer> = std::sync::Arc::new(
        settings
            .reader_config()
            .create_with_context(Context::new("progress", &settings.reach))
            .map_err(failed)?,
    );
    let mut reader = Topic::new(&consumer, &name)
        .and_then(|topic| PartitionReader::start(topic, 0, low))
        .map_err(|code| failed(KafkaError::MessageConsumption(code)))?;
    let mut newest = Newest::new(&settings.relay_name, key, low);
    let started = Instant::now();
    let mut reported = started;
    let mut heard = false;
    let mut waits = Waits::new(settings, &name);
    let mut end = StableEnd::default();
    let mut size = Size::new(settings);
    while newest.position < high {
        if stop.requested() {
            return Err(unavailable(doing, "asked to stop"));
        }
        let read = reader.next(SLICE);
        heard |= matches!(read, Some(Read::Record { .. } | Read::End { .. }));
        if let Some(Read::Error(code)) = read {
            give_up_on(code).map_err(failed)?;
        }
        let at_stable_end = matches!(read, Some(Read::End { .. }));
        if let Some(read) = read {
            size.add(&read);
            newest.take(read);
        }
        if at_stable_end && until == Until::Stable {
            break;
        }
        while consumer.poll(Duration::ZERO).is_some() {}
        let is_hidden = end.is_still_at(newest.position, at_stable_end);
        if newest.position < high && reported.elapsed() >= REPORT_EVERY {
            reported = Instant::now();
            // Also a sign of life: with the broker away, waiting would never end.
            lookup.watermarks(&name, REQUEST_TIMEOUT).map_err(failed)?;
            if !heard && started.elapsed() > 3 * REPORT_EVERY {
                let why = format!("the broker answers, but sends no records; {}", cause(settings));
                return Err(unavailable(doing, why));
            }
            if is_hidden {
                waits.tell(newest.position, high);
            }
        }
    }
    size.end(until);
    Ok(newest.found())
}

/// How much of the topic this reading has read, told to whoever looks.
struct Size<'a> {
    settings: &'a Settings,
    bytes: u64,
}

impl<'a> Size<'a> {
    fn new(settings: &'a Settings) -> Self {
        settings.reach.reads(Some(0));
        Size { settings, bytes: 0 }
    }

    fn add(&mut self, read: &Read) {
        if let Read::Record { key, payload, .. } = read {
            let length = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
            let bytes = length(key) + length(payload);
            self.bytes = self.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
            self.settings.reach.reads(Some(self.bytes));
        }
    }

    fn end(self, until: Until) {
        self.settings.reach.reads(None);
        if self.bytes > USUAL_BYTES_MAX && until == Until::Newest {
            tracing::warn!(
                topic = self.settings.progress_topic(),
                mebibytes = self.bytes >> 20,
                "the progress topic is large, and each start reads all of it: {}",
                who_fills_it(self.settings)
            );
        }
    }
}

/// A reading that takes long though it continues, and what helps; `None` where none is under way.
pub(in crate::sink) fn long_reading(settings: &Settings) -> Option<(String, String)> {
    let bytes = settings.reach.is_reading(REPORT_EVERY)?;
    let what = format!(
        "the progress topic {} is still being read, and has more than {} MiB: nothing is wrong with the \
         brokers, and each start takes longer",
        settings.progress_topic(),
        bytes >> 20
    );
    Some((what, who_fills_it(settings)))
}

/// What keeps records back, and what helps.
fn cause(settings: &Settings) -> String {
    let servers = settings.servers();
    format!(
        "it may be held back by a quota: {}; else look at its leader, which `kafka-topics --bootstrap-server \
         {servers} --describe --topic {}` shows",
        settings.without_quota("consumer_byte_rate"),
        settings.progress_topic()
    )
}

fn who_fills_it(settings: &Settings) -> String {
    let servers = settings.servers();
    let name = settings.progress_topic();
    format!(
        "it usually has less than {} MiB. Look whether someone else writes there, with `kafka-acls \
         --bootstrap-server {servers} --list --topic {name}`, and whether the brokers compact it: \
         log.cleaner.enable must be true",
        USUAL_BYTES_MAX >> 20
    )
}

/// Errors that do not pass by themselves; librdkafka continues after all others.
fn give_up_on(code: RDKafkaErrorCode) -> Result<(), KafkaError> {
    use RDKafkaErrorCode as Code;
    match code {
        Code::TopicAuthorizationFailed
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::Fatal => Err(KafkaError::MessageConsumption(code)),
        _ => Ok(()),
    }
}
