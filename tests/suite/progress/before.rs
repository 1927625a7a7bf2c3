//! Records of others in the progress topic before a relay's first start.

use outbox_harness::{Harness, event::Event};
use rdkafka::admin::AdminOptions;
use serde_json::{Value, json};

use super::{admin, progress, server_end, store};
use crate::{obeyed::says, remedies::halted};

#[tokio::test]
async fn what_is_in_the_progress_topic_before_a_first_start_leaves_nothing_out() {
    for delivery in ["exactly-once", "at-least-once"] {
        let mut t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let progress = progress(&t).create(1).await;
        progress.set("cleanup.policy", "compact").await;
        let name = t.database().name().to_owned();
        let writer = format!("{name}/writer");
        store(
            &t,
            vec![(name, Some(b"{}".to_vec()), vec![]), (writer, Some(b"me".to_vec()), vec![])],
        )
        .await;
        t.commit((0..10).map(|_| Event::to(topic.name()).key("k"))).await;
        let mut relay = t.relay().set("sink.delivery", delivery).start().await;
        t.count(&topic, 1).await.assert_exactly_once();
        assert!(relay.logs_contain("does not count"), "{}", relay.log_text());
        assert!(relay.sigterm().await.success());
        relay.restart();
        t.commit([Event::to(topic.name()).key("k")]).await;
        t.count(&topic, 1).await.assert_exactly_once();
    }
}

/// What another cluster's relay stores, or an older version of this one, looks the same.
#[tokio::test]
async fn a_relay_that_has_delivered_nothing_is_named_the_way_that_loses_nothing() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let progress = progress(&t).create(1).await;
    progress.set("cleanup.policy", "compact").await;
    t.commit((0..10).map(|_| Event::to(topic.name()).key("k"))).await;
    let system_id = "select system_identifier::text from pg_control_system()";
    let system_id = t.database().superuser().query_one(system_id, &[]).await.expect("an id");
    let slot = format!("outbox_{}", t.database().name());
    let mut forged = json!({
        "version": 4, "position": { "up_to": server_end(&t).await }, "slot": slot,
        "system_id": "1", "timeline": 1, "snapshots": [], "releases": [], "repair": null,
    });
    let name = t.database().name().to_owned();
    let bytes = |value: &Value| Some(value.to_string().into_bytes());
    store(&t, vec![(name.clone(), bytes(&forged), vec![])]).await;
    let mut relay = t.relay().spawn();
    let detail = halted(&relay).await;
    let (first, _) = detail.split_once("resume").expect("a command, later");
    assert!(first.contains("give it another name, and nothing is left out"), "{detail}");
    assert!(relay.sigterm().await.success());

    *forged.get_mut("system_id").expect("an id") = json!(system_id.get::<_, String>(0));
    store(&t, vec![(name, bytes(&forged), vec![])]).await;
    relay.restart();
    let detail = says(&relay, "that this relay did not store").await;
    let command = format!(" --delete --topic {}`", progress.name());
    let deletes = detail.find(&command).expect("it is named");
    assert!(deletes < detail.find("--at now").expect("the other way"), "{detail}");
    let gone = admin(&t).delete_topics(&[progress.name()], &AdminOptions::new()).await;
    gone.expect("an answer").into_iter().for_each(|gone| drop(gone.expect("it is deleted")));
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_exactly_once();
}
