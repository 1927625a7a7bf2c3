use std::collections::VecDeque;

use super::*;
use crate::{
    dispatch::lanes::InFlight,
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
        timestamp: None,
        source: Source::new("t", partition, offset),
        attempt: 1,
    }
}

fn lane(n: u8) -> Uuid {
    Uuid::from_u128(u128::from(n))
}

fn partition(n: i32) -> Partition {
    ("t".into(), n)
}

fn offsets(items: &[InFlight<RecordPlace>]) -> Vec<i64> {
    items.iter().map(|item| item.token.offset).collect()
}

#[test]
fn a_lane_is_with_one_worker_at_a_time_and_offsets_wait_for_the_first() {
    let mut lanes = LaneScheduler::<PrefixOffsets>::default();
    lanes.assign(partition(0), None);
    for (offset, n) in [(10, 1), (12, 1), (13, 2)] {
        lanes.push(message(0, offset), lane(n));
    }
    assert_eq!(lanes.committable(), [(partition(0), 10)]);
    let first = lanes.take(1);
    let other = lanes.take(9);
    assert_eq!((offsets(&first), offsets(&other)), (vec![10], vec![13]));
    lanes.done(&other, true);
    assert_eq!(lanes.committable(), [], "10 is not finished");
    assert!(lanes.take(9).is_empty(), "12 waits for 10");
    lanes.done(&first, true);
    assert_eq!(lanes.committable(), [(partition(0), 12)]);
    let last = lanes.take(9);
    lanes.done(&last, true);
    assert_eq!(lanes.committable(), [(partition(0), 14)]);
    assert_eq!(lanes.load(), (0, 0));
}

#[test]
fn what_is_dropped_at_a_revocation_is_not_committed_past() {
    let mut lanes = LaneScheduler::<PrefixOffsets>::default();
    lanes.assign(partition(0), None);
    lanes.push(message(0, 1), lane(1));
    lanes.push(message(0, 2), lane(2));
    lanes.push(message(0, 3), lane(1));
    let items = lanes.take(1);
    lanes.close(&[partition(0)]);
    lanes.push(message(0, 4), lane(3));
    assert_eq!(lanes.running(&[partition(0)]), 1);
    lanes.done(&items, true);
    assert_eq!((lanes.running(&[partition(0)]), lanes.take(9).len()), (0, 0));
    assert_eq!(lanes.committable(), [(partition(0), 2)]);
    assert_eq!(lanes.load(), (0, 0));
}

#[test]
fn a_message_of_an_assignment_that_is_over_changes_nothing_in_the_next() {
    let mut lanes = LaneScheduler::<PrefixOffsets>::default();
    lanes.assign(partition(0), None);
    lanes.push(message(0, 1), lane(1));
    let zombie = lanes.take(1);
    lanes.close(&[partition(0)]);
    lanes.forget(&[partition(0)]);
    lanes.assign(partition(0), None);
    lanes.push(message(0, 1), lane(1));
    assert!(lanes.take(1).is_empty(), "its lane is still at work");
    lanes.done(&zombie, true);
    assert_eq!(lanes.committable(), [(partition(0), 1)]);
    let again = lanes.take(1);
    lanes.done(&again, true);
    assert_eq!(lanes.committable(), [(partition(0), 2)]);
    assert_eq!(lanes.load(), (0, 0));
}

fn number(partition: usize) -> i32 {
    i32::try_from(partition).expect("one of three")
}

#[test]
fn behind_a_message_that_was_given_up_nothing_of_its_lane_is_taken() {
    let mut lanes = LaneScheduler::<PrefixOffsets>::default();
    lanes.assign(partition(0), None);
    for (offset, n) in [(1, 1), (2, 1), (3, 2)] {
        lanes.push(message(0, offset), lane(n));
    }
    let given_up = lanes.take(1);
    lanes.done(&given_up, false);
    assert_eq!(offsets(&lanes.take(9)), [3]);
    assert_eq!(lanes.committable(), [(partition(0), 1)]);
    assert_eq!(lanes.running(&[partition(0)]), 1, "only what another worker has");
}

#[test]
fn what_is_behind_the_last_record_is_committed_past_when_that_is_finished() {
    let mut lanes = LaneScheduler::<PrefixOffsets>::default();
    lanes.assign(partition(0), Some(3));
    assert_eq!(lanes.expected(&partition(0)), Some(3));
    lanes.push(message(0, 3), lane(1));
    lanes.passed(&partition(0), 7);
    assert_eq!(lanes.committable(), [(partition(0), 3)], "3 is not finished");
    let items = lanes.take(1);
    lanes.done(&items, true);
    assert_eq!(lanes.committable(), [(partition(0), 7)]);
    assert_eq!(lanes.expected(&partition(0)), Some(7));
    lanes.assign(partition(1), None);
    lanes.passed(&partition(1), 1002);
    assert_eq!(lanes.committable(), [(partition(1), 1002)], "nothing but aborted ones");
    lanes.close(&[partition(1)]);
    lanes.passed(&partition(1), 2000);
    assert_eq!(lanes.committable(), [], "it is about to go");
}

#[test]
fn a_partition_that_begins_again_forgets_what_it_was() {
    let mut lanes = LaneScheduler::<PrefixOffsets>::default();
    lanes.assign(partition(0), None);
    for offset in [50, 51] {
        lanes.push(message(0, offset), lane(1));
    }
    assert_eq!((lanes.adopt(), lanes.adopt()), (vec![partition(0)], vec![]));
    let old = lanes.take(1);
    lanes.restart(&partition(0));
    assert_eq!(lanes.expected(&partition(0)), None);
    lanes.push(message(0, 0), lane(1));
    assert!(lanes.take(9).is_empty(), "its lane is still at work");
    lanes.done(&old, true);
    let new = lanes.take(9);
    assert_eq!(offsets(&new), [0]);
    assert_eq!(lanes.committable(), [(partition(0), 0)], "51 is no part of it");
    lanes.done(&new, true);
    assert_eq!(lanes.committable(), [(partition(0), 1)]);
    assert_eq!((lanes.load(), lanes.adopt()), ((0, 0), vec![]));
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
    fn offsets_and_lanes_keep_every_promise_whatever_happens(steps in prop::collection::vec(step(), 1..200)) {
        let mut lanes = LaneScheduler::<PrefixOffsets>::default();
        let mut next = [0_i64; 3];
        let mut ours = [false; 3];
        let mut unfinished: HashMap<usize, BTreeSet<i64>> = HashMap::new();
        let mut at_work: VecDeque<Vec<InFlight<RecordPlace>>> = VecDeque::new();
        for step in steps {
            match step {
                Step::Push(p, l) => {
                    let offset = next[p];
                    next[p] += 1;
                    lanes.push(message(number(p), offset), lane(l));
                    if ours[p] {
                        unfinished.entry(p).or_default().insert(offset);
                    }
                }
                Step::End(p, markers) => {
                    next[p] += markers;
                    lanes.passed(&partition(number(p)), next[p]);
                }
                Step::Take(max) => {
                    let items = lanes.take(max);
                    prop_assert!(items.len() <= max);
                    for item in &items {
                        let busy = at_work.iter().flatten().any(|other| other.lane == item.lane);
                        prop_assert!(!busy, "a lane is with two workers");
                    }
                    let mut last: HashMap<(Uuid, i32), i64> = HashMap::new();
                    for item in &items {
                        let RecordPlace { partition, offset, .. } = &item.token;
                        let before = last.insert((item.lane, partition.1), *offset);
                        prop_assert!(before.is_none_or(|before| before < *offset));
                    }
                    if !items.is_empty() {
                        at_work.push_back(items);
                    }
                }
                Step::Done => {
                    if let Some(items) = at_work.pop_front() {
                        lanes.done(&items, true);
                        for item in items {
                            let p = item.token.partition.1;
                            let current = lanes.acks.partitions.get(&partition(p));
                            let p = usize::try_from(p).expect("not negative");
                            if current.is_some_and(|t| t.assignment == item.token.assignment) {
                                unfinished.entry(p).or_default().remove(&item.token.offset);
                            }
                        }
                    }
                }
                Step::Lose(p) => {
                    lanes.close(&[partition(number(p))]);
                    lanes.forget(&[partition(number(p))]);
                    ours[p] = false;
                    unfinished.remove(&p);
                }
                Step::Return(p) => {
                    if !ours[p] {
                        ours[p] = true;
                        lanes.assign(partition(number(p)), None);
                    }
                }
            }
            for ((_, p), offset) in lanes.committable() {
                let p = usize::try_from(p).expect("not negative");
                let first = unfinished.get(&p).and_then(BTreeSet::first);
                prop_assert!(first.is_none_or(|first| offset <= *first));
                prop_assert!(offset <= next[p]);
            }
        }
        while let Some(items) = at_work.pop_front() {
            lanes.done(&items, true);
        }
        loop {
            let items = lanes.take(3);
            if items.is_empty() {
                break;
            }
            lanes.done(&items, true);
        }
        prop_assert_eq!(lanes.load(), (0, 0));
        prop_assert!(lanes.is_empty());
    }
}
