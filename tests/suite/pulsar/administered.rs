//! What a cluster's administrators do to the relay's topics while it runs.

use outbox_harness::{
    Harness,
    certificates::write_private,
    event::Event,
    pulsar::{self, Pulsar},
    relay::Relay,
    wait,
};
use serde_json::Value;

use super::{PARTITIONS, all_arrive, to, to_blame, topic};
use crate::dead_letters::{dead_letters, wait_parked};

/// No one reads where a consumer would need a token: the relay's count of confirmed events is the proof.
async fn delivered(relay: &Relay, wanted: u64) {
    let counted = wait::until("they are confirmed", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        match status.get("records_delivered").and_then(Value::as_u64) {
            Some(found) if found == wanted => Ok(()),
            _ => Err(status.to_string()),
        }
    });
    counted.await.expect("they are");
}

#[tokio::test]
async fn a_topic_that_the_relay_may_not_produce_to_any_more_is_parked_and_holds_no_other() {
    let mut t = Harness::start().await;
    let broker = Pulsar::start_with(pulsar::TOKENS).expect("a broker of its own");
    broker.wait_ready().await;
    let (orders, other) = (topic(&t), format!("{}.other", t.database().name()));
    for topic in [&orders, &other] {
        broker.topic(topic, PARTITIONS).await;
        broker.may_produce("relay", topic, true);
    }
    let token = t.dir().join("token");
    write_private(&token, pulsar::RELAY);
    let settings =
        to(&broker, t.relay()).set("sink.pulsar.token_file", token.to_str().expect("UTF-8"));
    let mut relay = settings.start().await;
    let both = || [&orders, &other].map(|topic| Event::to(topic).key("a"));
    t.commit(both()).await;
    delivered(&relay, 2).await;

    broker.may_produce("relay", &orders, false);
    t.commit(both()).await;
    wait_parked(&t, |parked| parked == 1).await;
    let (reason, error) = to_blame(&t).await;
    assert!(reason == "not_authorised" && error.contains("grant-permission"), "{reason}: {error}");
    delivered(&relay, 3).await;
    relay.wait_ready().await;

    broker.may_produce("relay", &orders, true);
    dead_letters(&t, &["release", "--reason", "not_authorised"]).await;
    wait_parked(&t, |parked| parked == 0).await;
    delivered(&relay, 4).await;
}

/// The broker ends the relay's producers then, and lets in no others.
#[tokio::test]
async fn a_topic_that_is_full_parks_nothing_is_named_by_readyz_and_takes_all_once_it_is_read() {
    let mut t = Harness::start().await;
    let broker = Pulsar::start_with(pulsar::QUOTAS).expect("a broker of its own");
    broker.wait_ready().await;
    let orders = broker.topic(&topic(&t), PARTITIONS).await;
    broker.fills_up(orders.name(), 20_000).await;
    let mut relay = to(&broker, t.relay()).start().await;
    let topic = topic(&t);
    let event = |key: usize| {
        let payload = Value::String("x".repeat(2_000));
        Event::to(&topic).key(&key.to_string()).payload(payload)
    };
    // Written until the broker has looked, which it does every second.
    let end = tokio::time::Instant::now() + wait::PATIENCE;
    let named = async || {
        relay.try_status().await.expect("it answers").to_string().contains("backlog quota")
    };
    while !named().await {
        assert!(tokio::time::Instant::now() < end, "{}", relay.log_text());
        t.commit((0..4).map(event)).await;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    relay.wait_for("/readyz", 503).await;
    broker.is_read(orders.name(), PARTITIONS);
    relay.wait_ready().await;
    all_arrive(&t, &orders).await.assert_at_least_once();
    wait_parked(&t, |parked| parked == 0).await;
}
