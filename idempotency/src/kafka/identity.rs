//! Which message a record is: by its headers, else by its place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::Timestamp;

use crate::{
    message::Headers,
    message_id::{MessageId, digest},
    timestamp,
};

/// The headers that may name a message, the first before the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IdHeaders(pub(super) Vec<String>);

impl Default for IdHeaders {
    fn default() -> Self {
        IdHeaders(MessageId::HEADERS.map(str::to_owned).to_vec())
    }
}

impl IdHeaders {
    /// By the first of the headers that says something, else by the place in the topic, which can't
    /// tell a record that was produced twice. Where there is no time, and where the broker has put its own
    /// in place of the producer's, the message is undated.
    pub(super) fn identify(
        &self,
        headers: &Headers,
        place: (&str, i32, i64),
        timestamp: Timestamp,
    ) -> MessageId {
        let given = headers.iter().map(|(name, value)| (name, value.unwrap_or_default()));
        let named = MessageId::from_headers(given, &self.0, stamped(timestamp));
        named.unwrap_or_else(|| of_place(place, timestamp))
    }
}

/// A record's timestamp, as any broker's.
pub(super) fn stamped(stamp: Timestamp) -> Option<timestamp::Timestamp> {
    match stamp {
        Timestamp::CreateTime(ms) => Some(timestamp::Timestamp::Produced(time(ms))),
        Timestamp::LogAppendTime(ms) => Some(timestamp::Timestamp::Stored(time(ms))),
        Timestamp::NotAvailable => None,
    }
}

/// One record has one timestamp, whoever stamped it; in a recreated topic, others have its place.
fn of_place((topic, partition, offset): (&str, i32, i64), timestamp: Timestamp) -> MessageId {
    let ms = timestamp.to_millis();
    let (partition, offset) = (partition.to_be_bytes(), offset.to_be_bytes());
    let stamp = ms.unwrap_or(0).to_be_bytes();
    let place = digest(&[topic.as_bytes(), &partition, &offset, &stamp]);
    ms.map_or_else(|| MessageId::undated(place), |ms| MessageId::at(place, time(ms)))
}

/// Kafka means milliseconds. Producers that count seconds, microseconds or nanoseconds are told by
/// the size: as milliseconds, theirs would be before Kafka was, or after the year 5000.
fn time(ms: i64) -> SystemTime {
    let since = match ms.unsigned_abs() {
        before if ms < 0 => return UNIX_EPOCH - Duration::from_millis(before),
        seconds @ 1_000_000_000..100_000_000_000 => Duration::from_secs(seconds),
        millis @ ..100_000_000_000_000 => Duration::from_millis(millis),
        micros @ ..100_000_000_000_000_000 => Duration::from_micros(micros),
        nanos => Duration::from_nanos(nanos),
    };
    UNIX_EPOCH + since
}

#[cfg(test)]
mod tests {
    use super::*;

    const V7: &str = "01932f3c-8400-7000-8000-000000000000";
    const V4: &str = "936da01f-9abd-4d9d-80c7-02af85c822a8";

    fn id(headers: &[(&str, &str)], timestamp: Timestamp, offset: i64) -> MessageId {
        let headers = headers.iter().map(|(name, value)| (*name, Some(*value))).collect();
        IdHeaders::default().identify(&headers, ("t", 0, offset), timestamp)
    }

    #[test]
    fn a_timestamp_in_another_unit_is_the_same_day() {
        let day = |stamp| id(&[("outbox-id", V4)], Timestamp::CreateTime(stamp), 1).day();
        let ms = 1_795_721_487_123;
        for other in [ms / 1000, ms * 1000, ms * 1_000_000] {
            assert_eq!(day(other), day(ms), "{other}");
        }
        assert_ne!(day(-ms), day(ms));
        let _any_number = [i64::MIN, i64::MAX, -1, 0, 1].map(day);
    }

    #[test]
    fn a_record_without_an_id_is_known_by_its_place() {
        let time = Timestamp::CreateTime(1_000);
        assert_eq!(id(&[], time, 1), id(&[], time, 1));
        assert_eq!(id(&[("outbox-id", "null")], time, 1), id(&[], time, 1));
        assert_ne!(id(&[], time, 1), id(&[], time, 2));
        assert_ne!(id(&[], time, 1), id(&[], Timestamp::CreateTime(1_001), 1));
        assert!(id(&[], Timestamp::LogAppendTime(1_000), 1).is_dated(), "a place has one time");
        assert!(!id(&[], Timestamp::NotAvailable, 1).is_dated());
    }

    /// A copy of what an earlier version took must be known.
    #[test]
    fn ids_are_those_of_earlier_versions() {
        let place = id(&[], Timestamp::CreateTime(1_000), 7).to_string();
        assert_eq!(place, "cb3d7529-de0d-86ca-b770-8d455e467b74");
        let event = [("ce_id", "7"), ("ce_source", "/a")];
        let event = id(&event, Timestamp::CreateTime(1_000), 7).to_string();
        assert_eq!(event, "01179b65-972e-8d5a-be7f-0109b03f0dae");
    }

    #[test]
    fn what_the_broker_stamped_is_no_time_of_the_producers() {
        let at = |stamp| id(&[("outbox-id", V4)], stamp, 1);
        assert!(at(Timestamp::CreateTime(1_000)).is_dated());
        assert!(!at(Timestamp::LogAppendTime(1_000)).is_dated());
        let own = [("outbox-id", V7)];
        assert_eq!(id(&own, Timestamp::LogAppendTime(1), 1), id(&own, Timestamp::CreateTime(1), 2));
    }
}
