//! Thousands of messages behind one that fails: the others don't notice, and those take effect in
//! their order once its cause is corrected, while more of their key come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use outbox_harness::{database::Database, servers, topic::Topic, wait};
use outbox_idempotency::{
    Failure, Message, Processor, Retry, Tx,
    kafka::{ClientConfig, Runner},
};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use tokio::task::JoinHandle;

use super::effects::{Step, assert_once_and_in_order, database, effects, inbox, number, take};

const STUCK: &str = "stuck";
const BEHIND: i32 = 3_000;
const LATER: i32 = 500;
const OTHERS: i32 = 300;

fn steps(key: &str, ns: std::ops::RangeInclusive<i32>) -> Vec<Step> {
    ns.map(|n| Step { key: key.to_owned(), n }).collect()
}

fn others() -> Vec<Step> {
    ["a", "b", "c"].iter().flat_map(|key| steps(key, 1..=OTHERS)).collect()
}

fn produce(
    producer: &ThreadedProducer<rdkafka::producer::DefaultProducerContext>,
    topic: &Topic,
    steps: &[Step],
) {
    for step in steps {
        let payload = serde_json::to_string(step).expect("JSON");
        let record = BaseRecord::to(topic.name()).key(&step.key).payload(&payload);
        producer.send(record).map_err(|(error, _)| error).expect("there is room");
    }
    producer.flush(wait::PATIENCE).expect("all are stored");
}

/// A member that is aborted rather than stopped when it is dropped: what it does is cut off.
struct Member(JoinHandle<()>);

impl Member {
    async fn join(database: &Database, topic: &Topic, fixed: &Arc<AtomicBool>) -> Self {
        let fixed = Arc::clone(fixed);
        let handler = move |tx: Tx, message: Message<Step>| {
            let fails = message.payload.key == STUCK && !fixed.load(SeqCst);
            async move {
                take(&tx, &message.payload).await?;
                if fails { Err(Failure::transient("its account is locked")) } else { Ok(()) }
            }
        };
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers::kafka().await.brokers());
        config.set("group.id", database.name()).set("session.timeout.ms", "2000");
        let retry = Retry::exponential(Duration::from_millis(50), Duration::from_millis(200));
        let processor = Processor::new(inbox(database).await, handler);
        let runner = Runner::new(processor.retry(retry.attempts(10_000)), config, &[topic.name()]);
        Member(tokio::spawn(async move {
            runner.concurrency(4).run(std::future::pending()).await.expect("it can go on");
        }))
    }

    async fn cut_off(self) {
        self.0.abort();
        assert!(self.0.await.expect_err("it had no reason to end").is_cancelled());
    }
}

async fn until_number(database: &Database, sql: &str, least: i32) {
    wait::until(sql, wait::PATIENCE, || async {
        match number(database, sql).await {
            found if found >= i64::from(least) => Ok(()),
            found => Err(format!("{found} of {least}")),
        }
    })
    .await
    .expect("it comes to that");
}

#[tokio::test]
async fn thousands_behind_one_message_wait_in_their_order_while_others_flow() {
    let database = database().await;
    let kafka = servers::kafka().await;
    let topic = Topic::new(kafka, format!("{}.steps", database.name())).create(4).await;
    let producer: ThreadedProducer<_> = kafka.client().create().expect("a producer");
    produce(&producer, &topic, &steps(STUCK, 1..=BEHIND));
    produce(&producer, &topic, &others());
    let fixed = Arc::new(AtomicBool::new(false));

    let first = Member::join(&database, &topic, &fixed).await;
    until_number(&database, "select count(*) from inbox.parked", BEHIND / 3).await;
    first.cut_off().await;
    let second = Member::join(&database, &topic, &fixed).await;
    let flowed = "select count(*) from effects where key <> 'stuck'";
    until_number(&database, flowed, i32::try_from(others().len()).expect("few")).await;
    until_number(&database, "select count(*) from inbox.parked", BEHIND).await;
    assert_eq!(number(&database, "select count(*) from effects where key = 'stuck'").await, 0);

    // Fixed, and the rest of its key comes while what waits is on its way.
    fixed.store(true, SeqCst);
    let producing = tokio::task::spawn_blocking({
        let topic = topic.clone();
        move || produce(&producer, &topic, &steps(STUCK, BEHIND + 1..=BEHIND + LATER))
    });
    until_number(&database, "select count(*) from effects where key = 'stuck'", BEHIND / 3).await;
    second.cut_off().await;
    let third = Member::join(&database, &topic, &fixed).await;
    producing.await.expect("all are stored");
    let stuck = "select count(*) from effects where key = 'stuck'";
    until_number(&database, stuck, BEHIND + LATER).await;
    third.cut_off().await;
    let expected = steps(STUCK, 1..=BEHIND + LATER).into_iter().chain(others());
    assert_once_and_in_order(&effects(&database).await, expected);
    assert_eq!(number(&database, "select count(*) from inbox.parked").await, 0);
}
