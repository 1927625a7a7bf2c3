use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;

use super::*;
use crate::{
    dispatch::{lanes::InFlight, queue::DispatchQueue, worker::work_once},
    message::{Message, Source},
    message_id::MessageId,
    processor::Stop,
};

const LEASE: Duration = Duration::from_secs(30);

fn message(group: u8, number: u64) -> RawMessage {
    let id = MessageId::at(Uuid::from_u128(number.into()), std::time::UNIX_EPOCH);
    Message::new(id, Source::of_queue("q"), None).with_key(vec![group])
}

fn lane(group: u8) -> Uuid {
    Uuid::from_u128(group.into())
}

fn lanes() -> LaneScheduler<EachMessage<u64>> {
    LaneScheduler::with(EachMessage::new(Some(LEASE), Duration::from_secs(5)))
}

#[test]
fn each_message_is_acknowledged_by_itself_and_only_when_it_is_handled() {
    let (mut lanes, now) = (lanes(), Instant::now());
    for handle in 1..=3 {
        lanes.push(message(1, handle), lane(1), handle, now);
    }
    lanes.push(message(2, 4), lane(2), 4, now);
    let (first, other) = (lanes.take(1), lanes.take(9));
    assert_eq!(other.len(), 1, "its lane is with a worker");
    lanes.done(&other, true);
    assert_eq!(
        lanes.answers(now),
        [Answer::Acknowledge(4)],
        "1 is not finished, and holds nothing up"
    );
    lanes.done(&first, false);
    let rest = [1, 2, 3].map(|handle| Answer::Return(handle, Duration::from_secs(5)));
    assert_eq!(lanes.answers(now), rest, "what was given up, and what waits behind it");
    lanes.push(message(1, 1), lane(1), 6, now);
    let again = lanes.take(9);
    assert_eq!(again.len(), 1, "it came again, and its lane is free");
    lanes.done(&again, true);
    assert_eq!(lanes.answers(now), [Answer::Acknowledge(6)]);
    lanes.push(message(2, 5), lane(2), 5, now);
    lanes.close();
    lanes.push(message(3, 7), lane(3), 7, now);
    let back = [5, 7].map(|handle| Answer::Return(handle, Duration::ZERO));
    assert_eq!(lanes.answers(now), back);
    assert_eq!((lanes.load(), lanes.running(), lanes.renewal()), ((0, 0), 0, None));
}

#[test]
fn what_waits_or_is_at_work_keeps_its_lease_and_what_is_answered_does_not() {
    let (mut lanes, now) = (lanes(), Instant::now());
    for (handle, group) in [(1, 1), (2, 1), (3, 2)] {
        lanes.push(message(group, handle), lane(group), handle, now);
    }
    let items = lanes.take(1);
    assert_eq!(lanes.answers(now + LEASE / 3 - Duration::from_millis(1)), []);
    let held = [1, 2, 3].map(Answer::Extend);
    assert_eq!(lanes.answers(now + LEASE / 3), held);
    lanes.done(&items, true);
    let later = [Answer::Acknowledge(1), Answer::Extend(2), Answer::Extend(3)];
    assert_eq!(lanes.answers(now + LEASE), later);
    assert_eq!(lanes.renewal(), Some(now + LEASE + LEASE / 3));
}

/// A broker as SQS is with groups: of a group nothing is delivered while one of it is out, but together;
/// what is returned, or whose lease has ended, comes again in its place.
#[derive(Default)]
struct Broker {
    groups: BTreeMap<u8, BTreeMap<u64, Option<Instant>>>,
    sent: u64,
}

impl Broker {
    fn send(&mut self, group: u8) {
        self.sent += 1;
        self.groups.entry(group).or_default().insert(self.sent, None);
    }

    fn receive(&mut self, group: u8, max: usize, now: Instant) -> Vec<u64> {
        let messages = self.groups.entry(group).or_default();
        if messages.values().any(|until| until.is_some_and(|until| until > now)) {
            return Vec::new();
        }
        let got = messages.iter_mut().take(max).map(|(number, until)| {
            *until = Some(now + LEASE);
            *number
        });
        got.collect()
    }

    fn hear(&mut self, answer: &Answer<(u8, u64)>, now: Instant) {
        match *answer {
            Answer::Acknowledge((group, number)) => {
                self.groups.entry(group).or_default().remove(&number);
            }
            Answer::Return((group, number), delay) => {
                if let Some(until) = self.groups.entry(group).or_default().get_mut(&number) {
                    *until = Some(now + delay);
                }
            }
            Answer::Extend((group, number)) => {
                let found = self.groups.entry(group).or_default().get_mut(&number);
                if let Some(until) = found.filter(|until| until.is_some_and(|until| until > now)) {
                    *until = Some(now + LEASE);
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(u8),
    Receive(u8, usize),
    Take(usize),
    Done(bool),
    Answer,
    Wait(u64),
    /// The runner ends in an orderly way, and another begins.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u8).prop_map(Step::Send),
        6 => (0..4_u8, 1..4_usize).prop_map(|(group, max)| Step::Receive(group, max)),
        4 => (1..4_usize).prop_map(Step::Take),
        4 => prop::bool::weighted(0.9).prop_map(Step::Done),
        4 => Just(Step::Answer),
        2 => (1..40_u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

/// The runner, its workers, and what the database remembers.
struct World {
    broker: Broker,
    lanes: LaneScheduler<EachMessage<(u8, u64)>>,
    at_work: VecDeque<Vec<InFlight<u64>>>,
    /// Messages in the order in which they took effect, by group; copies count once.
    handled: BTreeMap<u8, Vec<u64>>,
    known: BTreeSet<u64>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        World {
            broker: Broker::default(),
            lanes: LaneScheduler::with(EachMessage::new(Some(LEASE), Duration::from_secs(5))),
            at_work: VecDeque::new(),
            handled: BTreeMap::new(),
            known: BTreeSet::new(),
            now: Instant::now(),
        }
    }

    fn done(&mut self, finished: bool) {
        let Some(items) = self.at_work.pop_front() else { return };
        for item in items.iter().filter(|_| finished) {
            let group = item.message.key.as_ref().map_or(0, |key| key[0]);
            let number = u64::try_from(item.message.id.uuid().as_u128()).expect("small");
            if self.known.insert(number) {
                self.handled.entry(group).or_default().push(number);
            }
        }
        self.lanes.done(&items, finished);
    }

    fn answer(&mut self) -> Result<(), TestCaseError> {
        for answer in self.lanes.answers(self.now) {
            if let Answer::Acknowledge((_, number)) = &answer {
                prop_assert!(self.known.contains(number), "{number} was acknowledged unhandled");
            }
            self.broker.hear(&answer, self.now);
        }
        Ok(())
    }

    fn play(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Send(group) => self.broker.send(group),
            Step::Receive(group, max) => {
                for number in self.broker.receive(group, max, self.now) {
                    let message = message(group, number);
                    self.lanes.push(message, lane(group), (group, number), self.now);
                }
            }
            Step::Take(max) => {
                let items = self.lanes.take(max);
                prop_assert!(items.len() <= max);
                for item in &items {
                    let busy = self.at_work.iter().flatten().any(|other| other.lane == item.lane);
                    prop_assert!(!busy, "a lane is with two workers");
                }
                if !items.is_empty() {
                    self.at_work.push_back(items);
                }
            }
            Step::Done(finished) => self.done(finished),
            Step::Answer => self.answer()?,
            Step::Wait(seconds) => self.now += Duration::from_secs(seconds),
            Step::Restart => self.restart()?,
        }
        for (group, numbers) in &self.handled {
            prop_assert!(numbers.is_sorted(), "group {group}: {numbers:?}");
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), TestCaseError> {
        self.lanes.close();
        while !self.at_work.is_empty() {
            self.done(true);
        }
        prop_assert_eq!((self.lanes.running(), self.lanes.load()), (0, (0, 0)), "drain ends");
        self.answer()?;
        prop_assert_eq!(self.lanes.renewal(), None);
        prop_assert!(self.lanes.is_empty() || self.lanes.take(9).is_empty());
        self.lanes = LaneScheduler::with(EachMessage::new(Some(LEASE), Duration::from_secs(5)));
        Ok(())
    }
}

proptest! {
    /// Nothing is acknowledged before it is handled, each group takes effect in its order, and whatever
    /// happens, all is handled and acknowledged in the end.
    #[test]
    fn each_message_keeps_every_promise_whatever_happens(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        for step in &steps {
            world.play(step)?;
        }
        // What is here goes its way, and then what comes again; no runner need end for that.
        for _ in 0..2 {
            loop {
                world.play(&Step::Take(3))?;
                if world.at_work.is_empty() {
                    break;
                }
                world.play(&Step::Done(true))?;
            }
            world.answer()?;
            world.play(&Step::Wait(LEASE.as_secs() * 2))?;
            for group in 0..4 {
                world.play(&Step::Receive(group, usize::MAX))?;
            }
        }
        prop_assert_eq!(world.lanes.load(), (0, 0));
        prop_assert_eq!(world.known.len() as u64, world.broker.sent);
        prop_assert!(world.broker.groups.values().all(BTreeMap::is_empty), "all is acknowledged");
    }
}

#[tokio::test]
async fn a_worker_that_is_dropped_gives_back_what_it_has() {
    let queue = Arc::new(DispatchQueue::new(lanes()));
    queue.change(|lanes| lanes.push(message(1, 1), lane(1), 1, Instant::now()));
    let (begun, wait) = tokio::sync::oneshot::channel();
    let of_worker = Arc::clone(&queue);
    let worker = tokio::spawn(async move {
        let process = |_| async move {
            begun.send(()).expect("the test waits");
            std::future::pending::<Result<(), Stop>>().await
        };
        work_once(&of_worker, 1, process).await
    });
    wait.await.expect("the worker has it");
    assert_eq!(queue.lanes().running(), 1);
    worker.abort();
    worker.await.expect_err("it was aborted");
    queue.news().await;
    let answers = queue.lanes().answers(Instant::now());
    assert_eq!(answers, [Answer::Return(1, Duration::from_secs(5))]);
    assert_eq!(queue.lanes().load(), (0, 0));
}
