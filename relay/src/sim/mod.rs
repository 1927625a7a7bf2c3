//! The relay in a simulated world: one thread, one seed, faults at every await.
//!
//! Real: the decoder, the intake and its router, the hand-over, the pipeline, parking, the progress
//! record, reconciliation; what the publication's state means (`table_fit`, `core::published`, `core::look`), what a start
//! and a repair write into progress, the repair's pages, the halts' texts, and the progress that `resume` stores.
//!
//! Scripted: the server, its WAL, its slot and its stream (`server`, `source`), its catalogs (`catalog`), the broker and
//! the relay's client of it (`broker`, `sink`), the table of dead letters and its operator (`table`, `row`,
//! `operator`), what SQL answers of the outbox table (which rows a repair reads, whether some were deleted), and the order of
//! the steps, which follows `daemon` (`start`, `repair`, `relay`). That order is written twice: a step that only `daemon`
//! leaves out is not noticed here. What a thawed relay may still do to a slot, partitions, and a table's renaming are left
//! out. What must hold is looked at with every change of the world (`world`), and what must be
//! reached at the end. A failure names its seed; [`Mutant`]s show that it can fail.

mod broker;
mod catalog;
mod operator;
mod relay;
mod repair;
mod row;
mod server;
mod sink;
mod source;
mod start;
mod table;
mod world;

use std::{
    panic::{self, AssertUnwindSafe},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use self::world::{Mutant, World};
use crate::state::Board;

/// Enough for every fault to meet every step.
const SEEDS: u64 = 10_000;

/// The seeds from `from` on, shared out to all processors; the first that fails, and why.
fn first_failure(from: u64, count: u64, mutant: Option<Mutant>) -> Option<(u64, String)> {
    let next = AtomicU64::new(from);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let run = || {
        let board = Board::new("sim", "outbox_sim", "0");
        loop {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= from + count {
                return None;
            }
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                relay::run(&World::new(seed, mutant), &board)
            }));
            let failure = match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(failure)) => failure,
                Err(_) => "panicked".to_owned(),
            };
            next.store(from + count, Relaxed);
            return Some((seed, failure));
        }
    };
    let failures = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    failures.into_iter().min()
}

/// `OUTBOX_SIM_SEED` runs one seed, `OUTBOX_SIM_SEEDS` another number of them.
#[test]
fn nothing_is_lost_doubled_or_reordered_whatever_fails_when() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (from, count) = match number("OUTBOX_SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("OUTBOX_SIM_SEEDS").unwrap_or(SEEDS)),
    };
    if count == 1 {
        let world = World::new(from, None);
        world.lock().unwrap().story = Some(Vec::new());
        let ended = relay::run(&world, &Board::new("sim", "outbox_sim", "0"));
        let story = world.lock().unwrap().story.take().unwrap_or_default();
        assert_eq!(ended, Ok(()), "{}", story.join("\n"));
        return;
    }
    if let Some((seed, failure)) = first_failure(from, count, None) {
        panic!("OUTBOX_SIM_SEED={seed}: {failure}");
    }
}

#[test]
fn each_mutant_is_caught() {
    for mutant in Mutant::ALL {
        let caught = first_failure(0, SEEDS, Some(*mutant));
        let (seed, failure) = caught.unwrap_or_else(|| panic!("{mutant:?} lives"));
        println!("{mutant:?} is caught by seed {seed}: {failure}");
    }
}
