//! Acknowledgement by offset, as Kafka has it: the highest below which all is finished.
//!
//! An offset is committable when it and all before it are finished; what is dropped at a revocation
//! stays unfinished.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    lanes::{Acknowledgement, Ending, LaneScheduler},
    queue::DispatchQueue,
};
use crate::message::RawMessage;

/// A clock has no time after some three hundred years.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

pub(crate) type Partition = (Arc<str>, i32);

/// Which record a message is.
#[derive(Debug)]
pub(crate) struct RecordPlace {
    partition: Partition,
    offset: i64,
    /// Of its partition: one that was lost and came back is another.
    assignment: u64,
}

#[derive(Default)]
struct Tracker {
    assignment: u64,
    /// Whether its events come to the queue of partitions.
    adopted: bool,
    /// Where reading began, if that is known.
    start: Option<i64>,
    /// Offsets pushed and not done, dropped ones included.
    unfinished: BTreeSet<i64>,
    /// Behind the newest that was pushed.
    next: Option<i64>,
    /// What was given out by `committable` last.
    committed: Option<i64>,
    /// With workers now.
    running: usize,
    /// Nothing new is taken in.
    closing: bool,
}

/// The partitions that are ours, and how far each is finished.
#[derive(Default)]
pub(crate) struct PrefixOffsets {
    partitions: HashMap<Partition, Tracker>,
    assignments: u64,
}

impl PrefixOffsets {
    fn open(&mut self, partition: &Partition) -> Option<&mut Tracker> {
        self.partitions.get_mut(partition).filter(|tracker| !tracker.closing)
    }

    fn current(&mut self, place: &RecordPlace) -> Option<&mut Tracker> {
        let tracker = self.partitions.get_mut(&place.partition)?;
        (tracker.assignment == place.assignment).then_some(tracker)
    }
}

impl Acknowledgement for PrefixOffsets {
    type Token = RecordPlace;

    const GIVES_BACK: bool = false;

    fn taken(&mut self, place: &RecordPlace) {
        if let Some(tracker) = self.partitions.get_mut(&place.partition) {
            tracker.running += 1;
        }
    }

    fn ended(&mut self, place: &RecordPlace, ending: Ending) {
        let had_worker = matches!(ending, Ending::Handled | Ending::GivenUp);
        let Some(tracker) = self.current(place).filter(|_| had_worker) else { return };
        tracker.running -= 1;
        if ending == Ending::Handled {
            tracker.unfinished.remove(&place.offset);
        }
    }
}

impl LaneScheduler<PrefixOffsets> {
    /// A partition is ours from now on, read from `start` where that is known.
    pub(crate) fn assign(&mut self, partition: Partition, start: Option<i64>) {
        self.acks.assignments += 1;
        let tracker = Tracker { assignment: self.acks.assignments, start, ..Tracker::default() };
        self.acks.partitions.insert(partition, tracker);
    }

    /// Partitions that came since this was asked.
    pub(crate) fn adopt(&mut self) -> Vec<Partition> {
        let fresh = self.acks.partitions.iter_mut().filter(|(_, tracker)| !tracker.adopted);
        let fresh = fresh.map(|(partition, tracker)| {
            tracker.adopted = true;
            partition.clone()
        });
        fresh.collect()
    }

    /// Where reading should continue; `None` where no one knows, and of what is not ours.
    pub(crate) fn expected(&self, partition: &Partition) -> Option<i64> {
        let tracker = self.acks.partitions.get(partition).filter(|tracker| !tracker.closing)?;
        tracker.next.or(tracker.start)
    }

    /// All before `offset` was pushed, and in between there is nothing to push.
    pub(crate) fn passed(&mut self, partition: &Partition, offset: i64) {
        if let Some(tracker) = self.acks.open(partition) {
            tracker.next = Some(offset);
        }
    }

    /// A partition of ours is read from elsewhere: what is here of it is another's.
    pub(crate) fn restart(&mut self, partition: &Partition) {
        self.drop_queued(|place| place.partition == *partition);
        let assignment = self.acks.assignments + 1;
        if let Some(tracker) = self.acks.open(partition) {
            *tracker = Tracker { assignment, adopted: tracker.adopted, ..Tracker::default() };
            self.acks.assignments = assignment;
        }
    }

    /// Takes a message in; one of a partition that is not ours is dropped.
    pub(crate) fn push(&mut self, message: RawMessage, lane: Uuid) {
        let place = message.source.place();
        let (number, offset) = place.expect("a record has its partition and its offset");
        let partition = (Arc::clone(&message.source.topic), number);
        let Some(tracker) = self.acks.open(&partition) else { return };
        tracker.unfinished.insert(offset);
        tracker.next = Some(offset + 1);
        let assignment = tracker.assignment;
        self.add(message, lane, RecordPlace { partition, offset, assignment });
    }

    /// Takes nothing more of these partitions and drops what no worker has.
    pub(crate) fn close(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(tracker) = self.acks.partitions.get_mut(partition) {
                tracker.closing = true;
            }
        }
        self.drop_queued(|place| partitions.contains(&place.partition));
    }

    /// Messages of these partitions that workers have.
    pub(crate) fn running(&self, partitions: &[Partition]) -> usize {
        partitions.iter().filter_map(|p| self.acks.partitions.get(p)).map(|t| t.running).sum()
    }

    /// All partitions that are ours.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.acks.partitions.keys().cloned().collect()
    }

    /// These are not ours any more; what workers still have of them ends without a trace here.
    pub(crate) fn forget(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.acks.partitions.remove(partition);
        }
    }

    /// Where each partition would be resumed, of those where that has changed since it was asked.
    pub(crate) fn committable(&mut self) -> Vec<(Partition, i64)> {
        let mut offsets = Vec::new();
        for (partition, tracker) in &mut self.acks.partitions {
            let offset = tracker.unfinished.first().copied().or(tracker.next);
            if offset != tracker.committed
                && let Some(offset) = offset
            {
                tracker.committed = Some(offset);
                offsets.push((partition.clone(), offset));
            }
        }
        offsets
    }

    /// Grows with each assignment.
    pub(crate) fn assignments(&self) -> u64 {
        self.acks.assignments
    }
}

impl DispatchQueue<PrefixOffsets> {
    pub(crate) fn push(&self, message: RawMessage, lane: Uuid) {
        self.change(|lanes| lanes.push(message, lane));
    }

    /// Takes nothing more of these partitions, and waits until workers have none of their messages;
    /// how many are left after `patience`. Blocks.
    pub(crate) fn drain(&self, partitions: &[Partition], patience: Duration) -> usize {
        let deadline = Instant::now() + patience.min(FOREVER);
        let mut lanes = self.lanes();
        lanes.close(partitions);
        loop {
            let left = lanes.running(partitions);
            let wait = deadline.saturating_duration_since(Instant::now());
            if left == 0 || wait.is_zero() {
                return left;
            }
            let waited = self.finished.wait_timeout(lanes, wait);
            (lanes, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests;
