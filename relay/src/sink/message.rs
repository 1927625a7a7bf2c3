//! What a record is in a broker whose messages are headers and a payload: which partition it belongs to, which headers
//! stand for what such messages lack (a key, a time, no payload at all), and the reasons and remedies that all such
//! sinks give. Pure. What a broker's names and values may hold is for its own sink to judge.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};

use super::partition::partition_for_key;
use crate::core::{
    destination::reserved_by,
    header::{CREATED_AT, KEY, KEY_BASE64, TOMBSTONE},
    record::Record,
};

/// What helps where a topic can't be one.
pub(super) const ANOTHER: &str = "give the event another topic with `outbox-relay dead-letters edit ID --topic TOPIC`, and release it";
/// What helps where a header can't be one.
pub(super) const CORRECT: &str =
    "correct it with `outbox-relay dead-letters edit`, and release the event";

/// A stable word, and what is wrong and what to do, for a person.
pub(super) type Refusal = (&'static str, String);

/// The headers that a message has beside the record's: its key as it is if it `is_plain`, in base64 otherwise; that it
/// is a tombstone; its time.
pub(super) fn added<'r>(
    record: &Record<'r>,
    is_plain: impl FnOnce(&str) -> bool,
) -> impl Iterator<Item = (&'static str, Cow<'r, str>)> {
    let key = record.key.map(|key| match std::str::from_utf8(key).ok().filter(|it| is_plain(it)) {
        Some(key) => (KEY, Cow::Borrowed(key)),
        None => (KEY_BASE64, Cow::Owned(BASE64.encode(key))),
    });
    let tombstone = record.payload.is_none().then_some((TOMBSTONE, Cow::Borrowed("1")));
    let time = created_at(record).map(|time| (CREATED_AT, Cow::Owned(time)));
    [key, tombstone, time].into_iter().flatten()
}

/// The event's time as RFC 3339, in UTC with milliseconds.
pub(super) fn created_at(record: &Record<'_>) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(record.timestamp_ms?).ok()?;
    Some(format!("{time:.3}"))
}

/// The partition of a record, of `count`; `setting` says so. Without a key any will do: the event's id is as good as
/// chance, and the same whenever it is sent again, whatever its headers are named.
///
/// # Errors
/// The row names one that there is not.
pub(super) fn partition(record: &Record<'_>, count: i32, setting: &str) -> Result<i32, Refusal> {
    match record.partition {
        Some(partition) if partition < count => Ok(partition),
        Some(partition) => Err((
            "no_such_partition",
            format!(
                "the event names partition {partition}, and {setting} is {count}: give it another partition with \
                 `outbox-relay dead-letters edit`, and release it"
            ),
        )),
        None => Ok(partition_for_key(record.key.or(record.event_id()).unwrap_or_default(), count)),
    }
}

/// `further` are the patterns of the setting.
///
/// # Errors
/// The topic is one in which others keep state.
pub(super) fn is_no_state(topic: &str, further: &[String]) -> Result<(), Refusal> {
    match reserved_by(topic, further) {
        None => Ok(()),
        Some(pattern) => {
            let why = format!("its name is reserved by {pattern:?}; see sink.reserved_topics");
            Err(reserved(topic, &why))
        }
    }
}

pub(super) fn reserved(topic: &str, why: &str) -> Refusal {
    let error = format!("the topic {topic} is no destination for events ({why}): {ANOTHER}");
    ("reserved_topic", error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        header::{self, cloudevents},
        lsn::Lsn,
        position::RowPosition,
        record::{Batch, BatchLimits, RecordHead},
    };

    const HEAD: RecordHead<'static> = RecordHead {
        position: RowPosition { commit: Lsn::ZERO, ordinal: 0 },
        topic: "orders",
        key: None,
        payload: Some(b"{}"),
        partition: None,
        timestamp_ms: None,
    };

    fn with<R>(
        head: RecordHead<'_>,
        headers: &[(&str, &str)],
        look: impl FnOnce(Record<'_>) -> R,
    ) -> R {
        let mut batch = Batch::new(BatchLimits { records_max: 1, bytes_max: 1 << 20 });
        let mut writer = batch.start_record(head);
        headers.iter().for_each(|(name, value)| writer.header(name, value.as_bytes()));
        writer.finish();
        look(batch.get(0).expect("a record"))
    }

    #[test]
    fn an_event_without_a_key_has_the_partition_of_its_id_whatever_its_headers_are_named() {
        for id in ["1", "2", "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"] {
            let expected = partition_for_key(id.as_bytes(), 64);
            // A row may have a header of the other style's name; the relay's own is before it.
            for headers in [
                [(header::ID, id), (cloudevents::ID, "another")],
                [(cloudevents::ID, id), ("id", "another")],
            ] {
                let chosen = with(HEAD, &headers, |record| partition(&record, 64, "it"));
                assert_eq!(chosen, Ok(expected), "{headers:?}");
            }
        }
    }

    #[test]
    fn the_rows_own_partition_is_before_its_key_s_and_must_be_there() {
        let head = RecordHead { key: Some(b"21"), ..HEAD };
        assert_eq!(with(head, &[], |record| partition(&record, 8, "it")), Ok(4));
        let head = RecordHead { partition: Some(7), ..head };
        assert_eq!(with(head, &[], |record| partition(&record, 8, "it")), Ok(7));
        let (reason, error) =
            with(head, &[], |record| partition(&record, 7, "sink.x.partitions")).unwrap_err();
        assert_eq!(reason, "no_such_partition");
        assert!(error.contains("partition 7, and sink.x.partitions is 7"), "{error}");
    }

    #[test]
    fn what_a_message_lacks_is_in_headers() {
        let all = |head: RecordHead<'_>, is_plain: fn(&str) -> bool| {
            with(head, &[], |record| {
                let added = added(&record, is_plain);
                added.map(|(name, value)| (name, value.into_owned())).collect::<Vec<_>>()
            })
        };
        let pair = |name, value: &str| (name, value.to_owned());
        assert_eq!(all(HEAD, |_| true), []);
        let head = RecordHead { key: Some(b"k"), payload: None, timestamp_ms: Some(5), ..HEAD };
        let rest = [pair(TOMBSTONE, "1"), pair(CREATED_AT, "1970-01-01T00:00:00.005Z")];
        let found = all(head, |_| true);
        assert_eq!(found, [&[pair(KEY, "k")], &rest[..]].concat());
        assert_eq!(all(head, |_| false), [&[pair(KEY_BASE64, "aw==")], &rest[..]].concat());
        let bytes = RecordHead { key: Some(b"\xff"), ..HEAD };
        assert_eq!(all(bytes, |_| true), [pair(KEY_BASE64, "/w==")]);
    }
}
