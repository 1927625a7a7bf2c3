//! A topic that Kafka compacts: records are gone from between others, and one without a payload says that its
//! key is gone.

use std::time::{SystemTime, UNIX_EPOCH};

use outbox_harness::{database::Database, servers, topic::Topic, wait};
use outbox_idempotency::{Message, Processor, Tx};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::{
    effects::{Step, database, effects, inbox, number, take},
    records::{Member, topic, until_effects},
    topics::until_no_lag,
};

/// Closed segments are compacted as soon as the broker looks, every 15 s; a segment ends where a record is
/// stamped a second after its first one. Tombstones stay for a day.
const COMPACT: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "1000"),
    ("min.cleanable.dirty.ratio", "0.001"),
    ("min.compaction.lag.ms", "0"),
];

/// What a tombstone is counted as.
const GONE: i32 = 0;

async fn processor(database: &Database) -> Processor {
    let handler = |tx: Tx, message: Message<Option<Step>>| async move {
        let key = String::from_utf8(message.key.unwrap_or_default()).expect("text");
        let step = message.payload.unwrap_or(Step { key, n: GONE });
        take(&tx, &step).await?;
        Ok(())
    };
    Processor::new(inbox(database).await, handler)
}

/// Sends records `(key, n)`, or tombstones, each a millisecond after the one before.
async fn send(topic: &Topic, from_ms: i64, records: impl IntoIterator<Item = (&str, i32)>) {
    let producer: FutureProducer = servers::kafka().await.client().create().expect("a producer");
    let mut stored = Vec::new();
    for (at, (key, n)) in (from_ms..).zip(records) {
        let step = Step { key: key.to_owned(), n };
        let payload = serde_json::to_string(&step).expect("JSON");
        let record = FutureRecord::to(topic.name()).key(key).timestamp(at);
        let record = if n == GONE { record } else { record.payload(&payload) };
        stored.push(producer.send_result(record).expect("it is queued"));
    }
    for stored in stored {
        stored.await.expect("an answer").expect("it is stored");
    }
}

#[tokio::test]
async fn what_compaction_leaves_takes_effect_once_and_what_it_took_is_no_loss() {
    let (database, other) = tokio::join!(database(), database());
    let topic = topic(&database, "compacted").await.create_with(1, &COMPACT).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let begin = i64::try_from(now.as_millis()).expect("a time") - 3_600_000;
    let both = |ns: std::ops::RangeInclusive<i32>| ns.flat_map(|n| [("a", n), ("b", n)]);
    send(&topic, begin, both(1..=100)).await;
    let of = async |database: &Database| {
        let processor = processor(database).await;
        Member::of(processor, database.name(), &[topic.name()], &[], |runner| runner).await
    };
    let member = of(&database).await;
    until_effects(&database, 200).await;
    until_no_lag(&database, &topic, 1).await;
    member.stop().await;

    // The group is at 200, which is compacted away with all around it, but for the last of each key.
    send(&topic, begin + 60_000, both(101..=150)).await;
    send(&topic, begin + 61_000, [("a", 151), ("b", GONE), ("c", 1), ("c", GONE)]).await;
    send(&topic, begin + 120_000, [("end", 1)]).await;
    let left = wait::until("the topic is compacted", wait::PATIENCE, || async {
        let records = topic.records().await;
        if records.len() == 4 { Ok(records) } else { Err(format!("{} records", records.len())) }
    });
    let left = left.await.expect("the broker compacts it");
    assert!(left.iter().all(|record| record.offset >= 300), "{left:?}");
    assert_eq!(left.iter().filter(|record| record.payload.is_none()).count(), 2, "{left:?}");

    let member = of(&database).await;
    until_effects(&database, 204).await;
    until_no_lag(&database, &topic, 1).await;
    assert_eq!(member.alerts(), [], "nothing was lost");
    member.stop().await;
    // Whoever begins now finds what is left, and is at the end, too.
    let newcomer = of(&other).await;
    until_effects(&other, 4).await;
    until_no_lag(&other, &topic, 1).await;
    assert_eq!(newcomer.alerts(), []);
    newcomer.stop().await;

    let last = [("a", 151), ("b", GONE), ("c", GONE), ("end", 1)];
    let last = last.map(|(key, n)| Step { key: key.to_owned(), n });
    let first = both(1..=100).map(|(key, n)| Step { key: key.to_owned(), n });
    let (mut found, mut expected) =
        (effects(&database).await, first.chain(last.clone()).collect::<Vec<_>>());
    let of_a =
        |steps: &[Step]| steps.iter().filter(|s| s.key == "a").map(|s| s.n).collect::<Vec<_>>();
    assert_eq!(of_a(&found), of_a(&expected), "in order");
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let mut of_newcomer = effects(&other).await;
    of_newcomer.sort();
    assert_eq!(of_newcomer, last);
    for database in [&database, &other] {
        assert_eq!(number(database, "select count(*) from inbox.dead_letters").await, 0);
    }
}
