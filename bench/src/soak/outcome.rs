//! What the day came to.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::Serialize;

use super::{fault::Fault, tally::Tally};
use crate::{relay::Mode, sink::Sink};

/// A fault, and how long after its end the relays delivered again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recovery {
    pub(super) fault: Fault,
    pub(super) took: Duration,
}

/// The count, and the faults by kind.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    sink: Sink,
    delivery: Mode,
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
    /// Repeated records that say themselves that they may be: by a repair, or by at-least-once
    /// delivery after a request in which a record was refused. No part of `duplicated`.
    repeated_and_marked: usize,
    /// Records that came after a later one of their lane, as at-least-once delivery may.
    late: usize,
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
        (sink, delivery): (Sink, Mode),
        (seed, minutes): (u64, u32),
        recoveries: &[Recovery],
        Tally { count, marked, late }: &Tally,
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
            sink,
            delivery,
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
            repeated_and_marked: *marked,
            late: *late,
            parked,
        }
    }

    /// Whether the promise held.
    pub(crate) fn held(&self) -> bool {
        let duplicated = match self.delivery {
            Mode::ExactlyOnce => self.duplicated,
            Mode::AtLeastOnce => 0,
        };
        let broken = self.lost + duplicated + self.out_of_order + self.wrong_partition;
        broken + self.never_committed + self.altered == 0
    }

    pub(crate) fn json(&self) -> String {
        crate::terminal::pretty(self)
    }

    pub(crate) fn text(&self) -> String {
        let Outcome { seed, minutes, committed, delivered, lost, duplicated, .. } = self;
        let Outcome { out_of_order, wrong_partition, never_committed, altered, .. } = self;
        let Outcome { repeated_and_marked, late, parked, .. } = self;
        let (sink, delivery) = (self.sink.name(), self.delivery.name());
        let mut text = format!(
            "soak --sink {sink} --minutes {minutes} --seed {seed} --delivery {delivery}\n\n"
        );
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
            "\nparked at some time {parked} · repeated, and marked so {repeated_and_marked} · \
             late in their lane, as may be {late} · wrong partition {wrong_partition} · never committed \
             {never_committed} · altered {altered}\n\
             committed {committed} · delivered {delivered} · lost {lost} · duplicated {duplicated} \
             · out of order {out_of_order}\n"
        );
        text
    }
}
