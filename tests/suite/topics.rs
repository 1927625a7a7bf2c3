//! Topics that are missing: looked up, never produced to; made only where the settings say so.

use outbox_harness::{Harness, event::Event, wait};

use crate::dead_letters::{
    dead_letters, list, texts, try_dead_letters, wait_parked, wait_parked_again, wait_records,
};

#[tokio::test]
async fn a_missing_topic_is_waited_for_and_not_created() {
    let mut t = Harness::start().await;
    let topic = t.topic("missing");
    let relay = t.relay().set("sink.topic_grace", "60s").start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    relay.wait_log(topic.name()).await;
    assert!(!topic.exists().await, "the relay must look before it produces");
    let topic = topic.create(2).await;
    t.count(&topic, 2).await.assert_exactly_once();
}

#[tokio::test]
async fn what_waits_for_its_topic_is_released_in_order_when_the_topic_appears() {
    let mut t = Harness::start().await;
    let topic = t.topic("late");
    let mut relay = t.relay().set("sink.topic_grace", "60s").start().await;
    let name = topic.name().to_owned();
    let event = |key: &str| Event::to(&name).key(key);
    t.commit([event("a"), event("b"), event("a")]).await;
    wait_parked(&t, |parked| parked == 3).await;
    t.commit([event("a"), event("c")]).await;
    wait_parked(&t, |parked| parked == 5).await;
    let topic = topic.create(2).await;
    t.commit([event("a")]).await;
    t.count(&topic, 2).await.assert_exactly_once();
    wait_parked(&t, |parked| parked == 0).await;
    relay.wait_for("/readyz", 200).await;
}

#[tokio::test]
async fn a_topic_that_appears_after_its_grace_is_released_by_a_person() {
    let mut t = Harness::start().await;
    let topic = t.topic("late");
    let _relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    t.commit([Event::to(topic.name()).key("a")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    let past = "select parked_at < clock_timestamp() - interval '1 s' from outbox.dead_letters";
    wait::until("the grace is over", wait::PATIENCE, || async {
        let row = t.database().superuser().query_one(past, &[]).await.map_err(|e| e.to_string())?;
        if row.get(0) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await
    .expect("time passes");
    let topic = topic.create(1).await;
    t.commit([Event::to(topic.name()).key("b"), Event::to(topic.name()).key("a")]).await;
    wait_parked(&t, |parked| parked == 2).await;
    wait_records(&topic, 1).await;
    assert_eq!(texts(&list(&t).await, "reason"), ["unknown_topic", "lane_parked"]);
}

#[tokio::test]
async fn create_topics_makes_a_missing_topic_as_it_says() {
    let mut t = Harness::start().await;
    let topic = t.topic("made");
    let settings = t.relay().set_toml("sink.create_topics.partitions", "6");
    let _relay = settings.set_toml("sink.create_topics.replication_factor", "1").start().await;
    t.commit((0..20).map(|n| Event::to(topic.name()).key(&format!("customer-{n}")))).await;
    t.count(&topic, 6).await.assert_exactly_once();
    assert_eq!(topic.partitions().expect("metadata"), Some(6));
}

/// Each topic costs the brokers memory permanently, and whoever may insert an event may name one.
#[tokio::test]
async fn no_more_topics_are_created_than_the_setting_allows_and_others_flow() {
    let mut t = Harness::start().await;
    let orders = t.topic("orders").create(1).await;
    let settings = t.relay().set_toml("sink.create_topics.partitions", "1");
    let settings = settings.set_toml("sink.create_topics.replication_factor", "1");
    let _relay = settings.set_toml("sink.created_topics_max", "2").start().await;
    let topics: Vec<_> = (0..5).map(|n| t.topic(&format!("made-{n}"))).collect();
    for topic in &topics {
        t.commit([Event::to(topic.name()).key("k"), Event::to(orders.name()).key("k")]).await;
    }
    assert_eq!(wait_parked(&t, |parked| parked == 3).await, 3);
    let entries = list(&t).await;
    assert_eq!(texts(&entries, "reason"), ["unknown_topic"; 3]);
    for error in texts(&entries, "error") {
        let limit = "has created 2 within a day, which is sink.created_topics_max";
        assert!(error.contains(limit), "{error}");
    }
    let mut made = 0;
    for topic in &topics {
        made += u64::from(topic.exists().await);
    }
    assert_eq!(made, 2);
    let truth = t.committed().await;
    let others = truth.iter().filter(|row| row.topic == orders.name()).map(|row| row.id.clone());
    assert_eq!(orders.records_with(others).await.len(), 5);
}

async fn parks_what_others_keep_state_in(delivery: &str) {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let progress = format!("outbox-relay-progress-{}", t.database().name());
    let neighbour = format!("{progress}-of-another");
    let streams = format!("{}-changelog", t.topic("store").name());
    let settings = t.relay().set("sink.delivery", delivery);
    // It would create what is missing, were it a destination.
    let settings = settings.set_toml("sink.create_topics.partitions", "1");
    let mut relay = settings.set_toml("sink.create_topics.replication_factor", "1").start().await;
    let reserved = [
        "__consumer_offsets",
        "__transaction_state",
        "__cluster_metadata",
        "_schemas",
        &progress,
        &neighbour,
        &streams,
    ];
    let to = |name: &str| Event::to(name).key(t.database().name());
    let events: Vec<_> = reserved.into_iter().chain([topic.name()]).map(to).collect();
    t.commit(events).await;
    assert_eq!(wait_parked(&t, |parked| parked == 7).await, 7);
    let entries = list(&t).await;
    assert_eq!(texts(&entries, "reason"), ["reserved_topic"; 7]);
    for (name, error) in reserved.into_iter().zip(texts(&entries, "error")) {
        assert!(error.contains(name) && error.contains("sink.reserved_topics"), "{error}");
    }

    dead_letters(&t, &["release", "--all"]).await;
    assert_eq!(wait_parked_again(&t).await, 7);
    let id = entries.first().and_then(|entry| entry.get("id")).expect("an id").to_string();
    let (code, _, said) = try_dead_letters(&t, &["edit", &id, "--topic", &progress]).await;
    assert!(code == Some(1) && said.contains("no destination"), "{code:?} {said}");

    for name in [&neighbour, &streams, "_schemas"] {
        assert!(!t.topic_named(name).exists().await, "{name} was made");
    }
    // What counts as this relay's progress is its own alone: it continues after a crash.
    relay.kill9().await;
    relay.restart();
    t.commit([Event::to(topic.name()).key("k")]).await;
    wait::until("both are delivered", wait::PATIENCE, || async {
        match topic.records().await.len() {
            2 => Ok(()),
            found => Err(format!("{found} records")),
        }
    })
    .await
    .expect("they arrive, once each");
    let strangers = t.topic_named(&progress).records().await;
    let strangers: Vec<_> = strangers.iter().filter(|record| record.id().is_some()).collect();
    assert!(strangers.is_empty(), "an event is in the progress topic: {strangers:?}");
}

#[tokio::test]
async fn what_others_keep_state_in_is_no_destination() {
    parks_what_others_keep_state_in("exactly-once").await;
}

#[tokio::test]
async fn what_others_keep_state_in_is_no_destination_with_at_least_once() {
    parks_what_others_keep_state_in("at-least-once").await;
}

#[tokio::test]
async fn a_template_makes_no_destination_of_what_others_keep_state_in() {
    let mut t = Harness::start().await;
    let settings = t.relay().set("outbox.topic", "__{topic}");
    let _relay = settings.start().await;
    t.commit([Event::to("consumer_offsets").key("k")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    assert_eq!(texts(&list(&t).await, "reason"), ["reserved_topic"]);
    let wrong = t.relay().set("outbox.topic", "__consumer_offsets");
    let output = wrong.command(&["config"]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
