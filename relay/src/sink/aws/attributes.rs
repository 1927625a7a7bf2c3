//! From a record's headers to a message's attributes, of which a message has ten at most, each with a name and a value that
//! SQS allows. What can't be one, and what is too many, is in one attribute of its own, as JSON: no header is lost, and none
//! is a reason to refuse an event. Pure.

use std::collections::HashSet;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use outbox_relay_aws::ATTRIBUTES_MAX;
use serde_json::{Value, json};

use crate::core::header::RESERVED_PREFIX;

/// A list of `[name, value]`, in the order of the headers; of a value that is no text, `{"base64": …}`.
pub(super) const MORE: &str = "outbox-headers";

const NAME_CHARS_MAX: usize = 256;

/// `headers` in their order, the relay's own first. The first that may be attributes are; the others are in [`MORE`].
pub(super) fn attributes(headers: &[(&str, &[u8])]) -> Vec<(String, String)> {
    // A name is an attribute once: of several values none is, so that they stay together and in order.
    let (mut once, mut again) = (HashSet::new(), HashSet::new());
    for (name, _) in headers {
        if !once.insert(*name) {
            again.insert(*name);
        }
    }
    let plain = |(name, value): &(&str, &[u8])| {
        let value = std::str::from_utf8(value).ok().filter(|value| is_value(value))?;
        let is_free = !again.contains(name) && *name != MORE && is_name(name);
        is_free.then(|| value.to_owned())
    };
    let plain: Vec<Option<String>> = headers.iter().map(plain).collect();
    let count = plain.iter().flatten().count();
    let fits = count == headers.len() && count <= ATTRIBUTES_MAX;
    let room = if fits { ATTRIBUTES_MAX } else { ATTRIBUTES_MAX - 1 };
    let mut attributes = Vec::with_capacity(headers.len().min(ATTRIBUTES_MAX));
    let mut more = Vec::new();
    // The relay's own are few: rows can't crowd them out.
    let is_own = |name: &str| name.starts_with(RESERVED_PREFIX) || name.starts_with("ce_");
    let own = plain.iter().zip(headers).filter(|(it, (name, _))| it.is_some() && is_own(name));
    let mut left_to_others = room.saturating_sub(own.count());
    for ((name, value), plain) in headers.iter().zip(plain) {
        match plain {
            Some(value) if is_own(name) && attributes.len() < room => {
                attributes.push(((*name).to_owned(), value));
            }
            Some(value) if !is_own(name) && left_to_others > 0 => {
                left_to_others -= 1;
                attributes.push(((*name).to_owned(), value));
            }
            _ => more.push(listed(name, value)),
        }
    }
    if !more.is_empty() {
        attributes.push((MORE.to_owned(), written(&Value::Array(more))));
    }
    attributes
}

fn listed(name: &str, value: &[u8]) -> Value {
    match std::str::from_utf8(value) {
        Ok(text) => json!([name, text]),
        Err(_) => json!([name, { "base64": BASE64.encode(value) }]),
    }
}

/// JSON escapes all that SQS does not allow but these two, which it may write in another way.
fn written(list: &Value) -> String {
    let text = list.to_string();
    if text.contains(['\u{fffe}', '\u{ffff}']) {
        return text.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff");
    }
    text
}

fn is_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    (1..=NAME_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|it| it.is_ascii_alphanumeric() || b"_-.".contains(&it))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
        && !lower.starts_with("aws.")
        && !lower.starts_with("amazon.")
}

fn is_value(value: &str) -> bool {
    !value.is_empty() && is_text(value)
}

/// The characters of XML 1.0, which are those that SQS allows.
pub(super) fn is_text(text: &str) -> bool {
    text.chars().all(|it| {
        matches!(it, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn made(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        attributes(&headers)
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn headers_that_may_be_attributes_are() {
        let ten = ["a", "b", "c", "d", "e", "f", "g", "h", "i"].map(|name| (name, "1"));
        let ten = [&[("outbox-id", "7")], &ten[..]].concat();
        assert_eq!(made(&ten), pairs(&ten));
    }

    #[test]
    fn what_can_be_none_or_is_too_many_is_in_one_list() {
        for (name, value) in [
            ("a b", "1"),
            ("", "1"),
            (".a", "1"),
            ("a..b", "1"),
            ("AWS.a", "1"),
            ("amazon.a", "1"),
            ("ż", "1"),
            ("a", ""),
            ("a", "\u{1}"),
            (MORE, "[]"),
        ] {
            let list = json!([[name, value]]).to_string();
            assert_eq!(
                made(&[("outbox-id", "7"), (name, value)]),
                pairs(&[("outbox-id", "7"), (MORE, &list)])
            );
        }
        let twice = [("a", "1"), ("outbox-id", "7"), ("a", "2")];
        assert_eq!(made(&twice), pairs(&[("outbox-id", "7"), (MORE, r#"[["a","1"],["a","2"]]"#)]));
        assert_eq!(made(&[("a", "\u{ffff}")]), pairs(&[(MORE, r#"[["a","\uffff"]]"#)]));
        assert_eq!(attributes(&[("a", b"\xff")]), pairs(&[(MORE, r#"[["a",{"base64":"/w=="}]]"#)]));
        // The row's go before the relay's are left out.
        let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        let many: Vec<_> =
            names.map(|name| (name, "1")).into_iter().chain([("outbox-key", "k")]).collect();
        let made = made(&many);
        assert_eq!(made.len(), ATTRIBUTES_MAX);
        assert!(made.contains(&("outbox-key".into(), "k".into())), "{made:?}");
        assert_eq!(made.last(), Some(&(MORE.to_owned(), r#"[["i","1"],["j","1"]]"#.to_owned())));
    }

    proptest! {
        #[test]
        fn no_header_is_lost_and_no_attribute_is_one_that_sqs_refuses(
            headers in proptest::collection::vec(("(outbox-)?[a-c. ]{0,3}", proptest::collection::vec(any::<u8>(), 0..3)), 0..20)
        ) {
            let headers: Vec<(&str, &[u8])> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            let made = attributes(&headers);
            prop_assert!(made.len() <= ATTRIBUTES_MAX);
            let mut found: Vec<(String, Vec<u8>)> = Vec::new();
            for (name, value) in &made {
                prop_assert!(is_name(name) && is_value(value), "{name:?}: {value:?}");
                if name != MORE {
                    found.push((name.clone(), value.clone().into_bytes()));
                    continue;
                }
                let list: Vec<(String, Value)> = serde_json::from_str(value).expect("a list");
                found.extend(list.into_iter().map(|(name, value)| match value {
                    Value::String(text) => (name, text.into_bytes()),
                    other => (name, BASE64.decode(other["base64"].as_str().expect("text")).expect("base64")),
                }));
            }
            let mut given: Vec<(String, Vec<u8>)> =
                headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
            // Of a name with several values their order.
            given.sort_by(|a, b| a.0.cmp(&b.0));
            found.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(given, found);
        }
    }
}
