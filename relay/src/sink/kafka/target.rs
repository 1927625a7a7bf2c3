//! A topic that exists: its partitions, what it takes, and where a record goes. No I/O.

use std::time::{Duration, Instant};

use super::limits::{self, Limits};
use crate::{core::record::Record, sink::partition::partition_for_key};

/// How long the broker's refusal of one record for its size speaks for larger ones.
const LEARNED_FOR: Duration = Duration::from_millis(250);

/// A topic that exists.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) partitions: i32,
    /// `None` where its settings may not be read.
    pub(super) limits: Option<Limits>,
    pub(super) looked_up: Instant,
    /// Something went wrong that other knowledge would have prevented.
    pub(super) doubted: bool,
    /// A batch on the wire was refused as a whole: its records go one in a batch, this time.
    pub(super) alone: bool,
    /// When a record was refused last that went so.
    pub(super) refused_alone: Option<Instant>,
    /// Where its settings may not be read: a batch of so many bytes was stored.
    pub(super) stored_bytes: Option<usize>,
    /// Where its settings may not be read: a record of so many bytes was refused for its size.
    pub(super) too_large_bytes: Option<(usize, Instant)>,
    /// Partition of this delivery's records without a key.
    sticky: i32,
    delivery: u64,
}

/// Why a topic takes no record.
pub(super) type Refusal = (&'static str, String);

impl Target {
    pub(super) fn new(partitions: i32, limits: Option<Limits>) -> Self {
        // Relays that start at once should not all begin with partition 0.
        let sticky = rand::random_range(0..partitions.max(1));
        Target {
            partitions,
            limits,
            looked_up: Instant::now(),
            doubted: false,
            alone: false,
            refused_alone: None,
            stored_bytes: None,
            too_large_bytes: None,
            sticky,
            delivery: 0,
        }
    }

    /// It was looked up again. Returns whether it has another number of partitions now.
    pub(super) fn see(&mut self, name: &str, partitions: i32, limits: Option<Limits>) -> bool {
        let changed = self.partitions != partitions;
        if changed {
            tracing::warn!(
                topic = name,
                before = self.partitions,
                now = partitions,
                "the topic has another number of partitions: keys may change theirs, and their \
                 order across that change is not kept"
            );
        }
        self.partitions = partitions;
        self.limits = limits;
        self.looked_up = Instant::now();
        self.doubted = false;
        changed
    }

    /// Moves on to the next partition with the first record of each delivery.
    pub(super) fn turn(&mut self, delivery: u64) {
        if self.delivery != delivery {
            self.delivery = delivery;
            self.sticky = (self.sticky + 1) % self.partitions.max(1);
        }
    }

    /// Where a record goes.
    pub(super) fn partition(&self, record: &Record<'_>) -> i32 {
        match (record.partition, record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, self.partitions),
            (None, None) => self.sticky,
        }
    }

    /// Whether the record would soon be deleted for its age.
    pub(super) fn is_stale(&self, record: &Record<'_>, now_ms: i64) -> bool {
        let stale = |created_ms| limits::is_stale(self.limits.as_ref(), created_ms, now_ms);
        record.timestamp_ms.is_some_and(stale)
    }

    pub(super) fn refuse(
        &self,
        record: &Record<'_>,
        compressed: bool,
        servers: &str,
        now_ms: i64,
    ) -> Option<Refusal> {
        if let Some(wanted) = record.partition
            && !(0..self.partitions).contains(&wanted)
        {
            let (topic, last) = (record.topic, self.partitions - 1);
            let error = format!(
                "the topic {topic} has partitions 0 to {last}, not {wanted}: let the key choose with \
                 `outbox-relay dead-letters edit ID --no-partition`, or name another with --partition; then \
                 release it"
            );
            return Some(("no_such_partition", error));
        }
        if let Some(limits) = &self.limits {
            return limits.refuse(record, compressed, servers, now_ms);
        }
        let (least, at) = self.too_large_bytes?;
        (at.elapsed() < LEARNED_FOR && limits::batch_bytes(record) >= least).then(|| {
            let error = format!(
                "the broker has just refused a record of {least} bytes, and this one is no smaller: \
                 raise the topic's max.message.bytes, or publish a reference to the data"
            );
            ("too_large", error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_without_a_key_stay_together_and_move_on_with_each_delivery() {
        let mut target = Target::new(3, None);
        let mut seen = Vec::new();
        for delivery in 1..=6 {
            target.turn(delivery);
            let partition = target.sticky;
            target.turn(delivery);
            assert_eq!(target.sticky, partition, "one delivery, one partition");
            seen.push(partition);
        }
        assert!(seen.iter().zip(seen.iter().skip(3)).all(|(before, after)| before == after));
        seen.sort_unstable();
        assert_eq!(seen, [0, 0, 1, 1, 2, 2]);
    }
}
