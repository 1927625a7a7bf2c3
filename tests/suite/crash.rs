//! `kill -9` while writers write: exactly-once, in order, through all of it; and an orderly stop.

use std::time::Instant;

use outbox_harness::{
    Harness,
    event::Event,
    load::Plan,
    relay::{Relay, STOP},
    topic::Topic,
    wait,
};

/// More transactions than the writers get to: they end when told.
const ENDLESS: u64 = 1_000_000;

/// Waits until a consumer can see that the relay has got further: a kill that hits a relay before
/// its first delivery proves little.
async fn wait_for_more(topic: &Topic, before: usize) -> usize {
    wait::until("more records arrive", wait::PATIENCE, || async {
        match topic.records().await.len() {
            found if found > before => Ok(found),
            found => Err(format!("{found} records")),
        }
    })
    .await
    .expect("the relay delivers")
}

async fn kill_repeatedly(t: &Harness, topic: &Topic, relay: &mut Relay) {
    let plan =
        Plan { topic: topic.name().to_owned(), partitions: 8, writers: 6, transactions: ENDLESS };
    let load = t.load(&plan).await;
    let mut seen = 0;
    for _ in 0..5 {
        seen = wait_for_more(topic, seen).await;
        relay.kill9().await;
        relay.restart();
    }
    wait_for_more(topic, seen).await;
    load.stop().await;
}

#[tokio::test]
async fn five_kills_under_load_lose_and_double_nothing() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let mut relay = t.relay().start().await;
    kill_repeatedly(&t, &topic, &mut relay).await;
    t.count(&topic, 8).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn five_kills_with_at_least_once_lose_nothing_and_repeat_the_same_ids() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let mut relay = t.relay().set("sink.delivery", "at-least-once").start().await;
    kill_repeatedly(&t, &topic, &mut relay).await;
    let truth = t.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    outbox_harness::check::compare(&truth, &records, 8).assert_at_least_once();
}

#[tokio::test]
async fn a_kill_in_the_middle_of_one_large_transaction_repeats_none_of_it() {
    const EVENTS: usize = 60_000;
    let t = Harness::start().await;
    let topic = t.topic("large").create(4).await;
    let mut relay = t.relay().set_toml("batch.records_max", "200").start().await;
    let large = format!(
        "insert into outbox.events (topic, partition, headers) \
         select '{}', n % 4, jsonb_build_object('sequence', (n / 4 + 1)::text) \
         from generate_series(0, {EVENTS} - 1) n",
        topic.name()
    );
    t.database().superuser().batch_execute(&large).await.expect("inserted");
    wait_for_more(&topic, 0).await;
    relay.kill9().await;
    let delivered = topic.records().await.len();
    relay.restart();
    t.count(&topic, 4).await.assert_exactly_once();
    assert!(delivered < EVENTS, "the kill came too late to prove anything");
}

#[tokio::test]
async fn sigterm_under_load_ends_in_time_with_0_and_the_next_relay_goes_on() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let mut relay = t.relay().start().await;
    let plan =
        Plan { topic: topic.name().to_owned(), partitions: 8, writers: 4, transactions: ENDLESS };
    let load = t.load(&plan).await;
    let mut seen = 0;
    for _ in 0..3 {
        seen = wait_for_more(&topic, seen).await;
        let begun = Instant::now();
        let status = relay.sigterm().await;
        assert_eq!(status.code(), Some(0), "after {:?}", begun.elapsed());
        assert!(begun.elapsed() < STOP);
        relay.restart();
    }
    wait_for_more(&topic, seen).await;
    load.stop().await;
    t.count(&topic, 8).await.assert_exactly_once();
}

#[tokio::test]
async fn what_is_delivered_is_confirmed_to_the_server() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let query = "select confirmed_flush_lsn >= $1::text::pg_lsn, confirmed_flush_lsn::text \
                 from pg_replication_slots where slot_name = $2";
    let superuser = t.database().superuser();
    let end: String = superuser
        .query_one("select pg_current_wal_insert_lsn()::text", &[])
        .await
        .expect("an LSN")
        .get(0);
    let slot = format!("outbox_{}", t.database().name());
    wait::until("the slot moves past the commit", wait::PATIENCE, || async {
        let row = superuser.query_one(query, &[&end, &slot]).await.map_err(|e| e.to_string())?;
        if row.get(0) { Ok(()) } else { Err(row.get::<_, String>(1)) }
    })
    .await
    .expect("it is confirmed");
}
