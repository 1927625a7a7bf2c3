//! A rebalance storm: members come, stop, die and freeze every one to three seconds, while handlers
//! take from milliseconds to seconds; three groups at once, one for each way in which Kafka
//! rebalances.
//!
//! The suite's is short, `outbox-bench storm` takes as long as it is told.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    Harness,
    consumer::{self, Consumer, Effects},
    database::Database,
    load::{self, Load},
    member,
    topic::Topic,
};

const CHANGE_MS: std::ops::Range<u64> = 1_000..3_000;
/// A change is a rebalance of those that stay, so there is one at least.
const MEMBERS: std::ops::RangeInclusive<usize> = 2..=4;
const PARTITIONS: i32 = 8;
/// Below what a frozen transaction is given by the server: a handler may be idle for so long.
const PAUSE_MS: (u64, u64) = (5, 1_500);
/// Of each writer. A message that fails parks its key, and what waits of parked keys is handled by
/// four tasks of a member: with handlers of up to seconds they take some dozens a second.
const PACE: Duration = Duration::from_millis(500);
/// A frozen member loses its partitions when it is frozen for longer; `group.protocol = consumer`
/// leaves that to the broker.
const SESSION: (&str, &str) = ("session.timeout.ms", "2500");

/// What is to happen.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of what happens to the members.
    pub seed: u64,
    /// Of the changes; then come the rest of the events, and the count.
    pub duration: Duration,
    /// Of the members, where it is not the one beside the tests.
    pub program: Option<PathBuf>,
}

/// What one group went through, and what it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// How it was rebalanced.
    pub group: &'static str,
    /// Members that came.
    pub joined: usize,
    /// Members that were asked to stop, and did.
    pub stopped: usize,
    /// Members that were killed.
    pub killed: usize,
    /// Members that were frozen, and continued.
    pub frozen: usize,
    /// Times that a member got partitions.
    pub assignments: usize,
    /// Times that a member learnt that its partitions had gone to others while it was frozen.
    pub lost: usize,
    /// The count.
    pub effects: Effects,
}

/// One group.
struct Group<'a> {
    harness: &'a Harness,
    topic: &'a Topic,
    database: Database,
    dir: tempfile::TempDir,
    plan: member::Plan,
    members: Vec<Consumer>,
    outcome: Outcome,
}

impl<'a> Group<'a> {
    async fn new(
        harness: &'a Harness,
        topic: &'a Topic,
        group: &'static str,
        plan: member::Plan,
    ) -> Self {
        let database = Database::create_inbox().await;
        consumer::make_effects(&database).await;
        let dir = tempfile::tempdir().expect("a directory");
        let outcome = Outcome {
            group,
            joined: 0,
            stopped: 0,
            killed: 0,
            frozen: 0,
            assignments: 0,
            lost: 0,
            effects: Effects::default(),
        };
        Group { harness, topic, database, dir, plan, members: Vec::new(), outcome }
    }

    fn join(&mut self) {
        let name = format!("member-{}", self.outcome.joined);
        self.outcome.joined += 1;
        let (dir, kafka) = (self.dir.path(), self.harness.kafka());
        let member = Consumer::start(dir, &name, &self.database, kafka, self.topic, &self.plan);
        self.members.push(member);
    }

    async fn stop(mut member: Consumer) {
        assert!(member.sigterm().await.success(), "it had no reason to end otherwise");
    }

    async fn storm(&mut self, seed: u64, duration: Duration) {
        let mut random = StdRng::seed_from_u64(seed);
        let end = Instant::now() + duration;
        for _ in 0..*MEMBERS.start() {
            self.join();
        }
        while Instant::now() < end {
            let pause = Duration::from_millis(random.random_range(CHANGE_MS));
            sleep(pause).await;
            let (members, way) = (self.members.len(), random.random_range(0..5));
            if members < *MEMBERS.end() && way < 2 {
                self.join();
                continue;
            }
            let one = random.random_range(0..members);
            match way {
                0..3 => {
                    Self::stop(self.members.swap_remove(one)).await;
                    self.outcome.stopped += 1;
                }
                3 => {
                    self.members.swap_remove(one).kill9().await;
                    self.outcome.killed += 1;
                }
                _ => {
                    let frozen = self.members.get(one).expect("one of them");
                    frozen.freeze();
                    sleep(pause).await;
                    frozen.thaw();
                    self.outcome.frozen += 1;
                }
            }
            while self.members.len() < *MEMBERS.start() {
                self.join();
            }
        }
        let took = consumer::effects_so_far(&self.database).await;
        assert!(took > 0, "nothing took effect in the storm");
        self.join();
    }

    async fn count(mut self) -> Outcome {
        let truth = self.harness.committed().await;
        self.outcome.effects = consumer::count(&self.database, &truth, self.topic).await;
        for member in self.members.drain(..) {
            Self::stop(member).await;
        }
        let logs = logs(self.dir.path());
        self.outcome.assignments = logs.matches("partitions assigned").count();
        self.outcome.lost = logs.matches("lost=true").count();
        self.outcome
    }
}

fn logs(dir: &Path) -> String {
    let files = std::fs::read_dir(dir).expect("a directory");
    let logs = files.map(|file| std::fs::read(file.expect("a file").path()).expect("a log"));
    logs.map(|log| String::from_utf8_lossy(&log).into_owned()).collect()
}

/// Lets it rage over a topic of its own, which the relay of `harness` feeds: it must run by then.
///
/// # Panics
/// When a member ends by itself, nothing takes effect, or not everything does in the end.
pub async fn run(harness: &Harness, plan: &Plan) -> Vec<Outcome> {
    let topic = harness.topic("orders").create(PARTITIONS).await;
    let load = load::Plan {
        topic: topic.name().to_owned(),
        partitions: PARTITIONS,
        writers: 4,
        transactions: u64::MAX,
    };
    let load = Load::paced(harness.database(), &load, PACE).await;
    let member = |batch, watermark, properties: &[(&str, &str)]| member::Plan {
        batch,
        watermark,
        fail_percent: 3,
        pause_ms: Some(PAUSE_MS),
        in_flight: Some(100),
        kafka: properties.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect(),
        program: plan.program.clone(),
        ..member::Plan::default()
    };
    let relay = harness.database().name().to_owned();
    let cooperative = member(0, None, &[SESSION]);
    let eager = [SESSION, ("partition.assignment.strategy", "range")];
    let eager = member(16, Some(relay), &eager);
    let by_broker = member(0, None, &[("group.protocol", "consumer")]);
    let mut cooperative = Group::new(harness, &topic, "cooperative", cooperative).await;
    let mut eager = Group::new(harness, &topic, "eager, batches with a watermark", eager).await;
    let mut by_broker = Group::new(harness, &topic, "by the broker (KIP-848)", by_broker).await;
    tokio::join!(
        cooperative.storm(plan.seed, plan.duration),
        eager.storm(plan.seed.wrapping_add(1), plan.duration),
        by_broker.storm(plan.seed.wrapping_add(2), plan.duration),
    );
    load.stop().await;
    vec![cooperative.count().await, eager.count().await, by_broker.count().await]
}
