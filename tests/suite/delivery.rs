//! The main road: what is committed arrives, as it was written, and nothing else does.

use std::collections::BTreeMap;

use outbox_harness::{Harness, check, database::Database, event, event::Event, load::Plan};
use serde_json::json;

#[tokio::test]
async fn a_committed_event_arrives_with_its_headers() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let mut relay = t.relay().start().await;
    let event = Event::to(topic.name()).key("customer-1").kind("placed");
    t.commit([event.header("traceparent", "00-1-2-01")]).await;

    t.count(&topic, 8).await.assert_exactly_once();
    let row = t.committed().await.remove(0);
    let record = topic.records().await.remove(0);
    let headers: BTreeMap<_, _> = record.headers.iter().cloned().collect();
    assert_eq!(headers.len(), record.headers.len(), "no header comes twice: {record:?}");
    assert_eq!(headers.get("outbox-id"), Some(&row.id));
    assert_eq!(headers.get("outbox-type").map(String::as_str), Some("placed"));
    assert_eq!(headers.get("outbox-relay").map(String::as_str), Some(t.database().name()));
    assert_eq!(headers.get("traceparent").map(String::as_str), Some("00-1-2-01"));
    assert!(!headers.contains_key("outbox-repaired"), "{record:?}");
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn the_position_header_names_this_cluster_and_its_timeline() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().start().await;
    t.commit([Event::to(topic.name()), Event::to(topic.name())]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let identity = "select system_identifier::text, timeline_id::text \
                    from pg_control_system(), pg_control_checkpoint()";
    let row = t.database().superuser().query_one(identity, &[]).await.expect("an identity");
    let prefix = format!("{}:{}:", row.get::<_, &str>(0), row.get::<_, &str>(1));
    let records = topic.records().await;
    let positions: Vec<&str> =
        records.iter().map(|r| r.header("outbox-position").expect("a position")).collect();
    assert!(positions.iter().all(|p| p.starts_with(&prefix)), "{positions:?}");
    assert!(positions.first().is_some_and(|p| p.ends_with(":0000000000")), "{positions:?}");
    assert!(positions.last().is_some_and(|p| p.ends_with(":0000000001")), "{positions:?}");
}

#[tokio::test]
async fn what_is_rolled_back_never_arrives() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let _relay = t.relay().start().await;
    t.roll_back((0..10).map(|_| Event::to(topic.name()).key("k"))).await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let count = t.count(&topic, 2).await;
    count.assert_exactly_once();
    assert_eq!(count.delivered, 1);
}

#[tokio::test]
async fn payloads_arrive_byte_for_byte_as_the_column_prints_them() {
    let mut t = Harness::start().await;
    let topic = t.topic("payloads").create(1).await;
    let _relay = t.relay().start().await;
    let huge = "1".repeat(400);
    for payload in [
        json!({}),
        json!(null),
        json!("grüß dich \u{1F980} \"quoted\" \\ \n"),
        json!([1.10, -0.0, 1e300, [], {"nested": {"deep": [true, false, null]}}]),
        json!("x".repeat(500_000)),
        json!({ huge.as_str(): huge.as_str() }),
    ] {
        t.commit([Event::to(topic.name()).payload(payload)]).await;
    }
    t.commit([Event::to(topic.name()).key("gone").tombstone()]).await;
    t.commit([Event::to(topic.name()).key("")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

#[tokio::test]
async fn a_null_payload_is_a_tombstone_and_a_json_null_is_not() {
    let mut t = Harness::start().await;
    let topic = t.topic("tombstones").create(1).await;
    let _relay = t.relay().start().await;
    let event = || Event::to(topic.name()).key("k");
    t.commit([event().tombstone(), event().payload(json!(null))]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let payloads: Vec<_> = topic.records().await.into_iter().map(|r| r.payload).collect();
    assert_eq!(payloads, [None, Some(b"null".to_vec())]);
}

#[tokio::test]
async fn an_explicit_partition_wins_over_the_key() {
    let mut t = Harness::start().await;
    let topic = t.topic("partitions").create(8).await;
    let _relay = t.relay().start().await;
    let event = |partition| Event::to(topic.name()).key("21").partition(partition);
    t.commit((0..8).map(event)).await;
    // One key over several partitions has no order to keep; all else must hold.
    let count = t.count(&topic, 8).await;
    assert_eq!((count.delivered, count.lost, count.duplicated), (8, 0, 0), "{count}");
    assert_eq!((count.wrong_partition, count.altered), (0, 0), "{count}");
}

#[tokio::test]
async fn one_transaction_larger_than_a_batch_arrives_whole_and_in_order() {
    let mut t = Harness::start().await;
    let topic = t.topic("large").create(4).await;
    let _relay = t.relay().set_toml("batch.records_max", "100").start().await;
    let events = (0..2_000).map(|n| Event::to(topic.name()).key(&format!("customer-{}", n % 20)));
    t.commit(events).await;
    t.count(&topic, 4).await.assert_exactly_once();
}

#[tokio::test]
async fn with_at_least_once_and_no_fault_each_event_arrives_once() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let mut relay = t.relay().set("sink.delivery", "at-least-once").start().await;
    let plan = Plan { topic: topic.name().to_owned(), partitions: 8, writers: 6, transactions: 50 };
    t.load(&plan).await.finish().await;
    t.count(&topic, 8).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn events_written_while_no_relay_ran_arrive_when_one_does() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    assert!(relay.sigterm().await.success());
    t.commit((0..100).map(|_| Event::to(topic.name()).key("k"))).await;
    relay.restart();
    t.count(&topic, 2).await.assert_exactly_once();
}

#[tokio::test]
async fn two_databases_with_a_relay_each_do_not_meet() {
    let mut t = Harness::start().await;
    let other = Database::create().await;
    let (ours, theirs) = (t.topic("ours").create(4).await, t.topic("theirs").create(4).await);
    let _first = t.relay().start().await;
    let _second = t.relay_of(&other).start().await;
    let writer = other.connect(outbox_harness::database::Role::Writer).await;
    for n in 0..50 {
        let key = format!("customer-{n}");
        t.commit([Event::to(ours.name()).key(&key)]).await;
        Event::to(theirs.name()).key(&key).insert(&writer).await.expect("inserted");
    }
    t.count(&ours, 4).await.assert_exactly_once();
    let truth = event::committed(other.superuser()).await;
    let records = theirs.records_with(truth.iter().map(|row| row.id.clone())).await;
    check::compare(&truth, &records, 4).assert_exactly_once();
    let foreign = records.iter().find(|r| r.header("outbox-relay") != Some(other.name()));
    assert!(foreign.is_none(), "{foreign:?}");
}
