//! What a runner does when its handlers are slower than the broker.

use std::{sync::Arc, time::Duration};

use outbox_harness::{database::Database, servers, topic::Topic, wait};
use outbox_idempotency::{
    Message, Processor, Tx,
    kafka::{ClientConfig, RunError, Runner},
};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::effects::{Step, assert_once_and_in_order, database, effects, inbox, take};

const KEYS: usize = 40;
const STEPS: i32 = 10;

fn all() -> impl Iterator<Item = Step> {
    (1..=STEPS).flat_map(|n| (0..KEYS).map(move |k| Step { key: format!("k{k}"), n }))
}

/// A member of the group whose handlers wait at a gate, and that takes in five messages.
async fn member(
    database: &Database,
    topic: &Topic,
    gate: Arc<Semaphore>,
    stop: CancellationToken,
) -> JoinHandle<Result<(), RunError>> {
    let handler = move |tx: Tx, message: Message<Step>| {
        let gate = Arc::clone(&gate);
        async move {
            drop(gate.acquire().await);
            take(&tx, &message.payload).await?;
            Ok(())
        }
    };
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers::kafka().await.brokers());
    config.set("group.id", database.name());
    let processor = Processor::new(inbox(database).await, handler);
    let runner = Runner::new(processor, config, &[topic.name()]);
    let runner = runner.in_flight(5, 1 << 20).drain(Duration::from_millis(100)).concurrency(4);
    tokio::spawn(runner.run(stop.cancelled_owned()))
}

async fn produce(topic: &Topic, steps: impl Iterator<Item = Step>) {
    let producer: FutureProducer = servers::kafka().await.client().create().expect("a producer");
    for step in steps {
        let payload = serde_json::to_string(&step).expect("JSON");
        let record = FutureRecord::to(topic.name()).key(&step.key).payload(&payload);
        producer.send(record, wait::PATIENCE).await.expect("it is stored");
    }
}

/// Until the first member, whose handlers wait at the gate, takes nothing more in.
async fn until_full(database: &Database) {
    wait::until("the first is full", wait::PATIENCE, || async {
        let claimed = "select count(*) from pg_stat_activity \
            where datname = current_database() and state = 'idle in transaction'";
        let row = database.superuser().query_one(claimed, &[]).await.map_err(|e| e.to_string())?;
        let waiting: i64 = row.get(0);
        if waiting == 4 { Ok(()) } else { Err(format!("{waiting} handlers at the gate")) }
    })
    .await
    .expect("handlers wait");
}

/// Until the second member has got partitions and works on them.
async fn until_some_take_effect(database: &Database) {
    wait::until("the second has partitions", wait::PATIENCE, || async {
        match effects(database).await.len() {
            0 => Err("no effect"),
            _ => Ok(()),
        }
    })
    .await
    .expect("the first answers the rebalance");
}

async fn until_all_take_effect(database: &Database) {
    wait::until("all take effect", wait::PATIENCE, || async {
        let (done, wanted) = (effects(database).await.len(), all().count());
        if done >= wanted { Ok(()) } else { Err(format!("{done} of {wanted}")) }
    })
    .await
    .expect("they go on");
}

#[tokio::test]
async fn a_member_that_is_full_gives_partitions_away_and_all_takes_effect_once() {
    let database = database().await;
    let kafka = servers::kafka().await;
    let topic = Topic::new(kafka, format!("{}.steps", database.name())).create(8).await;
    produce(&topic, all()).await;
    let (shut, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(1)));
    let stop = CancellationToken::new();
    let first = member(&database, &topic, Arc::clone(&shut), stop.clone()).await;
    until_full(&database).await;
    let second = member(&database, &topic, open, stop.clone()).await;
    until_some_take_effect(&database).await;
    shut.add_permits(1);
    until_all_take_effect(&database).await;
    stop.cancel();
    first.await.expect("no panic").expect("an orderly end");
    second.await.expect("no panic").expect("an orderly end");
    assert_once_and_in_order(&effects(&database).await, all());
}

/// A pause outlives the assignment in librdkafka: whoever gets a partition back must end it.
#[tokio::test]
async fn partitions_that_a_full_member_gave_away_go_on_when_they_come_back() {
    let database = database().await;
    let kafka = servers::kafka().await;
    let topic = Topic::new(kafka, format!("{}.steps", database.name())).create(8).await;
    produce(&topic, all().filter(|step| step.n <= STEPS / 2)).await;
    let (shut, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(1)));
    let (stop, stop_second) = (CancellationToken::new(), CancellationToken::new());
    let first = member(&database, &topic, Arc::clone(&shut), stop.clone()).await;
    until_full(&database).await;
    let second = member(&database, &topic, open, stop_second.clone()).await;
    until_some_take_effect(&database).await;
    shut.add_permits(1);
    stop_second.cancel();
    second.await.expect("no panic").expect("an orderly end");
    produce(&topic, all().filter(|step| step.n > STEPS / 2)).await;
    until_all_take_effect(&database).await;
    stop.cancel();
    first.await.expect("no panic").expect("an orderly end");
    assert_once_and_in_order(&effects(&database).await, all());
}
