//! Which message a record is.
//!
//! Two records are one message only if they say so: an id that carries nothing is no id, and the
//! time of an id counts only where it can be one. Decided by the record alone, never by a clock:
//! each copy must come to the same.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::Timestamp;
use uuid::Uuid;

use crate::{
    message::{Headers, Source},
    message_id::{FIRST_V7, MessageId, digest},
};

const OF_RELAY: &str = "outbox-id";
const OF_CLOUD_EVENTS: &str = "ce_id";
/// How far a producer's clock may be ahead of the one that stamped its record.
const AHEAD: Duration = Duration::from_secs(366 * 86_400);

/// The headers that may name a message, the first before the second.
#[derive(Clone, Debug)]
pub(super) struct IdHeaders(pub(super) Vec<String>);

impl Default for IdHeaders {
    fn default() -> Self {
        IdHeaders(vec![OF_RELAY.into(), OF_CLOUD_EVENTS.into()])
    }
}

/// What a header says that names a message.
enum Said {
    Uuid(Uuid),
    Other,
}

impl IdHeaders {
    /// By the first of the headers that says something, else by the place in the topic, which can't
    /// tell a record that was produced twice. CloudEvents' ids belong to their source. The day is
    /// that of the id, else of the event as the relay tells it, else of the record: a copy of an old
    /// event may carry the time at which it was delivered. Where there is none, and where the broker
    /// has put its own in place of the producer's, the message is undated.
    pub(super) fn identify(
        &self,
        headers: &Headers,
        source: &Source,
        timestamp: Timestamp,
    ) -> MessageId {
        let record = Stamp(timestamp);
        let mut named = self.0.iter().filter_map(|name| {
            let value = headers.bytes(name)?;
            Some((name.as_str(), value, said(value)?))
        });
        match named.next() {
            Some((OF_CLOUD_EVENTS, value, said)) => of_cloud_events(headers, value, &said, record),
            Some((name, value, said)) => {
                let told = headers.text("outbox-created-at").filter(|_| name == OF_RELAY);
                record.message(value, &said, told)
            }
            None => record.place(source),
        }
    }
}

fn of_cloud_events(headers: &Headers, id: &[u8], said: &Said, record: Stamp) -> MessageId {
    let of = headers.text("ce_source").unwrap_or_default();
    let of_relay = of.starts_with("/outbox-relay/");
    if of_relay && matches!(said, Said::Uuid(_)) {
        return record.message(id, said, headers.text("ce_time"));
    }
    let named = digest(&[of.as_bytes(), id]);
    let told = headers.text("ce_time").filter(|_| of_relay);
    match (record.told_or_stamped(told), said) {
        (Some(time), _) => MessageId::at(named, time),
        (None, Said::Uuid(uuid)) => match record.dated(*uuid) {
            Some(dated) => dated.renamed(named),
            None => MessageId::undated(named),
        },
        (None, Said::Other) => MessageId::undated(named),
    }
}

/// What an id says: as text, as the JSON of a text, or as 16 bytes. `None` where that is nothing:
/// a producer that has no id may say so in each of these ways, in every message.
fn said(value: &[u8]) -> Option<Said> {
    let odd = |c: char| c.is_control() && !c.is_whitespace();
    let text = std::str::from_utf8(value).ok().filter(|text| !text.contains(odd));
    let Some(text) = text else {
        let uuid = Uuid::from_slice(value);
        let empty = value.iter().all(|byte| *byte == 0) || value.iter().all(|byte| *byte == 0xff);
        return (!empty).then(|| uuid.map_or(Said::Other, Said::Uuid));
    };
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '"');
    let blank = text.chars().all(|c| !c.is_alphanumeric() || c == '0');
    let word = ["null", "nil", "none", "undefined", "nan"].map(|no| text.eq_ignore_ascii_case(no));
    match text.parse::<Uuid>() {
        _ if blank || word.contains(&true) => None,
        Ok(uuid) if uuid.is_max() => None,
        Ok(uuid) => Some(Said::Uuid(uuid)),
        Err(_) => Some(Said::Other),
    }
}

/// A record's timestamp.
#[derive(Clone, Copy)]
struct Stamp(Timestamp);

impl Stamp {
    fn message(self, id: &[u8], said: &Said, told: Option<&str>) -> MessageId {
        let uuid = match said {
            Said::Uuid(uuid) => *uuid,
            Said::Other => digest(&[id]),
        };
        let dated = matches!(said, Said::Uuid(_)).then(|| self.dated(uuid)).flatten();
        match (dated, self.told_or_stamped(told)) {
            (Some(id), _) => id,
            (None, Some(time)) => MessageId::at(uuid, time),
            (None, None) => MessageId::undated(uuid),
        }
    }

    /// An id that carries its time. Of random bits one in some hundred has the version of those that
    /// do; their time is centuries away from the record's.
    fn dated(self, uuid: Uuid) -> Option<MessageId> {
        let stamped = self.0.to_millis().map(time).filter(|time| *time >= UNIX_EPOCH + FIRST_V7);
        let latest = stamped.and_then(|time| time.checked_add(AHEAD));
        MessageId::from_uuid(uuid).filter(|id| latest.is_none_or(|latest| !id.is_after(latest)))
    }

    /// The producer's time: a copy that is sent again has the same.
    fn told_or_stamped(self, told: Option<&str>) -> Option<SystemTime> {
        match (told.and_then(day), self.0) {
            (Some(day), _) => Some(day),
            (None, Timestamp::CreateTime(ms)) => Some(time(ms)),
            (None, Timestamp::LogAppendTime(_) | Timestamp::NotAvailable) => None,
        }
    }

    /// One record has one timestamp, whoever stamped it; in a topic made anew, others have its place.
    fn place(self, source: &Source) -> MessageId {
        let Source { topic, partition, offset } = source;
        let ms = self.0.to_millis();
        let (partition, offset) = (partition.to_be_bytes(), offset.to_be_bytes());
        let stamp = ms.unwrap_or(0).to_be_bytes();
        let place = digest(&[topic.as_bytes(), &partition, &offset, &stamp]);
        ms.map_or_else(|| MessageId::undated(place), |ms| MessageId::at(place, time(ms)))
    }
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

    fn of(
        names: &[&str],
        headers: &[(&str, &[u8])],
        timestamp: Timestamp,
        offset: i64,
    ) -> MessageId {
        let headers = headers.iter().map(|(n, v)| ((*n).into(), Some(v.to_vec())));
        let source = Source { topic: "t".into(), partition: 0, offset };
        let names = IdHeaders(names.iter().map(|name| (*name).into()).collect());
        names.identify(&Headers(headers.collect()), &source, timestamp)
    }

    fn id(headers: &[(&str, &str)], timestamp: Timestamp, offset: i64) -> MessageId {
        let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_bytes())).collect();
        let IdHeaders(names) = IdHeaders::default();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        of(&names, &headers, timestamp, offset)
    }

    const NOW: Timestamp = Timestamp::CreateTime(1_795_721_487_000);

    #[test]
    fn an_id_that_carries_nothing_is_no_id() {
        let raw: [&[u8]; 6] = [b"", b"\0", &[0; 16], &[0xff; 16], b" \t", b"\"\""];
        let words = [
            "00000000-0000-0000-0000-000000000000",
            "{00000000-0000-0000-0000-000000000000}",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "\"FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF\"",
            "0",
            "null",
            "None",
            "undefined",
            "-",
        ];
        for nothing in raw.into_iter().chain(words.map(str::as_bytes)) {
            for name in ["outbox-id", "ce_id", "id"] {
                let names = [name, "other"];
                let at = |offset| of(&names, &[(name, nothing)], NOW, offset);
                assert_ne!(at(1), at(2), "{nothing:?}: two messages");
                assert_eq!(at(1), id(&[], NOW, 1), "{nothing:?}: its place");
                let second = of(&names, &[(name, nothing), ("other", b"7")], NOW, 1);
                assert_eq!(second, of(&["other"], &[("other", b"7")], NOW, 2), "the next header");
            }
        }
    }

    #[test]
    fn a_header_of_any_name_can_name_a_message_as_text_or_as_bytes() {
        let uuid: Uuid = V4.parse().expect("a uuid");
        let quoted = format!("\"{V4}\"");
        let forms: [&[u8]; 3] = [V4.as_bytes(), quoted.as_bytes(), uuid.as_bytes()];
        for (offset, form) in (1..).zip(forms) {
            let found = of(&["message-id", "id"], &[("id", form)], NOW, offset);
            assert_eq!(found.uuid(), uuid, "{form:?}");
            assert_eq!(found, id(&[("outbox-id", V4)], NOW, 9));
        }
        let both: [(&str, &[u8]); 2] = [("id", b"1"), ("message-id", b"2")];
        let of = |names: &[&str]| of(names, &both, NOW, 1);
        assert_eq!(of(&["message-id", "id"]), of(&["message-id"]));
        assert_eq!(of(&["id", "message-id"]), of(&["id"]));
        assert_ne!(of(&["id"]), of(&["message-id"]));
        assert_eq!(of(&["outbox-id"]), id(&[], NOW, 1), "nothing but what is asked for");
    }

    #[test]
    fn random_bits_that_look_like_a_time_have_the_day_of_their_record() {
        let Timestamp::CreateTime(ms) = NOW else { unreachable!() };
        let day = MessageId::at(Uuid::nil(), time(ms)).day();
        for n in 0..20_000_u64 {
            let bits = digest(&[&n.to_be_bytes()]).into_bytes();
            for version in [0x10, 0x40, 0x60, 0x70] {
                let mut bits = bits;
                // Some millennia from now, in each of the versions.
                bits[6] = version | 0x08 | (bits[6] & 0x07);
                bits[0] |= 0x40;
                let looks_like = Uuid::from_bytes(bits);
                let text = looks_like.to_string();
                let found = id(&[("outbox-id", &text)], NOW, 1);
                assert_eq!((found.uuid(), found.day()), (looks_like, day), "{text}");
            }
        }
        // The draft of 2021, as a Python package still makes it: seconds in the first 36 bits.
        let draft = Uuid::from_u128((1_795_721_487_u128 << 92) | (0x7 << 76) | (0x8 << 60));
        let found = id(&[("outbox-id", &draft.to_string())], NOW, 1);
        assert_eq!(found.day(), day);
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
    fn a_copy_produced_again_is_the_same_message_wherever_it_lies() {
        let (one, other) = (Timestamp::CreateTime(1_000), Timestamp::LogAppendTime(99_000_000_000));
        let header = [("outbox-id", V7)];
        assert_eq!(id(&header, one, 1), id(&header, other, 2));
        let header = [("ce_id", V7), ("ce_source", "/outbox-relay/orders")];
        assert_eq!(id(&header, one, 1), id(&[("outbox-id", V7)], other, 2));
        for header in [("outbox-id", V4), ("outbox-id", "order 7"), ("ce_id", "7")] {
            assert_eq!(id(&[header], one, 1), id(&[header], one, 2));
            assert!(!id(&[header], other, 1).is_dated(), "a copy would have another time");
            assert!(!id(&[header], Timestamp::NotAvailable, 1).is_dated());
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
        assert!(id(&[], Timestamp::LogAppendTime(1_000), 1).is_dated(), "a place has one time");
        assert!(!id(&[], Timestamp::NotAvailable, 1).is_dated());
        let foreign = [("ce_id", V7), ("ce_source", "/a")];
        let copies = [1_000, 99_000].map(|ms| id(&foreign, Timestamp::LogAppendTime(ms), 1));
        assert!(copies[0].is_dated() && copies[0] == copies[1], "its id has a time");
    }
}
