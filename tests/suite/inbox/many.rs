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
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    producer::{FutureProducer, FutureRecord, Producer as _},
};

use super::effects::number;

const PARTITIONS: i32 = 1_000;
const EACH: i64 = 8;
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

/// One question for all partitions.
async fn until_committed(database: &Database, topic: &Topic) {
    let mut client = servers::kafka().await.client();
    client.set("group.id", database.name());
    wait::until("all offsets are committed", wait::PATIENCE, || async {
        let (client, name) = (client.clone(), topic.name().to_owned());
        let asked = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = client.create()?;
            let mut list = TopicPartitionList::new();
            list.add_partition_range(&name, 0, PARTITIONS - 1);
            consumer.committed_offsets(list, Duration::from_secs(10))
        });
        let found = asked.await.expect("no panic").map_err(|error| error.to_string())?;
        let at_the_end = |place: &Offset| *place == Offset::Offset(EACH);
        let done = found.elements().iter().filter(|one| at_the_end(&one.offset())).count();
        if done == found.count() { Ok(()) } else { Err(format!("{done} of {}", found.count())) }
    })
    .await
    .expect("the group has no lag");
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
    // As long as it does, but it may not stop.
    let effects = async |least: i64| {
        let mut found = 0;
        while found < least {
            let sql = "select count(*) from effects";
            let more = wait::until("more take effect", wait::PATIENCE, || async {
                let now = number(&database, sql).await;
                if now > found { Ok(now) } else { Err(now.to_string()) }
            });
            found = more.await.expect("each is handled");
        }
    };
    effects(1).await;
    let first = begun.elapsed();
    effects(EACH * i64::from(PARTITIONS)).await;
    let all = begun.elapsed();
    until_committed(&database, &topic).await;
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
    assert_eq!((distinct, found), (found, i64::from(PARTITIONS) * EACH), "each once");
    assert!(peak <= MEMORY, "a peak of {} MiB", peak >> 20);
    topic.delete().await;
}
