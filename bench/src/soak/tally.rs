//! What a consumer got against what was committed, in the sense of each way to deliver.

use std::collections::HashSet;

use outbox_harness::{
    check::{self, Count},
    event::{Committed, SEQUENCE},
    topic::Record,
};

use crate::{relay::Mode, sink::Sink, terminal::progress};

/// Of the topic.
pub(super) const PARTITIONS: i32 = 8;
/// Of the payload of an event that the topic refuses; others are far smaller.
pub(super) const POISON_BYTES: usize = 400_000;

/// The count of a day.
#[derive(Debug)]
pub(super) struct Tally {
    /// Out of order is what breaks the promise of the mode, and duplicated what is repeated unmarked.
    pub(super) count: Count,
    /// Repeated records that say themselves that they may be.
    pub(super) marked: usize,
    /// Records that came first after a later one of their lane, as at-least-once delivery may: a
    /// refused one, or one that shared its request, which the later one follows again.
    pub(super) late: usize,
}

impl Tally {
    pub(super) fn of(sink: Sink, mode: Mode, truth: &[Committed], records: Vec<Record>) -> Self {
        match mode {
            // Each lane in its order by first sight, whatever was refused or sent again.
            Mode::AtLeastOnce if sink == Sink::Rabbitmq => {
                let mut count = check::compare(truth, &records, PARTITIONS);
                let (_, marked) = without_marked_repetitions(records);
                count.duplicated -= marked;
                Tally { count, marked, late: 0 }
            }
            Mode::ExactlyOnce => {
                let (records, marked) = without_marked_repetitions(records);
                let count = check::compare(truth, &records, PARTITIONS);
                Tally { count, marked, late: 0 }
            }
            Mode::AtLeastOnce => {
                let mut count = check::compare(truth, &records, PARTITIONS);
                // What was in flight behind a refused event may precede it.
                let mut taken = truth.to_vec();
                taken.retain(|row| !is_poison(row));
                let overtaken = check::overtaken(&taken, &records);
                let late = count.out_of_order - overtaken.len();
                count.out_of_order = overtaken.len();
                overtaken.iter().for_each(|it| progress(&format!("out of order: {it}")));
                let (_, marked) = without_marked_repetitions(records);
                count.duplicated -= marked;
                Tally { count, marked, late }
            }
        }
    }
}

fn is_poison(row: &Committed) -> bool {
    row.payload.as_ref().is_some_and(|payload| payload.len() >= POISON_BYTES / 2)
}

/// Leaves out what is repeated and marked so, as a consumer would.
fn without_marked_repetitions(mut records: Vec<Record>) -> (Vec<Record>, usize) {
    // An event without a lane may be repeated on another partition, and be read there first.
    let marked = |record: &Record| record.header("outbox-repaired").is_some();
    records.sort_by_key(|record| record.header(SEQUENCE).is_none() && marked(record));
    let all = records.len();
    let mut seen = HashSet::new();
    let mut kept = Vec::with_capacity(all);
    for record in records {
        let new = record.id().is_none_or(|id| seen.insert(id.to_owned()));
        if new || !marked(&record) {
            kept.push(record);
        }
    }
    let repeated = all - kept.len();
    (kept, repeated)
}
