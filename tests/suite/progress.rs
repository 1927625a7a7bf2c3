//! Whose progress counts: what others store in its topic, and what becomes of the topic itself.

mod before;
mod filled;
mod unready;

use std::time::Duration;

use outbox_harness::{
    Harness, check,
    event::Event,
    kafka_tools,
    relay::Relay,
    topic::{Record, Topic},
    wait,
};
use outbox_relay::seal::SealKey;
use rdkafka::{
    admin::{AdminClient, AdminOptions},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
    topic_partition_list::{Offset, TopicPartitionList},
};
use serde_json::{Value, json};

use crate::{
    obeyed::typed,
    remedies::{halted, obey},
    repair::drop_slot,
};

fn progress(t: &Harness) -> Topic {
    t.topic_named(&format!("outbox-relay-progress-{}", t.database().name()))
}

/// Key, value and headers.
type Parts = (String, Option<Vec<u8>>, Vec<(String, String)>);

/// As anybody with Write on the topic can.
async fn store(t: &Harness, records: Vec<Parts>) {
    let (kafka, topic) = (t.kafka(), progress(t).name().to_owned());
    tokio::task::spawn_blocking(move || {
        let producer: ThreadedProducer<DefaultProducerContext> =
            kafka.client().create().expect("a producer");
        for (key, value, headers) in &records {
            let headers = headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header { key, value: Some(value.as_str()) })
            });
            let mut record = BaseRecord::to(&topic).partition(0).key(key).headers(headers);
            if let Some(value) = value {
                record = record.payload(value);
            }
            producer.send(record).map_err(|(error, _)| error).expect("sent");
        }
        producer.flush(Duration::from_secs(10)).expect("stored");
    })
    .await
    .expect("no panic");
}

fn parts(record: &Record) -> Parts {
    let key = String::from_utf8(record.key.clone().unwrap_or_default()).expect("text");
    (key, record.payload.clone(), record.headers.clone())
}

async fn server_end(t: &Harness) -> String {
    let sql = "select pg_current_wal_insert_lsn()::text";
    t.database().superuser().query_one(sql, &[]).await.expect("an LSN").get(0)
}

/// Delivers five events, and is killed.
async fn delivered(t: &mut Harness, topic: &Topic, delivery: &str) -> Relay {
    let mut relay = t.relay().set("sink.delivery", delivery).start().await;
    t.commit((0..5).map(|_| Event::to(topic.name()).key("k"))).await;
    t.count(topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
    relay
}

async fn does_not_count(delivery: &str) {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = delivered(&mut t, &topic, delivery).await;
    let stored = progress(&t).records().await;
    let last = stored.iter().rfind(|record| record.payload.is_some()).expect("progress");
    let (key, value, headers) = parts(last);
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;

    let mut ahead: Value = serde_json::from_slice(&value.expect("a value")).expect("JSON");
    *ahead.get_mut("position").expect("a position") = json!({ "up_to": server_end(&t).await });
    let ahead = Some(ahead.to_string().into_bytes());
    let name = t.database().name().to_owned();
    let mut forged: Vec<_> = stored.iter().map(parts).collect();
    forged.extend([
        (key.clone(), None, Vec::new()),
        (name.clone(), None, Vec::new()),
        (name.clone(), ahead.clone(), Vec::new()),
        (key, ahead.clone(), headers.clone()),
        (format!("{name}/writer"), Some(b"me".to_vec()), headers),
        (format!("{name}/me"), ahead, Vec::new()),
    ]);
    let behind = forged.clone();
    store(&t, forged).await;
    relay.restart();
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.logs_contain("does not count"), "{}", relay.log_text());

    // While it streams, and is killed.
    store(&t, behind).await;
    relay.kill9().await;
    relay.restart();
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let count = t.count(&topic, 1).await;
    if delivery == "exactly-once" {
        count.assert_exactly_once();
    } else {
        count.assert_at_least_once();
    }
}

/// The relay can't tell whether what is hidden is progress that was committed: it can only say what it waits for.
#[tokio::test]
async fn a_strangers_open_transaction_that_a_start_waits_for_is_named_with_what_ends_it() {
    const ASK: Duration = Duration::from_secs(10);
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = delivered(&mut t, &topic, "exactly-once").await;
    let (kafka, name) = (t.kafka(), progress(&t).name().to_owned());
    let transactional = format!("{name}-stranger");
    let producer = tokio::task::spawn_blocking(move || {
        let producer: ThreadedProducer<DefaultProducerContext> =
            kafka.client().set("transactional.id", &transactional).create().expect("a producer");
        producer.init_transactions(ASK).expect("initialized");
        producer.begin_transaction().expect("begun");
        let record = BaseRecord::to(&name).partition(0).key("me").payload("mine");
        producer.send(record).map_err(|(error, _)| error).expect("sent");
        producer.flush(ASK).expect("stored");
        producer
    });
    let producer = producer.await.expect("no panic");
    t.commit([Event::to(topic.name()).key("k")]).await;
    relay.restart();
    relay.wait_log("a transaction that is open in partition 0").await;
    relay.wait_for("/readyz", 503).await;
    let page = wait::until("/readyz says what is waited for", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        match status["not_ready_because"].as_str().unwrap_or_default() {
            why if why.contains("a transaction that is open") => Ok(why.to_owned()),
            _ => Err(status.to_string()),
        }
    });
    let page = page.await.expect("it does");
    let progress = progress(&t).name().to_owned();
    let abort = format!("abort --topic {progress} --partition 0 --start-offset ");
    assert!(typed(&page, "kafka-transactions").contains(&abort), "{page}");
    for word in ["reading the newest progress", "Waited for since 20", "at most 15 minutes"] {
        assert!(page.contains(word), "{word}: {page}");
    }
    // The producer is there, and does nothing.
    kafka_tools::run(typed(&page, "kafka-transactions")).await;
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
    drop(producer);
}

/// A record of progress is some hundred bytes long: the next one is refused.
async fn too_small(delivery: &str) {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().set("sink.delivery", delivery).start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    progress(&t).set_beside(&[("cleanup.policy", "compact")], "max.message.bytes", "100").await;
    relay.wait_log("max.message.bytes=100").await;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let detail = halted(&relay).await;
    assert!(!relay.logs_contain("events flow"), "{}", relay.log_text());
    kafka_tools::run(typed(&detail, "kafka-configs")).await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let truth = t.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    let count = check::compare(&truth, &records, 1);
    match delivery {
        "exactly-once" => count.assert_exactly_once(),
        _ => count.assert_at_least_once(),
    }
}

#[tokio::test]
async fn a_progress_topic_that_takes_no_record_any_more_halts_the_relay_and_loses_nothing() {
    too_small("exactly-once").await;
}

#[tokio::test]
async fn a_progress_topic_that_takes_no_record_any_more_loses_nothing_with_at_least_once() {
    too_small("at-least-once").await;
}

/// Partitions can't be taken away again, and another name would be a first start.
async fn grown(delivery: &str) {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().set("sink.delivery", delivery).start().await;
    t.commit((0..5).map(|_| Event::to(topic.name()).key("k"))).await;
    t.count(&topic, 1).await.assert_exactly_once();
    progress(&t).grow(3).await;
    t.commit((0..5).map(|_| Event::to(topic.name()).key("k"))).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
    t.commit((0..5).map(|_| Event::to(topic.name()).key("k"))).await;
    relay.restart();
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.logs_contain("more partitions than one"), "{}", relay.log_text());
}

#[tokio::test]
async fn a_progress_topic_that_is_given_more_partitions_loses_and_repeats_nothing() {
    grown("exactly-once").await;
}

#[tokio::test]
async fn a_progress_topic_that_is_given_more_partitions_repeats_nothing_with_at_least_once() {
    grown("at-least-once").await;
}

#[tokio::test]
async fn what_another_principal_stores_as_progress_does_not_count() {
    does_not_count("exactly-once").await;
}

#[tokio::test]
async fn what_another_principal_stores_as_progress_does_not_count_with_at_least_once() {
    does_not_count("at-least-once").await;
}

#[tokio::test]
async fn progress_without_seals_is_taken_over_from_an_older_version() {
    for delivery in ["exactly-once", "at-least-once"] {
        let mut t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let mut relay = delivered(&mut t, &topic, delivery).await;
        // To a relay with another key, those seals are none.
        let forget = "delete from outbox.relay_keys";
        t.database().superuser().batch_execute(forget).await.expect("as before the upgrade");
        t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
        relay.restart();
        t.count(&topic, 1).await.assert_exactly_once();
        assert!(relay.logs_contain("is taken over"), "{}", relay.log_text());
        assert!(relay.sigterm().await.success());
        relay.restart();
        t.commit([Event::to(topic.name()).key("k")]).await;
        t.count(&topic, 1).await.assert_exactly_once();
    }
}

fn admin(t: &Harness) -> AdminClient<rdkafka::client::DefaultClientContext> {
    t.kafka().client().create().expect("an admin client")
}

async fn resume(t: &Harness, at: &str) {
    let output = t.relay().command(&["resume", "--at", at, "--yes"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_progress_topic_that_is_gone_is_no_first_start() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = delivered(&mut t, &topic, "exactly-once").await;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let name = progress(&t).name().to_owned();
    for outcome in admin(&t).delete_topics(&[&name], &AdminOptions::new()).await.expect("an answer")
    {
        outcome.expect("it is deleted");
    }
    drop_slot(&t).await;
    relay.restart();
    relay.wait_log("has delivered before").await;
    relay.wait_for("/readyz", 503).await;
    assert_eq!(topic.records().await.len(), 5, "nothing is guessed");
    resume(&t, "now").await;
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let last = t.committed().await.into_iter().map(|row| row.id).max().expect("an id");
    assert_eq!(topic.records_with([last]).await.len(), 6);
}

/// The brokers answer, and are not blamed; nothing is delivered any more until somebody decides.
#[tokio::test]
async fn a_progress_topic_that_is_deleted_while_the_relay_streams_is_named_and_loses_nothing() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = delivered(&mut t, &topic, "exactly-once").await;
    relay.restart();
    relay.wait_ready().await;
    let name = progress(&t).name().to_owned();
    for outcome in admin(&t).delete_topics(&[&name], &AdminOptions::new()).await.expect("an answer")
    {
        outcome.expect("it is deleted");
    }
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    relay.wait_log("has no progress record").await;
    relay.wait_for("/readyz", 503).await;
    assert!(!relay.logs_contain("Check bootstrap.servers"), "{}", relay.log_text());
    resume(&t, "slot").await;
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_at_least_once();
}

#[tokio::test]
async fn deleted_progress_halts_the_relay_and_the_slot_has_the_rest() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = delivered(&mut t, &topic, "exactly-once").await;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let mut all = TopicPartitionList::new();
    let name = progress(&t).name().to_owned();
    all.add_partition_offset(&name, 0, Offset::End).expect("an offset");
    // Of a topic that is only compacted, a broker deletes no records.
    progress(&t).set("cleanup.policy", "compact,delete").await;
    let deleted = admin(&t).delete_records(&all, &AdminOptions::new()).await;
    let deleted = deleted.expect("an answer");
    deleted.elements().first().expect("a partition").error().expect("they are deleted");
    progress(&t).set("cleanup.policy", "compact").await;
    relay.restart();
    relay.wait_log("has no progress record").await;
    resume(&t, "slot").await;
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_at_least_once();
}

/// As a version of the future would, which seals it with the relay's key.
#[tokio::test]
async fn progress_that_cannot_be_read_halts_the_relay_and_the_slot_has_the_rest() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = delivered(&mut t, &topic, "exactly-once").await;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let key = t.database().superuser().query_one("select key from outbox.relay_keys", &[]).await;
    let key = SealKey::from_bytes(key.expect("a key").get(0)).expect("a key's length");
    let name = t.database().name().to_owned();
    let value = r#"{"version":99}"#.as_bytes();
    let seal = key.seal(1 << 40, name.as_bytes(), Some(value));
    let headers = vec![("outbox-relay-seal".to_owned(), seal)];
    store(&t, vec![(name.clone(), Some(value.to_vec()), headers)]).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("format version 99"), "{detail}");
    obey(&t.relay(), &detail, 0).await;
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_at_least_once();
}
