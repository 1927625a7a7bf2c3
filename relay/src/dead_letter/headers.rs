//! A record's headers as the table holds them: a JSON array of `[name, value]`, in order. Pure.
//!
//! A name or value is a string where it is text that the database can hold, else `{"base64": "…"}`.
//! The position is left out: it is assigned again when the event is delivered. Headers of the row that
//! could not be used stand under an empty name.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::core::header::{self, cloudevents};

/// What text the database can hold, by its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repertoire {
    /// UTF-8: all but the zero byte.
    Unicode,
    /// Any other encoding: ASCII is in each of them, and what else is, is not worth a table. A
    /// server refuses what it lacks, and then nothing could ever be parked.
    Ascii,
}

impl Repertoire {
    /// Asks for it; the answer is [`Repertoire::of`]'s argument.
    pub(super) const QUERY: &str = "select pg_catalog.current_setting('server_encoding')";

    pub(super) fn of(server_encoding: &str) -> Self {
        match server_encoding {
            "UTF8" => Repertoire::Unicode,
            _ => Repertoire::Ascii,
        }
    }

    fn has(self, character: char) -> bool {
        character != '\0' && (self == Repertoire::Unicode || character.is_ascii())
    }

    fn holds(self, text: &str) -> bool {
        text.chars().all(|character| self.has(character))
    }

    /// Text for people: what can't be held is spelled out.
    pub(super) fn sanitised(self, text: &str) -> String {
        text.chars()
            .flat_map(|character| {
                let (kept, spelled) = match character {
                    kept if self.has(kept) => (Some(kept), None),
                    '\0' if self == Repertoire::Unicode => (Some('\u{fffd}'), None),
                    other => (None, Some(other.escape_unicode())),
                };
                kept.into_iter().chain(spelled.into_iter().flatten())
            })
            .collect()
    }

    fn value(self, bytes: &[u8]) -> Value {
        match std::str::from_utf8(bytes) {
            Ok(text) if self.holds(text) => Value::from(text),
            _ => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
        }
    }
}

/// Names that the relay gives itself; the rest is the row's own.
const OWN: [&str; 10] = [
    header::ID,
    header::TYPE,
    header::RELAY,
    header::REPAIRED,
    header::ERA,
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
        || [cloudevents::RELAY, cloudevents::REPAIRED, cloudevents::ERA].contains(&name)
}

/// In which form the relay has written its own headers. Those of the other form are the row's.
#[derive(Clone, Copy, Debug)]
struct Form {
    position: &'static str,
    era: &'static str,
    repaired: &'static str,
}

impl Form {
    /// By the names that a record has: none of a row's own begins with `outbox-` beside the relay's.
    fn of<'a>(mut names: impl Iterator<Item = &'a str>) -> Self {
        match names.any(|name| name == header::POSITION) {
            true => {
                Form { position: header::POSITION, era: header::ERA, repaired: header::REPAIRED }
            }
            false => Form {
                position: cloudevents::POSITION,
                era: cloudevents::ERA,
                repaired: cloudevents::REPAIRED,
            },
        }
    }
}

/// Headers for a delivery: with the position, the era that goes with it, and, for what was parked in
/// another one, the mark that its position says nothing. It may have been delivered in that era: a
/// database that was put back does not know of the release.
pub(super) fn with_position(
    kept: impl Iterator<Item = (String, Vec<u8>)>,
    position: &str,
    era: u64,
) -> Vec<(String, Vec<u8>)> {
    let kept: Vec<_> = kept.collect();
    let form = Form::of(kept.iter().map(|(name, _)| name.as_str()));
    let (eras, rest): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(name, _)| name == form.era);
    let now = if era == 0 { Vec::new() } else { era.to_string().into_bytes() };
    let then = eras.into_iter().next().map_or_else(Vec::new, |(_, era)| era);
    let mark = then != now && !rest.iter().any(|(name, _)| name == form.repaired);
    let mut headers = Vec::with_capacity(rest.len() + 2);
    for (name, value) in rest {
        if name != form.position {
            headers.push((name, value));
            continue;
        }
        headers.push((name, position.as_bytes().to_vec()));
        if era != 0 {
            headers.push((form.era.to_owned(), now.clone()));
        }
        if mark {
            headers.push((form.repaired.to_owned(), b"1".to_vec()));
        }
    }
    headers
}

/// What the table holds of a record's headers.
pub(super) fn to_json<'a>(
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    repertoire: Repertoire,
) -> Value {
    let headers: Vec<_> = headers.collect();
    let form = Form::of(headers.iter().map(|(name, _)| *name));
    headers
        .into_iter()
        .map(|(name, value)| match name == form.position {
            // Its place among the others is kept.
            true => json!([name, ""]),
            false => json!([repertoire.value(name.as_bytes()), repertoire.value(value)]),
        })
        .collect()
}

/// A value as JSON, exactly.
pub(super) fn to_value(bytes: &[u8]) -> Value {
    Repertoire::Unicode.value(bytes)
}

/// The table's headers once more, for another repertoire.
pub(super) fn again(json: &Value, repertoire: Repertoire) -> Value {
    let headers: Vec<(String, Vec<u8>)> = from_json(json).collect();
    to_json(headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())), repertoire)
}

/// What can be read of the table's headers. Where something is left out, the event has its id and a position all the
/// same: whoever edits it is not to release it without them.
pub(super) fn whole(json: &Value, event_id: Option<&str>) -> Value {
    let mut kept: Vec<(String, Vec<u8>)> = from_json(json).collect();
    if !are_readable(json) {
        let has = |names: [&str; 2]| kept.iter().any(|(name, _)| names.contains(&name.as_str()));
        let lacks_position = !has([header::POSITION, cloudevents::POSITION]);
        let id = event_id.filter(|_| !has([header::ID, cloudevents::ID]));
        if lacks_position {
            kept.insert(0, (header::POSITION.to_owned(), Vec::new()));
        }
        if let Some(id) = id {
            kept.insert(0, (header::ID.to_owned(), id.as_bytes().to_vec()));
        }
    }
    to_json(kept.iter().map(|(name, value)| (name.as_str(), value.as_slice())), Repertoire::Unicode)
}

/// Name and value of each header; what is not of the table's shape is left out.
pub(super) fn from_json(json: &Value) -> impl Iterator<Item = (String, Vec<u8>)> {
    json.as_array().into_iter().flatten().filter_map(pair)
}

/// Whether nothing is left out, neither the event's id nor its position: someone may have written the column.
pub(super) fn are_readable(json: &Value) -> bool {
    json.as_array().is_some_and(|pairs| pairs.iter().all(|it| pair(it).is_some()))
}

/// Why an event with such headers is not delivered.
pub(super) const UNREADABLE: &str = "the column headers of this row of outbox.dead_letters is not a JSON array of [name, value] \
     pairs, so someone has changed it by hand; what could be read of it was kept";

fn pair(pair: &Value) -> Option<(String, Vec<u8>)> {
    let bytes = |value: &Value| match value {
        Value::String(text) => Some(text.as_bytes().to_vec()),
        other => BASE64_STANDARD.decode(other.get("base64")?.as_str()?).ok(),
    };
    let [name, value] = pair.as_array()?.as_slice() else { return None };
    Some((String::from_utf8(bytes(name)?).ok()?, bytes(value)?))
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
            ("pr\u{e9}nom", "\u{20ac} \u{10ffff}".into()),
        ];
        for repertoire in [Repertoire::Unicode, Repertoire::Ascii] {
            let json = to_json(headers.iter().map(|(n, value)| (*n, value.as_slice())), repertoire);
            let back = from_json(&json).collect::<Vec<_>>();
            let expected = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
            assert_eq!(back, expected.collect::<Vec<_>>());
            let text = json.to_string();
            assert!(!text.contains("\\u0000"), "the database takes no zero byte");
            assert!(repertoire == Repertoire::Unicode || text.is_ascii(), "{text}");
            assert_eq!(again(&again(&json, Repertoire::Ascii), repertoire), json);
        }
    }

    #[test]
    fn headers_that_someone_has_written_by_hand_are_known() {
        for (written, readable) in [
            (json!([]), true),
            (json!([["outbox-id", "e"], ["a", {"base64": "/wA="}]]), true),
            (json!({"outbox-id": "e"}), false),
            (json!([["outbox-id", "e"], ["a"]]), false),
            (json!([["outbox-id", "e"], ["a", 1]]), false),
            (json!(null), false),
        ] {
            assert_eq!(are_readable(&written), readable, "{written}");
        }
    }

    #[test]
    fn a_position_keeps_its_place_and_not_its_value() {
        let headers = [("outbox-position", &b"1:1:A:0"[..]), ("a", b"1")].into_iter();
        let json = to_json(headers, Repertoire::Ascii);
        assert_eq!(json, json!([["outbox-position", ""], ["a", "1"]]));
        let headers =
            [("ce_outboxposition", &b"x"[..]), ("outbox-position", b"1:1:A:0")].into_iter();
        let json = to_json(headers, Repertoire::Ascii);
        assert_eq!(
            json,
            json!([["ce_outboxposition", "x"], ["outbox-position", ""]]),
            "the row's own"
        );
    }

    #[test]
    fn what_was_parked_in_another_era_is_delivered_in_this_one_and_marked() {
        let owned = |pairs: &[(&str, &str)]| -> Vec<(String, Vec<u8>)> {
            pairs.iter().map(|(name, value)| ((*name).into(), value.as_bytes().to_vec())).collect()
        };
        let (id, position) = (("outbox-id", "e"), ("outbox-position", ""));
        let given = ("outbox-position", "1:1:A:0");
        let (five, six, mark) =
            (("outbox-era", "5"), ("outbox-era", "6"), ("outbox-repaired", "1"));
        for (kept, era, expected) in [
            (vec![id, position], 0, vec![id, given]),
            (vec![id, position, five], 5, vec![id, given, five]),
            (vec![id, position], 5, vec![id, given, five, mark]),
            (vec![id, position, five], 6, vec![id, given, six, mark]),
            (vec![id, position, five, mark], 6, vec![id, given, six, mark]),
            (
                vec![("ce_outboxposition", "")],
                5,
                vec![
                    ("ce_outboxposition", "1:1:A:0"),
                    ("ce_outboxera", "5"),
                    ("ce_outboxrepaired", "1"),
                ],
            ),
            // The row's own, in the other form.
            (
                vec![("ce_outboxera", "9"), ("ce_outboxposition", "x"), position],
                0,
                vec![("ce_outboxera", "9"), ("ce_outboxposition", "x"), given],
            ),
            (
                vec![position, ("ce_outboxrepaired", "0")],
                5,
                vec![given, five, mark, ("ce_outboxrepaired", "0")],
            ),
        ] {
            let written = with_position(owned(&kept).into_iter(), "1:1:A:0", era);
            assert_eq!(written, owned(&expected), "{kept:?}");
        }
    }

    #[test]
    fn what_an_encoding_may_lack_is_spelled_out_and_what_every_one_has_stays() {
        let text = "a\u{fc}\u{20ac}\0z";
        assert_eq!(Repertoire::of("UTF8").sanitised(text), "a\u{fc}\u{20ac}\u{fffd}z");
        for encoding in ["LATIN1", "WIN1252", "EUC_JP", "SQL_ASCII"] {
            assert_eq!(Repertoire::of(encoding).sanitised(text), r"a\u{fc}\u{20ac}\u{0}z");
        }
    }
}
