//! Made-up histories of a consumer group, and what must be true after each of their steps.
//!
//! Real: what decides. The inbox, in memory or in PostgreSQL, the processor, and of the runner the
//! lanes, its workers and the offsets that it would commit. Played (`world`): the broker's log with
//! what a relay publishes again, the group, processes that die at any point or freeze while another
//! one takes their partitions, the operator, the days. The promise (`promise`) knows nothing of how
//! it is kept. A history that breaks it is cut down to the steps that matter.

#![expect(clippy::indexing_slicing, reason = "two members, two partitions, numbers of a log")]

mod backend;
mod promise;
mod world;

use std::{
    future::Future,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use outbox_harness::wait;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner},
};

use tokio::runtime::Runtime;

use super::effects;
use backend::{Backend, Memory, Postgres, Shared};
use world::{Mutant, World};

/// How messages are remembered, and how many are handled at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Rows,
    Batch,
    Watermark,
}

/// How a handler answers; after the last one it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Transient,
    Later,
    Deferred,
    Permanent,
    Panic,
    Fatal,
}

/// What happens next. There are two members.
#[derive(Clone, Debug)]
enum Step {
    /// A new message, which occurred so many days ago.
    Publish { lane: usize, age: u64, answers: Vec<Answer> },
    /// The relay publishes the last ones again, by a replay of the WAL or by a repair.
    Again { last: usize, repaired: bool },
    /// A member hears of what it has lost, and takes records in.
    Poll { member: usize, max: usize },
    /// Workers of both, each with a message or a batch; beside them a member takes up what was
    /// parked, which is due. Whoever passes the n-th point dies there.
    Work { workers: [usize; 2], due: Option<usize>, dies: Option<u32> },
    /// Offsets reach the broker.
    Commit { member: usize },
    /// A partition goes to the other member; frozen, its owner does not hear of that.
    Move { partition: usize, frozen: bool },
    /// A process dies while nothing is under way.
    Die { member: usize },
    /// An operator replays a dead letter.
    Replay(Index),
    /// The oldest day of the inbox is forgotten.
    Forget,
}

fn answers() -> impl Strategy<Value = Vec<Answer>> {
    use Answer::{Deferred, Fatal, Later, Panic, Permanent, Transient};
    let answer =
        select(vec![Transient, Transient, Transient, Later, Deferred, Permanent, Panic, Fatal]);
    prop_oneof![3 => Just(Vec::new()), 2 => vec(answer, 1..=3)]
}

fn step() -> impl Strategy<Value = Step> {
    let age = select(vec![0, 0, 0, 0, 12, 13, 14]);
    let due = prop_oneof![2 => Just(None), 1 => (0..2_usize).prop_map(Some)];
    let dies = prop_oneof![3 => Just(None), 2 => (1..12_u32).prop_map(Some)];
    prop_oneof![
        8 => (0..world::LANES.len(), age, answers())
            .prop_map(|(lane, age, answers)| Step::Publish { lane, age, answers }),
        1 => (1..6_usize, any::<bool>()).prop_map(|(last, repaired)| Step::Again { last, repaired }),
        5 => (0..2_usize, 1..8_usize).prop_map(|(member, max)| Step::Poll { member, max }),
        10 => ([0..4_usize, 0..4_usize], due, dies)
            .prop_map(|(workers, due, dies)| Step::Work { workers, due, dies }),
        3 => (0..2_usize).prop_map(|member| Step::Commit { member }),
        2 => (0..world::PARTITIONS, any::<bool>())
            .prop_map(|(partition, frozen)| Step::Move { partition, frozen }),
        1 => (0..2_usize).prop_map(|member| Step::Die { member }),
        1 => any::<Index>().prop_map(Step::Replay),
        1 => Just(Step::Forget),
    ]
}

/// Lives through it, and then until nothing is left to do.
async fn live<B: Backend>(
    backend: B,
    mutant: Option<Mutant>,
    steps: &[Step],
) -> Result<(), String> {
    let mut world = World::new(backend, mutant).await;
    for step in steps {
        let stepped = tokio::time::timeout(wait::PATIENCE, world.step(step)).await;
        stepped.map_err(|_| "hangs".to_owned()).flatten().map_err(|e| format!("{step:?}: {e}"))?;
    }
    let ended = tokio::time::timeout(wait::PATIENCE, world.end()).await;
    ended.map_err(|_| "hangs".to_owned()).flatten().map_err(|e| format!("at the end: {e}"))
}

/// So many histories, or `PROPTEST_CASES`, or the shortest that breaks the promise.
/// `PROPTEST_RNG_SEED`, as the failure says it, repeats them.
fn histories<F: Future<Output = Result<(), String>>>(
    runtime: &Runtime,
    cases: u32,
    length: usize,
    live: impl Fn(Way, Vec<Step>) -> F,
) -> Result<(), String> {
    let mut config =
        Config { failure_persistence: None, max_shrink_time: SHRINK_MS, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(rand::random());
    }
    let seed = config.rng_seed;
    let ways = select(vec![Way::Rows, Way::Batch, Way::Watermark]);
    let history = (ways, vec(step(), length / 2..length));
    let ran = TestRunner::new(config).run(&history, |(way, steps)| {
        runtime.block_on(live(way, steps)).map_err(TestCaseError::fail)
    });
    ran.map_err(|error| match error {
        TestError::Fail(why, (way, steps)) => {
            let steps: String = steps.iter().map(|step| format!("    {step:?}\n")).collect();
            format!("PROPTEST_RNG_SEED={seed}, {way:?}: {why}\n{steps}")
        }
        TestError::Abort(why) => why.to_string(),
    })
}

/// One thread: who dies where is told to a thread.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn in_memory(cases: u32, mutant: Option<Mutant>) -> Result<(), String> {
    histories(&runtime(), cases, 80, |_, steps| async move {
        live(Memory::new(mutant), mutant, &steps).await
    })
}

#[test]
fn in_memory_the_promise_is_kept_whatever_happens() {
    if let Err(broken) = in_memory(3_000, None) {
        panic!("{broken}");
    }
}

#[test]
fn each_mutant_breaks_the_promise_that_it_should() {
    for mutant in Mutant::ALL {
        let broken = in_memory(1_000, Some(mutant)).expect_err("it lives");
        assert!(broken.contains(mutant.breaks()), "{mutant:?}: {broken}");
    }
}

#[test]
fn in_postgresql_the_promise_is_kept_whatever_happens() {
    let runtime = runtime();
    let database = runtime.block_on(effects::database());
    let shared = Shared::new(&database);
    let case = AtomicU32::new(0);
    let ran = histories(&runtime, 64, 40, |way, steps| {
        let (case, shared) = (case.fetch_add(1, Relaxed), &shared);
        async move { live(Postgres::new(shared, way, case).await, None, &steps).await }
    });
    if let Err(broken) = ran {
        panic!("{broken}");
    }
}

/// How long a history that breaks the promise is cut down, in milliseconds.
const SHRINK_MS: u32 = 30_000;
/// Longer than any test takes, so that only [`Backend::make_due`] makes something due.
const LONG: Duration = Duration::from_secs(3600);
