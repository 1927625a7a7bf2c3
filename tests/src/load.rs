//! Concurrent writers that commit, roll back, and roll back to savepoints.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    database::{Database, Role},
    event::Event,
    postgres::Session,
};

/// Keys that writers share, so that they meet.
const KEYS: usize = 40;

/// Writers at work, until told to stop or done. Dropping it stops them where they are.
#[derive(Debug)]
pub struct Load {
    writers: JoinSet<u64>,
    stop: CancellationToken,
}

/// What the writers are to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Topic of all events.
    pub topic: String,
    /// Its partitions, for events that name one.
    pub partitions: i32,
    /// Concurrent sessions.
    pub writers: u64,
    /// Transactions of each, rolled back ones included; they stop earlier when told to.
    pub transactions: u64,
}

impl Load {
    /// Starts the writers, as the writer's role.
    pub async fn start(database: &Database, plan: &Plan) -> Self {
        let (mut writers, stop) = (JoinSet::new(), CancellationToken::new());
        for seed in 0..plan.writers {
            let session = database.connect(Role::Writer).await;
            writers.spawn(write(session, plan.clone(), seed, stop.clone()));
        }
        Load { writers, stop }
    }

    /// Waits until every writer is done, and returns the number of events committed.
    ///
    /// # Panics
    /// When a writer failed.
    pub async fn finish(self) -> u64 {
        self.writers.join_all().await.into_iter().sum()
    }

    /// As [`Load::finish`], with the writers told to end after the transaction they are in.
    pub async fn stop(self) -> u64 {
        self.stop.cancel();
        self.finish().await
    }
}

async fn write(mut session: Session, plan: Plan, seed: u64, stop: CancellationToken) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let mut committed = 0;
    for _ in 0..plan.transactions {
        if stop.is_cancelled() {
            break;
        }
        committed += transaction(&mut session, &plan, &mut random).await;
    }
    committed
}

/// One transaction in one of four ways; returns the number of events that it committed.
async fn transaction(session: &mut Session, plan: &Plan, random: &mut StdRng) -> u64 {
    let kept = events(plan, random);
    let also = events(plan, random);
    let way = random.random_range(0..10);
    let mut transaction = session.transaction().await.expect("a transaction begins");
    // A savepoint's events come in the order of lanes as well: or writers would deadlock.
    let (mut committed, mut all) = (kept.len(), kept);
    if way < 3 {
        let savepoint = transaction.savepoint("attempt").await.expect("a savepoint");
        for event in &also {
            event.insert(savepoint.client()).await.expect("the event is inserted");
        }
        // Rolled back: its locks go with it.
        savepoint.rollback().await.expect("the savepoint is rolled back");
    } else if way < 5 {
        committed += also.len();
        all.extend(also);
        all.sort_by_key(Event::lane);
    }
    for event in &all {
        event.insert(transaction.client()).await.expect("the event is inserted");
    }
    if way == 9 {
        transaction.rollback().await.expect("the transaction is rolled back");
        return 0;
    }
    transaction.commit().await.expect("the transaction is committed");
    committed as u64
}

/// One to four events, sorted by lane so that two writers lock lanes in one order.
fn events(plan: &Plan, random: &mut StdRng) -> Vec<Event> {
    let mut events: Vec<Event> = (0..random.random_range(1..=4))
        .map(|_| {
            let key = format!("customer-{}", random.random_range(0..KEYS));
            let event = Event::to(&plan.topic);
            match random.random_range(0..20) {
                0 => event,
                1 => event.partition(random.random_range(0..plan.partitions)),
                2 => event.key(&key).tombstone(),
                3 => event.key(&key).header("traceparent", "00-aaaa-bbbb-01"),
                _ => event.key(&key).kind(["placed", "paid", "sent"].choose(random).expect("some")),
            }
        })
        .collect();
    events.sort_by_key(Event::lane);
    events
}
