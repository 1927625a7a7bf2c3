//! A record's headers as the table holds them: a JSON array of `[name, value]`, in order. Pure.
//!
//! A value is a string where it is text that JSON in the database can hold, else
//! `{"base64": "…"}`. The position is left out: it is given anew when the event is delivered. Headers
//! of the row that could not be used stand under an empty name.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::header::{self, cloudevents};

/// Names that the relay gives itself; the rest is the row's own.
const OWN: [&str; 9] = [
    header::ID,
    header::TYPE,
    header::RELAY,
    header::REPAIRED,
    cloudevents::SPECVERSION,
    cloudevents::ID,
    cloudevents::TYPE,
    cloudevents::SOURCE,
    cloudevents::TIME,
];

/// Whether the header tells the record's position.
pub(super) fn is_position(name: &str) -> bool {
    name == header::POSITION || name == cloudevents::POSITION
}

/// Whether the header is the relay's own.
pub(super) fn is_own(name: &str) -> bool {
    OWN.contains(&name)
        || is_position(name)
        || [cloudevents::RELAY, cloudevents::REPAIRED].contains(&name)
}

/// What the table holds of a record's headers.
pub(super) fn to_json<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Value {
    headers
        .map(|(name, value)| match is_position(name) {
            // Its place among the others is kept.
            true => json!([name, ""]),
            false => json!([sanitised(name), to_value(value)]),
        })
        .collect()
}

/// A value as JSON, exactly.
pub(super) fn to_value(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Value::from(text),
        _ => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
    }
}

/// Text that the database can hold; a zero byte is the only character that it can't.
pub(super) fn sanitised(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Name and value of each header; what is not of the table's shape is left out.
pub(super) fn from_json(json: &Value) -> impl Iterator<Item = (&str, Vec<u8>)> {
    json.as_array().into_iter().flatten().filter_map(|pair| {
        let [name, value] = pair.as_array()?.as_slice() else { return None };
        let value = match value {
            Value::String(text) => text.as_bytes().to_vec(),
            other => BASE64_STANDARD.decode(other.get("base64")?.as_str()?).ok()?,
        };
        Some((name.as_str()?, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were_in_their_order() {
        let headers: Vec<(&str, Vec<u8>)> = vec![
            ("outbox-id", b"e".to_vec()),
            ("b", "gr\u{fc}\u{df} \"dich\"".into()),
            ("a", vec![0xff, 0, 1]),
            ("b", b"".to_vec()),
            ("zero", b"a\0b".to_vec()),
        ];
        let json = to_json(headers.iter().map(|(name, value)| (*name, value.as_slice())));
        assert_eq!(from_json(&json).collect::<Vec<_>>(), headers);
        assert!(!json.to_string().contains("\\u0000"), "the database takes no zero byte");
    }

    #[test]
    fn a_position_keeps_its_place_and_not_its_value() {
        let json = to_json([("outbox-position", &b"1:1:A:0"[..]), ("a", b"1")].into_iter());
        assert_eq!(json, json!([["outbox-position", ""], ["a", "1"]]));
    }
}
