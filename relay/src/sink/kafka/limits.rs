//! What a topic's settings refuse, so that the broker need not be asked record by record.
//!
//! Pure. Judges one record by settings that were read a moment ago; says no only where the broker
//! is certain to say no as well. Where it might say yes (a compressed record, a time near a
//! bound), the broker is asked.

use std::collections::HashMap;

use super::settings::Settings;
use crate::core::record::Record;

/// Bytes of a batch on the wire before its first record.
const BATCH_HEADER_BYTES: usize = 61;
/// Room for the relay's own headers, beside what `outbox.publish` counts.
const HEADERS_BYTES: usize = 1024;
/// The broker's clock may differ from ours by so much.
const CLOCKS_DIFFER_MS: i64 = 60_000;
/// Where a topic's settings can't be read, it may keep its records no longer than this.
const RETENTION_UNKNOWN_MS: i64 = 2 * 24 * 3_600_000;

/// What waits for a topic, as far as it was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) records: u64,
    pub(super) bytes: u64,
    /// Records so old that the topic would soon delete them.
    pub(super) stale: u64,
}

/// The settings of a topic that decide over single records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// `max.message.bytes`: of a batch as it arrives.
    pub(super) batch_bytes_max: Option<usize>,
    /// It is compacted: a record without a key has no place in it.
    needs_key: bool,
    /// The broker stamps records itself, and looks at no time of ours.
    stamps: bool,
    before_max_ms: Option<i64>,
    after_max_ms: Option<i64>,
    /// After this time a record is deleted, by its own time; `None` is never.
    retention_ms: Option<i64>,
    /// What a partition keeps, at most; `None` is all.
    retention_bytes: Option<u64>,
    /// So many replicas must have a record before it counts as stored; 0 where the topic has fewer and the
    /// broker counts those.
    insync_min: usize,
}

impl Limits {
    /// From the settings of a topic, by name.
    pub(super) fn of(settings: &HashMap<String, String>) -> Self {
        let text = |name: &str| settings.get(name).map(|value| value.trim());
        let number = |name: &str| text(name)?.parse::<i64>().ok();
        let policies = || text("cleanup.policy").unwrap_or("delete").split(',').map(str::trim);
        let either = number("message.timestamp.difference.max.ms");
        let bound = |name: &str| match (number(name), either) {
            (Some(bound), Some(either)) => Some(bound.min(either)),
            (bound, either) => bound.or(either),
        };
        // From 3.7 on (KAFKA-15583) a broker asks for no more replicas than a topic has. By a topic's settings
        // 3.6 looks the same, and says what is wrong when it refuses.
        let caps = settings.contains_key("message.timestamp.before.max.ms");
        let deletes = policies().any(|policy| policy == "delete");
        Limits {
            batch_bytes_max: number("max.message.bytes").and_then(|max| usize::try_from(max).ok()),
            needs_key: policies().any(|policy| policy == "compact"),
            stamps: text("message.timestamp.type") == Some("LogAppendTime"),
            before_max_ms: bound("message.timestamp.before.max.ms"),
            after_max_ms: bound("message.timestamp.after.max.ms"),
            retention_ms: number("retention.ms").filter(|ms| *ms >= 0 && deletes),
            retention_bytes: number("retention.bytes")
                .filter(|_| deletes)
                .and_then(|bytes| u64::try_from(bytes).ok()),
            insync_min: number("min.insync.replicas")
                .filter(|_| !caps)
                .and_then(|min| usize::try_from(min).ok())
                .unwrap_or_default(),
        }
    }

    /// Why the topic can store nothing at all, and the command that lets it; `replicas` is how many
    /// times it stores a record.
    pub(super) fn unwritable(
        &self,
        settings: &Settings,
        topic: &str,
        replicas: usize,
    ) -> Option<(String, String)> {
        let min = self.insync_min;
        (replicas > 0 && min > replicas).then(|| {
            let what = format!(
                "the topic {topic} has min.insync.replicas={min}, and only {replicas} of each \
                 record is kept: brokers refuse whatever is sent to it, and everything waits"
            );
            let command = alter_topic(settings, topic, &format!("min.insync.replicas={replicas}"));
            (what, format!("run {command}, or give the topic more replicas"))
        })
    }

    /// What else of the topic's settings is worth knowing in advance, each with its remedy: of records
    /// of at most `record_bytes_max`, of which `waiting` come now. `published_in` is the database, as SQL
    /// takes it, whose `outbox.publish` adds them, where it does.
    pub(super) fn advice(
        &self,
        settings: &Settings,
        topic: &str,
        partitions: i32,
        (record_bytes_max, published_in): (usize, Option<&str>),
        waiting: &Waiting,
    ) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let Waiting { records, bytes, stale } = *waiting;
        if let Some(max) = self.batch_bytes_max.filter(|max| *max < record_bytes_max) {
            let what = format!(
                "the topic {topic} takes at most {max} bytes of an event (max.message.bytes), and \
                 {record_bytes_max} bytes may be added to the outbox: larger events will be parked"
            );
            // A limit below this would refuse every event.
            let limit = max.saturating_sub(HEADERS_BYTES);
            let published_in = published_in.filter(|_| limit >= HEADERS_BYTES);
            let command = alter_topic(
                settings,
                topic,
                &format!("max.message.bytes={}", record_bytes_max + HEADERS_BYTES),
            );
            let refuse = published_in.map_or_else(String::new, |database| {
                format!(
                    "; or have `outbox.publish` refuse them, where an error can still be handled: `alter \
                     database {database} set outbox.record_bytes_max = {limit}`"
                )
            });
            found.push((what, format!("run {command}{refuse}")));
        }
        if let Some(kept_ms) = self.retention_ms.filter(|_| stale > 0) {
            let what = format!(
                "{stale} of {records} events that wait for the topic {topic} are older than half of \
                 its retention.ms={kept_ms}: Kafka would soon delete them, so they carry the time of \
                 their delivery, and their own in the header outbox-created-at"
            );
            let longer = alter_topic(settings, topic, "retention.ms=…");
            found.push((what, format!("to have their own times on them, first run {longer}")));
        }
        if self.needs_key {
            let what = format!(
                "the topic {topic} is compacted (cleanup.policy): Kafka keeps the newest event of each key, and deletes \
                 earlier ones, which a consumer that is behind never sees"
            );
            let command = alter_topic(settings, topic, "cleanup.policy=delete");
            found.push((what, format!("if consumers need each event, run {command}")));
        }
        let room = |kept: u64| kept.saturating_mul(u64::from(partitions.unsigned_abs()));
        if let Some(kept) = self.retention_bytes.filter(|kept| bytes > room(*kept)) {
            let what = format!(
                "{records} events with {bytes} bytes wait for the topic {topic}, and it keeps \
                 {kept} bytes in each of its {partitions} partitions (retention.bytes): Kafka may \
                 delete events before anybody has read them"
            );
            let more = alter_topic(settings, topic, "retention.bytes=-1");
            found.push((what, format!("before the relay starts, run {more}")));
        }
        found
    }

    /// How far a record's time may be from the broker's, at most; `None` where it is not looked at.
    pub(super) fn time_max_ms(&self) -> Option<i64> {
        let bounds = [self.before_max_ms, self.after_max_ms].into_iter().flatten();
        bounds.min().filter(|_| !self.stamps)
    }

    /// Why the broker takes this record neither now nor later, whatever it is sent with. One that
    /// is `compressed` on its way has no size that is known in advance. `servers` are named in what a person types.
    pub(super) fn refuse(
        &self,
        record: &Record<'_>,
        compressed: bool,
        servers: &str,
        now_ms: i64,
    ) -> Option<(&'static str, String)> {
        if let Some(max) = self.batch_bytes_max.filter(|_| !compressed)
            // Nearly all are far below it: they are not counted to the byte.
            && record.size_bytes() + 2 * BATCH_HEADER_BYTES > max
            && batch_bytes(record) > max
        {
            let bytes = batch_bytes(record);
            let error = format!(
                "alone in a batch it has {bytes} bytes, and the topic's max.message.bytes is {max}: \
                 raise it (`kafka-configs --bootstrap-server {servers} --alter --entity-type topics \
                 --entity-name {} --add-config max.message.bytes={}`), or publish a reference to \
                 the data",
                record.topic,
                bytes + HEADERS_BYTES // A release or a repair adds headers.
            );
            return Some(("too_large", error));
        }
        if self.needs_key && record.key.is_none() {
            let error = "a compacted topic takes no record without a key: give the event one with \
                         `outbox-relay dead-letters edit ID --key KEY`, and release it";
            return Some(("invalid_record", error.to_owned()));
        }
        let created_ms = record.timestamp_ms.filter(|_| !self.stamps)?;
        let beyond = |age_ms: i64, max: Option<i64>| {
            max.is_some_and(|max| age_ms > max.saturating_add(CLOCKS_DIFFER_MS))
        };
        let (which, max) = if beyond(now_ms.saturating_sub(created_ms), self.before_max_ms) {
            ("before", self.before_max_ms)
        } else if beyond(created_ms.saturating_sub(now_ms), self.after_max_ms) {
            ("after", self.after_max_ms)
        } else {
            return None;
        };
        let max_ms = max.unwrap_or_default();
        let error = format!(
            "the event's time is further from now than the topic's \
             message.timestamp.{which}.max.ms={max_ms} allows: raise the setting, or give the event another \
             time with `outbox-relay dead-letters edit ID --timestamp TIME`; then release it"
        );
        Some(("invalid_timestamp", error))
    }
}

/// The command that gives a topic a setting.
pub(super) fn alter_topic(settings: &Settings, topic: &str, setting: &str) -> String {
    let servers = settings.servers();
    format!(
        "`kafka-configs --bootstrap-server {servers} --alter --entity-type topics --entity-name \
         {topic} --add-config {setting}`"
    )
}

/// Whether a record of this time would be deleted soon after it was stored, because of its age: it
/// is older than half of what the topic keeps. `limits` is `None` where they could not be read.
pub(super) fn is_stale(limits: Option<&Limits>, created_ms: i64, now_ms: i64) -> bool {
    let retention_ms = match limits {
        Some(limits) if limits.stamps => None,
        Some(limits) => limits.retention_ms,
        None => Some(RETENTION_UNKNOWN_MS),
    };
    retention_ms.is_some_and(|kept_ms| now_ms.saturating_sub(created_ms) > kept_ms / 2)
}

/// Bytes of a batch that holds this record alone, as it goes over the wire when nothing
/// compresses it.
pub(super) fn batch_bytes(record: &Record<'_>) -> usize {
    let field = |len: usize| varint_bytes(len) + len;
    let optional = |bytes: Option<&[u8]>| bytes.map_or(1, |bytes| field(bytes.len()));
    let headers = record.headers();
    let count = headers.clone().count();
    let of_headers: usize =
        headers.map(|(name, value)| field(name.len()) + field(value.len())).sum();
    // Attributes, and the differences of time and offset to the batch's first record: itself.
    let body =
        3 + optional(record.key) + optional(record.payload) + varint_bytes(count) + of_headers;
    BATCH_HEADER_BYTES + varint_bytes(body) + body
}

/// Bytes of a length as a zigzag varint.
fn varint_bytes(len: usize) -> usize {
    let bits = usize::BITS - (len << 1).leading_zeros();
    bits.div_ceil(7).max(1) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        lsn::Lsn,
        position::RowPosition,
        record::{Batch, BatchLimits, RecordHead},
    };

    const NOW_MS: i64 = 1_800_000_000_000;
    const HOUR_MS: i64 = 3_600_000;

    fn limits(settings: &[(&str, &str)]) -> Limits {
        Limits::of(&settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn judged<R>(
        key: Option<&[u8]>,
        payload: usize,
        timestamp_ms: Option<i64>,
        judge: impl FnOnce(&Record<'_>) -> R,
    ) -> R {
        let mut batch = Batch::new(BatchLimits { records_max: 1, bytes_max: 1 });
        let payload = vec![b'x'; payload];
        let mut record = batch.start_record(RecordHead {
            position: RowPosition { commit: Lsn::new(1), ordinal: 0 },
            topic: "t",
            key,
            payload: Some(&payload),
            partition: None,
            timestamp_ms,
        });
        record.header("h", b"v");
        record.finish();
        judge(&batch.get(0).expect("a record"))
    }

    fn reason(
        limits: &Limits,
        key: Option<&[u8]>,
        payload: usize,
        timestamp_ms: Option<i64>,
    ) -> Option<&'static str> {
        judged(key, payload, timestamp_ms, |record| {
            limits.refuse(record, false, "h:1", NOW_MS).map(|(reason, _)| reason)
        })
    }

    /// Counted by hand after Kafka's record format, version 2.
    #[test]
    fn a_batch_of_one_record_is_counted_to_the_byte() {
        let bytes = |payload| judged(Some(b"k"), payload, None, batch_bytes);
        // 61, length 1, attributes and deltas 3, key 2, value 1 + 10, headers 1 + 2 + 2.
        assert_eq!(bytes(10), 61 + 1 + 3 + 2 + 11 + 5);
        // From 64 on a length takes two bytes: the value's, and the record's.
        assert_eq!(bytes(64), 61 + 2 + 3 + 2 + 66 + 5);
        assert_eq!(judged(None, 10, None, batch_bytes), bytes(10) - 1, "a null key is -1");
    }

    #[test]
    fn a_record_is_refused_beforehand_exactly_where_no_batch_is_small_enough() {
        let wire = judged(Some(b"k"), 500, None, batch_bytes);
        for (max, expected) in [(wire - 1, Some("too_large")), (wire, None)] {
            let limits = limits(&[("max.message.bytes", &max.to_string())]);
            assert_eq!(reason(&limits, Some(b"k"), 500, None), expected);
            let compressed = |record: &Record<'_>| limits.refuse(record, true, "h:1", NOW_MS);
            assert_eq!(judged(Some(b"k"), 500, None, compressed), None, "it may shrink");
        }
    }

    #[test]
    fn a_compacted_topic_wants_a_key_and_an_empty_one_is_one() {
        for policy in ["compact", "compact,delete", "delete, compact"] {
            let limits = limits(&[("cleanup.policy", policy)]);
            assert_eq!(reason(&limits, None, 1, None), Some("invalid_record"), "{policy}");
            assert_eq!(reason(&limits, Some(b""), 1, None), None, "{policy}");
        }
        assert_eq!(reason(&limits(&[("cleanup.policy", "delete")]), None, 1, None), None);
    }

    #[test]
    fn times_beyond_a_bound_are_refused_and_those_near_it_are_asked() {
        let bounds = [
            ("message.timestamp.before.max.ms", "3600000"),
            ("message.timestamp.after.max.ms", "7200000"),
        ];
        let old = [("message.timestamp.difference.max.ms", "3600000")];
        let at = |limits: &Limits, ms: i64| reason(limits, None, 1, Some(ms));
        for limits in [limits(&bounds), limits(&old)] {
            assert_eq!(at(&limits, NOW_MS - HOUR_MS - 30_000), None, "clocks differ");
            assert_eq!(at(&limits, NOW_MS - 2 * HOUR_MS), Some("invalid_timestamp"));
            assert_eq!(at(&limits, NOW_MS + 3 * HOUR_MS), Some("invalid_timestamp"));
        }
        assert_eq!(at(&limits(&bounds), NOW_MS + HOUR_MS + 120_000), None);
        let never = [("message.timestamp.before.max.ms", "9223372036854775807")];
        assert_eq!(at(&limits(&never), 0), None);
        let stamped = [bounds.as_slice(), &[("message.timestamp.type", "LogAppendTime")]].concat();
        assert_eq!(at(&limits(&stamped), 0), None, "the broker looks at no time of ours");
    }

    #[test]
    fn more_replicas_than_there_are_are_asked_for_by_old_brokers_only() {
        let settings = super::super::settings::sample("kafka:9092");
        let (old, new) = (("min.insync.replicas", "2"), ("message.timestamp.before.max.ms", "1"));
        let unwritable = |found: &[(&str, &str)], replicas| {
            limits(found).unwritable(&settings, "t", replicas).is_some()
        };
        assert!(unwritable(&[old], 1));
        assert!(!unwritable(&[old], 2) && !unwritable(&[old], 0) && !unwritable(&[old, new], 1));
    }

    #[test]
    fn a_record_is_stale_from_half_of_what_the_topic_keeps() {
        let week = limits(&[("retention.ms", "604800000")]);
        let half = 604_800_000 / 2;
        assert!(!is_stale(Some(&week), NOW_MS - half, NOW_MS));
        assert!(is_stale(Some(&week), NOW_MS - half - 1, NOW_MS));
        assert!(!is_stale(Some(&week), NOW_MS + HOUR_MS, NOW_MS), "the future is not old");
        let kept = [
            &[("retention.ms", "-1")][..],
            &[("retention.ms", "1"), ("cleanup.policy", "compact")],
            &[("retention.ms", "1"), ("message.timestamp.type", "LogAppendTime")],
        ];
        for settings in kept {
            assert!(!is_stale(Some(&limits(settings)), 0, NOW_MS), "{settings:?}");
        }
        assert!(is_stale(Some(&limits(&[("retention.ms", "0")])), NOW_MS - 1, NOW_MS));
        assert!(!is_stale(None, NOW_MS - 24 * HOUR_MS, NOW_MS), "24 h where nothing is known");
        assert!(is_stale(None, NOW_MS - 24 * HOUR_MS - 1, NOW_MS));
    }
}
