//! A long bad day: writers that roll back, lanes that are poisoned and released, and faults of
//! every kind from a seed; then everything that is committed is held against what a consumer read.
//!
//! It has servers of its own, since it restarts them. Two relays of one name stand behind proxies.

mod broker;
mod fault;
mod outcome;
mod stage;
mod tally;

use std::time::Duration;

use anyhow::Result;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use self::{
    fault::Fault,
    outcome::{Outcome, Recovery},
    stage::Stage,
};
use crate::{SoakArgs, terminal::progress};

/// Between the end of one fault and the beginning of the next.
const CALM_MS: std::ops::Range<u64> = 500..3_000;

/// Runs it to its end.
///
/// # Errors
/// The servers can't be had, or the relays don't come back after a fault.
pub(crate) async fn run(args: &SoakArgs) -> Result<Outcome> {
    let seed = args.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let (sink, mode) = (args.sink, args.sink.mode(args.delivery)?);
    let (name, how) = (sink.name(), mode.name());
    progress(&format!("soak of {} minutes, {name}, {how}, seed {seed}", args.minutes));
    let mut random = StdRng::seed_from_u64(seed);
    let mut stage = Stage::set(sink, mode, args.relay.as_deref()).await?;
    let began = Instant::now();
    let end = began + Duration::from_secs(60) * args.minutes;
    let mut recoveries = Vec::new();
    // Each kind in every round, in an order of its own.
    let mut round: Vec<Fault> = Vec::new();
    while Instant::now() < end {
        let Some(fault) = round.pop() else {
            round = fault::shuffled(&mut random);
            continue;
        };
        let happened = stage.through(fault, &mut random).await;
        let took = match happened {
            Ok(took) => took,
            Err(error) => {
                stage.keep_logs();
                return Err(error.context(format!("seed {seed}, after {fault}")));
            }
        };
        recoveries.push(Recovery { fault, took });
        let minutes = began.elapsed().as_secs_f64() / 60.0;
        progress(&format!("{minutes:5.1} min  {fault}: delivers again after {took:.1?}"));
        tokio::time::sleep(Duration::from_millis(random.random_range(CALM_MS))).await;
    }
    progress("fixing everything, waiting for the rest, and counting");
    stage.count(seed, args.minutes, recoveries).await
}
