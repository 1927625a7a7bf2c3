//! A progress topic that is not there yet, or for a time: the relay says so, waits, and loses and repeats nothing.

use outbox_harness::{
    Harness, event::Event, kafka::Kafka, kafka_tools, relay::Relay, servers, topic::Topic, wait,
};
use serde_json::Value;

use super::progress;
use crate::obeyed::typed;

async fn commit(t: &mut Harness, topic: &Topic) {
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
}

/// Waits until it is not ready for a reason that has these words, and returns the whole of it.
async fn not_ready(relay: &Relay, words: &str) -> String {
    wait::until(words, wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        match status.get("not_ready_because").and_then(Value::as_str) {
            Some(why) if why.contains(words) => Ok(why.to_owned()),
            _ => Err(status.to_string()),
        }
    })
    .await
    .expect("it says so")
}

/// The brokers have made it, and know nothing of it: as where somebody else deletes it at once.
#[tokio::test]
async fn a_progress_topic_that_goes_as_soon_as_it_was_made_is_made_again() {
    for mode in ["exactly-once", "at-least-once"] {
        let mut t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let settings = t.relay().set("sink.delivery", mode);
        let mut relay = settings.fault("progress-topic-made:1:freeze").spawn();
        relay.wait_log("fault: progress-topic-made").await;
        progress(&t).delete().await;
        commit(&mut t, &topic).await;
        relay.thaw();
        let why = not_ready(&relay, "it was created, and is still unknown to the broker").await;
        assert!(why.contains(progress(&t).name()), "{why}");
        relay.wait_ready().await;
        commit(&mut t, &topic).await;
        t.count(&topic, 1).await.assert_exactly_once();
        assert!(relay.sigterm().await.success());
    }
}

/// The brokers' default wants more replicas than there are brokers.
#[tokio::test]
async fn a_progress_topic_that_the_brokers_do_not_make_is_made_by_hand_as_the_text_says() {
    let default = [("default.replication.factor", "3")];
    let (postgres, (kafka, _broker)) =
        tokio::join!(servers::postgres(), Kafka::start_private(&default));
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    commit(&mut t, &topic).await;
    let mut relay = t.relay().spawn();
    let name = progress(&t).name().to_owned();
    let why = not_ready(&relay, &format!("creating the progress topic {name}")).await;
    kafka_tools::run(typed(&why, "--replication-factor 1")).await;
    relay.wait_ready().await;
    commit(&mut t, &topic).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
}

/// The broker that has its only replica is away, while the relay streams and while it starts.
#[tokio::test]
async fn a_progress_topic_without_a_leader_is_waited_for_and_named() {
    let (postgres, (kafka, mut brokers)) =
        tokio::join!(servers::postgres(), Kafka::start_cluster());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create_replicated(1, 3, &[]).await;
    let once = [("cleanup.policy", "compact"), ("min.insync.replicas", "1")];
    let name = progress(&t).create_with(1, &once).await.name().to_owned();
    let mut relay = t.relay().start().await;
    commit(&mut t, &topic).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let leader = usize::try_from(kafka.leader(&name).await).expect("one leads");
    let broker = brokers.get_mut(leader - 1).expect("one of three");
    broker.kill9();
    wait::until("it has no leader", wait::PATIENCE, || async {
        match kafka.leader(&name).await {
            -1 => Ok(()),
            leader => Err(leader),
        }
    })
    .await
    .expect("its broker is given up");
    // It delivers nothing, and its look says so; then a delivery is under way, and at last a start.
    let told = format!("looking up the progress topic {name}: it has no leader");
    let why = not_ready(&relay, &told).await;
    let shown = kafka_tools::run(typed(&why, "kafka-topics")).await;
    assert!(shown.contains("Leader: none"), "{shown}");
    commit(&mut t, &topic).await;
    not_ready(&relay, "delivering").await;
    relay.kill9().await;
    relay.restart();
    not_ready(&relay, &told).await;
    broker.restart();
    relay.wait_ready().await;
    commit(&mut t, &topic).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
}
