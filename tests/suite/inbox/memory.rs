//! What a consumer has in memory stays within its setting, also where messages wait and are taken up
//! again.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use outbox_harness::{
    consumer::{Consumer, effects_so_far, make_effects},
    database::Database,
    host,
    member::Plan,
    servers, text,
    topic::Topic,
    wait,
};
use outbox_idempotency::{Failure, Message, Processor, Retry, Tx};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use super::effects::{self, inbox, message, with};

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
    let database = Database::create_inbox().await;
    make_effects(&database).await;
    let topic = topic_of_large(&database).await;
    produce(&topic, MESSAGES, 4 * MIB).await;
    let plan = Plan { in_flight_bytes: Some(SETTING), ..Plan::default() };
    let peak = peak(&database, &topic, &plan, MESSAGES).await;
    assert!(peak <= SETTING + BESIDE, "{} MiB", peak / MIB);
}

/// For as long as a handler takes: the driver keeps what it has read for a connection for as long as it is in use, so what
/// is read of a message as a whole would be there twice.
#[tokio::test]
async fn a_large_message_that_is_tried_again_is_in_memory_once() {
    const EACH: usize = 16 * MIB;
    let kafka = servers::kafka().await;
    let database = Database::create_inbox().await;
    make_effects(&database).await;
    let topic = topic_of_large(&database).await;
    let dir = tempfile::tempdir().expect("a directory");
    let plan = Plan { in_flight_bytes: Some(64 * MIB), ..Plan::default() };
    let mut consumer = Consumer::start(dir.path(), "a", &database, kafka, &topic, &plan);
    consumer.wait_log("partitions assigned").await;
    let before = consumer.memory_bytes();
    // What each handler stores at its end waits for this.
    let locks = database.superuser().batch_execute("begin; lock table effects in exclusive mode");
    locks.await.expect("it is locked");
    produce(&topic, 2, EACH).await;
    let at_work = "select count(*) from pg_locks join pg_database d on d.oid = database \
        where not granted and relation = 'effects'::regclass and datname = current_database()";
    wait::until("both are at work", wait::PATIENCE, || async {
        match effects::number(&database, at_work).await {
            2 => Ok(()),
            some => Err(format!("{some}")),
        }
    })
    .await
    .expect("they are");
    let more = usize::try_from(consumer.memory_bytes().saturating_sub(before)).expect("a size");
    database.superuser().batch_execute("commit").await.expect("it is unlocked");
    wait::until("both take effect", wait::PATIENCE, || async {
        match effects_so_far(&database).await {
            2 => Ok(()),
            some => Err(format!("{some}")),
        }
    })
    .await
    .expect("they do");
    host::report(&format!("two of 16 MiB: {} MiB", more / MIB));
    assert!((2 * EACH..3 * EACH).contains(&more), "{} MiB for two of 16 MiB", more / MIB);
    assert!(consumer.sigterm().await.success());
    topic.delete().await;
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

async fn topic_of_large(database: &Database) -> Topic {
    let topic = Topic::new(servers::kafka().await, format!("{}.large", database.name()));
    topic.create_with(4, &[("max.message.bytes", "20000000")]).await
}

/// A key for each.
async fn produce(topic: &Topic, messages: i64, bytes: usize) {
    let mut client = servers::kafka().await.client();
    let producer: FutureProducer =
        client.set("message.max.bytes", "20000000").create().expect("a producer");
    let payload = vec![b'x'; bytes];
    for n in 0..messages {
        let key = n.to_string();
        let record = FutureRecord::to(topic.name()).key(&key).payload(&payload);
        producer.send(record, wait::PATIENCE).await.expect("it is stored");
    }
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

/// Read back in one piece, in some of a mebibyte, or in the most that there are; alone, and behind others of its key.
#[tokio::test]
async fn a_large_message_that_waited_is_what_it_was() {
    let database = effects::database().await;
    let seen: Arc<Mutex<Vec<bytes::Bytes>>> = Arc::default();
    let handler = {
        let seen = Arc::clone(&seen);
        move |_: Tx, message: Message<Option<bytes::Bytes>>| {
            let seen = Arc::clone(&seen);
            async move {
                if message.attempt == 1 {
                    return Err(Failure::transient("later"));
                }
                seen.lock().expect("nobody panicked").extend(message.payload);
                Ok(())
            }
        }
    };
    let soon = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    let processor = Processor::raw(inbox(&database).await, handler).retry(soon);
    let sizes = [MIB, MIB + 1, 10, 3 * MIB, 20 * MIB + 7, 0];
    // No two places of a mebibyte are alike, and no codec packs it.
    let payload = |bytes: usize| {
        let mut state = bytes as u64;
        let next = |()| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        bytes::Bytes::from_iter(std::iter::repeat_n((), bytes).map(next))
    };
    let sent: Vec<_> = (0..)
        .zip(sizes)
        .map(|(n, bytes)| with(message("first", n), |m| m.payload = Some(payload(bytes))))
        .collect();
    processor.process(&sent).await.expect("settled");
    let stop = wait::until("all are handled", wait::PATIENCE, || async {
        match seen.lock().expect("nobody panicked").len() {
            all if all == sizes.len() => Ok(()),
            some => Err(format!("{some}")),
        }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        done = stop => done.expect("they are"),
    }
    let seen = seen.lock().expect("nobody panicked");
    for (seen, sent) in seen.iter().zip(&sent) {
        assert!(Some(seen) == sent.payload.as_ref(), "{} bytes", seen.len());
    }
}
