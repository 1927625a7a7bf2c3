//! Topics that are missing: looked up, never produced to; made only where the settings say so.

use outbox_tests::{Harness, event::Event};

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
async fn a_topic_that_stays_missing_stops_the_relay_at_that_row_and_keeps_it_alive() {
    let mut t = Harness::start().await;
    let (there, missing) = (t.topic("there").create(1).await, t.topic("missing"));
    let mut relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    t.commit([Event::to(there.name())]).await;
    t.commit([Event::to(missing.name())]).await;
    relay.wait_for("/readyz", 503).await;
    relay.wait_for("/livez", 200).await;
    relay.wait_log(missing.name()).await;
    assert_eq!(there.records().await.len(), 1, "what came before it is delivered");
    assert!(!missing.exists().await);
    assert!(relay.sigterm().await.success());
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

#[tokio::test]
async fn a_row_that_cannot_be_a_record_stops_the_relay_with_its_id_and_reason() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let bad = format!(
        "insert into outbox.events (id, topic, headers) values ('{id}', '{}', '{{\"a\": 1}}')",
        topic.name()
    );
    let good = format!("insert into outbox.events (topic) values ('{}')", topic.name());
    for sql in [&good, &bad, &good] {
        t.database().superuser().batch_execute(sql).await.expect("inserted");
    }
    relay.wait_for("/readyz", 503).await;
    relay.wait_log(id).await;
    relay.wait_for("/livez", 200).await;
    assert_eq!(topic.records().await.len(), 1, "nothing passes the row that was refused");
}
