//! What operators see while nothing flows: a relay that is halted must not look as if nothing
//! waited.

use std::time::Duration;

use outbox_harness::{
    Harness,
    event::Event,
    host,
    relay::{Relay, Settings},
    wait,
};
use serde_json::Value;

use crate::dead_letters::wait_parked;

const NUMBERS: [&str; 4] = ["lag_bytes", "lag_seconds", "parked_lanes", "parked_events"];

/// Three events to one topic, and three of one lane that are parked; then the relay is stopped.
async fn delivered_and_parked(t: &mut Harness, settings: &Settings) {
    let topic = t.topic("orders").create(1).await;
    let missing = t.topic("missing");
    let mut relay = settings.clone().set("sink.topic_grace", "100ms").start().await;
    t.commit((0..3).map(|_| Event::to(missing.name()).key("k"))).await;
    wait_parked(t, |parked| parked == 3).await;
    t.commit((0..3).map(|_| Event::to(topic.name()))).await;
    topic.records_with(t.committed().await.iter().skip(3).map(|row| row.id.clone())).await;
    assert!(relay.sigterm().await.success());
}

/// Waits until the status has all numbers, and `wanted` of them.
async fn wait_status(relay: &Relay, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait::until(what, wait::PATIENCE, || async {
        let status = relay.try_status().await?;
        let known = NUMBERS.iter().all(|name| number(&status, name).is_some());
        anyhow::ensure!(known && wanted(&status), "{status}");
        Ok::<_, anyhow::Error>(status)
    })
    .await
    .expect("the status says so")
}

fn number(status: &Value, name: &str) -> Option<f64> {
    status.get(name)?.as_f64()
}

fn is_in(status: &Value, phase: &str) -> bool {
    status.get("phase").and_then(Value::as_str) == Some(phase)
}

/// A gauge's value, as a scraper reads it; `None` when it is absent.
fn gauge(metrics: &str, name: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.map(|value| value.parse().expect("a number"))
}

/// The lag grows with what is committed, and what is parked is counted.
async fn grows(t: &mut Harness, relay: &Relay, phase: &str) {
    let before = wait_status(relay, "the lag is known", |s| is_in(s, phase)).await;
    assert_eq!(number(&before, "parked_lanes"), Some(1.0));
    assert_eq!(number(&before, "parked_events"), Some(3.0));
    let topic = t.topic("orders");
    t.commit((0..200).map(|_| Event::to(topic.name()))).await;
    let grown = number(&before, "lag_bytes").map(|lag| lag + 200.0 * 100.0);
    let after = wait_status(relay, "the lag has grown", |s| {
        is_in(s, phase) && number(s, "lag_bytes") > grown
    })
    .await;
    assert!(number(&after, "lag_seconds") > Some(0.0), "{after}");
    let metrics = relay.page("/metrics").await;
    let lag = gauge(&metrics, "outbox_relay_lag_bytes");
    assert!(lag.is_some() && lag >= number(&after, "lag_bytes"), "{lag:?} {after}");
    assert_eq!(gauge(&metrics, "outbox_relay_parked_lanes"), Some(1.0));
    assert_eq!(gauge(&metrics, "outbox_relay_parked_events"), Some(3.0));
    assert!(gauge(&metrics, "outbox_relay_confirmed_lsn").is_some_and(|lsn| lsn > 0.0));
}

#[tokio::test]
async fn the_lag_of_a_halted_relay_grows() {
    let mut t = Harness::start().await;
    let settings = t.relay();
    delivered_and_parked(&mut t, &settings).await;
    let topic = t.topic("orders");
    t.commit([Event::to(topic.name())]).await;
    let moved = "select pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) \
                 from pg_replication_slots where database = current_database()";
    t.database().superuser().batch_execute(moved).await.expect("the slot is moved");
    let mut relay = settings.spawn();
    relay.wait_for("/status", 200).await;
    grows(&mut t, &relay, "halted").await;
    let status = relay.status().await;
    assert!(status.get("delivered").is_some_and(Value::is_object), "progress was read: {status}");
}

#[tokio::test]
async fn the_lag_of_a_relay_that_waits_for_its_broker_grows() {
    let mut t = Harness::start().await;
    let settings = t.relay();
    delivered_and_parked(&mut t, &settings).await;
    let nobody = format!("127.0.0.1:{}", host::free_port());
    let mut relay = settings.set("sink.properties.\"bootstrap.servers\"", &nobody).spawn();
    relay.wait_for("/status", 200).await;
    let starting = wait_status(&relay, "the database is looked at", |_| true).await;
    let phase = starting.get("phase").and_then(Value::as_str).expect("a word");
    grows(&mut t, &relay, phase).await;
    let metrics = relay.page("/metrics").await;
    assert_eq!(gauge(&metrics, "outbox_relay_delivered_lsn"), None, "nobody could say");
}

/// A mistake in the port, at the first start.
#[tokio::test]
async fn brokers_that_do_not_answer_are_named_with_the_reason_within_five_seconds() {
    let t = Harness::start().await;
    let nobody = format!("127.0.0.1:{}", host::free_port());
    let settings = t.relay().set("sink.properties.\"bootstrap.servers\"", &nobody);
    let mut relay = settings.clone().spawn();
    relay.wait_for("/status", 200).await;
    let named = format!("{nobody} of bootstrap.servers (connection refused)");
    let within = |time: Duration, has: &'static str| {
        let (relay, named) = (&relay, &named);
        wait::until(has, time, move || async move {
            let status = relay.try_status().await?;
            let why = status.get("not_ready_because").and_then(Value::as_str).unwrap_or_default();
            anyhow::ensure!(why.contains(named) && why.contains(has), "{why}");
            Ok::<_, anyhow::Error>(())
        })
    };
    within(Duration::from_secs(5), "no answer").await.expect("who, and why");
    within(wait::PATIENCE, "nothing is lost").await.expect("what it means");
    let output = settings.command(&["check"]).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains(&format!("no answer from {named}")), "{told}");
}
