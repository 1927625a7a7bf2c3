//! The broker, the group and the processes, played step by step around an inbox and real lanes.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, resume_unwind},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt as _, future};
use outbox_idempotency::{
    Message, MessageId, OrderBy, RawMessage, Source, Stop, kafka::offline::Offline,
};
use proptest::sample::Index;
use uuid::Uuid;

use super::{
    Answer, Step,
    backend::{Backend, Death, dies_at},
    promise::{OUTSIDE, Promise},
};

pub(super) const TOPIC: &str = "steps";
pub(super) const PARTITIONS: usize = 2;
/// Of messages that are kept in order: their partition and their key.
pub(super) const LANES: [(usize, Option<&str>); 5] =
    [(0, Some("a")), (0, Some("b")), (0, None), (1, Some("c")), (1, None)];
/// Records that a member takes in at once from a frozen one.
const OVERLAP: usize = 8;
/// Rounds after which all must be done at the end: a message is tried a few times in each.
const ROUNDS: usize = 40;

/// A defect put between the inbox and the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// A copy is not known for one.
    Forgetful,
    /// An offset is committed when its record is polled.
    Hasty,
    /// What has failed is overtaken.
    Unordered,
}

impl Mutant {
    pub(super) const ALL: [Mutant; 3] = [Mutant::Forgetful, Mutant::Hasty, Mutant::Unordered];

    /// The promise that it breaks.
    pub(super) fn breaks(self) -> &'static str {
        match self {
            Mutant::Forgetful => "doubled",
            Mutant::Hasty => "acknowledged",
            Mutant::Unordered => "overtaken",
        }
    }
}

/// What was published, by numbers from 0 on.
#[derive(Default)]
pub(super) struct Log {
    messages: Vec<(RawMessage, usize, Vec<Answer>)>,
    /// What the broker has, copies included, by offsets.
    partitions: [Vec<(i32, RawMessage)>; PARTITIONS],
}

fn index<T: TryInto<usize>>(n: T) -> usize {
    n.try_into().ok().expect("not negative")
}

impl Log {
    pub(super) fn lane(&self, n: i32) -> usize {
        self.messages[index(n)].1
    }

    pub(super) fn answers(&self, n: i32) -> &[Answer] {
        &self.messages[index(n)].2
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = i32> {
        (0..).take(self.messages.len())
    }

    pub(super) fn of_lane(&self, lane: usize) -> impl Iterator<Item = i32> {
        self.numbers().filter(move |n| self.lane(*n) == lane)
    }

    pub(super) fn before(&self, partition: usize, offset: i64) -> impl Iterator<Item = i32> {
        self.partitions[partition][..index(offset)].iter().map(|(n, _)| *n)
    }

    pub(super) fn after(&self, partition: usize, offset: i64) -> impl Iterator<Item = i32> {
        self.partitions[partition][index(offset)..].iter().map(|(n, _)| *n)
    }

    /// The relay publishes a new one.
    fn publish(&mut self, lane: usize, age: u64, answers: &[Answer]) {
        let n = i32::try_from(self.messages.len()).expect("few");
        let occurred = SystemTime::now() - Duration::from_secs(age * 86_400);
        let (partition, key) = LANES[lane];
        let position = format!("7:1:{:016X}:0000000000", n + 1);
        let headers =
            [("outbox-relay", "orders".to_owned()), ("outbox-position", position)].into_iter();
        let source = Source::new(TOPIC, i32::try_from(partition).expect("few"), 0);
        let id = MessageId::at(Uuid::now_v7(), occurred);
        let mut message = Message::new(id, source, Some(n.to_string().into()))
            .with_headers(headers.map(|(name, value)| (name, Some(value))).collect());
        message.key = key.map(|key| key.as_bytes().to_vec());
        self.messages.push((message, lane, answers.to_vec()));
        self.append(n, false);
    }

    /// The broker stores a record of it.
    fn append(&mut self, n: i32, repaired: bool) {
        let (mut message, lane, _) = self.messages[index(n)].clone();
        if repaired {
            // Its position is where the repair began, past all that came before.
            let position = format!("7:1:{:016X}:0000000000", self.messages.len());
            message.headers.set("outbox-position", Some(position.into_bytes()));
            message.headers.push("outbox-repaired", Some(b"1".to_vec()));
        }
        let records = &mut self.partitions[LANES[lane].0];
        message.source.offset = i64::try_from(records.len()).ok();
        records.push((n, message));
    }
}

/// A process: what it has in memory.
#[derive(Default)]
struct Member {
    desk: Offline,
    /// Where it reads on.
    positions: [i64; PARTITIONS],
    /// Partitions that it has lost and does not know of.
    lost: Vec<usize>,
}

pub(super) struct World<B> {
    backend: B,
    mutant: Option<Mutant>,
    log: Log,
    members: [Member; 2],
    /// Which member each partition belongs to.
    owners: [usize; PARTITIONS],
    committed: [i64; PARTITIONS],
    promise: Promise,
    /// Counts what a forgetful inbox has seen.
    forgotten: u128,
}

fn number(partition: usize) -> i32 {
    i32::try_from(partition).expect("few")
}

impl<B: Backend> World<B> {
    pub(super) async fn new(backend: B, mutant: Option<Mutant>) -> Self {
        let mut world = World {
            backend,
            mutant,
            log: Log::default(),
            members: Default::default(),
            owners: [0, 1],
            committed: [0; PARTITIONS],
            promise: Promise::default(),
            forgotten: 0,
        };
        for partition in 0..PARTITIONS {
            world.assign(partition).await;
        }
        world
    }

    /// # Errors
    /// The promise that it broke.
    pub(super) async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Publish { lane, age, answers } => {
                let n = self.log.numbers().count();
                self.backend.expect(i32::try_from(n).expect("few"), answers);
                self.log.publish(*lane, *age, answers);
            }
            Step::Again { last, repaired } => {
                let first = self.log.messages.len().saturating_sub(*last);
                for n in self.log.numbers().skip(first).collect::<Vec<_>>() {
                    self.log.append(n, *repaired);
                }
            }
            Step::Poll { member, max } => self.poll(*member, *max),
            Step::Work { workers, due, dies } => self.work(*workers, *due, *dies).await,
            Step::Commit { member } => self.commit(*member),
            Step::Move { partition, frozen } => self.pass_on(*partition, *frozen).await,
            Step::Die { member } => self.restart(*member).await,
            Step::Replay(index) => self.replay(*index).await,
            Step::Forget => self.backend.forget_a_day().await,
        }
        self.promise.keep(&self.log, &self.committed, self.backend.seen().await)
    }

    /// Until nothing is left to do, with handlers that succeed from now on.
    ///
    /// # Errors
    /// As [`World::step`], or what is left.
    pub(super) async fn end(&mut self) -> Result<(), String> {
        self.backend.fix();
        for _ in 0..ROUNDS {
            for letter in self.promise.seen.dead.clone() {
                if letter.code != OUTSIDE {
                    self.backend.replay(letter.message).await;
                }
            }
            for member in 0..2 {
                self.step(&Step::Poll { member, max: 100 }).await?;
            }
            let due = (!self.promise.seen.parked.is_empty()).then_some(0);
            self.step(&Step::Work { workers: [3, 3], due, dies: None }).await?;
            for member in 0..2 {
                self.step(&Step::Commit { member }).await?;
            }
            if self.promise.finished(&self.log, &self.resumed().await).is_ok() {
                break;
            }
        }
        self.promise.finished(&self.log, &self.resumed().await)
    }

    /// What is known to be done: by the inbox, which lags behind copies that it has seen, or by the
    /// broker, which does not hear of what was done before a death.
    async fn resumed(&self) -> [i64; PARTITIONS] {
        let mut resumed = self.committed;
        for (partition, offset) in resumed.iter_mut().enumerate() {
            let owner = self.owners[partition];
            let known = self.backend.start_offset(owner, number(partition)).await;
            *offset = known.unwrap_or(0).max(*offset);
        }
        resumed
    }

    /// Gives a partition to the member that it belongs to.
    async fn assign(&mut self, partition: usize) {
        let member = self.owners[partition];
        self.notice(member, |lost| lost == partition);
        let known = self.backend.start_offset(member, number(partition)).await;
        let Member { desk, positions, .. } = &mut self.members[member];
        positions[partition] = known.unwrap_or(self.committed[partition]);
        desk.assign(TOPIC, number(partition));
    }

    /// It hears that partitions were lost.
    fn notice(&mut self, member: usize, which: impl Fn(usize) -> bool) {
        let Member { desk, lost, .. } = &mut self.members[member];
        for partition in lost.extract_if(.., |partition| which(*partition)) {
            desk.close(TOPIC, number(partition));
            desk.forget(TOPIC, number(partition));
        }
    }

    fn poll(&mut self, member: usize, max: usize) {
        self.notice(member, |_| true);
        for partition in (0..PARTITIONS).filter(|p| self.owners[*p] == member) {
            let Member { desk, positions, .. } = &mut self.members[member];
            let position = &mut positions[partition];
            for (_, record) in
                self.log.partitions[partition].iter().skip(index(*position)).take(max)
            {
                let mut record = record.clone();
                if self.mutant == Some(Mutant::Forgetful) {
                    self.forgotten += 1;
                    record.id = MessageId::at(Uuid::from_u128(self.forgotten), SystemTime::now());
                }
                *position += 1;
                let unordered = self.mutant == Some(Mutant::Unordered);
                let lanes = if unordered { OrderBy::None } else { self.backend.lanes() };
                desk.push(record, lanes);
            }
            if self.mutant == Some(Mutant::Hasty) {
                self.committed[partition] = *position;
            }
        }
    }

    async fn work(&mut self, workers: [usize; 2], due: Option<usize>, dies: Option<u32>) {
        if due.is_some() {
            self.backend.make_due().await;
        }
        dies_at(dies.unwrap_or(0));
        let [one, two] = &self.members;
        let lives = future::join(
            live(&self.backend, 0, &one.desk, workers[0], due == Some(0)),
            live(&self.backend, 1, &two.desk, workers[1], due == Some(1)),
        );
        let (one, two) = lives.await;
        dies_at(0);
        for (member, lives) in [one, two].into_iter().enumerate() {
            if !lives {
                self.restart(member).await;
            }
        }
    }

    /// The broker takes offsets only from a partition's owner.
    fn commit(&mut self, member: usize) {
        for ((_, partition), offset) in self.members[member].desk.committable() {
            let partition = index(partition);
            if self.owners[partition] == member && !self.members[member].lost.contains(&partition) {
                self.committed[partition] = offset;
            }
        }
    }

    async fn pass_on(&mut self, partition: usize, frozen: bool) {
        let from = self.owners[partition];
        if !frozen {
            self.members[from].desk.close(TOPIC, number(partition));
        }
        self.commit(from);
        if frozen {
            self.members[from].lost.push(partition);
        } else {
            self.members[from].desk.forget(TOPIC, number(partition));
        }
        self.owners[partition] = 1 - from;
        self.assign(partition).await;
        if frozen {
            // What both have now they may handle at once.
            self.poll(1 - from, OVERLAP);
        }
    }

    async fn restart(&mut self, member: usize) {
        self.members[member] = Member::default();
        self.backend.restart(member).await;
        let owners = self.owners;
        for partition in (0..PARTITIONS).filter(|p| owners[*p] == member) {
            self.assign(partition).await;
        }
    }

    /// Of a message that may have taken effect when its day was forgotten, only a person knows.
    async fn replay(&mut self, index: Index) {
        let seen = &self.promise.seen;
        let told = |n: &i32| !seen.effects.contains(n) && !seen.parked.contains(n);
        let letters: Vec<i32> =
            seen.dead.iter().map(|letter| letter.message).filter(told).collect();
        if !letters.is_empty() {
            self.backend.replay(*index.get(&letters)).await;
        }
    }
}

/// A member at work: false when it has died, or its handler has said that it can't continue.
async fn live(
    backend: &impl Backend,
    member: usize,
    desk: &Offline,
    workers: usize,
    takes_up: bool,
) -> bool {
    let workers = (0..workers)
        .map(|_| desk.work(backend.batch_max(), |messages| backend.process(member, messages)));
    let take_up = async { if takes_up { backend.take_up(member).await } else { Ok(()) } };
    let work = future::try_join(future::try_join_all(workers), take_up);
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(_)) => true,
        Ok(Err(Stop::Handler(_))) => false,
        Ok(Err(stop)) => panic!("{stop:?}"),
        Err(panic) if is_death(&*panic) => false,
        Err(panic) => resume_unwind(panic),
    }
}

fn is_death(panic: &(dyn Any + Send)) -> bool {
    panic.is::<Death>()
}
