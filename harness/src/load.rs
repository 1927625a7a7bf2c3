//! Concurrent writers that commit, roll back, and roll back to savepoints.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::task::JoinSet;
use tokio_postgres::{Config, Error};
use tokio_util::sync::CancellationToken;

use crate::{
    database::{Database, Role},
    event::Event,
    postgres::{Postgres, Session},
    wait,
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

/// How fast a writer writes.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// As fast as the server takes it.
    Full,
    /// A transaction each time this has passed.
    Every(Duration),
}

impl Load {
    /// Starts the writers, as the writer's role.
    pub async fn start(database: &Database, plan: &Plan) -> Self {
        Self::at_pace(database, plan, Pace::Full).await
    }

    /// As [`Load::start`], with a transaction of each writer once in `interval`: for tests that
    /// share the machine and need events, not many of them.
    pub async fn paced(database: &Database, plan: &Plan, interval: Duration) -> Self {
        Self::at_pace(database, plan, Pace::Every(interval)).await
    }

    async fn at_pace(database: &Database, plan: &Plan, pace: Pace) -> Self {
        let (mut writers, stop) = (JoinSet::new(), CancellationToken::new());
        for seed in 0..plan.writers {
            let session = database.connect(Role::Writer).await;
            let reconnect = (database.postgres(), database.config(Role::Writer));
            writers.spawn(write(session, reconnect, plan.clone(), pace, seed, stop.clone()));
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

/// Returns the number of events committed; not those of a transaction whose answer was lost with
/// the server.
async fn write(
    mut session: Session,
    (postgres, config): (&'static Postgres, Config),
    plan: Plan,
    pace: Pace,
    seed: u64,
    stop: CancellationToken,
) -> u64 {
    let mut random = StdRng::seed_from_u64(seed);
    let mut committed = 0;
    for _ in 0..plan.transactions {
        if stop.is_cancelled() {
            break;
        }
        match transaction(&mut session, &plan, &mut random).await {
            Ok(events) => committed += events,
            Err(error) if session.is_closed() || is_shutdown(&error) => {
                let connect = || postgres.connect(&config);
                let connected = wait::until("PostgreSQL is back", wait::PATIENCE, connect).await;
                session = connected.expect("a writer connects again");
            }
            Err(error) => panic!("a writer's transaction: {error:?}"),
        }
        if let Pace::Every(interval) = pace {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }
    committed
}

/// The server's last words, which come before the end of the connection does.
fn is_shutdown(error: &Error) -> bool {
    error.code().is_some_and(|state| state.code().starts_with("57P"))
}

/// One transaction in one of four ways; returns the number of events that it committed.
async fn transaction(
    session: &mut Session,
    plan: &Plan,
    random: &mut StdRng,
) -> Result<u64, Error> {
    let kept = events(plan, random);
    let also = events(plan, random);
    let way = random.random_range(0..10);
    let mut transaction = session.transaction().await?;
    // A savepoint's events come in the order of lanes as well: or writers would deadlock.
    let (mut committed, mut all) = (kept.len(), kept);
    if way < 3 {
        let savepoint = transaction.savepoint("attempt").await?;
        for event in &also {
            event.insert(savepoint.client()).await?;
        }
        // Rolled back: its locks go with it.
        savepoint.rollback().await?;
    } else if way < 5 {
        committed += also.len();
        all.extend(also);
        all.sort_by_key(Event::lane);
    }
    for event in &all {
        event.insert(transaction.client()).await?;
    }
    if way == 9 {
        transaction.rollback().await?;
        return Ok(0);
    }
    transaction.commit().await?;
    Ok(committed as u64)
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
