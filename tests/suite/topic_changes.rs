//! A topic grows, is deleted, is recreated, or keeps its records for a short time only, while the
//! relay streams: nothing is parked that the topic takes, and nothing is deleted before its time.

use std::time::{SystemTime, UNIX_EPOCH};

use outbox_harness::{
    Harness, check, event::Event, kafka::Kafka, postgres::Postgres, servers, topic::Topic, wait,
};

use crate::dead_letters::{count_parked, dead_letters, list, texts, wait_parked};

fn lanes<'a>(topic: &'a str, round: &'a str) -> impl Iterator<Item = Event> + 'a {
    (0..74).map(move |n| Event::to(topic).key(&format!("k{n}")).header("round", round))
}

/// Waits for all events of a round, and compares them.
async fn round_is_there(t: &Harness, topic: &Topic, round: &str, partitions: i32) -> check::Count {
    let sql = "select id::text from outbox.events where headers ->> 'round' = $1";
    let rows = t.database().superuser().query(sql, &[&round]).await.expect("ids");
    let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let mut records = topic.records_with(ids.clone()).await;
    let mut truth = t.committed().await;
    truth.retain(|row| ids.contains(&row.id));
    records.retain(|record| record.header("round") == Some(round));
    check::compare(&truth, &records, partitions)
}

async fn is_made_anew(delivery: &str, partitions: i32) {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let relay = t.relay().set("sink.delivery", delivery).set("sink.topic_grace", "60s");
    let relay = relay.start().await;
    let name = topic.name().to_owned();
    t.commit(lanes(&name, "before")).await;
    t.count(&topic, 8).await.assert_exactly_once();
    topic.delete().await;
    let topic = topic.create(partitions).await;
    t.commit(lanes(&name, "after")).await;
    let count = round_is_there(&t, &topic, "after", partitions).await;
    // What is known of the topic lets records pass for half a minute: a key's old partition may be
    // one of the new topic's as well.
    assert_eq!((count.lost, count.out_of_order), (0, 0), "{count}");
    if delivery == "exactly-once" {
        assert_eq!(count.duplicated, 0, "{count}");
    }
    wait_parked(&t, |parked| parked == 0).await;
    assert!(!relay.logs_contain("an event can't be delivered"), "{}", relay.log_text());
    // A partition that it never had has the relay look again.
    t.commit([Event::to(&name).key("beyond").partition(8)]).await;
    wait_parked(&t, |parked| parked == 1).await;
    t.commit(lanes(&name, "later")).await;
    let count = round_is_there(&t, &topic, "later", partitions).await;
    assert_eq!((count.lost, count.wrong_partition), (0, 0), "{count}");
}

#[tokio::test]
async fn a_topic_made_anew_with_fewer_partitions_parks_nothing() {
    is_made_anew("exactly-once", 3).await;
}

/// 74 healthy lanes were parked: the client library's own error was taken for a refusal.
#[tokio::test]
async fn with_at_least_once_a_topic_made_anew_with_fewer_partitions_parks_nothing() {
    is_made_anew("at-least-once", 3).await;
}

#[tokio::test]
async fn a_topic_made_anew_with_as_many_partitions_is_another_one_and_parks_nothing() {
    is_made_anew("exactly-once", 8).await;
}

async fn grows(delivery: &str) {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let _relay = t.relay().set("sink.delivery", delivery).start().await;
    let name = topic.name().to_owned();
    t.commit(lanes(&name, "before")).await;
    t.count(&topic, 2).await.assert_exactly_once();
    topic.grow(8).await;
    // A partition that is not known yet is looked up before anything is refused.
    t.commit([Event::to(&name).key("k").partition(7).header("round", "explicit")]).await;
    assert_eq!(round_is_there(&t, &topic, "explicit", 8).await.wrong_partition, 0);
    t.commit(lanes(&name, "after")).await;
    let count = round_is_there(&t, &topic, "after", 8).await;
    assert_eq!((count.lost, count.wrong_partition), (0, 0), "{count}");
    t.commit([Event::to(&name).key("k").partition(8)]).await;
    wait_parked(&t, |parked| parked == 1).await;
    assert_eq!(texts(&list(&t).await, "reason"), ["no_such_partition"]);
}

#[tokio::test]
async fn a_partition_that_a_topic_has_grown_to_is_no_refusal() {
    grows("exactly-once").await;
}

#[tokio::test]
async fn with_at_least_once_a_partition_that_a_topic_has_grown_to_is_no_refusal() {
    grows("at-least-once").await;
}

async fn is_deleted_under_way(delivery: &str) {
    let mut t = Harness::start().await;
    let (topic, other) = (t.topic("orders").create(4).await, t.topic("other").create(1).await);
    let relay = t.relay().set("sink.delivery", delivery).set("sink.topic_grace", "100ms");
    let relay = relay.start().await;
    t.commit(lanes(topic.name(), "before")).await;
    round_is_there(&t, &topic, "before", 4).await.assert_exactly_once();
    topic.delete().await;
    t.commit(lanes(topic.name(), "gone").chain(lanes(other.name(), "others"))).await;
    round_is_there(&t, &other, "others", 1).await.assert_at_least_once();
    wait_parked(&t, |parked| parked == 74).await;
    assert!(texts(&list(&t).await, "reason").iter().all(|reason| *reason == "unknown_topic"));
    t.commit(lanes(other.name(), "later")).await;
    round_is_there(&t, &other, "later", 1).await.assert_at_least_once();
    assert!(!relay.logs_contain("transaction.timeout.ms"), "it timed out: {}", relay.log_text());
}

#[tokio::test]
async fn events_of_a_topic_that_is_deleted_are_parked_and_others_flow() {
    is_deleted_under_way("exactly-once").await;
}

#[tokio::test]
async fn with_at_least_once_events_of_a_topic_that_is_deleted_are_parked_and_others_flow() {
    is_deleted_under_way("at-least-once").await;
}

/// The relay waits for one batch of the wire before it queues more than a topic takes in one. While it did,
/// it did not see that the topic was gone, and all waited for ten seconds.
async fn are_deleted_that_take_small_batches(delivery: &str) {
    let mut t = Harness::start().await;
    let other = t.topic("other").create(1).await;
    let mut topics = Vec::new();
    // Which of them a broker's answer names first decides whether librdkafka gives up by itself.
    for n in 0..8 {
        let small = [("max.message.bytes", "1500")];
        topics.push(t.topic(&format!("orders-{n}")).create_with(1, &small).await);
    }
    let topics = &topics;
    let all = |round| {
        let of_each = move |n| topics.iter().filter_map(move |it| lanes(it.name(), round).nth(n));
        (0..10).flat_map(of_each)
    };
    let relay = t.relay().set("sink.delivery", delivery).set("sink.topic_grace", "100ms");
    let relay = relay.start().await;
    t.commit(all("before").chain(lanes(other.name(), "others before"))).await;
    round_is_there(&t, &other, "others before", 1).await.assert_at_least_once();
    // Neither it nor its client hears of it before it delivers.
    relay.freeze();
    for topic in topics {
        topic.delete().await;
    }
    t.commit(all("gone").chain(lanes(other.name(), "others"))).await;
    relay.thaw();
    round_is_there(&t, &other, "others", 1).await.assert_at_least_once();
    wait_parked(&t, |parked| parked == 80).await;
    assert!(!relay.logs_contain("transaction.timeout.ms"), "it timed out: {}", relay.log_text());
}

#[tokio::test]
async fn topics_of_small_batches_that_are_deleted_hold_others_no_longer() {
    are_deleted_that_take_small_batches("exactly-once").await;
}

#[tokio::test]
async fn with_at_least_once_topics_of_small_batches_that_are_deleted_hold_others_no_longer() {
    are_deleted_that_take_small_batches("at-least-once").await;
}

/// Those of a partition of which several were refused were taken for small enough, by the topic's former
/// setting, and were neither stored nor parked.
async fn takes_smaller_records_now(delivery: &str) {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let _relay = t.relay().set("sink.delivery", delivery).start().await;
    let name = topic.name().to_owned();
    t.commit(lanes(&name, "before")).await;
    t.count(&topic, 2).await.assert_exactly_once();
    topic.set("max.message.bytes", "10000").await;
    let event = |partition, key| Event::to(&name).key(key).partition(partition);
    let large = |event: Event| event.payload("large".repeat(4_000).into());
    // The first may be delivered by itself, and the others wait for it together.
    let events = [event(1, "d"), large(event(0, "a")), large(event(1, "b")), large(event(1, "c"))];
    t.commit(events.map(|event| event.header("round", "after"))).await;
    t.commit([event(0, "e"), event(1, "f")].map(|event| event.header("round", "later"))).await;
    round_is_there(&t, &topic, "later", 2).await.assert_at_least_once();
    wait_parked(&t, |parked| parked >= 3).await;
    let parked = list(&t).await;
    assert_eq!(texts(&parked, "key"), ["a", "b", "c"]);
    assert_eq!(texts(&parked, "reason"), ["too_large"; 3]);
    topic.set("max.message.bytes", "1000000").await;
    dead_letters(&t, &["release", "--all"]).await;
    round_is_there(&t, &topic, "after", 2).await.assert_at_least_once();
}

#[tokio::test]
async fn all_that_a_topic_does_not_take_any_more_is_parked() {
    takes_smaller_records_now("exactly-once").await;
}

#[tokio::test]
async fn with_at_least_once_all_that_a_topic_does_not_take_any_more_is_parked() {
    takes_smaller_records_now("at-least-once").await;
}

/// A broker that looks for old records every second.
async fn tidy_broker() -> (&'static Kafka, outbox_harness::local_kafka::LocalKafka) {
    Kafka::start_private(&[
        ("log.retention.check.interval.ms", "1000"),
        ("log.initial.task.delay.ms", "500"),
        ("log.segment.delete.delay.ms", "0"),
    ])
    .await
}

#[tokio::test]
async fn what_is_older_than_the_topic_keeps_is_still_there_after_the_brokers_retention_check() {
    let (kafka, _local) = tidy_broker().await;
    let postgres: &'static Postgres = servers::postgres().await;
    let mut t = Harness::with(postgres, kafka).await;
    let kept_for = [("retention.ms", "3600000"), ("message.timestamp.before.max.ms", i64_max())];
    let topic = t.topic("orders").create_with(1, &kept_for).await;
    let canary = t.topic("canary").create_with(1, &kept_for).await;
    let late = t.topic("late");
    let old = |topic: &str, key: &str| {
        format!(
            "insert into outbox.events (topic, key, created_at, headers) \
             values ('{topic}', '{key}', clock_timestamp() - interval '3 hours', \
                 '{{\"round\": \"old\"}}')"
        )
    };
    // A backlog from before the first start, the stream, and a release.
    t.database().superuser().batch_execute(&old(topic.name(), "all")).await.expect("inserted");
    let settings = t.relay().set("postgres.start", "all").set("sink.topic_grace", "1ms");
    let relay = settings.start().await;
    t.database().superuser().batch_execute(&old(topic.name(), "stream")).await.expect("inserted");
    t.database().superuser().batch_execute(&old(late.name(), "late")).await.expect("inserted");
    wait_parked(&t, |parked| parked == 1).await;
    let late = late.create_with(1, &kept_for).await;
    dead_letters(&t, &["release", "--all"]).await;
    wait_parked(&t, |parked| parked == 0).await;
    t.commit([Event::to(topic.name()).key("new").header("round", "new")]).await;
    round_is_there(&t, &topic, "new", 1).await.assert_exactly_once();

    // The broker deletes what is as old, and says so: its check has run over all topics.
    let now_ms =
        i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("now").as_millis());
    let now_ms = now_ms.expect("a time");
    for _ in 0..2 {
        let begins = canary.begins_at().await;
        canary.produce(now_ms - 3 * 3_600_000, "old").await;
        wait::until("the broker's check has run", wait::PATIENCE, || async {
            match canary.begins_at().await {
                found if found > begins => Ok(()),
                found => Err(format!("the topic begins at {found}")),
            }
        })
        .await
        .expect("the old record is deleted");
    }
    let records = [topic.records().await, late.records().await].concat();
    let keys: Vec<String> = records
        .iter()
        .map(|record| String::from_utf8_lossy(record.key.as_deref().unwrap_or_default()).into())
        .collect();
    assert_eq!(keys, ["all", "stream", "new", "late"], "nothing was deleted");
    for record in &records {
        let key = record.key.as_deref().unwrap_or_default();
        let age_ms = now_ms - record.timestamp_ms.expect("a timestamp");
        assert!(age_ms < 600_000, "{record:?}");
        let created_at = record.header("outbox-created-at");
        assert_eq!(created_at.is_some(), key != b"new", "{record:?}");
    }
    let of_stream = records.get(1).and_then(|record| record.header("outbox-created-at"));
    let sql = "select created_at between $1::text::timestamptz - interval '1 ms' \
                   and $1::text::timestamptz + interval '1 ms' \
               from outbox.events where key = 'stream'";
    let same = t.database().superuser().query_one(sql, &[&of_stream]).await.expect("a comparison");
    assert!(same.get::<_, bool>(0), "{of_stream:?} is the event's own time");
    let metrics = relay.page("/metrics").await;
    assert!(metrics.contains("outbox_relay_records_restamped_total 3"), "{metrics}");
    assert_eq!(count_parked(&t).await, 0);
}

fn i64_max() -> &'static str {
    "9223372036854775807"
}
