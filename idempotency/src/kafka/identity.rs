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
/// the topic, which can't tell a record that was produced twice.
pub(super) fn identify(
    headers: &Headers,
    source: &Source,
    timestamp: Timestamp,
) -> Result<MessageId, NoTime> {
    let stamped = || match timestamp {
        Timestamp::CreateTime(ms) => Ok(time(ms)),
        Timestamp::LogAppendTime(_) | Timestamp::NotAvailable => Err(NoTime),
    };
    let with_time = |uuid| match MessageId::from_uuid(uuid) {
        Some(id) => Ok(id),
        None => Ok(MessageId::at(uuid, stamped()?)),
    };
    if let Some(id) = headers.text("outbox-id") {
        return match id.parse::<Uuid>() {
            Ok(uuid) => with_time(uuid),
            Err(_) => Ok(MessageId::of_bytes(id.as_bytes(), stamped()?)),
        };
    }
    if let Some(id) = headers.text("ce_id") {
        let of = headers.text("ce_source").unwrap_or_default();
        return match id.parse::<Uuid>() {
            Ok(uuid) if of.starts_with("/outbox-relay/") => with_time(uuid),
            _ => Ok(MessageId::at(digest(&[of.as_bytes(), id.as_bytes()]), stamped()?)),
        };
    }
    let Source { topic, partition, offset } = source;
    // One record has one timestamp, whoever stamped it; in a topic made anew, others have its place.
    let ms = timestamp.to_millis().unwrap_or(0);
    let (partition, offset) = (partition.to_be_bytes(), offset.to_be_bytes());
    let place = digest(&[topic.as_bytes(), &partition, &offset, &ms.to_be_bytes()]);
    Ok(MessageId::at(place, time(ms)))
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
    fn ids_of_cloud_events_belong_to_their_source_and_places_to_nobody_else() {
        let time = Timestamp::CreateTime(1_000);
        let event = |source| id(&[("ce_id", "7"), ("ce_source", source)], time, 1);
        assert_ne!(event("/a"), event("/b"));
        assert_eq!(id(&[], time, 1), id(&[], time, 1));
        assert_ne!(id(&[], time, 1), id(&[], time, 2));
        assert_ne!(id(&[], time, 1), id(&[], Timestamp::CreateTime(1_001), 1));
    }
}
