//! What a consumer's database can hold, and the form in which it holds everything else.
//!
//! A message, a handler and its errors may say what no column takes: a zero byte, characters that
//! the database's encoding lacks, a time after PostgreSQL's last. Each text, time and header of
//! theirs passes here on its way to SQL, so that none of them makes a statement fail. Pure.

use std::{
    borrow::Cow,
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use crate::message::Headers;

/// Longest code of a dead letter that is kept: an index holds it, which takes 2,704 bytes at most.
const CODE_BYTES_MAX: usize = 255;
/// Most of an error's text that is kept.
const ERROR_BYTES_MAX: usize = 1024;
/// What begins a character that is spelled out.
const SPELLED: &str = "\\u{";

/// Some 7,900 years: with today, still a year of four digits, which every tool reads.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(250_000_000_000);
/// 9999-12-31, since 1970.
const LATEST: Duration = Duration::from_secs(253_402_214_400);

/// Characters that the database can hold, by its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repertoire {
    /// UTF-8: all but the zero byte.
    Unicode,
    /// Any other encoding: ASCII is in each of them, and what else is, is not worth a table.
    Ascii,
}

impl Repertoire {
    /// By the setting `server_encoding`.
    pub(crate) fn of(server_encoding: &str) -> Self {
        match server_encoding {
            "UTF8" => Repertoire::Unicode,
            _ => Repertoire::Ascii,
        }
    }

    fn has(self, character: char) -> bool {
        character != '\0' && (self == Repertoire::Unicode || character.is_ascii())
    }

    /// Text with what can't be held spelled out, such as `\u{20ac}`; [`told`] reads it again. Of two
    /// texts that differ the forms differ too.
    pub(crate) fn text(self, text: &str) -> Cow<'_, str> {
        if text.chars().all(|character| self.has(character)) && !text.contains(SPELLED) {
            return Cow::Borrowed(text);
        }
        let mut spelled = String::with_capacity(text.len() + 16);
        for character in text.chars() {
            if self.has(character) && character != '\\' {
                spelled.push(character);
            } else {
                let _infallible = write!(spelled, "{}", character.escape_unicode());
            }
        }
        Cow::Owned(spelled)
    }

    /// A failure's code, as dead letters are found by it.
    pub(crate) fn code(self, code: &str) -> String {
        cut(&self.text(code), CODE_BYTES_MAX).to_owned()
    }

    /// An error, for people.
    pub(crate) fn error(self, error: &str) -> String {
        cut(&self.text(cut(error, ERROR_BYTES_MAX)), ERROR_BYTES_MAX).to_owned()
    }

    /// As `inbox.parked.headers` describes; [`headers`] reads it again.
    pub(crate) fn headers(self, headers: &Headers) -> Value {
        let value = |value: &[u8]| match std::str::from_utf8(value) {
            Ok(text) if text.chars().all(|character| self.has(character)) => text.into(),
            _ => json!({ "base64": BASE64.encode(value) }),
        };
        let header = |(name, bytes): &(String, Option<Vec<u8>>)| {
            json!([self.text(name), bytes.as_deref().map_or(Value::Null, value)])
        };
        headers.0.iter().map(header).collect()
    }
}

/// What [`Repertoire::text`] was given.
pub(crate) fn told(text: &str) -> Cow<'_, str> {
    if !text.contains(SPELLED) {
        return Cow::Borrowed(text);
    }
    let mut parts = text.split(SPELLED);
    let mut told = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let character = part.split_once('}').and_then(|(hex, rest)| {
            let character = u32::from_str_radix(hex, 16).ok().and_then(char::from_u32)?;
            Some((character, rest))
        });
        match character {
            Some((character, rest)) => {
                told.push(character);
                told.push_str(rest);
            }
            // Not ours: somebody wrote into the table.
            None => {
                told.push_str(SPELLED);
                told.push_str(part);
            }
        }
    }
    Cow::Owned(told)
}

/// What [`Repertoire::headers`] was given; what is not of its form is left out.
pub(crate) fn headers(json: &Value) -> Headers {
    let header = |pair: &Value| {
        let [name, value] = pair.as_array()?.as_slice() else { return None };
        let value = match value {
            Value::String(text) => Some(text.clone().into_bytes()),
            Value::Object(map) => Some(BASE64.decode(map.get("base64")?.as_str()?).ok()?),
            _ => None,
        };
        Some((told(name.as_str()?).into_owned(), value))
    };
    Headers(json.as_array().into_iter().flatten().filter_map(header).collect())
}

/// A time that a `timestamptz` has: the nearest of 1970 to 9999.
pub(crate) fn time(time: SystemTime) -> SystemTime {
    time.clamp(UNIX_EPOCH, UNIX_EPOCH + LATEST)
}

/// A delay after which there is such a time.
pub(crate) fn delay(delay: Duration) -> Duration {
    delay.min(LONGEST_DELAY)
}

/// The beginning of a text, whole characters of it.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rfind(|&end| text.is_char_boundary(end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_held_stays_as_it_is_and_everything_else_is_spelled_out() {
        for (text, unicode, ascii) in [
            ("", "", ""),
            ("a\\b\n", "a\\b\n", "a\\b\n"),
            ("5 €", "5 €", "5 \\u{20ac}"),
            ("a\0b", "a\\u{0}b", "a\\u{0}b"),
            ("\\u{20ac}", "\\u{5c}u{20ac}", "\\u{5c}u{20ac}"),
        ] {
            assert_eq!(Repertoire::Unicode.text(text), unicode);
            assert_eq!(Repertoire::Ascii.text(text), ascii);
        }
    }

    #[test]
    fn codes_and_errors_are_cut_between_characters() {
        let long = "é".repeat(20_000);
        for repertoire in [Repertoire::Unicode, Repertoire::Ascii] {
            let (code, error) = (repertoire.code(&long), repertoire.error(&long));
            assert!((CODE_BYTES_MAX - 1..=CODE_BYTES_MAX).contains(&code.len()), "{}", code.len());
            assert!((ERROR_BYTES_MAX - 1..=ERROR_BYTES_MAX).contains(&error.len()));
        }
    }

    #[test]
    fn every_time_and_delay_becomes_one_that_a_table_holds() {
        let now = SystemTime::now();
        assert_eq!(time(now), now);
        let far = UNIX_EPOCH + Duration::from_secs(u64::MAX / 4);
        assert_eq!(time(far), UNIX_EPOCH + LATEST);
        assert_eq!(time(UNIX_EPOCH - Duration::from_secs(u64::MAX / 4)), UNIX_EPOCH);
        assert_eq!(delay(Duration::MAX), LONGEST_DELAY);
        assert!(now + LONGEST_DELAY < UNIX_EPOCH + LATEST);
    }

    /// Zero bytes and other control characters too, which the strategy for `String` never makes.
    fn any_text() -> impl Strategy<Value = String> {
        let character = prop_oneof![any::<char>(), Just('\0'), Just('\\')];
        proptest::collection::vec(character, 0..16).prop_map(|text| text.into_iter().collect())
    }

    fn any_headers() -> impl Strategy<Value = Vec<(String, Option<Vec<u8>>)>> {
        let text = any_text().prop_map(String::into_bytes);
        let value = prop_oneof![any::<Vec<u8>>(), text];
        proptest::collection::vec((any_text(), proptest::option::of(value)), 0..4)
    }

    proptest! {
        #[test]
        fn whatever_is_stored_is_read_as_it_was(
            texts in proptest::collection::vec(any_text(), 0..4), headers_in in any_headers(),
            odd in "[u{}\\\\0-9a-f]*",
        ) {
            for repertoire in [Repertoire::Unicode, Repertoire::Ascii] {
                for text in texts.iter().chain([&odd]) {
                    let stored = repertoire.text(text);
                    prop_assert!(stored.chars().all(|character| repertoire.has(character)));
                    prop_assert_eq!(told(&stored), text.as_str());
                }
                let kept = Headers(headers_in.clone());
                let stored = repertoire.headers(&kept);
                let json = stored.to_string();
                prop_assert!(!json.contains("\\u0000"));
                prop_assert!(repertoire == Repertoire::Unicode || json.is_ascii());
                prop_assert_eq!(headers(&stored), kept);
            }
        }
    }
}
