//! PostgreSQL → relay → Kafka → consumers → PostgreSQL, with every process killed at some time:
//! each event takes effect once, in the order of its key.

use std::time::Duration;

use outbox_harness::{
    Harness,
    consumer::{self, Consumer},
    database::Database,
    load::{self, Load},
    member::Plan,
    proxy::Proxy,
    topic::Topic,
    wait,
};

/// More transactions than the writers get to: they end when told.
const ENDLESS: u64 = 1_000_000;

/// Of each writer. A test lasts for as many rebalances as it has faults, some seconds each: at full
/// speed the writers leave behind them what a consumer on a loaded machine needs minutes for.
const PACE: Duration = Duration::from_millis(20);

/// Longer than a session of the group, and than the consumer's longest pause between two tries.
const OUTAGE: Duration = Duration::from_secs(12);

/// A producer's database with writers, a consumer's database, a topic between.
struct Stack {
    harness: Harness,
    consumers: Database,
    topic: Topic,
    dir: tempfile::TempDir,
}

impl Stack {
    async fn start() -> Self {
        let harness = Harness::start().await;
        let topic = harness.topic("orders").create(8).await;
        let consumers = Database::create_inbox().await;
        consumer::make_effects(&consumers).await;
        let dir = tempfile::tempdir().expect("a directory");
        Stack { harness, consumers, topic, dir }
    }

    fn consumer(&self, name: &str, plan: &Plan) -> Consumer {
        let kafka = self.harness.kafka();
        Consumer::start(self.dir.path(), name, &self.consumers, kafka, &self.topic, plan)
    }

    async fn load(&self) -> Load {
        let topic = self.topic.name().to_owned();
        let plan = load::Plan { topic, partitions: 8, writers: 4, transactions: ENDLESS };
        Load::paced(self.harness.database(), &plan, PACE).await
    }

    /// Waits until a hundred more effects are there: a fault that hits an idle consumer proves
    /// little.
    async fn more(&self) {
        let before = consumer::effects_so_far(&self.consumers).await;
        wait::until("more takes effect", wait::PATIENCE, || async {
            match consumer::effects_so_far(&self.consumers).await {
                now if now > before + 100 => Ok(()),
                now => Err(format!("{now} after {before}")),
            }
        })
        .await
        .expect("the consumers go on");
    }

    async fn count(&self) -> consumer::Effects {
        let truth = self.harness.committed().await;
        consumer::count(&self.consumers, &truth, &self.topic).await
    }

    async fn compare(&self) -> consumer::Effects {
        let truth = self.harness.committed().await;
        consumer::compare(&self.consumers, &truth, &self.topic).await
    }
}

#[tokio::test]
async fn kills_of_consumer_and_relay_lose_double_and_reorder_no_effect() {
    let t = Stack::start().await;
    // At-least-once, so that a killed relay publishes again what it had published.
    let mut relay = t.harness.relay().set("sink.delivery", "at-least-once").start().await;
    let mut consumer = t.consumer("one", &Plan { fail_percent: 3, ..Plan::default() });
    let load = t.load().await;
    for round in 0..4 {
        t.more().await;
        consumer.kill9().await;
        if round % 2 == 0 {
            relay.kill9().await;
            relay.restart();
        }
        consumer.restart();
    }
    t.more().await;
    load.stop().await;
    t.count().await.assert_effectively_once();
    assert!(consumer.sigterm().await.success());
}

#[tokio::test]
async fn batches_survive_kills_of_their_consumer() {
    let t = Stack::start().await;
    let _relay = t.harness.relay().start().await;
    let mut consumer = t.consumer("one", &Plan { batch: 100, fail_percent: 3, ..Plan::default() });
    let load = t.load().await;
    for _ in 0..3 {
        t.more().await;
        consumer.kill9().await;
        consumer.restart();
    }
    t.more().await;
    load.stop().await;
    t.count().await.assert_effectively_once();
    assert!(consumer.sigterm().await.success());

    // The count can tell.
    let tamper = "insert into effects (message, lane, n) \
                      select message, lane, n from effects order by place limit 1; \
                  delete from effects where place = (select place from effects order by place desc offset 1 limit 1); \
                  insert into effects (message, lane, n) \
                      select gen_random_uuid(), lane, n from effects order by place limit 1";
    t.consumers.superuser().batch_execute(tamper).await.expect("tampered");
    let counted = t.compare().await;
    assert_eq!((counted.lost, counted.doubled, counted.invented), (1, 1, 1), "{counted:?}");
    assert_eq!(counted.follow_ups_off, 1, "{counted:?}");
}

#[tokio::test]
async fn consumers_that_come_and_go_share_the_work_and_lose_none_of_it() {
    let t = Stack::start().await;
    let _relay = t.harness.relay().start().await;
    let plan = Plan { fail_percent: 3, ..Plan::default() };
    let mut first = t.consumer("first", &plan);
    let load = t.load().await;
    t.more().await;
    let mut second = t.consumer("second", &plan);
    second.wait_log("partitions assigned partitions=4").await;
    t.more().await;
    assert!(first.sigterm().await.success());
    t.more().await;
    first.restart();
    let third = t.consumer("third", &Plan { batch: 50, ..plan.clone() });
    third.wait_log("partitions assigned").await;
    t.more().await;
    second.kill9().await;
    t.more().await;
    load.stop().await;
    t.count().await.assert_effectively_once();
}

#[tokio::test]
async fn a_consumer_that_thaws_after_its_partitions_went_does_no_harm() {
    let t = Stack::start().await;
    let _relay = t.harness.relay().start().await;
    let plan = Plan { fail_percent: 3, ..Plan::default() };
    let zombie = t.consumer("zombie", &plan);
    let load = t.load().await;
    t.more().await;
    zombie.freeze();
    let next = t.consumer("next", &plan);
    // All eight, and not only those that a living one gives away.
    next.wait_log("partitions assigned partitions=8").await;
    t.more().await;
    zombie.thaw();
    zombie.wait_log("lost=true").await;
    t.more().await;
    load.stop().await;
    t.count().await.assert_effectively_once();
}

#[tokio::test]
async fn a_watermark_tells_what_a_killed_relay_publishes_again() {
    let t = Stack::start().await;
    let mut relay = t.harness.relay().set("sink.delivery", "at-least-once").start().await;
    let name = t.harness.database().name().to_owned();
    let plan = Plan { batch: 100, fail_percent: 3, watermark: Some(name), ..Plan::default() };
    let mut consumer = t.consumer("one", &plan);
    let load = t.load().await;
    for round in 0..4 {
        t.more().await;
        if round % 2 == 0 {
            consumer.kill9().await;
            relay.kill9().await;
            relay.restart();
            consumer.restart();
        } else {
            relay.kill9().await;
            relay.restart();
        }
    }
    t.more().await;
    let other = t.consumer("two", &plan);
    other.wait_log("partitions assigned partitions=4").await;
    t.more().await;
    load.stop().await;
    t.count().await.assert_effectively_once();
    let rows =
        "select (select count(*) from inbox.watermarks), (select count(*) from inbox.messages)";
    let row = t.consumers.superuser().query_one(rows, &[]).await.expect("a count");
    let keyless = t.harness.committed().await.iter().filter(|row| row.key.is_none()).count();
    let keyless = i64::try_from(keyless).expect("a count");
    // A row for each partition; one for a message only where it has no key.
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (8, keyless));
}

/// Its database and its broker are away and frozen, one after the other; it is not restarted.
#[tokio::test]
async fn a_consumer_goes_on_by_itself_after_outages_of_its_database_and_its_broker() {
    let t = Stack::start().await;
    let _relay = t.harness.relay().start().await;
    let (host, port) = t.consumers.postgres().address();
    let database = Proxy::to(&format!("{host}:{port}")).await;
    let broker = t.harness.kafka().line().await;
    let plan = Plan {
        fail_percent: 3,
        postgres: Some(database.address()),
        kafka: [("bootstrap.servers".to_owned(), broker.address())].into(),
        ..Plan::default()
    };
    let mut consumer = t.consumer("one", &plan);
    let load = t.load().await;
    for (line, freezes) in
        [(&database, false), (&broker, false), (&database, true), (&broker, true)]
    {
        t.more().await;
        if freezes {
            line.freeze()
        } else {
            line.refuse()
        }
        tokio::time::sleep(OUTAGE).await;
        line.heal();
    }
    t.more().await;
    load.stop().await;
    t.count().await.assert_effectively_once();
    assert!(consumer.sigterm().await.success(), "it has never ended");
}
