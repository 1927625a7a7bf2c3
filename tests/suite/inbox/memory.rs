//! What a consumer has in memory stays within its setting, also where messages wait and are taken up
//! again.

use outbox_harness::{
    consumer::{Consumer, effects_so_far, make_effects},
    database::Database,
    member::Plan,
    servers,
    topic::Topic,
    wait,
};
use rdkafka::producer::{FutureProducer, FutureRecord};

const MIB: usize = 1 << 20;
/// Of `in_flight`.
const SETTING: usize = 16 * MIB;
/// What it may take beside that.
const BESIDE: usize = 64 * MIB;
const MESSAGES: i64 = 24;

/// Of messages that fail at first, so that each is parked, and taken up again.
#[tokio::test]
async fn large_messages_that_wait_for_a_retry_keep_within_in_flight_and_64_mib() {
    let kafka = servers::kafka().await;
    let database = Database::create_inbox().await;
    make_effects(&database).await;
    let largest = [("max.message.bytes", "10000000")];
    let topic = Topic::new(kafka, format!("{}.large", database.name()));
    let topic = topic.create_with(4, &largest).await;
    let mut client = kafka.client();
    let producer: FutureProducer =
        client.set("message.max.bytes", "10000000").create().expect("a producer");
    let payload = vec![b'x'; 4 * MIB];
    for n in 0..MESSAGES {
        let key = n.to_string();
        let record = FutureRecord::to(topic.name()).key(&key).payload(&payload);
        producer.send(record, wait::PATIENCE).await.expect("it is stored");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let plan = Plan { in_flight_bytes: Some(SETTING), ..Plan::default() };
    let mut consumer = Consumer::start(dir.path(), "a", &database, kafka, &topic, &plan);
    wait::until("all take effect", wait::PATIENCE, || async {
        match effects_so_far(&database).await {
            all if all == MESSAGES => Ok(()),
            some => Err(format!("{some}, {} MiB", consumer.peak_memory_bytes() >> 20)),
        }
    })
    .await
    .expect("each is taken up again");
    let peak = usize::try_from(consumer.peak_memory_bytes()).expect("a size");
    println!("{} MiB", peak / MIB);
    assert!(peak <= SETTING + BESIDE, "{} MiB", peak / MIB);
    assert!(consumer.sigterm().await.success());
}
