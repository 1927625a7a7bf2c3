//! Which message it is, by its headers.
//!
//! Two messages are one only if they say so: an id that carries nothing is no id, and the time of an id
//! counts only where it can be one. Decided by the message alone, never by a clock here: each copy must come
//! to the same.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::{
    message_id::{FIRST_V7, MessageId, digest},
    timestamp::Timestamp,
};

const OF_RELAY: &str = "outbox-id";
const OF_CLOUD_EVENTS: &str = "ce_id";
/// How far a producer's clock may be ahead of the one that stamped its message.
const AHEAD: Duration = Duration::from_secs(366 * 86_400);

/// What a header says that names a message.
enum Said {
    Uuid(Uuid),
    Other,
}

impl MessageId {
    /// The headers that name a message as the relay publishes it: its own, then CloudEvents'.
    pub const HEADERS: [&str; 2] = [OF_RELAY, OF_CLOUD_EVENTS];

    /// The id that a message's headers give it, whatever broker brought it; `None` where none of `names`
    /// says anything. The first name that says something wins, and of a name the first header counts:
    /// [`MessageId::HEADERS`], or others, such as `&["message-id"]`. `timestamp` is the message's.
    ///
    /// A value is text or 16 bytes; an empty one, `null`, and a UUID that is all zeros or ones say nothing.
    /// Messages with one id are one message, and only the first takes effect: name no header that tells
    /// anything else, such as an order's number.
    ///
    /// The day of the id is that of its own time (UUIDs of version 7, 1 and 6), else that of the event as
    /// the relay tells it in `outbox-created-at` or `ce_time`, else that of [`Timestamp::Produced`]. A message
    /// with none of these can't be told from its copies: [`Once::OutsideWindow`](crate::Once::OutsideWindow),
    /// or a dead letter with the code `undated`.
    ///
    /// The attributes of CloudEvents have the names that they have in Kafka, `ce_…`. Rename those of other
    /// brokers (`ce-…`, `cloudEvents:…`) on the way here: an id belongs to its `ce_source`.
    ///
    /// ```
    /// use outbox_idempotency::MessageId;
    ///
    /// let headers = [("content-type", "application/json"), ("outbox-id", "01932f3c-8400-7000-8000-000000000001")];
    /// let id = MessageId::from_headers(headers, &MessageId::HEADERS, None).expect("a header names it");
    /// assert_eq!(id.to_string(), "01932f3c-8400-7000-8000-000000000001");
    /// ```
    pub fn from_headers<N: AsRef<str>, V: AsRef<[u8]>>(
        headers: impl IntoIterator<Item = (N, V)>,
        names: &[impl AsRef<str>],
        timestamp: Option<Timestamp>,
    ) -> Option<Self> {
        let given = Given(headers.into_iter().collect());
        let stamp = Stamp(timestamp);
        names.iter().find_map(|name| {
            let name = name.as_ref();
            let value = given.bytes(name)?;
            let said = said(value)?;
            Some(match name {
                OF_CLOUD_EVENTS => of_cloud_events(&given, value, &said, stamp)?,
                OF_RELAY => stamp.message(value, &said, given.text("outbox-created-at")),
                _ => stamp.message(value, &said, None),
            })
        })
    }
}

/// Headers as a broker gave them.
struct Given<N, V>(Vec<(N, V)>);

impl<N: AsRef<str>, V: AsRef<[u8]>> Given<N, V> {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let (_, value) = self.0.iter().find(|(given, _)| given.as_ref() == name)?;
        Some(value.as_ref())
    }

    fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.bytes(name)?).ok()
    }
}

/// CloudEvents' ids belong to their source, which is not empty: without one, two producers may have given the same id,
/// unless that is a UUID.
fn of_cloud_events<N: AsRef<str>, V: AsRef<[u8]>>(
    given: &Given<N, V>,
    id: &[u8],
    said: &Said,
    stamp: Stamp,
) -> Option<MessageId> {
    let of = given.bytes("ce_source").unwrap_or_default();
    let of_relay = of.starts_with(b"/outbox-relay/");
    match said {
        Said::Uuid(_) if of_relay => return Some(stamp.message(id, said, given.text("ce_time"))),
        Said::Other if of.is_empty() => return None,
        Said::Uuid(_) | Said::Other => {}
    }
    let named = digest(&[of, id]);
    let told = given.text("ce_time").filter(|_| of_relay);
    Some(match (stamp.told_or_produced(told), said) {
        (Some(time), _) => MessageId::at(named, time),
        (None, Said::Uuid(uuid)) => match stamp.dated(*uuid) {
            Some(dated) => dated.renamed(named),
            None => MessageId::undated(named),
        },
        (None, Said::Other) => MessageId::undated(named),
    })
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

/// A message's timestamp.
#[derive(Clone, Copy)]
struct Stamp(Option<Timestamp>);

impl Stamp {
    fn message(self, id: &[u8], said: &Said, told: Option<&str>) -> MessageId {
        let uuid = match said {
            Said::Uuid(uuid) => *uuid,
            Said::Other => digest(&[id]),
        };
        let dated = matches!(said, Said::Uuid(_)).then(|| self.dated(uuid)).flatten();
        match (dated, self.told_or_produced(told)) {
            (Some(id), _) => id,
            (None, Some(time)) => MessageId::at(uuid, time),
            (None, None) => MessageId::undated(uuid),
        }
    }

    /// An id that carries its time. Of random bits one in some hundred has the version of those that
    /// do; their time is centuries away from the message's.
    fn dated(self, uuid: Uuid) -> Option<MessageId> {
        let stamped = self.0.map(Timestamp::time).filter(|time| *time >= UNIX_EPOCH + FIRST_V7);
        let latest = stamped.and_then(|time| time.checked_add(AHEAD));
        MessageId::from_uuid(uuid).filter(|id| latest.is_none_or(|latest| !id.is_after(latest)))
    }

    /// The producer's time: a copy that is sent again has the same. Before it what the relay tells: a copy of
    /// an old event may carry the time at which it was delivered.
    fn told_or_produced(self, told: Option<&str>) -> Option<SystemTime> {
        told.and_then(day).or_else(|| self.0.and_then(Timestamp::produced))
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

#[cfg(test)]
mod tests {
    use super::*;

    const V7: &str = "01932f3c-8400-7000-8000-000000000000";
    const V4: &str = "936da01f-9abd-4d9d-80c7-02af85c822a8";

    fn of(
        names: &[&str],
        headers: &[(&str, &[u8])],
        timestamp: Option<Timestamp>,
    ) -> Option<MessageId> {
        MessageId::from_headers(headers.iter().copied(), names, timestamp)
    }

    fn id(headers: &[(&str, &str)], timestamp: Option<Timestamp>) -> MessageId {
        let headers = headers.iter().copied();
        MessageId::from_headers(headers, &MessageId::HEADERS, timestamp).expect("an id")
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn produced(seconds: u64) -> Option<Timestamp> {
        Some(Timestamp::Produced(at(seconds)))
    }

    fn stored(seconds: u64) -> Option<Timestamp> {
        Some(Timestamp::Stored(at(seconds)))
    }

    /// In November 2026.
    const NOW: u64 = 1_795_721_487;

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
                let found = |headers: &[(&str, &[u8])]| of(&names, headers, produced(NOW));
                assert_eq!(found(&[(name, nothing)]), None, "{nothing:?}");
                let second = found(&[(name, nothing), ("other", b"7")]);
                assert!(second.is_some(), "the next name");
                assert_eq!(second, of(&["other"], &[("other", b"7")], produced(NOW)));
                let again = found(&[(name, nothing), (name, b"7")]);
                assert_eq!(again, None, "of a name the first header counts");
            }
        }
    }
    #[test]
    fn a_name_is_one_header_and_no_other_that_begins_like_it() {
        for name in
            ["outbox-id\0", "outbox-id\0x", "outbox-idx", "Outbox-Id", "outbox-i\u{fffd}", ""]
        {
            assert_eq!(of(&MessageId::HEADERS, &[(name, V7.as_bytes())], produced(NOW)), None);
        }
    }

    #[test]
    fn headers_of_any_form_are_read() {
        let owned = vec![("outbox-id".to_owned(), V7.as_bytes().to_vec())];
        let names = MessageId::HEADERS.map(str::to_owned);
        let found = MessageId::from_headers(owned, &names, None);
        assert_eq!(found.map(|id| id.to_string()).as_deref(), Some(V7));
    }

    #[test]
    fn a_header_of_any_name_can_name_a_message_as_text_or_as_bytes() {
        let uuid: Uuid = V4.parse().expect("a uuid");
        let quoted = format!("\"{V4}\"");
        let forms: [&[u8]; 3] = [V4.as_bytes(), quoted.as_bytes(), uuid.as_bytes()];
        for form in forms {
            let found = of(&["message-id", "id"], &[("id", form)], produced(NOW)).expect("an id");
            assert_eq!(found.uuid(), uuid, "{form:?}");
            assert_eq!(found, id(&[("outbox-id", V4)], produced(NOW)));
        }
        let both: [(&str, &[u8]); 2] = [("id", b"1"), ("message-id", b"2")];
        let of = |names: &[&str]| of(names, &both, produced(NOW));
        assert_eq!(of(&["message-id", "id"]), of(&["message-id"]));
        assert_eq!(of(&["id", "message-id"]), of(&["id"]));
        assert_ne!(of(&["id"]), of(&["message-id"]));
        assert_eq!(of(&["outbox-id"]), None, "nothing but what is asked for");
    }
    #[test]
    fn random_bits_that_look_like_a_time_have_the_day_of_their_message() {
        let day = MessageId::at(Uuid::nil(), at(NOW)).day();
        for n in 0..20_000_u64 {
            let bits = digest(&[&n.to_be_bytes()]).into_bytes();
            for version in [0x10, 0x40, 0x60, 0x70] {
                let mut bits = bits;
                // Some millennia from now, in each of the versions.
                bits[6] = version | 0x08 | (bits[6] & 0x07);
                bits[0] |= 0x40;
                let looks_like = Uuid::from_bytes(bits);
                let text = looks_like.to_string();
                let found = id(&[("outbox-id", &text)], produced(NOW));
                assert_eq!((found.uuid(), found.day()), (looks_like, day), "{text}");
            }
        }
        // The draft of 2021, as a Python package still makes it: seconds in the first 36 bits.
        let draft = Uuid::from_u128((1_795_721_487_u128 << 92) | (0x7 << 76) | (0x8 << 60));
        let found = id(&[("outbox-id", &draft.to_string())], produced(NOW));
        assert_eq!(found.day(), day);
    }
    #[test]
    fn a_copy_produced_again_is_the_same_message_wherever_it_lies() {
        let (one, other) = (produced(1), stored(99_000_000));
        let header = [("outbox-id", V7)];
        assert_eq!(id(&header, one), id(&header, other));
        let header = [("ce_id", V7), ("ce_source", "/outbox-relay/orders")];
        assert_eq!(id(&header, one), id(&[("outbox-id", V7)], other));
        for header in [("outbox-id", V4), ("outbox-id", "order 7"), ("ce_id", V4)] {
            assert_eq!(id(&[header], one), id(&[header], one));
            assert!(!id(&[header], other).is_dated(), "a copy would have another time");
            assert!(!id(&[header], None).is_dated());
        }
    }
    #[test]
    fn a_copy_that_carries_the_time_of_its_delivery_is_the_same_message() {
        // 2024-02-29, a day after which days are easily miscounted.
        let first = produced(1_709_164_800 + 86_399);
        let again = produced(NOW);
        let told = "2024-02-29T23:59:59.999Z";
        for id_of in [V4, "order 7"] {
            let id_of = ("outbox-id", id_of);
            let copy = [id_of, ("outbox-created-at", told)];
            assert_eq!(id(&[id_of], first), id(&copy, again));
            assert_ne!(id(&[id_of], first), id(&[id_of], again), "without the header");
        }
        let event = [("ce_id", V4), ("ce_source", "/outbox-relay/orders"), ("ce_time", told)];
        assert_eq!(id(&event, first), id(&event, again));
        assert_eq!(id(&event, first), id(&[("outbox-id", V4)], first));
        let foreign = [("ce_id", V4), ("ce_source", "/other"), ("ce_time", told)];
        assert_ne!(id(&foreign, first), id(&foreign, again), "as it was before");
        for odd in ["", "T", "2024-02-30", "2024-13-01T00:00Z", "2024-02-29T00:00:00+01:00"] {
            let odd = [("outbox-id", V4), ("outbox-created-at", odd)];
            assert_eq!(id(&odd, again), id(&[("outbox-id", V4)], again));
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
    fn ids_of_cloud_events_belong_to_their_source() {
        let event = |source| id(&[("ce_id", "7"), ("ce_source", source)], produced(1));
        assert_ne!(event("/a"), event("/b"));
        let odd = |source: &[u8]| {
            let headers = [("ce_id", &b"7"[..]), ("ce_source", source)];
            of(&MessageId::HEADERS, &headers, produced(1))
        };
        assert_ne!(odd(b"\xff"), odd(b"\xfe"), "no text, and still two");
        assert_eq!(odd(b""), None, "whoever gives no source may give the same id as another");
        let unnamed = of(&MessageId::HEADERS, &[("ce_id", V7.as_bytes())], produced(1));
        assert!(unnamed.is_some(), "a UUID is one message's alone");
        let foreign = [("ce_id", V7), ("ce_source", "/a")];
        let copies = [1, 99].map(|seconds| id(&foreign, stored(seconds)));
        assert!(copies[0].is_dated() && copies[0] == copies[1], "its id has a time");
    }
}
