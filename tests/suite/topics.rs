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
async fn create_topics_makes_a_missing_topic_as_it_says() {
    let mut t = Harness::start().await;
    let topic = t.topic("made");
    let settings = t.relay().set_toml("sink.create_topics.partitions", "6");
    let _relay = settings.set_toml("sink.create_topics.replication_factor", "1").start().await;
    t.commit((0..20).map(|n| Event::to(topic.name()).key(&format!("customer-{n}")))).await;
    t.count(&topic, 6).await.assert_exactly_once();
    assert_eq!(topic.partitions().expect("metadata"), Some(6));
}
