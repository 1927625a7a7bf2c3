//! What the day came to.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use outbox_harness::check::Count;
use serde::Serialize;

use super::fault::Fault;

/// A fault, and how long after its end the relays delivered again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recovery {
    pub(super) fault: Fault,
    pub(super) took: Duration,
}

/// The count, and the faults by kind.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    seed: u64,
    minutes: u32,
    faults: Vec<Kind>,
    committed: usize,
    delivered: usize,
    lost: usize,
    duplicated: usize,
    out_of_order: usize,
    wrong_partition: usize,
    never_committed: usize,
    altered: usize,
    /// Records that say themselves that a repair may have repeated them, and did.
    repeated_by_repair: usize,
    /// Events that were parked at some time.
    parked: i64,
}

#[derive(Debug, Serialize)]
struct Kind {
    fault: Fault,
    times: usize,
    median_seconds: f64,
    longest_seconds: f64,
}

impl Outcome {
    pub(super) fn new(
        (seed, minutes): (u64, u32),
        recoveries: &[Recovery],
        count: &Count,
        repeated_by_repair: usize,
        parked: i64,
    ) -> Self {
        let mut kinds: BTreeMap<Fault, Vec<f64>> = BTreeMap::new();
        for Recovery { fault, took } in recoveries {
            kinds.entry(*fault).or_default().push(took.as_secs_f64());
        }
        let kind = |(fault, mut seconds): (Fault, Vec<f64>)| {
            seconds.sort_by(f64::total_cmp);
            let at = |index: usize| seconds.get(index).copied().unwrap_or_default();
            let (times, last) = (seconds.len(), seconds.len() - 1);
            Kind { fault, times, median_seconds: at(last / 2), longest_seconds: at(last) }
        };
        Outcome {
            seed,
            minutes,
            faults: kinds.into_iter().map(kind).collect(),
            committed: count.committed,
            delivered: count.delivered,
            lost: count.lost,
            duplicated: count.duplicated,
            out_of_order: count.out_of_order,
            wrong_partition: count.wrong_partition,
            never_committed: count.uncommitted,
            altered: count.altered,
            repeated_by_repair,
            parked,
        }
    }

    /// Whether the promise held.
    pub(crate) fn held(&self) -> bool {
        let broken = self.lost + self.duplicated + self.out_of_order + self.wrong_partition;
        broken + self.never_committed + self.altered == 0
    }

    pub(crate) fn json(&self) -> String {
        crate::terminal::pretty(self)
    }

    pub(crate) fn text(&self) -> String {
        let Outcome { seed, minutes, committed, delivered, lost, duplicated, .. } = self;
        let Outcome { out_of_order, wrong_partition, never_committed, altered, .. } = self;
        let Outcome { repeated_by_repair, parked, .. } = self;
        let mut text = format!("soak --minutes {minutes} --seed {seed}\n\n");
        text.push_str("| fault | times | delivers again after, median | longest |\n");
        text.push_str("|---|---|---|---|\n");
        for Kind { fault, times, median_seconds, longest_seconds } in &self.faults {
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "| {fault} | {times} | {median_seconds:.1} s | {longest_seconds:.1} s |"
            );
        }
        let _ = write!(
            text,
            "\nparked at some time {parked} · repeated by a repair, and marked so \
             {repeated_by_repair} · wrong partition {wrong_partition} · never committed \
             {never_committed} · altered {altered}\n\
             committed {committed} · delivered {delivered} · lost {lost} · duplicated {duplicated} \
             · out of order {out_of_order}\n"
        );
        text
    }
}
