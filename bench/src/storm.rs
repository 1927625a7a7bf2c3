//! A rebalance storm as long as wanted, over the members that the suite uses, and its count.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use anyhow::Result;
use outbox_harness::{
    Harness, member,
    storm::{self, Outcome, Plan},
};
use rand::Rng;
use serde::Serialize;

use crate::{
    StormArgs,
    relay::AS_RELAY,
    terminal::{self, progress},
};

/// Whether this process was started to be a member.
pub(crate) fn is_asked_for() -> bool {
    std::env::var_os(member::VARIABLE).is_some()
}

/// A member's whole life.
pub(crate) fn member() -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(member::main())?;
    Ok(ExitCode::SUCCESS)
}

/// The count of each group.
#[derive(Debug, Serialize)]
pub(crate) struct Storm {
    seed: u64,
    minutes: u32,
    groups: Vec<Outcome>,
}

/// Runs it to its end.
///
/// # Errors
/// This program is not found.
pub(crate) async fn run(args: &StormArgs) -> Result<Storm> {
    let seed = args.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    progress(&format!("storm of {} minutes, seed {seed}", args.minutes));
    let program = std::env::current_exe()?;
    let t = Harness::start().await;
    let _relay = t.relay().program(&program).env(AS_RELAY, "1").start().await;
    let duration = Duration::from_secs(60) * args.minutes;
    let plan = Plan { seed, duration, program: Some(program) };
    let groups = storm::run(&t, &plan).await;
    Ok(Storm { seed, minutes: args.minutes, groups })
}

impl Storm {
    /// Whether the promise held.
    pub(crate) fn held(&self) -> bool {
        self.groups.iter().all(|group| group.effects.are_each_once_and_in_order())
    }

    pub(crate) fn json(&self) -> String {
        terminal::pretty(self)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("storm --minutes {} --seed {}\n\n", self.minutes, self.seed);
        text.push_str(
            "| rebalanced | joined | stopped | killed | frozen | assignments | lost while frozen | \
             events | lost | doubled | out of order | invented | follow-ups off |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for Outcome { group, joined, stopped, killed, frozen, assignments, lost, effects } in
            &self.groups
        {
            let counted = [
                effects.applied + effects.lost,
                effects.lost,
                effects.doubled,
                effects.misordered,
                effects.invented,
                effects.follow_ups_off,
            ];
            let _ = write!(text, "| {group} ");
            for number in
                [joined, stopped, killed, frozen, assignments, lost].into_iter().chain(&counted)
            {
                let _ = write!(text, "| {number} ");
            }
            text.push_str("|\n");
        }
        text
    }
}
