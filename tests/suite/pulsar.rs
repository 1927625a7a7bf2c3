//! A relay that publishes to Pulsar: nothing is lost and no lane out of order, whatever is killed; what the broker refuses is
//! parked, and holds no other lane; other producers are kept out.

mod administered;

use std::{collections::BTreeSet, time::Duration};

use outbox_harness::{
    Harness,
    certificates::{Authority, write_private},
    check::{self, Count},
    event::Event,
    host,
    load::{Load, Plan},
    pulsar::{self, Pulsar, PulsarTopic},
    relay::Settings,
    servers,
    topic::Record,
    wait,
};
use outbox_relay_pulsar::{Access, Address, Cluster, Message, Place, What};

use crate::{
    checks,
    contract::pulsar::to_pulsar,
    dead_letters::{dead_letters, wait_parked},
};

const PARTITIONS: i32 = 4;

fn topic(t: &Harness) -> String {
    format!("{}.orders", t.database().name())
}

fn to(broker: &Pulsar, base: Settings) -> Settings {
    to_pulsar(&broker.url(), base)
}

/// Waits until all that is committed is there, and counts.
async fn all_arrive(t: &Harness, topic: &PulsarTopic) -> Count {
    let committed = t.committed().await;
    let arrived = wait::until("all arrive", wait::PATIENCE, || async {
        match check::compare(&committed, &topic.records().await, PARTITIONS) {
            count if count.lost == 0 => Ok(count),
            count => Err(count.to_string()),
        }
    });
    arrived.await.expect("they do")
}

/// Waits until so many events are there, however often.
async fn ids_arrive(topic: &PulsarTopic, wanted: usize) {
    let ids = |records: Vec<Record>| {
        let ids = records.iter().filter_map(|it| it.id().map(str::to_owned));
        ids.collect::<BTreeSet<_>>().len()
    };
    let arrived = wait::until("they arrive", wait::PATIENCE, || async {
        match ids(topic.records().await) {
            found if found == wanted => Ok(()),
            found => Err(format!("{found} events of {wanted}")),
        }
    });
    arrived.await.expect("they do");
}

/// The reason and the error of the one event that is to blame.
async fn to_blame(t: &Harness) -> (String, String) {
    let told = "select reason, error from outbox.dead_letters where reason <> 'lane_parked'";
    let told = t.database().superuser().query(told, &[]).await.expect("the parked ones");
    let first = told.first().expect("one is parked");
    (first.get(0), first.get(1))
}

async fn more_arrives(topic: &PulsarTopic) {
    let before = topic.records().await.len();
    wait::until("more arrives", wait::PATIENCE, || async {
        match topic.records().await.len() {
            now if now > before => Ok(()),
            now => Err(format!("{now} records")),
        }
    })
    .await
    .expect("the relay continues");
}

#[tokio::test]
async fn events_are_there_and_in_order_while_relay_and_broker_are_killed() {
    let mut broker = Pulsar::start().expect("a broker of its own");
    broker.wait_ready().await;
    let t = Harness::start().await;
    let orders = broker.topic(&topic(&t), PARTITIONS).await;
    let plan =
        Plan { topic: topic(&t), partitions: PARTITIONS, writers: 3, transactions: u64::MAX };
    let mut relay = to(&broker, t.relay()).start().await;
    let load = Load::paced(t.database(), &plan, Duration::from_millis(25)).await;
    for round in 0..6 {
        more_arrives(&orders).await;
        if round % 3 == 1 {
            broker.kill9();
            broker.restart();
            broker.wait_ready().await;
        } else {
            relay.kill9().await;
            relay.restart();
        }
    }
    load.stop().await;
    all_arrive(&t, &orders).await.assert_at_least_once();
}

#[tokio::test]
async fn events_for_a_topic_that_is_missing_wait_and_are_delivered_once_there_is_one() {
    let mut t = Harness::start().await;
    let broker = servers::pulsar().await;
    let orders = broker.topic(&topic(&t), PARTITIONS).await;
    let relay = to(broker, t.relay()).set("sink.topic_grace", "60s").start().await;
    let (topic, late) = (topic(&t), format!("{}.late", t.database().name()));
    t.commit([Event::to(&late).key("a"), Event::to(&topic).key("a"), Event::to(&late).key("a")])
        .await;
    wait_parked(&t, |parked| parked == 2).await;
    let (reason, error) = to_blame(&t).await;
    assert!(reason == "unknown_topic" && error.contains("create-partitioned-topic"), "{error}");
    ids_arrive(&orders, 1).await;
    let late = broker.topic(&late, PARTITIONS).await;
    ids_arrive(&late, 2).await;
    relay.wait_log("missing topics have appeared").await;
}

/// The topic's own limit is told to no client: only a refusal tells it.
#[tokio::test]
async fn an_event_larger_than_its_topic_takes_is_parked_with_its_lane_and_holds_no_other() {
    let mut t = Harness::start().await;
    let broker = servers::pulsar().await;
    let orders = broker.topic(&topic(&t), PARTITIONS).await;
    broker.limit(orders.name(), 20_000).await;
    let topic = topic(&t);
    let event = |key: &str, bytes: usize| {
        Event::to(&topic).key(key).payload(serde_json::Value::String("x".repeat(bytes)))
    };
    let mut events: Vec<_> = (0..300).map(|n| event(&format!("{}", n % 9), 100)).collect();
    events.insert(100, event("1", 50_000));
    let behind = (0..300).filter(|n| n % 9 == 1 && *n >= 100).count();
    t.commit(events).await;
    let relay = to(broker, t.relay()).start().await;
    wait_parked(&t, |parked| usize::try_from(parked) == Ok(1 + behind)).await;
    let (reason, error) = to_blame(&t).await;
    assert!(reason == "too_large" && error.contains("message_bytes_max"), "{reason}: {error}");
    ids_arrive(&orders, 300 - behind).await;
    drop(relay);
    broker.limit(orders.name(), 100_000).await;
    let _relay = to(broker, t.relay()).start().await;
    dead_letters(&t, &["release", "--topic", &topic]).await;
    all_arrive(&t, &orders).await.assert_exactly_once();
}

/// A client as the relay's own, at the partition of a key.
async fn producer(
    broker: &Pulsar,
    partition: &str,
    access: Access,
) -> (std::sync::Arc<dyn Cluster>, Result<Box<dyn outbox_relay_pulsar::Producer>, What>) {
    let (host, port) =
        broker.address().split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("both");
    let place = Place {
        addresses: vec![Address { tls: false, host, port: port.parse().expect("a port") }],
        one_broker: false,
        token_file: None,
        ca_file: None,
        certificate: None,
        client_name: "tests".into(),
    };
    let cluster = outbox_relay_pulsar::open(&place).expect("a cluster");
    let opened = cluster.producer(partition, access).await.map_err(|said| said.what);
    (cluster, opened)
}

#[tokio::test]
async fn another_producer_is_kept_out_unless_others_are_let() {
    let mut t = Harness::start().await;
    let broker = servers::pulsar().await;
    let orders = broker.topic(&topic(&t), 1).await;
    let partition = format!("persistent://public/default/{}-partition-0", orders.name());
    let (_cluster, old) = producer(broker, &partition, Access::Shared).await;
    let mut old = old.expect("no one else is there");
    t.commit([Event::to(orders.name()).key("a")]).await;
    let relay = to(broker, t.relay()).start().await;
    ids_arrive(&orders, 1).await;
    let message =
        Message { key: None, payload: Some(b"{}"), properties: vec![], event_time_ms: None };
    // It was ended when the relay came; what it sends is not stored.
    let stored = match old.send(&message).await {
        Ok(()) => old.receipt().await.is_ok_and(|it| it.is_ok()),
        Err(_) => false,
    };
    assert!(!stored);
    // It may have closed its own after it had published what was in the table.
    t.commit([Event::to(orders.name()).key("a")]).await;
    ids_arrive(&orders, 2).await;
    let (_cluster, beside) = producer(broker, &partition, Access::Shared).await;
    assert_eq!(beside.map(drop), Err(What::NotNow));
    drop(relay);
    let shared = to(broker, t.relay()).set_toml("sink.pulsar.exclusive", "false");
    let opened = wait::until("the relay's producer is gone", wait::PATIENCE, || async {
        producer(broker, &partition, Access::Shared).await.1.map_err(|what| format!("{what:?}"))
    });
    let mut beside = opened.await.expect("the topic is free");
    let _relay = shared.start().await;
    t.commit([Event::to(orders.name()).key("a")]).await;
    ids_arrive(&orders, 3).await;
    beside.send(&message).await.expect("it is sent");
    assert_eq!(beside.receipt().await, Ok(Ok(())));
}

#[tokio::test]
async fn check_says_what_it_sees_of_a_cluster_and_which_topics_are_missing() {
    let mut t = Harness::start().await;
    let broker = servers::pulsar().await;
    let missing = format!("{}.missing", t.database().name());
    t.commit([Event::to(&missing).key("a")]).await;
    let told = |findings: &[checks::Finding], words: &str| {
        let is_it = |it: &checks::Finding| format!("{} {}", it.seen, it.remedy).contains(words);
        assert!(findings.iter().any(is_it), "{words}: {findings:#?}");
    };
    let findings = checks::check(&to(broker, t.relay())).await;
    told(&findings, "Pulsar Server4.0.7");
    told(&findings, "without TLS");
    told(&findings, &format!("{missing} does not exist"));
    let nowhere = to_pulsar("pulsar://127.0.0.1:1", t.relay());
    told(&checks::check(&nowhere).await, "check sink.pulsar.url");
}

#[tokio::test]
async fn tls_a_token_and_a_file_that_can_not_be_used_are_named_and_all_arrives() {
    let mut t = Harness::start().await;
    let authority = Authority::new("an authority of the test");
    let identity = authority.issue("broker", &["127.0.0.1"]);
    let dir = t.dir().to_path_buf();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        // One that is there is replaced.
        drop(std::fs::remove_file(&path));
        write_private(&path, text);
        path.to_str().expect("UTF-8").to_owned()
    };
    let port = host::free_port();
    let broker = Pulsar::start_with(&format!(
        "brokerServicePortTls={port}\ntlsCertificateFilePath={}\ntlsKeyFilePath={}\n{}",
        file("broker.pem", &identity.certificate),
        file("broker.key", &identity.key),
        pulsar::TOKENS
    ))
    .expect("a broker of its own");
    broker.wait_ready().await;
    // No one reads it here: a consumer would need a token. The relay's count of confirmed events is the proof.
    broker.topic(&topic(&t), PARTITIONS).await;
    let ca = file("ca.pem", "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n");
    let token = file("token", "wrong");
    let settings = to_pulsar(&format!("pulsar+ssl://127.0.0.1:{port}"), t.relay())
        .set("sink.pulsar.ca_file", &ca)
        .set("sink.pulsar.token_file", &token);
    let problem_of = async |settings: &Settings, words: &str| {
        let findings = checks::check(settings).await;
        let told = findings.iter().find(|it| it.verdict == "problem" && it.name == "Pulsar");
        let told = told.unwrap_or_else(|| panic!("no problem in {findings:#?}"));
        let text = format!("{} {}", told.seen, told.remedy);
        assert!(text.contains(words), "{text}");
    };
    let problem = async |words: &str| problem_of(&settings, words).await;
    problem("can't be used").await;
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    let mut relay = settings.clone().set("sink.topic_grace", "60s").spawn();
    relay.wait_log("can't be used").await;
    file("ca.pem", &authority.certificate());
    relay.wait_log("does not know who asks").await;
    let of_another_name = format!("pulsar+ssl://localhost:{port}");
    let of_another_name = settings.clone().set("sink.pulsar.url", &of_another_name);
    problem_of(&of_another_name, "not valid for name").await;
    problem("does not know who asks").await;
    file("token", pulsar::RELAY);
    // Without the right even the look at the topic is refused.
    wait_parked(&t, |parked| parked == 1).await;
    let (reason, error) = to_blame(&t).await;
    assert!(reason == "not_authorised" && error.contains("grant-permission"), "{reason}: {error}");
    broker.let_produce("relay");
    dead_letters(&t, &["release", "--reason", "not_authorised"]).await;
    wait_parked(&t, |parked| parked == 0).await;
    relay.wait_ready().await;
    for log in ["wrong", pulsar::RELAY] {
        assert!(!relay.logs_contain(&format!("token:{log}")), "{}", relay.log_text());
    }
}
