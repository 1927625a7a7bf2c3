//! A broker that allows nothing but what an entry allows: docs/KAFKA-ACLS.md has all that a relay needs.

use std::{mem, time::Instant};

use outbox_harness::{
    Harness, acl,
    event::Event,
    host,
    kafka::Kafka,
    local_kafka::{self, LocalKafka},
    relay::Settings,
    servers, wait,
};

use tokio::sync::OnceCell;

use super::PASSWORD;
use crate::{
    dead_letters::{count_parked, dead_letters, wait_parked, wait_parked_again, wait_records},
    obeyed::typed,
};

const PAGE: &str = include_str!("../../../docs/KAFKA-ACLS.md");

/// The commands of the page that have these words, with a relay's name and the beginning of its topics' names.
fn commands(name: &str, words: &str) -> Vec<String> {
    let block = PAGE.split("```").nth(1).and_then(|block| block.strip_prefix("sh\n"));
    let block = block.expect("a block of commands").replace("\\\n", " ");
    let commands = block.lines().filter(|line| line.starts_with("kafka-acls "));
    commands
        .filter(|line| line.contains(words))
        .map(|line| line.replace("NAME", name).replace("orders.", &format!("{name}.")))
        .collect()
}

/// A broker that allows nothing but what an entry allows. Whoever comes without a login may do all.
#[derive(Clone, Copy)]
struct Strict {
    kafka: &'static Kafka,
    /// Where the relay's principal logs in.
    login: &'static str,
}

/// The one broker of this file.
async fn strict() -> Strict {
    static BROKER: OnceCell<Strict> = OnceCell::const_new();
    *BROKER.get_or_init(start).await
}

async fn start() -> Strict {
    let address = || format!("localhost:{}", host::free_port());
    let (plain, login, controller) = (address(), address(), address());
    let listeners = format!("PLAINTEXT://{plain},LOGIN://{login}");
    let mut properties = local_kafka::small();
    let module = "org.apache.kafka.common.security.plain.PlainLoginModule";
    properties.extend(
        [
            ("listeners", format!("{listeners},CONTROLLER://{controller}")),
            ("advertised.listeners", listeners),
            (
                "listener.security.protocol.map",
                "PLAINTEXT:PLAINTEXT,LOGIN:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned(),
            ),
            ("controller.quorum.voters", format!("1@{controller}")),
            (
                "authorizer.class.name",
                "org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned(),
            ),
            ("super.users", "User:ANONYMOUS".to_owned()),
            ("sasl.enabled.mechanisms", "PLAIN".to_owned()),
            (
                "listener.name.login.plain.sasl.jaas.config",
                format!("{module} required user_RELAY=\"{PASSWORD}\";"),
            ),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    let local = tokio::task::spawn_blocking(move || LocalKafka::start(&properties, &[]));
    let local = local.await.expect("no panic").expect("a broker");
    let kafka = Kafka::private(&plain).await;
    // Dropping the handle would end the broker; the guardian does that at the end.
    mem::forget(local);
    Strict { kafka, login: login.leak() }
}

fn settings(t: &Harness, login: &str) -> Settings {
    [
        ("bootstrap.servers", login),
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "RELAY"),
        ("sasl.password", PASSWORD),
    ]
    .into_iter()
    .fold(t.relay(), |settings, (name, value)| {
        settings.set(&format!("sink.properties.\"{name}\""), value)
    })
    .set_toml("sink.create_topics.partitions", "2")
    .set_toml("sink.create_topics.replication_factor", "1")
}

async fn check(settings: &Settings) -> (Option<i32>, String) {
    let output = settings.command(&["check"]).await;
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Checks, runs, makes topics, delivers; what is not its topic is parked, and released once it may write that.
async fn is_all_it_needs(mut t: Harness, settings: Settings, allowed: Vec<String>) {
    let topic = t.topic("orders");
    let other = t.topic_named(&format!("{}-other", t.database().name())).create(2).await;
    t.commit([Event::to(topic.name()).key("a")]).await;
    let missed = |said: &str| ["lacks", "not_authorised"].iter().any(|word| said.contains(word));
    let (_, said) = check(&settings).await;
    assert!(missed(&said), "without them nothing is allowed: {said}");
    for command in &allowed {
        acl::obey(t.kafka(), command).await;
    }
    let (code, said) = check(&settings).await;
    assert!(code == Some(0) && !missed(&said), "{said}");
    let relay = settings.clone().start().await;
    t.commit(["b", "c"].map(|key| Event::to(topic.name()).key(key))).await;
    t.count(&topic, 2).await.assert_exactly_once();
    let (code, said) = check(&settings).await;
    assert_eq!(code, Some(0), "{said}");

    t.commit([Event::to(other.name()).key("k")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    let write = format!("--operation Write --topic {}", other.name());
    acl::obey(t.kafka(), &format!("kafka-acls --add --allow-principal User:RELAY {write}")).await;
    // Until the broker has heard of it, it is parked again.
    let deadline = Instant::now() + wait::PATIENCE;
    while count_parked(&t).await > 0 {
        assert!(Instant::now() < deadline, "{}", relay.log_text());
        dead_letters(&t, &["release", "--all"]).await;
        wait_parked_again(&t).await;
    }
    wait_records(&other, 1).await;
}

#[tokio::test]
async fn the_documented_acls_are_all_that_a_relay_needs_where_nothing_else_is_allowed() {
    let (Strict { kafka, login }, postgres) = tokio::join!(strict(), servers::postgres());
    let t = Harness::with(postgres, kafka).await;
    let (all, name) = (settings(&t, login), t.database().name().to_owned());
    let five = commands(&name, "--allow-principal User:RELAY");
    assert_eq!(five.len(), 5, "{five:?}");
    let without_topic = Harness::with(postgres, kafka).await;
    let events = commands(without_topic.database().name(), "--topic orders.");
    let in_postgres = settings(&without_topic, login)
        .set("sink.delivery", "at-least-once")
        .set("sink.progress", "postgres");
    tokio::join!(
        is_all_it_needs(t, all, five),
        // "The rights on topics of events only."
        is_all_it_needs(without_topic, in_postgres, events),
    );
}

/// A topic that is there, and one that is to be made. Each command is typed as it is printed.
#[tokio::test]
async fn check_names_write_and_create_on_topics_of_events_and_obeyed_everything_arrives() {
    let (Strict { kafka, login }, postgres) = tokio::join!(strict(), servers::postgres());
    let mut t = Harness::with(postgres, kafka).await;
    let settings = settings(&t, login);
    let there = t.topic("orders").create(2).await;
    let new = t.topic("new");
    for command in commands(t.database().name(), "outbox-relay-") {
        acl::obey(kafka, &command).await;
    }
    t.commit([&there, &there, &new].map(|topic| Event::to(topic.name()).key("k"))).await;

    // A topic that is not there is not told from one that may not be seen.
    let (code, said) = check(&settings).await;
    assert_eq!(code, Some(0), "events of other topics are delivered: {said}");
    for (topic, events) in [(&there, 2), (&new, 1)] {
        let parked = format!(
            "{events} of 3 events that may wait can't be delivered to the topic {}",
            topic.name()
        );
        let lacks = format!("lacks Write on the topic {}", topic.name());
        assert!(said.contains(&parked) && said.contains(&lacks), "{said}");
        let command = typed(&said, &format!("--topic {}", topic.name()));
        assert!(command.contains("--operation Write --operation DescribeConfigs "), "{command}");
        acl::obey(kafka, command).await;
    }
    let (code, said) = check(&settings).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("lacks Write") && !said.contains("not_authorised"), "{said}");
    let told = format!(
        "1 of 3 events that may wait can't be delivered to the topic {} (unknown_topic)",
        new.name()
    );
    assert!(
        said.contains(&told) && !said.contains(&format!("the topic {} (", there.name())),
        "{said}"
    );
    let command = typed(&said, &format!("--topic {}", new.name()));
    assert!(command.contains("--operation Create "), "{command}");
    acl::obey(kafka, command).await;
    let (code, said) = check(&settings).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("would take the newest events"), "{said}");

    let relay = settings.set("postgres.start", "all").start().await;
    let truth = t.committed().await;
    for (topic, events) in [(&there, 2), (&new, 1)] {
        let ids = truth.iter().filter(|row| row.topic == topic.name()).map(|row| row.id.clone());
        assert_eq!(topic.records_with(ids).await.len(), events, "{}", relay.log_text());
    }
    assert_eq!(count_parked(&t).await, 0);
}
