//! A thousand partitions in one assignment.

use std::time::{Duration, Instant};

use outbox_harness::{
    consumer::{self, Consumer},
    database::Database,
    host,
    member::Plan,
    servers,
    topic::Topic,
    wait,
};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::{effects::number, topics::until_no_lag};

const PARTITIONS: i32 = 1_000;
const EACH: usize = 8;
const BYTES: usize = 16 << 10;
/// What messages may take in memory: an eighth of what is sent.
const IN_FLIGHT: usize = 16 << 20;
/// What a consumer may take in all (docs/CONSUMER.md), and what it has when it is idle.
const MEMORY: u64 = (IN_FLIGHT as u64) + (64 << 20) + (18 << 20);

/// More than the consumer may have in memory: with a buffer for each partition it would have all of it.
async fn fill(topic: &Topic) {
    let mut client = servers::kafka().await.client();
    client.set("queue.buffering.max.messages", "100000").set("linger.ms", "50");
    let producer: FutureProducer = client.create().expect("a producer");
    let payload = vec![b'x'; BYTES];
    let mut stored = Vec::new();
    for _ in 0..EACH {
        for partition in 0..PARTITIONS {
            let record = FutureRecord::<[u8], _>::to(topic.name()).payload(&payload);
            stored.push(producer.send_result(record.partition(partition)).expect("it is queued"));
        }
    }
    for stored in stored {
        stored.await.expect("an answer").expect("it is stored");
    }
    drop(producer.flush(Duration::from_secs(1)));
}

#[tokio::test]
async fn a_thousand_partitions_are_handled_each_within_the_memory_of_one() {
    let database = Database::create_inbox().await;
    consumer::make_effects(&database).await;
    let kafka = servers::kafka().await;
    let topic = Topic::new(kafka, format!("{}.many", database.name())).create(PARTITIONS).await;
    fill(&topic).await;
    let dir = tempfile::tempdir().expect("a directory");
    let plan = Plan { in_flight_bytes: Some(IN_FLIGHT), live: true, ..Plan::default() };
    let begun = Instant::now();
    let mut consumer = Consumer::start(dir.path(), "a", &database, kafka, &topic, &plan);
    let effects = async |least: usize| {
        let sql = "select count(*) from effects";
        wait::until("they take effect", wait::PATIENCE, || async {
            let found = number(&database, sql).await;
            if found >= i64::try_from(least).expect("few") {
                Ok(())
            } else {
                Err(found.to_string())
            }
        })
        .await
        .expect("each is handled");
    };
    effects(1).await;
    let first = begun.elapsed();
    effects(EACH * PARTITIONS.unsigned_abs() as usize).await;
    let all = begun.elapsed();
    until_no_lag(&database, &topic, PARTITIONS).await;
    let peak = consumer.peak_memory_bytes();
    host::report(&format!(
        "{PARTITIONS} partitions: first effect after {first:.1?}, all {EACH} of each after {all:.1?}, peak {} MiB",
        peak >> 20
    ));
    assert!(consumer.sigterm().await.success());
    let distinct = "select count(distinct message) from effects";
    let (distinct, found) = (
        number(&database, distinct).await,
        number(&database, "select count(*) from effects").await,
    );
    assert_eq!((distinct, found), (found, i64::from(PARTITIONS) * 8), "each once");
    assert!(peak <= MEMORY, "a peak of {} MiB", peak >> 20);
    topic.delete().await;
}
