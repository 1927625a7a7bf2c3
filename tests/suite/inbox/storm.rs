//! A rebalance storm: members come, stop, die and freeze every one to three seconds, while handlers
//! take from milliseconds to seconds; with each way in which Kafka rebalances.

use std::{collections::BTreeMap, time::Duration};

use outbox_tests::{
    Harness,
    consumer::{self, Consumer},
    database::Database,
    load::{self, Load},
    member::Plan,
    topic::Topic,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};

/// The storm's own length, beside what comes after it.
const STORM: Duration = Duration::from_secs(20);
const CHANGE_MS: std::ops::Range<u64> = 1_000..3_000;
const MEMBERS_MAX: usize = 4;
/// Below what a frozen transaction is given by the server: a handler may be idle for so long.
const PAUSE_MS: (u64, u64) = (5, 1_500);
/// Of each writer: handlers that pause take some dozens of events a second.
const PACE: Duration = Duration::from_millis(250);

/// One group.
struct Group<'a> {
    harness: &'a Harness,
    topic: &'a Topic,
    database: Database,
    dir: tempfile::TempDir,
    plan: Plan,
    started: usize,
    members: Vec<Consumer>,
}

impl<'a> Group<'a> {
    async fn new(harness: &'a Harness, topic: &'a Topic, plan: Plan) -> Self {
        let database = Database::create_inbox().await;
        consumer::make_effects(&database).await;
        let dir = tempfile::tempdir().expect("a directory");
        Group { harness, topic, database, dir, plan, started: 0, members: Vec::new() }
    }

    fn join(&mut self) {
        let name = format!("member-{}", self.started);
        self.started += 1;
        let kafka = self.harness.kafka();
        let dir = self.dir.path();
        let member = Consumer::start(dir, &name, &self.database, kafka, self.topic, &self.plan);
        self.members.push(member);
    }

    async fn storm(&mut self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let end = Instant::now() + STORM;
        self.join();
        while Instant::now() < end {
            let pause = Duration::from_millis(random.random_range(CHANGE_MS));
            sleep(pause).await;
            let (members, way) = (self.members.len(), random.random_range(0..5));
            if members == 0 || (members < MEMBERS_MAX && way < 2) {
                self.join();
                continue;
            }
            let one = random.random_range(0..members);
            match way {
                0..3 => {
                    let mut leaves = self.members.swap_remove(one);
                    assert!(leaves.sigterm().await.success(), "it had no reason to stop");
                }
                3 => self.members.swap_remove(one).kill9().await,
                _ => {
                    let frozen = self.members.get(one).expect("one of them");
                    frozen.freeze();
                    sleep(pause).await;
                    frozen.thaw();
                }
            }
        }
        self.join();
        let took = consumer::effects_so_far(&self.database).await;
        assert!(took > 0, "nothing took effect in the storm");
    }

    async fn count(&self) -> consumer::Effects {
        let truth = self.harness.committed().await;
        consumer::count(&self.database, &truth, self.topic).await
    }
}

#[tokio::test]
async fn members_that_come_and_go_all_the_time_lose_double_and_reorder_nothing() {
    let seed = match std::env::var("OUTBOX_STORM_SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => rand::random(),
    };
    let told = format!("OUTBOX_STORM_SEED={seed}");
    outbox_tests::servers::report(&told);
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let _relay = t.relay().start().await;
    let relay = t.database().name().to_owned();
    let load = load::Plan {
        topic: topic.name().to_owned(),
        partitions: 8,
        writers: 4,
        transactions: u64::MAX,
    };
    let load = Load::paced(t.database(), &load, PACE).await;
    let plan = |batch, watermark, properties: &[(&str, &str)]| Plan {
        batch,
        watermark,
        fail_percent: 3,
        pause_ms: Some(PAUSE_MS),
        in_flight: Some(100),
        kafka: properties
            .iter()
            .map(|&(k, v)| (k.to_owned(), v.to_owned()))
            .collect::<BTreeMap<_, _>>(),
        ..Plan::default()
    };
    let session = ("session.timeout.ms", "2500");
    let eager = ("partition.assignment.strategy", "range");
    let mut cooperative = Group::new(&t, &topic, plan(0, None, &[session])).await;
    let mut eager = Group::new(&t, &topic, plan(16, Some(relay), &[session, eager])).await;
    let by_broker = [("group.protocol", "consumer")];
    let mut by_broker = Group::new(&t, &topic, plan(0, None, &by_broker)).await;
    tokio::join!(
        cooperative.storm(seed),
        eager.storm(seed.wrapping_add(1)),
        by_broker.storm(seed.wrapping_add(2))
    );
    load.stop().await;
    for (name, group) in
        [("cooperative", &cooperative), ("eager", &eager), ("by the broker", &by_broker)]
    {
        let counted = group.count().await;
        outbox_tests::servers::report(&format!("{name}: {counted:?}"));
        counted.assert_effectively_once();
    }
}
