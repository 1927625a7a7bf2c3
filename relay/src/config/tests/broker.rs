//! Settings of the kinds of brokers: each is for its own kind, and is checked there.

use super::{super::*, file};

/// A setting of each section, with the kind that has it.
const ONES: [(&str, &str, &str); 9] = [
    ("nats", "sink.nats.stream", "\"ORDERS\""),
    ("rabbitmq", "sink.rabbitmq.declare", "true"),
    ("sqs", "sink.sqs.requests_in_flight", "1"),
    ("sns", "sink.sns.region", "\"eu-west-1\""),
    ("pulsar", "sink.pulsar.exclusive", "false"),
    ("file", "sink.file.path", "\"events.jsonl\""),
    ("kafka", "sink.properties_file", "\"/nowhere\""),
    ("kafka", "sink.properties.acks", "\"all\""),
    ("kafka", "sink.create_topics.partitions", "6"),
];

fn problems(text: &str) -> Vec<String> {
    file(&format!("postgres.url = \"host=db dbname=app\"\n{text}")).err().unwrap_or_default()
}

#[test]
fn a_setting_of_another_kind_is_refused_and_one_of_its_own_is_not() {
    for kind in Kind::ALL.map(Kind::name) {
        for (owner, key, value) in ONES {
            let found = problems(&format!("sink.kind = \"{kind}\"\n{key} = {value}"));
            let said = format!("is for sink.kind = \"{owner}\" only");
            let refused: Vec<_> =
                found.iter().filter(|it| it.contains("is for sink.kind")).collect();
            match refused.as_slice() {
                [] => assert_eq!(kind, owner, "{key} with {kind}: {found:?}"),
                [one] => {
                    assert_ne!(kind, owner, "{key}: {one}");
                    assert!(one.contains(key) && one.contains(&said), "{one}");
                }
                more => panic!("{key} with {kind}: {more:?}"),
            }
        }
    }
}

#[test]
fn what_brokers_can_not_be_told_is_named_each_with_its_key() {
    for (kind, key, value) in [
        ("nats", "subject", "\"no topic\""),
        ("nats", "partitions", "0"),
        ("nats", "partitions", "100001"),
        ("nats", "certificate_file", "\"a.pem\""),
        ("rabbitmq", "message_bytes_max", "\"1023\""),
        ("rabbitmq", "key_file", "\"a.key\""),
        ("sqs", "message_bytes_max", "\"2 MiB\""),
        ("sqs", "requests_in_flight", "257"),
        ("pulsar", "topic", "\"no topic\""),
        ("pulsar", "message_bytes_max", "\"513 MiB\""),
    ] {
        let key = format!("sink.{kind}.{key}");
        let found = problems(&format!("sink.kind = \"{kind}\"\n{key} = {value}"));
        let of_it = found.iter().filter(|it| it.contains(&format!("{key} "))).count();
        assert_eq!(of_it, 1, "{key} = {value}: {found:#?}");
    }
    for (kind, keys) in [
        ("nats", vec!["url", "stream"]),
        ("rabbitmq", vec!["url"]),
        ("sns", vec!["topic"]),
        ("pulsar", vec!["url"]),
    ] {
        let found = problems(&format!("sink.kind = \"{kind}\""));
        for key in keys {
            let is_told = |it: &String| {
                it.contains(&format!("sink.{kind}.{key}")) && it.contains("is not set")
            };
            assert!(found.iter().any(is_told), "{kind}: {found:#?}");
        }
    }
}
