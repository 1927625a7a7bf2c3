//! What a consumer has in memory stays within its setting, also where messages wait and are taken up
//! again.

use outbox_harness::{
    consumer::{Consumer, effects_so_far, make_effects},
    database::Database,
    host,
    member::Plan,
    servers, text,
    topic::Topic,
    wait,
};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

const MIB: usize = 1 << 20;
/// Of `in_flight`.
const SETTING: usize = 16 * MIB;
/// What it may take beside that.
const BESIDE: usize = 64 * MIB;
const MESSAGES: i64 = 24;
/// Of a compressed topic: enough that one response could have several times as much as may be ahead.
const PACKED: usize = 12_000;

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
    let plan = Plan { in_flight_bytes: Some(SETTING), ..Plan::default() };
    let peak = peak(&database, &topic, &plan, MESSAGES).await;
    assert!(peak <= SETTING + BESIDE, "{} MiB", peak / MIB);
}

/// librdkafka unpacks what it has fetched, and fetches by what the broker has stored.
#[tokio::test]
async fn a_topic_that_is_packed_to_an_eighth_keeps_within_in_flight_and_64_mib_too() {
    let setting = 64 * MIB;
    let kafka = servers::kafka().await;
    let database = Database::create_inbox().await;
    make_effects(&database).await;
    let topic = Topic::new(kafka, format!("{}.packed", database.name())).create(12).await;
    let mut client = kafka.client();
    // Full batches, as a busy producer sends them.
    client.set("compression.codec", "zstd").set("linger.ms", "200");
    let producer: FutureProducer = client.create().expect("a producer");
    let mut sent = Vec::new();
    for n in 0..PACKED {
        let (key, payload) = (n.to_string(), text::orders(16 << 10));
        let record = FutureRecord::to(topic.name()).key(&key).payload(&payload);
        sent.push(producer.send_result(record).expect("there is room"));
    }
    for sent in sent {
        sent.await.expect("an answer").expect("it is stored");
    }
    drop(producer.flush(wait::PATIENCE));
    let plan = Plan {
        in_flight_bytes: Some(setting),
        live: true,
        pause_ms: Some((4, 4)),
        ..Plan::default()
    };
    let messages = i64::try_from(PACKED).expect("a count");
    let peak = peak(&database, &topic, &plan, messages).await;
    assert!(peak <= setting + BESIDE, "{} MiB", peak / MIB);
    topic.delete().await;
}

/// Of a consumer that handles all of them.
async fn peak(database: &Database, topic: &Topic, plan: &Plan, messages: i64) -> usize {
    let kafka = servers::kafka().await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut consumer = Consumer::start(dir.path(), "a", database, kafka, topic, plan);
    wait::until("all take effect", wait::PATIENCE, || async {
        match effects_so_far(database).await {
            all if all == messages => Ok(()),
            some => Err(format!("{some}, {} MiB", consumer.peak_memory_bytes() >> 20)),
        }
    })
    .await
    .expect("each takes effect");
    let peak = usize::try_from(consumer.peak_memory_bytes()).expect("a size");
    host::report(&format!("{}: peak {} MiB", topic.name(), peak / MIB));
    assert!(consumer.sigterm().await.success());
    peak
}
