//! What a queue's or topic's attributes say that matters to the relay. Pure.

use outbox_relay_aws::{Found, Said};
use serde_json::Value;

/// Of a topic of SNS, unless someone has raised it.
const TOPIC_BYTES_MAX: usize = 256 << 10;

/// What is known of a queue or topic.
#[derive(Debug, Default)]
pub(super) struct Facts<'a> {
    /// The attributes may not be read.
    pub(super) unread: Option<&'a Said>,
    /// Of a message, where that is told.
    pub(super) bytes_max: Option<usize>,
    /// Whether it keeps order, where that is told.
    pub(super) fifo: Option<bool>,
    /// The key that encrypts it; `None` where it has none, or the service's own.
    pub(super) kms_key: Option<&'a str>,
    /// Its policy lets anyone do something without a condition.
    pub(super) open_to_all: Vec<String>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(found: &'a Found) -> Self {
        let attributes = match &found.attributes {
            Ok(attributes) => attributes,
            Err(said) => return Facts { unread: Some(said), ..Facts::default() },
        };
        let text =
            |name: &str| attributes.get(name).map(String::as_str).filter(|it| !it.is_empty());
        let is =
            |name: &str, value: &str| text(name).is_some_and(|it| it.eq_ignore_ascii_case(value));
        Facts {
            unread: None,
            bytes_max: match text("MaximumMessageSize") {
                Some(bytes) => bytes.parse().ok(),
                // A topic that says nothing takes what all of them took once.
                None => text("TopicArn").map(|_| TOPIC_BYTES_MAX),
            },
            fifo: Some(is("FifoQueue", "true") || is("FifoTopic", "true")),
            kms_key: text("KmsMasterKeyId"),
            open_to_all: text("Policy").map(open_to_all).unwrap_or_default(),
        }
    }
}

/// Actions that a policy allows to everyone, without a condition.
fn open_to_all(policy: &str) -> Vec<String> {
    let Ok(policy) = serde_json::from_str::<Value>(policy) else { return vec![] };
    let several = |value: &Value| match value {
        Value::Array(all) => all.clone(),
        Value::Null => vec![],
        one => vec![one.clone()],
    };
    let is_everyone = |principal: &Value| {
        principal == "*"
            || principal.get("AWS").is_some_and(|it| several(it).iter().any(|it| it == "*"))
    };
    let open = several(policy.get("Statement").unwrap_or(&Value::Null)).into_iter().filter(|it| {
        it.get("Effect").is_some_and(|it| it == "Allow")
            && it.get("Principal").is_some_and(is_everyone)
            && it
                .get("Condition")
                .is_none_or(|it| it.as_object().is_none_or(serde_json::Map::is_empty))
    });
    let mut actions: Vec<String> = open
        .flat_map(|it| several(it.get("Action").unwrap_or(&Value::Null)))
        .filter_map(|it| it.as_str().map(str::to_owned))
        .collect();
    actions.sort();
    actions.dedup();
    actions
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn found(attributes: &[(&str, &str)]) -> Found {
        let all = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Found { address: String::new(), attributes: Ok(all.collect::<HashMap<_, _>>()) }
    }

    #[test]
    fn what_matters_of_a_queue_or_topic_is_read_from_its_attributes() {
        let found = found(&[
            ("FifoQueue", "true"),
            ("MaximumMessageSize", "262144"),
            ("KmsMasterKeyId", "alias/key"),
        ]);
        let facts = Facts::of(&found);
        assert_eq!(
            (facts.fifo, facts.bytes_max, facts.kms_key),
            (Some(true), Some(262_144), Some("alias/key"))
        );
        assert!(facts.unread.is_none() && facts.open_to_all.is_empty());
    }

    #[test]
    fn a_topic_that_names_no_limit_has_the_usual_one_and_a_queue_is_asked() {
        assert_eq!(
            Facts::of(&found(&[("TopicArn", "arn:aws:sns:x:1:a")])).bytes_max,
            Some(262_144)
        );
        assert_eq!(Facts::of(&found(&[("QueueArn", "arn:aws:sqs:x:1:a")])).bytes_max, None);
    }

    #[test]
    fn a_policy_that_lets_everyone_send_is_seen() {
        let statement = |principal: &str, rest: &str| {
            let policy = format!(
                r#"{{"Statement": [{{"Effect": "Allow", "Principal": {principal}, "Action": "sqs:SendMessage"{rest}}}]}}"#
            );
            open_to_all(&policy)
        };
        for principal in [r#""*""#, r#"{"AWS": "*"}"#, r#"{"AWS": ["1", "*"]}"#] {
            assert_eq!(statement(principal, ""), ["sqs:SendMessage"], "{principal}");
        }
        assert_eq!(statement(r#"{"AWS": "123456789012"}"#, ""), [""; 0]);
        let condition = r#", "Condition": {"ArnEquals": {"aws:SourceArn": "x"}}"#;
        assert_eq!(statement(r#""*""#, condition), [""; 0]);
        assert_eq!(open_to_all("no JSON"), [""; 0]);
    }
}
