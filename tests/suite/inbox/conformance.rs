//! One suite for every inbox: the one in PostgreSQL, and the one in memory that users test with.
//!
//! A script of messages is brought to both, with handlers that fail as the script says; then what
//! took effect and what was given up must be what the script's author says, or, for scripts made up
//! at random, the same in both.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use outbox_harness::{database::Database, wait};
use outbox_idempotency::{
    Failure, Message, MessageId, OrderBy, Processor, RawMessage, Retry, Tx,
    dead_letters::{self, Page, Selection},
    testing::MemoryInbox,
};
use rand::Rng as _;

use super::effects::{Step, database, effects, inbox, message, number, take, with};

/// Attempts of a message before it is given up.
const ATTEMPTS: u32 = 3;

/// How a handler answers the attempts at a message; after the last one it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Transient,
    Later,
    Deferred,
    Permanent,
    Panic,
}

type Answers = HashMap<(String, i32), Vec<Answer>>;

/// What a handler does beside its effect. `calls` is how often it was called for the message.
fn answer(answers: &Answers, step: &Step, calls: usize) -> Result<(), Failure> {
    let of_message = answers.get(&(step.key.clone(), step.n));
    match of_message.and_then(|answers| answers.get(calls)) {
        None => Ok(()),
        Some(Answer::Transient) => Err(Failure::transient("not yet")),
        Some(Answer::Later) => Err(Failure::retry_after(Duration::from_millis(8), "later")),
        Some(Answer::Deferred) => {
            Err(Failure::defer(SystemTime::now() + Duration::from_millis(10)))
        }
        Some(Answer::Permanent) => Err(Failure::permanent("never", "never")),
        // Without the hook: its backtrace takes seconds in a debug build.
        Some(Answer::Panic) => std::panic::resume_unwind(Box::new("as the script says")),
    }
}

fn retry() -> Retry {
    Retry::exponential(Duration::from_millis(3), Duration::from_millis(10)).attempts(ATTEMPTS)
}

/// What a script came to, as far as it must be the same everywhere.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Of each key, in their order.
    effects: BTreeMap<String, Vec<i32>>,
    /// Source's offset, code, attempts; sorted.
    dead: Vec<(Option<i64>, String, u32)>,
    parked: usize,
}

/// An inbox of some kind.
trait Backend {
    async fn with(ordering: OrderBy, answers: Answers) -> Self;
    async fn bring(&mut self, message: &RawMessage);
    /// Until nothing waits any more.
    async fn settle(&mut self);
    async fn outcome(&self) -> Outcome;
}

struct Memory(MemoryInbox<Vec<Step>>);

impl Backend for Memory {
    async fn with(ordering: OrderBy, answers: Answers) -> Self {
        let mut calls: BTreeMap<Step, usize> = BTreeMap::new();
        let handler = move |effects: &mut Vec<Step>, message: Message<Step>| {
            let step = message.payload;
            let calls = calls.entry(step.clone()).or_default();
            *calls += 1;
            // Before it fails: what it did must be undone.
            effects.push(step.clone());
            answer(&answers, &step, *calls - 1)
        };
        Memory(MemoryInbox::new(Vec::new(), handler).retry(retry()).order_by(ordering))
    }

    async fn bring(&mut self, message: &RawMessage) {
        self.0.process(message).expect("nothing is fatal");
    }

    async fn settle(&mut self) {
        self.0.advance(Duration::from_secs(60)).expect("nothing is fatal");
    }

    async fn outcome(&self) -> Outcome {
        let dead = self.0.dead_letters().iter();
        let dead = dead.map(|dead| (dead.message.source.offset, dead.code.clone(), dead.attempts));
        outcome(self.0.state().clone(), dead.collect(), self.0.parked().count())
    }
}

struct Postgres {
    database: Database,
    processor: Processor,
}

impl Backend for Postgres {
    async fn with(ordering: OrderBy, answers: Answers) -> Self {
        let database = database().await;
        let answers = Arc::new(answers);
        let calls: Arc<std::sync::Mutex<BTreeMap<Step, usize>>> = Arc::default();
        let handler = move |tx: Tx, message: Message<Step>| {
            let (answers, calls) = (Arc::clone(&answers), Arc::clone(&calls));
            async move {
                let step = message.payload;
                let before = {
                    let mut calls = calls.lock().expect("no panic");
                    let calls = calls.entry(step.clone()).or_default();
                    *calls += 1;
                    *calls - 1
                };
                take(&tx, &step).await?;
                answer(&answers, &step, before)
            }
        };
        let processor = Processor::new(inbox(&database).await, handler);
        let processor = processor.retry(retry()).order_by(ordering);
        Postgres { database, processor }
    }

    async fn bring(&mut self, message: &RawMessage) {
        self.processor.process(std::slice::from_ref(message)).await.expect("settled");
    }

    async fn settle(&mut self) {
        let nothing_waits = wait::until("nothing waits", wait::PATIENCE, || async {
            match number(&self.database, "select count(*) from inbox.parked").await {
                0 => Ok(()),
                left => Err(format!("{left} left")),
            }
        });
        tokio::select! {
            stop = self.processor.background() => panic!("{stop}"),
            settled = nothing_waits => settled.expect("all is taken up"),
        }
    }

    async fn outcome(&self) -> Outcome {
        let client: &tokio_postgres::Client = self.database.superuser();
        let letters = dead_letters::list(client, &Selection::default(), Page::first(1000)).await;
        let letters = letters.expect("a list").into_iter();
        let attempts = |n| u32::try_from(n).expect("a count");
        let dead = letters.map(|letter| (letter.offset, letter.code, attempts(letter.attempts)));
        let parked = number(&self.database, "select count(*) from inbox.parked").await;
        let parked = usize::try_from(parked).expect("a count");
        outcome(effects(&self.database).await, dead.collect(), parked)
    }
}

fn outcome(
    effects: Vec<Step>,
    mut dead: Vec<(Option<i64>, String, u32)>,
    parked: usize,
) -> Outcome {
    dead.sort();
    let mut outcome = Outcome { dead, parked, ..Outcome::default() };
    for Step { key, n } in effects {
        outcome.effects.entry(key).or_default().push(n);
    }
    outcome
}

fn answers<const N: usize>(all: [(&str, i32, &[Answer]); N]) -> Answers {
    all.into_iter().map(|(key, n, answers)| ((key.to_owned(), n), answers.to_vec())).collect()
}

fn effects_of<const N: usize>(all: [(&str, &[i32]); N]) -> BTreeMap<String, Vec<i32>> {
    all.into_iter().map(|(key, steps)| (key.to_owned(), steps.to_vec())).collect()
}

async fn bring_all(backend: &mut impl Backend, messages: &[RawMessage]) {
    for message in messages {
        backend.bring(message).await;
    }
}

async fn copies_change_nothing<B: Backend>() {
    let mut backend = B::with(OrderBy::Key, answers([("a", 2, &[Answer::Transient])])).await;
    let messages = [message("a", 1), message("a", 2), message("a", 3)];
    for _ in 0..2 {
        bring_all(&mut backend, &messages).await;
    }
    backend.settle().await;
    bring_all(&mut backend, &messages).await;
    let effects = effects_of([("a", &[1, 2, 3])]);
    assert_eq!(backend.outcome().await, Outcome { effects, ..Outcome::default() });
}

async fn later_ones_of_a_key_wait_and_other_keys_flow<B: Backend>() {
    let mut backend = B::with(OrderBy::Key, answers([("a", 1, &[Answer::Deferred])])).await;
    let messages = [message("a", 1), message("a", 2), message("b", 1)];
    bring_all(&mut backend, &messages).await;
    let effects = effects_of([("b", &[1])]);
    assert_eq!(backend.outcome().await, Outcome { effects, parked: 2, ..Outcome::default() });
    backend.settle().await;
    let effects = effects_of([("a", &[1, 2]), ("b", &[1])]);
    assert_eq!(backend.outcome().await, Outcome { effects, ..Outcome::default() });
}

async fn a_partition_waits_where_that_is_the_order<B: Backend>() {
    let waits = answers([("a", 1, &[Answer::Transient])]);
    let mut backend = B::with(OrderBy::Partition, waits.clone()).await;
    bring_all(&mut backend, &[message("a", 1), message("b", 1)]).await;
    assert_eq!(backend.outcome().await, Outcome { parked: 2, ..Outcome::default() });
    let mut backend = B::with(OrderBy::None, waits).await;
    bring_all(&mut backend, &[message("a", 1), message("a", 2)]).await;
    let effects = effects_of([("a", &[2])]);
    assert_eq!(backend.outcome().await, Outcome { effects, parked: 1, ..Outcome::default() });
}

async fn what_fails_too_often_or_for_good_is_given_up_and_its_key_goes_on<B: Backend>() {
    use Answer::{Deferred, Later, Panic, Permanent, Transient};
    let mut backend = B::with(
        OrderBy::Key,
        answers([
            ("a", 1, &[Transient, Later, Transient]),
            ("b", 1, &[Deferred, Transient, Deferred, Permanent]),
            ("c", 1, &[Panic, Panic, Panic]),
            ("d", 1, &[Permanent]),
        ]),
    )
    .await;
    let keys = ["a", "b", "c", "d"];
    let messages: Vec<_> = keys.iter().flat_map(|key| [message(key, 1), message(key, 2)]).collect();
    let numbered = (0..).zip(messages);
    let messages: Vec<_> = numbered.map(|(offset, m)| placed(m, offset)).collect();
    bring_all(&mut backend, &messages).await;
    backend.settle().await;
    let effects = effects_of([("a", &[2]), ("b", &[2]), ("c", &[2]), ("d", &[2])]);
    let dead = [(0, "transient", 3), (2, "never", 2), (4, "panic", 3), (6, "never", 1)];
    let dead =
        dead.map(|(offset, code, attempts)| (Some(offset), code.to_owned(), attempts)).to_vec();
    assert_eq!(backend.outcome().await, Outcome { effects, dead, parked: 0 });
}

async fn what_can_not_be_read_or_told_is_given_up_at_once<B: Backend>() {
    let mut backend = B::with(OrderBy::Key, Answers::new()).await;
    let ancient = MessageId::at(uuid::Uuid::now_v7(), SystemTime::UNIX_EPOCH);
    let ahead = SystemTime::now() + Duration::from_secs(60 * 86_400);
    let ahead = MessageId::at(uuid::Uuid::now_v7(), ahead);
    let messages = [
        placed(with(message("a", 1), |m| m.payload = Some(b"{\xff"[..].into())), 0),
        placed(with(message("a", 2), |m| m.payload = None), 1),
        placed(with(message("a", 3), |m| m.id = ancient), 2),
        placed(with(message("a", 4), |m| m.id = ahead), 3),
        placed(message("a", 5), 4),
    ];
    for _ in 0..2 {
        bring_all(&mut backend, &messages).await;
    }
    let effects = effects_of([("a", &[5])]);
    let dead = [
        (0, "undecodable", 1),
        (1, "undecodable", 1),
        (2, "outside-window", 0),
        (3, "outside-window", 0),
    ];
    let dead =
        dead.map(|(offset, code, attempts)| (Some(offset), code.to_owned(), attempts)).to_vec();
    assert_eq!(backend.outcome().await, Outcome { effects, dead, parked: 0 });
}

fn placed(mut message: RawMessage, offset: i64) -> RawMessage {
    message.source.offset = Some(offset);
    message
}

async fn conforms<B: Backend>() {
    copies_change_nothing::<B>().await;
    later_ones_of_a_key_wait_and_other_keys_flow::<B>().await;
    a_partition_waits_where_that_is_the_order::<B>().await;
    what_fails_too_often_or_for_good_is_given_up_and_its_key_goes_on::<B>().await;
    what_can_not_be_read_or_told_is_given_up_at_once::<B>().await;
}

#[tokio::test]
async fn the_inbox_in_postgresql_conforms() {
    conforms::<Postgres>().await;
}

#[tokio::test]
async fn the_inbox_in_memory_conforms() {
    conforms::<Memory>().await;
}

#[tokio::test]
async fn both_come_to_the_same_with_scripts_made_up_at_random() {
    use Answer::{Deferred, Later, Panic, Permanent, Transient};
    // Few at a time: a lane that waits is looked for twice a second.
    for _ in 0..2 {
        let seed: u64 = rand::random();
        let mut random = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(seed);
        let mut script = Vec::new();
        let mut answers = Answers::new();
        let mut next: BTreeMap<&str, i32> = BTreeMap::new();
        for offset in 0..30 {
            let key = ["a", "b", "c", "d"][random.random_range(0..4)];
            let n = next.entry(key).or_default();
            *n += 1;
            let count = [0, 0, 0, 0, 1, 2, 3][random.random_range(0..7)];
            let kinds = [Transient, Later, Deferred, Permanent, Panic];
            let of_message = (0..count).map(|_| kinds[random.random_range(0..5)]).collect();
            answers.insert((key.to_owned(), *n), of_message);
            script.push(placed(message(key, *n), offset));
            if random.random_bool(0.3) {
                script.push(script[random.random_range(0..script.len())].clone());
            }
        }
        let mut postgres = Postgres::with(OrderBy::Key, answers.clone()).await;
        let mut memory = Memory::with(OrderBy::Key, answers).await;
        let (first, second) = script.split_at(script.len() / 2);
        for part in [first, second] {
            bring_all(&mut postgres, part).await;
            bring_all(&mut memory, part).await;
            postgres.settle().await;
            memory.settle().await;
        }
        let (expected, found) = (memory.outcome().await, postgres.outcome().await);
        assert_eq!(found, expected, "seed {seed}");
        assert!(found.effects.values().map(Vec::len).sum::<usize>() > 0, "seed {seed}");
    }
}
