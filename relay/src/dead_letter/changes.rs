//! What an edit has changed, for a person: never a payload, nor the value of a key or of a row's header. Pure.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use super::{edit::Event, headers};
use crate::core::{
    header::{self, cloudevents},
    printable,
};

/// One part of an event that an edit has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Which, as the option of `dead-letters edit` is called.
    pub field: &'static str,
    /// What it was: of keys, payloads and headers the size alone.
    pub before: String,
    /// What it is now.
    pub after: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { field, before, after } = self;
        match before == after {
            true => write!(f, "{field}: another one, also {after}"),
            false => write!(f, "{field}: {before} → {after}"),
        }
    }
}

/// What differs, in the order of the command's options; empty where what was given is what there was.
pub(super) fn changes(before: &Event, after: &Event) -> Vec<Change> {
    let of_id = [header::ID, cloudevents::ID];
    let of_type = [header::TYPE, cloudevents::TYPE];
    let (own_before, own_after) = (own(&before.headers), own(&after.headers));
    let differs = [
        ("id", named(&before.headers, of_id) != named(&after.headers, of_id)),
        ("topic", before.topic != after.topic),
        ("key", before.key != after.key),
        ("partition", before.partition != after.partition),
        ("type", named(&before.headers, of_type) != named(&after.headers, of_type)),
        ("payload", before.payload != after.payload),
        ("headers", own_before != own_after),
        ("timestamp", before.timestamp_ms != after.timestamp_ms),
    ];
    let said = |field: &str, event: &Event| match field {
        "id" => short(named(&event.headers, of_id)),
        "topic" => short(event.topic.as_deref()),
        "key" => bytes(event.key.as_deref()),
        "partition" => number(event.partition.map(i64::from)),
        "type" => short(named(&event.headers, of_type)),
        "payload" => bytes(event.payload.as_deref()),
        "headers" => printable::counted(own(&event.headers).len() as u64, "header"),
        _ => number(event.timestamp_ms),
    };
    let changed = differs.into_iter().filter(|(_, differs)| *differs);
    let change =
        |(field, _)| Change { field, before: said(field, before), after: said(field, after) };
    changed.map(change).collect()
}

const NONE: &str = "none";

fn short(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).map_or(NONE.into(), |it| printable::short(it).into_owned())
}

fn bytes(bytes: Option<&[u8]>) -> String {
    bytes.map_or(NONE.into(), |bytes| printable::counted(bytes.len() as u64, "byte"))
}

fn number(number: Option<i64>) -> String {
    number.map_or(NONE.into(), |number| number.to_string())
}

fn pairs(headers: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let pairs = headers.as_array().into_iter().flatten();
    pairs.filter_map(|pair| Some((pair.get(0)?.as_str()?, pair.get(1)?)))
}

/// The first header that has one of these names.
fn named<'a>(headers: &'a Value, names: [&str; 2]) -> Option<&'a str> {
    pairs(headers).find(|(name, _)| names.contains(name)).and_then(|(_, value)| value.as_str())
}

/// The row's own, also where they could not be used.
fn own(headers: &Value) -> Vec<(&str, &Value)> {
    pairs(headers).filter(|(name, _)| !headers::is_own(name)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_change_is_told_and_of_secrets_the_size_alone() {
        let before = Event {
            topic: Some("ordres".into()),
            key: Some(b"alice".to_vec()),
            partition: Some(3),
            timestamp_ms: Some(5),
            payload: Some(b"{\"card\": 4111}".to_vec()),
            headers: json!([["outbox-id", ""], ["outbox-type", "a"], ["token", "s3cret"]]),
        };
        let after = Event {
            topic: Some("orders".into()),
            key: Some(b"bobby".to_vec()),
            partition: None,
            timestamp_ms: Some(6),
            payload: None,
            headers: json!([
                ["outbox-id", "e"],
                ["outbox-type", "b"],
                ["token", "n3w"],
                ["x", "y"]
            ]),
        };
        let told: Vec<String> = changes(&before, &after).iter().map(ToString::to_string).collect();
        let expected = [
            "id: none → e",
            "topic: ordres → orders",
            "key: another one, also 5 bytes",
            "partition: 3 → none",
            "type: a → b",
            "payload: 14 bytes → none",
            "headers: 1 header → 2 headers",
            "timestamp: 5 → 6",
        ];
        assert_eq!(told, expected);
        assert_eq!(changes(&before, &before), []);
    }
}
