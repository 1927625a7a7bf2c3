//! Which names are a topic's, and whose.

use crate::{
    core::{destination::reserved_by, printable},
    sink::kafka::{settings::Settings, target::Refusal},
};

/// What to do about an event of such a topic.
pub(in crate::sink::kafka) const ANOTHER: &str = "give the event another topic with `outbox-relay dead-letters edit ID --topic TOPIC`, and release it";

/// Why a name is no topic's, or none of ours.
pub(super) fn unnameable(name: &str, settings: &Settings) -> Option<Refusal> {
    if !is_valid_name(name) {
        let error = format!(
            "{:?} is no topic name: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-', not . or ..: {ANOTHER}",
            printable::short(name)
        );
        return Some(("invalid_topic", error));
    }
    let pattern = reserved_by(name, &settings.reserved_topics)?;
    Some(reserved(name, &format!("its name is reserved by {pattern:?}")))
}

/// Others keep state in it by its name.
pub(super) fn reserved(name: &str, why: &str) -> Refusal {
    let error = format!(
        "the topic {name} is no destination for events, because others keep state in it ({why}): \
         {ANOTHER}; see sink.reserved_topics"
    );
    ("reserved_topic", error)
}

/// Kafka's rule for the names of topics.
pub(in crate::sink::kafka) fn is_valid_name(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kafka_refuses_are_known_without_asking() {
        for name in ["", ".", "..", "a b", "ä", "a/b", "a\0b", &"x".repeat(250)] {
            assert!(!is_valid_name(name), "{name:?}");
        }
        for name in ["a", "...", "Orders_v1.x-y", &"x".repeat(249)] {
            assert!(is_valid_name(name), "{name:?}");
        }
    }
}
