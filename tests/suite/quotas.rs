//! Kafka's quotas: a broker that throttles the relay is named, and nothing is lost meanwhile.

use outbox_harness::{
    Harness, check, event::Event, kafka_tools, kafka_tools::printed, relay::Settings, topic::Topic,
    wait,
};
use serde_json::Value;

const PARTITIONS: i32 = 2;

/// Sets what a client id may do in a second, such as `producer_byte_rate=10`.
async fn limit(t: &Harness, client: &str, quota: &str) {
    let command = format!(
        "kafka-configs --bootstrap-server {} --alter --entity-type clients --entity-name {client} \
         --add-config {quota}",
        t.kafka().brokers()
    );
    kafka_tools::run(&command).await;
}

/// A relay whose deliveries end soon, with the statistics that others look at.
fn quick(t: &Harness) -> Settings {
    t.relay()
        .set("sink.properties.\"transaction.timeout.ms\"", "3000")
        .set("sink.properties.\"statistics.interval.ms\"", "200")
}

async fn commit(t: &mut Harness, topic: &Topic, events: usize) {
    for _ in 0..events {
        t.commit([Event::to(topic.name()).key("k")]).await;
    }
}

/// All that was committed, in order.
async fn delivered(t: &Harness, topic: &Topic, mode: &str) {
    let truth = t.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    let count = check::compare(&truth, &records, PARTITIONS);
    match mode {
        "exactly-once" => count.assert_exactly_once(),
        _ => count.assert_at_least_once(),
    }
}

/// So small that no delivery gets through in its time.
async fn a_quota_is_named_until_it_is_removed(mode: &str) {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(PARTITIONS).await;
    let relay = quick(&t).set("sink.delivery", mode).start().await;
    commit(&mut t, &topic, 5).await;
    delivered(&t, &topic, mode).await;

    let client = format!("outbox-relay-{}", t.database().name());
    limit(&t, &client, "producer_byte_rate=10").await;
    commit(&mut t, &topic, 20).await;
    relay.wait_log("throttled").await;
    let concern = wait::until("the quota is of concern", wait::PATIENCE, || async {
        let status = relay.try_status().await?;
        let text = |at: &str| status.pointer(at).and_then(Value::as_str).unwrap_or_default();
        let (first, why) = (text("/concerns/0").to_owned(), text("/not_ready_because"));
        match first.contains("throttles") && why.contains("throttles") {
            true => Ok(first),
            false => anyhow::bail!("{status}"),
        }
    });
    let concern = concern.await.expect("it is named");
    assert!(concern.contains(&client) && concern.contains("stopped reading for"), "{concern}");
    assert!(relay.logs_contain(printed(&concern, "kafka-configs")), "the log names what to type");
    let seen = kafka_tools::run(printed(&concern, "kafka-configs")).await;
    assert!(seen.contains("producer_byte_rate=10"), "{seen}");

    let remedy = concern.split('`').find(|text| text.contains("--delete-config")).expect("one");
    kafka_tools::run(remedy).await;
    commit(&mut t, &topic, 5).await;
    delivered(&t, &topic, mode).await;
    wait::until("nothing is of concern", wait::PATIENCE, || async {
        let page = relay.page("/readyz").await;
        if page == "ok\n" { Ok(()) } else { Err(page) }
    })
    .await
    .expect("it is as it was");
    assert_eq!(relay.log_text().matches("throttled").count(), 1, "{}", relay.log_text());
}

#[tokio::test]
async fn a_quota_too_small_for_a_transaction_is_named_until_it_is_removed() {
    a_quota_is_named_until_it_is_removed("exactly-once").await;
}

#[tokio::test]
async fn a_quota_too_small_for_a_delivery_is_named_until_it_is_removed() {
    a_quota_is_named_until_it_is_removed("at-least-once").await;
}

/// The progress topic can't be read to its end: the broker answers all that is asked, and sends no records.
#[tokio::test]
async fn a_quota_too_small_for_the_stored_progress_is_named_until_it_is_removed() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(PARTITIONS).await;
    let mut relay = t.relay().start().await;
    commit(&mut t, &topic, 5).await;
    delivered(&t, &topic, "exactly-once").await;
    assert!(relay.sigterm().await.success());

    let client = format!("outbox-relay-{}", t.database().name());
    limit(&t, &client, "consumer_byte_rate=1").await;
    commit(&mut t, &topic, 5).await;
    relay.restart();
    let why = wait::until("it says so", wait::PATIENCE, || async {
        let status = relay.try_status().await?;
        match status["not_ready_because"].as_str() {
            Some(why) if why.contains("answers, but sends no records") => Ok(why.to_owned()),
            _ => anyhow::bail!("{status}"),
        }
    });
    let why = why.await.expect("it does");
    let seen = kafka_tools::run(printed(&why, "kafka-configs")).await;
    assert!(seen.contains("consumer_byte_rate=1"), "{seen}");
    let remedy = why.split('`').find(|text| text.contains("--delete-config")).expect("one");
    kafka_tools::run(remedy).await;
    relay.wait_ready().await;
    commit(&mut t, &topic, 5).await;
    delivered(&t, &topic, "exactly-once").await;
    assert!(relay.sigterm().await.success());
}
