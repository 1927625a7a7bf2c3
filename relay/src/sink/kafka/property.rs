//! Which librdkafka properties are refused, and why: those on which a guarantee rests.
//!
//! Pure. Everything that is not named here passes through to librdkafka.

use crate::core::finding::Finding;

enum Rule {
    /// The relay sets it itself.
    Owned(&'static str),
    /// Only these values keep the guarantee.
    OneOf(&'static [&'static str], &'static str),
    /// Whole numbers within these bounds.
    Within(i64, i64, &'static str),
}

const NO_GROUP: &str = "the relay uses no consumer group";
const PROGRESS_READ: &str = "reading the progress back depends on it";

fn rule(name: &str) -> Option<Rule> {
    use Rule::{OneOf, Owned, Within};
    Some(match name {
        "transactional.id" => {
            Owned("it is outbox-relay-<name>, so that a new relay fences the old one")
        }
        "enable.idempotence" => OneOf(&["true"], "without it a retry repeats and reorders records"),
        "acks" | "request.required.acks" => {
            OneOf(&["all", "-1"], "a record is stored only when every in-sync replica has it")
        }
        "max.in.flight" | "max.in.flight.requests.per.connection" => {
            Within(1, 5, "idempotence keeps the order of at most five requests in flight")
        }
        "retries" | "message.send.max.retries" => {
            Owned("a record is retried until the delivery's time is over")
        }
        "message.timeout.ms" | "delivery.timeout.ms" => {
            Owned("it follows from transaction.timeout.ms, which you may set")
        }
        "transaction.timeout.ms" => Within(
            1_000,
            900_000,
            "it bounds a delivery, and how long a dead relay holds read_committed readers",
        ),
        "partitioner" | "sticky.partitioning.linger.ms" => {
            Owned("records go to the partitions that Java's client would choose")
        }
        "delivery.report.only.error" | "queuing.strategy" => {
            Owned("what counts as delivered depends on it")
        }
        "enable.gapless.guarantee" | "queue.buffering.backpressure.threshold" => {
            Owned("a refused record must not end the client")
        }
        "queue.buffering.max.messages" | "queue.buffering.max.kbytes" => {
            Owned("it follows from batch.records_max and batch.bytes_max")
        }
        "allow.auto.create.topics" => Owned("topics are created by sink.create_topics only"),
        "isolation.level" | "enable.partition.eof" | "auto.offset.reset" | "check.crcs" => {
            Owned(PROGRESS_READ)
        }
        "group.id"
        | "group.instance.id"
        | "group.protocol"
        | "enable.auto.commit"
        | "enable.auto.offset.store"
        | "auto.commit.interval.ms" => Owned(NO_GROUP),
        _ => return None,
    })
}

/// The problem with setting `name` to `value`, if there is one.
pub(super) fn refuse(name: &str, value: &str) -> Option<Finding> {
    let problem = |what: String, remedy: String| {
        Some(Finding { key: format!("sink.properties.{name}"), what, remedy })
    };
    let value = value.trim();
    match rule(name)? {
        Rule::Owned(why) => problem(format!("it can't be set: {why}"), "remove it".into()),
        Rule::OneOf(values, why) if !values.contains(&value) => problem(
            format!("{value:?} would break a guarantee: {why}"),
            format!("remove it, or set it to {}", values.join(" or ")),
        ),
        Rule::Within(least, most, why)
            if !value.parse().is_ok_and(|number: i64| (least..=most).contains(&number)) =>
        {
            problem(
                format!("{value:?} is not a whole number from {least} to {most}: {why}"),
                format!("set it to one from {least} to {most}, or remove it"),
            )
        }
        Rule::OneOf(..) | Rule::Within(..) => None,
    }
}

/// Whether a message about this property must not quote its value.
pub(super) fn may_be_secret(name: &str) -> bool {
    ["password", "secret", "key", "token", "sasl.oauthbearer.config", "pem", "jaas"]
        .iter()
        .any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_that_would_break_a_guarantee_are_refused_with_the_reason() {
        for (name, value) in [
            ("transactional.id", "x"),
            ("enable.idempotence", "false"),
            ("acks", "1"),
            ("request.required.acks", "0"),
            ("max.in.flight", "6"),
            ("max.in.flight.requests.per.connection", "many"),
            ("retries", "3"),
            ("message.timeout.ms", "1"),
            ("partitioner", "random"),
            ("isolation.level", "read_uncommitted"),
            ("group.id", "g"),
            ("transaction.timeout.ms", "999"),
            ("transaction.timeout.ms", "900001"),
        ] {
            let problem = refuse(name, value).expect(name);
            assert!(problem.key.ends_with(name) && !problem.what.is_empty(), "{problem:?}");
        }
    }

    #[test]
    fn properties_that_keep_the_guarantees_pass() {
        for (name, value) in [
            ("acks", "all"),
            ("acks", "-1"),
            ("enable.idempotence", "true"),
            ("max.in.flight", "5"),
            ("transaction.timeout.ms", "60000"),
            ("linger.ms", "0"),
            ("compression.type", "zstd"),
            ("sasl.password", "x"),
        ] {
            assert_eq!(refuse(name, value), None, "{name}");
        }
    }
}
