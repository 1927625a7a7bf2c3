//! Topics that are no destination: somebody else keeps state in them by their name. Pure.
//!
//! Whoever may add a row to the outbox chooses its topic, and the relay's principal is often allowed
//! to write everywhere. A record in one of these topics would be taken for state: an offset, a
//! schema, a relay's progress. `outbox.publish` refuses [`RESERVED`] too; a test compares the two.

/// Patterns that no setting takes away. A `*` stands for any number of characters.
pub const RESERVED: [&str; 4] = [
    // Brokers' own, and their tools': `__consumer_offsets`, `__transaction_state`, …
    "__*",
    // How far a relay has come, this one or another.
    "outbox-relay-progress-*",
    // Schema registries, and what is built around them.
    "_schemas*",
    "_confluent*",
];

/// Further patterns, in place of which `sink.reserved_topics` gives its own.
pub const RESERVED_BY_DEFAULT: [&str; 9] = [
    // State of Kafka Streams.
    "*-changelog",
    "*-repartition",
    // Kafka Connect, by the names of its samples and operators.
    "connect-configs",
    "connect-offsets",
    "connect-status",
    "connect-cluster-configs",
    "connect-cluster-offsets",
    "connect-cluster-status",
    // MirrorMaker.
    "mm2-*.internal",
];

/// The pattern that keeps `topic` from being a destination: one of [`RESERVED`] or of `further`.
pub fn reserved_by<'a>(topic: &str, further: &'a [String]) -> Option<&'a str> {
    let all = RESERVED.into_iter().chain(further.iter().map(String::as_str));
    all.into_iter().find(|pattern| matches(pattern, topic))
}

/// Whether a text is one of a pattern's; a `*` stands for any number of characters.
pub fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, mut rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    // The first place that fits leaves the most for the parts after it.
    while let Some((part, after)) = rest.split_once('*') {
        let Some(at) = text.find(part) else { return false };
        text = text.get(at + part.len()..).unwrap_or_default();
        rest = after;
    }
    text.ends_with(rest)
}

#[cfg(test)]
mod tests {
    use crate::core::destination::*;

    #[test]
    fn topics_in_which_others_keep_state_are_no_destination() {
        let further = RESERVED_BY_DEFAULT.map(str::to_owned);
        for topic in [
            "__consumer_offsets",
            "__transaction_state",
            "__cluster_metadata",
            "__share_group_state",
            "__remote_log_metadata",
            "outbox-relay-progress-orders",
            "outbox-relay-progress-",
            "_schemas",
            "_schemas_encoders",
            "_confluent-command",
            "app-KSTREAM-AGGREGATE-STATE-STORE-0000000003-changelog",
            "app-by-customer-repartition",
            "connect-offsets",
            "mm2-offset-syncs.west.internal",
        ] {
            assert!(reserved_by(topic, &further).is_some(), "{topic}");
        }
        for topic in [
            "orders",
            "_orders",
            "orders__v1",
            "outbox-relay-progress",
            "outbox.event.order",
            "changelog",
            "orders-changelog-v2",
            "connect-configs-audit",
            "mm2-orders",
        ] {
            assert_eq!(reserved_by(topic, &further), None, "{topic}");
        }
    }

    #[test]
    fn a_setting_adds_patterns_and_takes_none_of_the_others_away() {
        let further = ["a*b*c".to_owned(), "exact".to_owned()];
        for (topic, reserved) in [
            ("abc", true),
            ("a-b-c", true),
            ("abcbc", true),
            ("acb", false),
            ("ab", false),
            ("exact", true),
            ("exactly", false),
            ("x-changelog", false),
            ("__x", true),
        ] {
            assert_eq!(reserved_by(topic, &further).is_some(), reserved, "{topic}");
        }
    }
}
