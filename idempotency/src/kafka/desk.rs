//! What has come from the broker and is not finished, in memory: lanes for the workers, offsets
//! for the commits.
//!
//! ```text
//! poll thread ─► push ─► lane queues ─► take ─► worker ─► done
//!      ▲                                                   │
//!      └────────────── committable ◄───────────────────────┘
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

pub(super) type Partition = (Arc<str>, i32);

/// A message and what it was counted as.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) message: RawMessage,
    lane: Uuid,
    bytes: usize,
    /// Of its partition's assignment: one that was lost and came back is another.
    assignment: u64,
}

impl Item {
    fn partition(&self) -> Partition {
        (Arc::clone(&self.message.source.topic), self.message.source.partition)
    }
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<Item>,
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

/// The desk between one poll thread and the workers.
#[derive(Default)]
pub(super) struct Desk {
    lanes: HashMap<Uuid, Lane>,
    /// Lanes with something for a worker, longest waiting first.
    ready: VecDeque<Uuid>,
    partitions: HashMap<Partition, Tracker>,
    assignments: u64,
    messages: usize,
    bytes: usize,
}

impl Desk {
    /// A partition is ours from now on, read from `start` where that is known.
    pub(super) fn assign(&mut self, partition: Partition, start: Option<i64>) {
        self.assignments += 1;
        let tracker = Tracker { assignment: self.assignments, start, ..Tracker::default() };
        self.partitions.insert(partition, tracker);
    }

    /// Partitions that came since this was asked.
    pub(super) fn adopt(&mut self) -> Vec<Partition> {
        let fresh = self.partitions.iter_mut().filter(|(_, tracker)| !tracker.adopted);
        let fresh = fresh.map(|(partition, tracker)| {
            tracker.adopted = true;
            partition.clone()
        });
        fresh.collect()
    }

    /// Where reading should go on; `None` where nobody knows, and of what is not ours.
    pub(super) fn expected(&self, partition: &Partition) -> Option<i64> {
        let tracker = self.partitions.get(partition).filter(|tracker| !tracker.closing)?;
        tracker.next.or(tracker.start)
    }

    /// All before `offset` was pushed, and in between there is nothing to push.
    pub(super) fn passed(&mut self, partition: &Partition, offset: i64) {
        if let Some(tracker) = self.partitions.get_mut(partition).filter(|t| !t.closing) {
            tracker.next = Some(offset);
        }
    }

    /// A partition of ours is read from elsewhere: what is here of it is another's.
    pub(super) fn restart(&mut self, partition: &Partition) {
        self.drop_queued(std::slice::from_ref(partition));
        if let Some(tracker) = self.partitions.get_mut(partition).filter(|t| !t.closing) {
            self.assignments += 1;
            let assignment = self.assignments;
            *tracker = Tracker { assignment, adopted: tracker.adopted, ..Tracker::default() };
        }
    }

    /// Takes a message in; one of a partition that is not ours is dropped.
    pub(super) fn push(&mut self, message: RawMessage, lane: Uuid) {
        let partition = (Arc::clone(&message.source.topic), message.source.partition);
        let Some(tracker) = self.partitions.get_mut(&partition).filter(|t| !t.closing) else {
            return;
        };
        let offset = message.source.offset;
        tracker.unfinished.insert(offset);
        tracker.next = Some(offset + 1);
        let bytes = bytes(&message);
        let item = Item { message, lane, bytes, assignment: tracker.assignment };
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
    pub(super) fn take(&mut self, max: usize) -> Vec<Item> {
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
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// What was taken is finished, or, where a worker gave up, was not touched.
    pub(super) fn done(&mut self, items: &[Item], finished: bool) {
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

    fn current(&mut self, item: &Item) -> Option<&mut Tracker> {
        let tracker = self.partitions.get_mut(&item.partition())?;
        (tracker.assignment == item.assignment).then_some(tracker)
    }

    /// Takes nothing more of these partitions and drops what no worker has.
    pub(super) fn close(&mut self, partitions: &[Partition]) {
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
    pub(super) fn running(&self, partitions: &[Partition]) -> usize {
        partitions.iter().filter_map(|p| self.partitions.get(p)).map(|t| t.running).sum()
    }

    /// All partitions that are ours.
    pub(super) fn partitions(&self) -> Vec<Partition> {
        self.partitions.keys().cloned().collect()
    }

    /// These are not ours any more; what workers still have of them ends without a trace here.
    pub(super) fn forget(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            self.partitions.remove(partition);
        }
    }

    /// Where each partition would be resumed, of those where that has changed since it was asked.
    pub(super) fn committable(&mut self) -> Vec<(Partition, i64)> {
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
    pub(super) fn load(&self) -> (usize, usize) {
        (self.messages, self.bytes)
    }

    /// Grows with each assignment.
    pub(super) fn assignments(&self) -> u64 {
        self.assignments
    }
}

/// Roughly what it takes in memory.
fn bytes(message: &RawMessage) -> usize {
    let headers: usize = message
        .headers
        .0
        .iter()
        .map(|(name, value)| 64 + name.len() + value.as_ref().map_or(0, Vec::len))
        .sum();
    let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
    256 + headers + len(&message.key) + len(&message.payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        message::{Headers, Message, Source},
        message_id::MessageId,
    };
    use proptest::prelude::*;

    fn message(partition: i32, offset: i64) -> RawMessage {
        Message {
            id: MessageId::at(Uuid::nil(), std::time::UNIX_EPOCH),
            key: None,
            payload: None,
            headers: Headers::default(),
            source: Source { topic: "t".into(), partition, offset },
            attempt: 1,
        }
    }

    fn lane(n: u8) -> Uuid {
        Uuid::from_u128(u128::from(n))
    }

    fn partition(n: i32) -> Partition {
        ("t".into(), n)
    }

    fn offsets(items: &[Item]) -> Vec<i64> {
        items.iter().map(|item| item.message.source.offset).collect()
    }

    #[test]
    fn a_lane_is_with_one_worker_at_a_time_and_offsets_wait_for_the_first() {
        let mut desk = Desk::default();
        desk.assign(partition(0), None);
        for (offset, n) in [(10, 1), (12, 1), (13, 2)] {
            desk.push(message(0, offset), lane(n));
        }
        assert_eq!(desk.committable(), [(partition(0), 10)]);
        let first = desk.take(1);
        let other = desk.take(9);
        assert_eq!((offsets(&first), offsets(&other)), (vec![10], vec![13]));
        desk.done(&other, true);
        assert_eq!(desk.committable(), [], "10 is not finished");
        assert!(desk.take(9).is_empty(), "12 waits for 10");
        desk.done(&first, true);
        assert_eq!(desk.committable(), [(partition(0), 12)]);
        let last = desk.take(9);
        desk.done(&last, true);
        assert_eq!(desk.committable(), [(partition(0), 14)]);
        assert_eq!(desk.load(), (0, 0));
    }

    #[test]
    fn what_is_dropped_at_a_revocation_is_not_committed_past() {
        let mut desk = Desk::default();
        desk.assign(partition(0), None);
        desk.push(message(0, 1), lane(1));
        desk.push(message(0, 2), lane(2));
        desk.push(message(0, 3), lane(1));
        let items = desk.take(1);
        desk.close(&[partition(0)]);
        desk.push(message(0, 4), lane(3));
        assert_eq!(desk.running(&[partition(0)]), 1);
        desk.done(&items, true);
        assert_eq!((desk.running(&[partition(0)]), desk.take(9).len()), (0, 0));
        assert_eq!(desk.committable(), [(partition(0), 2)]);
        assert_eq!(desk.load(), (0, 0));
    }

    #[test]
    fn a_message_of_an_assignment_that_is_over_changes_nothing_in_the_next() {
        let mut desk = Desk::default();
        desk.assign(partition(0), None);
        desk.push(message(0, 1), lane(1));
        let zombie = desk.take(1);
        desk.close(&[partition(0)]);
        desk.forget(&[partition(0)]);
        desk.assign(partition(0), None);
        desk.push(message(0, 1), lane(1));
        assert!(desk.take(1).is_empty(), "its lane is still at work");
        desk.done(&zombie, true);
        assert_eq!(desk.committable(), [(partition(0), 1)]);
        let again = desk.take(1);
        desk.done(&again, true);
        assert_eq!(desk.committable(), [(partition(0), 2)]);
        assert_eq!(desk.load(), (0, 0));
    }

    fn number(partition: usize) -> i32 {
        i32::try_from(partition).expect("one of three")
    }

    #[test]
    fn behind_a_message_that_was_given_up_nothing_of_its_lane_is_taken() {
        let mut desk = Desk::default();
        desk.assign(partition(0), None);
        for (offset, n) in [(1, 1), (2, 1), (3, 2)] {
            desk.push(message(0, offset), lane(n));
        }
        let given_up = desk.take(1);
        desk.done(&given_up, false);
        assert_eq!(offsets(&desk.take(9)), [3]);
        assert_eq!(desk.committable(), [(partition(0), 1)]);
        assert_eq!(desk.running(&[partition(0)]), 1, "only what another worker has");
    }

    #[test]
    fn what_is_behind_the_last_record_is_committed_past_when_that_is_finished() {
        let mut desk = Desk::default();
        desk.assign(partition(0), Some(3));
        assert_eq!(desk.expected(&partition(0)), Some(3));
        desk.push(message(0, 3), lane(1));
        desk.passed(&partition(0), 7);
        assert_eq!(desk.committable(), [(partition(0), 3)], "3 is not finished");
        let items = desk.take(1);
        desk.done(&items, true);
        assert_eq!(desk.committable(), [(partition(0), 7)]);
        assert_eq!(desk.expected(&partition(0)), Some(7));
        desk.assign(partition(1), None);
        desk.passed(&partition(1), 1002);
        assert_eq!(desk.committable(), [(partition(1), 1002)], "nothing but aborted ones");
        desk.close(&[partition(1)]);
        desk.passed(&partition(1), 2000);
        assert_eq!(desk.committable(), [], "it is about to go");
    }

    #[test]
    fn a_partition_that_begins_again_forgets_what_it_was() {
        let mut desk = Desk::default();
        desk.assign(partition(0), None);
        for offset in [50, 51] {
            desk.push(message(0, offset), lane(1));
        }
        assert_eq!((desk.adopt(), desk.adopt()), (vec![partition(0)], vec![]));
        let old = desk.take(1);
        desk.restart(&partition(0));
        assert_eq!(desk.expected(&partition(0)), None);
        desk.push(message(0, 0), lane(1));
        assert!(desk.take(9).is_empty(), "its lane is still at work");
        desk.done(&old, true);
        let new = desk.take(9);
        assert_eq!(offsets(&new), [0]);
        assert_eq!(desk.committable(), [(partition(0), 0)], "51 is no part of it");
        desk.done(&new, true);
        assert_eq!(desk.committable(), [(partition(0), 1)]);
        assert_eq!((desk.load(), desk.adopt()), ((0, 0), vec![]));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize, u8),
        /// The end of a partition, behind so many offsets without a record.
        End(usize, i64),
        Take(usize),
        Done,
        Lose(usize),
        Return(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..3_usize, 0..6_u8).prop_map(|(p, l)| Step::Push(p, l)),
            2 => (0..3_usize, 0..3_i64).prop_map(|(p, markers)| Step::End(p, markers)),
            4 => (1..4_usize).prop_map(Step::Take),
            4 => Just(Step::Done),
            1 => (0..3_usize).prop_map(Step::Lose),
            1 => (0..3_usize).prop_map(Step::Return),
        ]
    }

    proptest! {
        /// Against a model that knows each message's state: nothing is given out twice or out of
        /// order, no offset is committable past one that is unfinished, nothing is forgotten.
        #[test]
        fn the_desk_keeps_every_promise_whatever_happens(steps in prop::collection::vec(step(), 1..200)) {
            let mut desk = Desk::default();
            let mut next = [0_i64; 3];
            let mut ours = [false; 3];
            let mut unfinished: HashMap<usize, BTreeSet<i64>> = HashMap::new();
            let mut at_work: VecDeque<Vec<Item>> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Push(p, l) => {
                        let offset = next[p];
                        next[p] += 1;
                        desk.push(message(number(p), offset), lane(l));
                        if ours[p] {
                            unfinished.entry(p).or_default().insert(offset);
                        }
                    }
                    Step::End(p, markers) => {
                        next[p] += markers;
                        desk.passed(&partition(number(p)), next[p]);
                    }
                    Step::Take(max) => {
                        let items = desk.take(max);
                        prop_assert!(items.len() <= max);
                        for item in &items {
                            let busy = at_work.iter().flatten().any(|other| other.lane == item.lane);
                            prop_assert!(!busy, "a lane is with two workers");
                        }
                        let mut last: HashMap<(Uuid, i32), i64> = HashMap::new();
                        for item in &items {
                            let Source { partition, offset, .. } = item.message.source;
                            let before = last.insert((item.lane, partition), offset);
                            prop_assert!(before.is_none_or(|before| before < offset));
                        }
                        if !items.is_empty() {
                            at_work.push_back(items);
                        }
                    }
                    Step::Done => {
                        if let Some(items) = at_work.pop_front() {
                            desk.done(&items, true);
                            for item in items {
                                let p = item.message.source.partition;
                                let current = desk.partitions.get(&partition(p));
                                let p = usize::try_from(p).expect("not negative");
                                if current.is_some_and(|t| t.assignment == item.assignment) {
                                    unfinished.entry(p).or_default().remove(&item.message.source.offset);
                                }
                            }
                        }
                    }
                    Step::Lose(p) => {
                        desk.close(&[partition(number(p))]);
                        desk.forget(&[partition(number(p))]);
                        ours[p] = false;
                        unfinished.remove(&p);
                    }
                    Step::Return(p) => {
                        if !ours[p] {
                            ours[p] = true;
                            desk.assign(partition(number(p)), None);
                        }
                    }
                }
                for ((_, p), offset) in desk.committable() {
                    let p = usize::try_from(p).expect("not negative");
                    let first = unfinished.get(&p).and_then(BTreeSet::first);
                    prop_assert!(first.is_none_or(|first| offset <= *first));
                    prop_assert!(offset <= next[p]);
                }
            }
            while let Some(items) = at_work.pop_front() {
                desk.done(&items, true);
            }
            loop {
                let items = desk.take(3);
                if items.is_empty() {
                    break;
                }
                desk.done(&items, true);
            }
            prop_assert_eq!(desk.load(), (0, 0));
            prop_assert!(desk.lanes.is_empty());
        }
    }
}
