//! Which message a record is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::Timestamp;
use uuid::Uuid;

use crate::{
    message::{Headers, Source},
    message_id::{MessageId, digest},
};

/// The record's id carries no time and the broker stamps its own: a copy that the producer sends
/// again would get another time, and be taken for another message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoTime;

/// From the relay's header, else CloudEvents' (whose ids belong to their source), else the place in
/// the topic, which can't tell a record that was produced twice. The day is that of the id, else of
/// the event as the relay tells it, else of the record: a copy of an old event may carry the time
/// at which it was delivered.
pub(super) fn identify(
    headers: &Headers,
    source: &Source,
    timestamp: Timestamp,
) -> Result<MessageId, NoTime> {
    let stamped = |told: Option<&str>| match (told.and_then(day), timestamp) {
        (Some(day), _) => Ok(day),
        (None, Timestamp::CreateTime(ms)) => Ok(time(ms)),
        (None, Timestamp::LogAppendTime(_) | Timestamp::NotAvailable) => Err(NoTime),
    };
    let with_time = |uuid, told| match MessageId::from_uuid(uuid) {
        Some(id) => Ok(id),
        None => Ok(MessageId::at(uuid, stamped(told)?)),
    };
    if let Some(id) = headers.text("outbox-id") {
        let told = headers.text("outbox-created-at");
        return match id.parse::<Uuid>() {
            Ok(uuid) => with_time(uuid, told),
            Err(_) => Ok(MessageId::of_bytes(id.as_bytes(), stamped(told)?)),
        };
    }
    if let Some(id) = headers.text("ce_id") {
        let of = headers.text("ce_source").unwrap_or_default();
        let of_relay = of.starts_with("/outbox-relay/");
        let told = headers.text("ce_time").filter(|_| of_relay);
        return match id.parse::<Uuid>() {
            Ok(uuid) if of_relay => with_time(uuid, told),
            _ => Ok(MessageId::at(digest(&[of.as_bytes(), id.as_bytes()]), stamped(told)?)),
        };
    }
    let Source { topic, partition, offset } = source;
    // One record has one timestamp, whoever stamped it; in a topic made anew, others have its place.
    let ms = timestamp.to_millis().unwrap_or(0);
    let (partition, offset) = (partition.to_be_bytes(), offset.to_be_bytes());
    let place = digest(&[topic.as_bytes(), &partition, &offset, &ms.to_be_bytes()]);
    Ok(MessageId::at(place, time(ms)))
}

/// The beginning of the day that a time of the relay's is in, `2026-11-26T19:31:27.123Z`.
fn day(told: &str) -> Option<SystemTime> {
    let (date, time) = told.split_once('T')?;
    let mut parts = date.split('-').map(str::parse::<u64>);
    let (Ok(year), Ok(month @ 1..=12), Ok(of_month @ 1..=31)) =
        (parts.next()?, parts.next()?, parts.next()?)
    else {
        return None;
    };
    if !time.ends_with('Z') || parts.next().is_some() || !(1970..10_000).contains(&year) {
        return None;
    }
    // The year begins in March, so that the leap day comes last; 719,468 days lie between
    // 0000-03-01 and 1970-01-01.
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + of_month - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468;
    Some(UNIX_EPOCH + Duration::from_secs(days * 86_400))
}

fn time(ms: i64) -> SystemTime {
    let since = Duration::from_millis(ms.unsigned_abs());
    if ms < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V7: &str = "01932f3c-8400-7000-8000-000000000000";
    const V4: &str = "936da01f-9abd-4d9d-80c7-02af85c822a8";

    fn id(
        headers: &[(&str, &str)],
        timestamp: Timestamp,
        offset: i64,
    ) -> Result<MessageId, NoTime> {
        let headers = headers.iter().map(|(n, v)| ((*n).into(), Some(v.as_bytes().to_vec())));
        let source = Source { topic: "t".into(), partition: 0, offset };
        identify(&Headers(headers.collect()), &source, timestamp)
    }

    #[test]
    fn a_copy_produced_again_is_the_same_message_wherever_it_lies() {
        let (one, other) = (Timestamp::CreateTime(1_000), Timestamp::LogAppendTime(99_000_000_000));
        let header = [("outbox-id", V7)];
        assert_eq!(id(&header, one, 1), id(&header, other, 2));
        let header = [("ce_id", V7), ("ce_source", "/outbox-relay/orders")];
        assert_eq!(id(&header, one, 1), id(&[("outbox-id", V7)], other, 2));
        for header in [("outbox-id", V4), ("outbox-id", "order 7"), ("ce_id", "7")] {
            assert_eq!(id(&[header], one, 1), id(&[header], one, 2));
            assert_eq!(id(&[header], other, 1), Err(NoTime));
        }
    }

    #[test]
    fn a_copy_that_carries_the_time_of_its_delivery_is_the_same_message() {
        // 2024-02-29, a day after which days are easily miscounted.
        let first = Timestamp::CreateTime(1_709_164_800_000 + 86_399_999);
        let again = Timestamp::CreateTime(1_795_721_487_000);
        let told = "2024-02-29T23:59:59.999Z";
        for id_of in [V4, "order 7"] {
            let id_of = ("outbox-id", id_of);
            let copy = [id_of, ("outbox-created-at", told)];
            assert_eq!(id(&[id_of], first, 1), id(&copy, again, 2));
            assert_ne!(id(&[id_of], first, 1), id(&[id_of], again, 2), "without the header");
        }
        let event = [("ce_id", V4), ("ce_source", "/outbox-relay/orders"), ("ce_time", told)];
        assert_eq!(id(&event, first, 1), id(&event, again, 2));
        assert_eq!(id(&event, first, 1), id(&[("outbox-id", V4)], first, 1));
        let foreign = [("ce_id", V4), ("ce_source", "/other"), ("ce_time", told)];
        assert_ne!(id(&foreign, first, 1), id(&foreign, again, 1), "as it was before");
        for odd in ["", "T", "2024-02-30", "2024-13-01T00:00Z", "2024-02-29T00:00:00+01:00"] {
            let odd = [("outbox-id", V4), ("outbox-created-at", odd)];
            assert_eq!(id(&odd, again, 1), id(&[("outbox-id", V4)], again, 1));
        }
    }

    #[test]
    fn days_are_counted_as_the_calendar_does() {
        for (told, days) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1999-12-31T23:59:59Z", 10_956),
            ("2000-03-01T00:00:00Z", 11_017),
            ("2100-03-01T00:00:00Z", 47_541),
        ] {
            let expected = UNIX_EPOCH + Duration::from_secs(days * 86_400);
            assert_eq!(day(told), Some(expected), "{told}");
        }
    }

    #[test]
    fn ids_of_cloud_events_belong_to_their_source_and_places_to_nobody_else() {
        let time = Timestamp::CreateTime(1_000);
        let event = |source| id(&[("ce_id", "7"), ("ce_source", source)], time, 1);
        assert_ne!(event("/a"), event("/b"));
        assert_eq!(id(&[], time, 1), id(&[], time, 1));
        assert_ne!(id(&[], time, 1), id(&[], time, 2));
        assert_ne!(id(&[], time, 1), id(&[], Timestamp::CreateTime(1_001), 1));
    }
}
