//! What has come from the broker and is not finished, in memory: lanes for the workers, offsets
//! for the commits.
//!
//! ```text
//! runner ─► push ─► lane queues ─► take ─► worker ─► done
//!    ▲                                               │
//!    └──────────── committable ◄─────────────────────┘
//! ```
//!
//! Pure bookkeeping. A lane is with one worker at a time. An offset is committable when it and all
//! before it are finished; what is dropped at a revocation stays unfinished.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use uuid::Uuid;

use crate::message::RawMessage;

pub(crate) type Partition = (Arc<str>, i32);

/// A message and what it was counted as.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) message: RawMessage,
    lane: Uuid,
    bytes: usize,
    /// Of its partition's assignment: one that was lost and came back is another.
    assignment: u64,
}

impl InFlight {
    fn partition(&self) -> Partition {
        (Arc::clone(&self.message.source.topic), self.message.source.partition)
    }
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<InFlight>,
    /// With a worker, or in `ready`.
    taken: bool,
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

/// What is between a runner and its workers.
#[derive(Default)]
pub(crate) struct LaneScheduler {
    lanes: HashMap<Uuid, Lane>,
    /// Lanes with something for a worker, longest waiting first.
    ready: VecDeque<Uuid>,
    partitions: HashMap<Partition, Tracker>,
    assignments: u64,
    messages: usize,
    bytes: usize,
}

impl LaneScheduler {
    /// A partition is ours from now on, read from `start` where that is known.
    pub(crate) fn assign(&mut self, partition: Partition, start: Option<i64>) {
        self.assignments += 1;
        let tracker = Tracker { assignment: self.assignments, start, ..Tracker::default() };
        self.partitions.insert(partition, tracker);
    }

    /// Partitions that came since this was asked.
    pub(crate) fn adopt(&mut self) -> Vec<Partition> {
        let fresh = self.partitions.iter_mut().filter(|(_, tracker)| !tracker.adopted);
        let fresh = fresh.map(|(partition, tracker)| {
            tracker.adopted = true;
            partition.clone()
        });
        fresh.collect()
    }

    /// Where reading should go on; `None` where nobody knows, and of what is not ours.
    pub(crate) fn expected(&self, partition: &Partition) -> Option<i64> {
        let tracker = self.partitions.get(partition).filter(|tracker| !tracker.closing)?;
        tracker.next.or(tracker.start)
    }

    /// All before `offset` was pushed, and in between there is nothing to push.
    pub(crate) fn passed(&mut self, partition: &Partition, offset: i64) {
        if let Some(tracker) = self.partitions.get_mut(partition).filter(|t| !t.closing) {
            tracker.next = Some(offset);
        }
    }

    /// A partition of ours is read from elsewhere: what is here of it is another's.
    pub(crate) fn restart(&mut self, partition: &Partition) {
        self.drop_queued(std::slice::from_ref(partition));
        if let Some(tracker) = self.partitions.get_mut(partition).filter(|t| !t.closing) {
            self.assignments += 1;
            let assignment = self.assignments;
            *tracker = Tracker { assignment, adopted: tracker.adopted, ..Tracker::default() };
        }
    }

    /// Takes a message in; one of a partition that is not ours is dropped.
    pub(crate) fn push(&mut self, message: RawMessage, lane: Uuid) {
        let partition = (Arc::clone(&message.source.topic), message.source.partition);
        let Some(tracker) = self.partitions.get_mut(&partition).filter(|t| !t.closing) else {
            return;
        };
        let offset = message.source.offset;
        tracker.unfinished.insert(offset);
        tracker.next = Some(offset + 1);
        let bytes = message.bytes();
        let item = InFlight { message, lane, bytes, assignment: tracker.assignment };
        self.messages += 1;
        self.bytes += bytes;
        let queue = self.lanes.entry(lane).or_default();
        queue.queue.push_back(item);
        if !queue.taken {
            queue.taken = true;
            self.ready.push_back(lane);
        }
    }

    /// At most `max` messages of lanes that nobody works on; empty when there are none.
    pub(crate) fn take(&mut self, max: usize) -> Vec<InFlight> {
        let mut items = Vec::new();
        while items.len() < max {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            let room = max - items.len();
            items.extend(lane.queue.drain(..room.min(lane.queue.len())));
        }
        for item in &items {
            if let Some(tracker) = self.partitions.get_mut(&item.partition()) {
                tracker.running += 1;
            }
        }
        items
    }

    /// Whether there is something to take.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// What was taken is finished, or, where a worker gave up, was not touched.
    pub(crate) fn done(&mut self, items: &[InFlight], finished: bool) {
        for item in items {
            self.messages -= 1;
            self.bytes -= item.bytes;
            if let Some(tracker) = self.current(item) {
                tracker.running -= 1;
                if finished {
                    tracker.unfinished.remove(&item.message.source.offset);
                }
            }
        }
        if !finished {
            // Nobody may take what comes behind it.
            return;
        }
        let lanes: BTreeSet<Uuid> = items.iter().map(|item| item.lane).collect();
        for id in lanes {
            match self.lanes.get(&id) {
                Some(lane) if lane.queue.is_empty() => drop(self.lanes.remove(&id)),
                Some(_) => self.ready.push_back(id),
                None => {}
            }
        }
    }

    fn current(&mut self, item: &InFlight) -> Option<&mut Tracker> {
        let tracker = self.partitions.get_mut(&item.partition())?;
        (tracker.assignment == item.assignment).then_some(tracker)
    }

    /// Takes nothing more of these partitions and drops what no worker has.
    pub(crate) fn close(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(tracker) = self.partitions.get_mut(partition) {
                tracker.closing = true;
            }
        }
        self.drop_queued(partitions);
    }

    fn drop_queued(&mut self, partitions: &[Partition]) {
        let (mut messages, mut bytes) = (0, 0);
        for lane in self.lanes.values_mut() {
            lane.queue.retain(|item| {
                let goes = partitions.contains(&item.partition());
                if goes {
                    messages += 1;
                    bytes += item.bytes;
                }
                !goes
            });
        }
        self.messages -= messages;
        self.bytes -= bytes;
        // A lane that waits for a worker with nothing in it would be an empty batch.
        let lanes = &mut self.lanes;
        self.ready.retain(|id| {
            let empty = lanes.get(id).is_none_or(|lane| lane.queue.is_empty());
            if empty {
                lanes.remove(id);
            }
            !empty
        });
    }

    /// Messages of these partitions that workers have.
    pub(crate) fn running(&self, partitions: &[Partition]) -> usize {
        partitions.iter().filter_map(|p| self.partitions.get(p)).map(|t| t.running).sum()
    }

    /// All partitions that are ours.
    pub(crate) fn partitions(&self) -> Vec<Partition> {
        self.partitions.keys().cloned().collect()
    }

    /// These are not ours any more; what workers still have of them ends without a trace here.
    pub(crate) fn forget(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.partitions.remove(partition);
        }
    }

    /// Where each partition would be resumed, of those where that has changed since it was asked.
    pub(crate) fn committable(&mut self) -> Vec<(Partition, i64)> {
        let mut offsets = Vec::new();
        for (partition, tracker) in &mut self.partitions {
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

    /// Messages here, and their size in bytes.
    pub(crate) fn load(&self) -> (usize, usize) {
        (self.messages, self.bytes)
    }

    /// Grows with each assignment.
    pub(crate) fn assignments(&self) -> u64 {
        self.assignments
    }
}

#[cfg(test)]
mod tests;
