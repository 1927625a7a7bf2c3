//! Exchanges and routing keys: how they are made of a record. Pure.

use std::{fmt, str::FromStr};

/// AMQP's short strings have so many bytes at most.
pub(super) const NAME_BYTES_MAX: usize = 255;
const PARTS: [&str; 4] = ["{topic}", "{partition}", "{key}", "{type}"];

/// A text with `{topic}`, `{partition}`, `{key}` and `{type}` in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

/// What of a record stands in for the parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    /// Empty where there is none.
    pub(super) key: &'a str,
    /// Empty where there is none.
    pub(super) event_type: &'a str,
}

impl FromStr for Template {
    type Err = String;

    /// # Errors
    /// What is wrong with it.
    fn from_str(text: &str) -> Result<Self, String> {
        let rest = PARTS.iter().fold(text.to_owned(), |text, part| text.replace(part, ""));
        if rest.contains(['{', '}']) {
            return Err(format!(
                "{text:?} has braces around something else than {}",
                PARTS.join(", ")
            ));
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(format!("has {} bytes; names have {NAME_BYTES_MAX} at most", text.len()));
        }
        Ok(Template(text.to_owned()))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Template {
    /// Exchanges are named after topics by default.
    pub fn exchange() -> Self {
        Template("{topic}".into())
    }

    /// Routing keys are partitions by default.
    pub fn routing_key() -> Self {
        Template("{partition}".into())
    }

    /// Whether it has a part, such as `{key}`.
    pub(super) fn has(&self, part: &str) -> bool {
        self.0.contains(part)
    }

    /// For a record. What a topic or key holds is text, whatever it looks like.
    pub(super) fn of(&self, named: Named<'_>) -> String {
        let mut made = String::with_capacity(self.0.len() + named.topic.len());
        let mut rest = self.0.as_str();
        while let Some((before, part)) = rest.split_once('{') {
            made.push_str(before);
            let (name, after) = part.split_once('}').unwrap_or((part, ""));
            match name {
                "topic" => made.push_str(named.topic),
                "partition" => made.push_str(&named.partition.to_string()),
                "key" => made.push_str(named.key),
                _ => made.push_str(named.event_type),
            }
            rest = after;
        }
        made.push_str(rest);
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: Named<'_> =
        Named { topic: "{key}", partition: 3, key: "a{topic}", event_type: "OrderPlaced" };

    #[test]
    fn parts_stand_for_what_the_record_has() {
        for (text, made) in [
            ("{topic}", "{key}"),
            ("{partition}", "3"),
            ("events.{topic}.{type}", "events.{key}.OrderPlaced"),
            ("{key}.{key}", "a{topic}.a{topic}"),
            ("", ""),
            ("plain", "plain"),
        ] {
            assert_eq!(text.parse::<Template>().expect("a template").of(NAMED), made, "{text}");
        }
    }

    #[test]
    fn another_part_is_no_template() {
        for text in ["{id}", "{", "}", "{topic", "{{topic}}x}"] {
            assert!(text.parse::<Template>().is_err(), "{text}");
        }
        assert!("x".repeat(256).parse::<Template>().is_err());
    }
}
