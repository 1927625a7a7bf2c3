//! The inboxes that histories are lived through with.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    panic::resume_unwind,
    sync::{Arc, Mutex, Once, PoisonError},
    time::{Duration, SystemTime},
};

use deadpool_postgres::Pool;
use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{
    Dedup, Failure, Inbox, Message, OrderBy, Processor, RawMessage, Retry, Stop, Tx,
    dead_letters::{self, Selection},
    fault,
    kafka::offline,
    testing::MemoryInbox,
};

use super::{
    super::effects::{Step, take},
    Answer, LONG, Way,
    promise::{Letter, Seen},
    world::{Mutant, TOPIC},
};

/// Of a message before it is given up.
pub(super) const ATTEMPTS: u32 = 3;
/// Most messages of a batch.
const BATCH: usize = 3;

/// An inbox of some kind, with two members that share it.
pub(super) trait Backend {
    /// How the handler will answer when it gets this message.
    fn expect(&self, n: i32, answers: &[Answer]);
    /// From now on it succeeds.
    fn fix(&self);
    /// What a worker may have at once.
    fn batch_max(&self) -> usize;
    /// What is with one worker at a time.
    fn lanes(&self) -> OrderBy;
    async fn process(&self, member: usize, messages: Vec<RawMessage>) -> Result<(), Stop>;
    /// Time passes, so that all that is parked is due.
    async fn make_due(&self);
    /// A member takes up what is due.
    async fn take_up(&self, member: usize) -> Result<(), Stop>;
    /// The dead letter of that message is replayed.
    async fn replay(&self, n: i32);
    async fn forget_a_day(&self);
    /// A member's process is another one.
    async fn restart(&mut self, member: usize);
    /// Where the inbox knows that a partition continues.
    async fn start_offset(&self, member: usize, partition: i32) -> Option<i64>;
    async fn seen(&self) -> Seen;
}

/// What a process dies of.
pub(super) struct Death;

thread_local! {
    /// Points until somebody dies; 0 for never.
    static LEFT: Cell<u32> = const { Cell::new(0) };
}

/// Has whoever passes the n-th point from now on die there, on this thread; 0 for no one.
pub(super) fn dies_at(nth: u32) {
    LEFT.set(nth);
}

fn pass() {
    let left = LEFT.get();
    LEFT.set(left.saturating_sub(1));
    if left == 1 {
        resume_unwind(Box::new(Death));
    }
}

/// What the handler has still to answer.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<HashMap<i32, VecDeque<Answer>>>>);

impl Answers {
    fn expect(&self, n: i32, answers: &[Answer]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(n, answers.iter().copied().collect());
    }

    fn fix(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn give(&self, n: i32) -> Result<(), Failure> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = all.get_mut(&n).and_then(VecDeque::pop_front);
        drop(all);
        match answer {
            None => Ok(()),
            Some(Answer::Transient) => Err(Failure::transient("not yet")),
            Some(Answer::Later) => Err(Failure::retry_after(LONG, "later")),
            Some(Answer::Deferred) => Err(Failure::defer(SystemTime::now() + LONG)),
            Some(Answer::Permanent) => Err(Failure::permanent("never", "never")),
            Some(Answer::Fatal) => Err(Failure::fatal("nothing is right")),
            // Without the hook: its backtrace takes seconds in a debug build.
            Some(Answer::Panic) => resume_unwind(Box::new("as the history says")),
        }
    }
}

fn retry() -> Retry {
    Retry::exponential(LONG, LONG).attempts(ATTEMPTS)
}

pub(super) struct Memory {
    inbox: RefCell<MemoryInbox<Vec<i32>>>,
    answers: Answers,
}

impl Memory {
    pub(super) fn new(mutant: Option<Mutant>) -> Self {
        let answers = Answers::default();
        let handler = {
            let answers = answers.clone();
            move |effects: &mut Vec<i32>, message: Message<i32>| {
                // Before it fails: what it did must be undone.
                effects.push(message.payload);
                answers.give(message.payload)
            }
        };
        let unordered = mutant == Some(Mutant::Unordered);
        let ordering = if unordered { OrderBy::None } else { OrderBy::Key };
        let inbox = MemoryInbox::new(Vec::new(), handler).retry(retry()).order_by(ordering);
        Memory { inbox: RefCell::new(inbox), answers }
    }
}

fn said(payload: Option<&[u8]>) -> i32 {
    serde_json::from_slice(payload.unwrap_or_default()).expect("a number")
}

impl Backend for Memory {
    fn expect(&self, n: i32, answers: &[Answer]) {
        self.answers.expect(n, answers);
    }

    fn fix(&self) {
        self.answers.fix();
    }

    fn batch_max(&self) -> usize {
        1
    }

    fn lanes(&self) -> OrderBy {
        OrderBy::Key
    }

    async fn process(&self, _: usize, messages: Vec<RawMessage>) -> Result<(), Stop> {
        for message in messages {
            // Others may be quicker.
            for _ in 0..message.source.offset.unwrap_or(0) % 3 {
                tokio::task::yield_now().await;
            }
            pass();
            self.inbox.borrow_mut().process(&message)?;
            pass();
        }
        Ok(())
    }

    async fn make_due(&self) {}

    async fn take_up(&self, _: usize) -> Result<(), Stop> {
        pass();
        self.inbox.borrow_mut().advance(LONG)?;
        pass();
        Ok(())
    }

    async fn replay(&self, n: i32) {
        let one =
            |dead: &outbox_idempotency::testing::Dead| said(dead.message.payload.as_deref()) == n;
        assert_eq!(self.inbox.borrow_mut().replay(one), 1, "there is one");
    }

    async fn forget_a_day(&self) {
        // Handlers that say that they can't continue are asked again.
        while self.inbox.borrow_mut().advance(Duration::from_secs(86_400)).is_err() {}
    }

    async fn restart(&mut self, _: usize) {}

    async fn start_offset(&self, _: usize, _: i32) -> Option<i64> {
        None
    }

    async fn seen(&self) -> Seen {
        let inbox = self.inbox.borrow();
        let dead = inbox.dead_letters().iter().map(|dead| Letter {
            message: said(dead.message.payload.as_deref()),
            code: dead.code.clone(),
            attempts: dead.attempts,
        });
        let parked = inbox.parked().map(|message| said(message.payload.as_deref()));
        Seen { effects: inbox.state().clone(), parked: parked.collect(), dead: dead.collect() }
    }
}

/// What all histories in one database share.
pub(super) struct Shared<'a> {
    database: &'a Database,
    pool: Pool,
}

impl<'a> Shared<'a> {
    pub(super) fn new(database: &'a Database) -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| fault::on_passing(|_| pass()));
        Shared { database, pool: database.pool(Role::Consumer, 20) }
    }

    /// Brings back the days that a history before has forgotten.
    async fn remember(&self) {
        let sql = "do $$ declare day text; begin \
                   if (select retention_days < 14 from inbox.settings) then \
                       for day in select inhrelid::regclass from pg_inherits \
                           where inhparent = 'inbox.messages'::regclass \
                       loop execute 'drop table ' || day; end loop; \
                       update inbox.settings set retention_days = 14; \
                       update inbox.upkeep set forgotten_through = null; \
                       perform inbox.maintain(); \
                   end if; end $$";
        self.database.superuser().batch_execute(sql).await.expect("all days are there");
    }
}

pub(super) struct Postgres<'a> {
    shared: &'a Shared<'a>,
    way: Way,
    /// The consumer's name, and its number.
    case: String,
    consumer_id: i32,
    inboxes: [Inbox; 2],
    processors: [Processor; 2],
    answers: Answers,
}

impl<'a> Postgres<'a> {
    pub(super) async fn new(shared: &'a Shared<'a>, way: Way, case: u32) -> Self {
        shared.remember().await;
        let case = format!("case-{case}");
        let open = || async { Inbox::open(shared.pool.clone(), &case).await.expect("opened") };
        let inboxes = [open().await, open().await];
        let find = "select id from inbox.consumers where name = $1";
        let row = shared.database.superuser().query_one(find, &[&case]).await.expect("a consumer");
        let answers = Answers::default();
        let processors = inboxes.each_ref().map(|inbox| processor(inbox, way, &answers));
        Postgres { shared, way, case, consumer_id: row.get(0), inboxes, processors, answers }
    }
}

fn processor(inbox: &Inbox, way: Way, answers: &Answers) -> Processor {
    let (case, answers) = (inbox.consumer().to_owned(), answers.clone());
    let handle = move |tx: Tx, messages: Vec<Message<i32>>| {
        let (key, answers) = (case.clone(), answers.clone());
        async move {
            for message in messages {
                take(&tx, &Step { key: key.clone(), n: message.payload }).await?;
                answers.give(message.payload)?;
            }
            Ok(())
        }
    };
    let one = {
        let handle = handle.clone();
        move |tx: Tx, message: Message<i32>| handle(tx, vec![message])
    };
    let processor = match way {
        Way::Rows => Processor::new(inbox.clone(), one),
        Way::Batch => Processor::batch(inbox.clone(), BATCH, handle),
        Way::Watermark => Processor::batch(inbox.clone(), BATCH, handle)
            .dedup(Dedup::Watermark { relay: "orders".into() }),
    };
    processor.retry(retry())
}

impl Backend for Postgres<'_> {
    fn expect(&self, n: i32, answers: &[Answer]) {
        self.answers.expect(n, answers);
    }

    fn fix(&self) {
        self.answers.fix();
    }

    fn batch_max(&self) -> usize {
        self.processors[0].batch_max()
    }

    fn lanes(&self) -> OrderBy {
        if self.way == Way::Watermark { OrderBy::Partition } else { OrderBy::Key }
    }

    async fn process(&self, member: usize, messages: Vec<RawMessage>) -> Result<(), Stop> {
        self.processors[member].process(&messages).await
    }

    async fn make_due(&self) {
        let sql = "update inbox.parked_lanes set due_at = now() where consumer_id = $1";
        let client = self.shared.database.superuser();
        client.execute(sql, &[&self.consumer_id]).await.expect("time has passed");
    }

    async fn take_up(&self, member: usize) -> Result<(), Stop> {
        let sql =
            "select count(*) from inbox.parked_lanes where consumer_id = $1 and due_at <= now()";
        let nothing_is_due = wait::until("all that is due is taken up", wait::PATIENCE, || async {
            let row = self.shared.database.superuser().query_one(sql, &[&self.consumer_id]).await;
            match row.expect("a count").get::<_, i64>(0) {
                0 => Ok(()),
                due => Err(due),
            }
        });
        tokio::select! {
            stop = self.processors[member].background() => Err(stop),
            nothing = nothing_is_due => {
                nothing.expect("it is");
                Ok(())
            }
        }
    }

    async fn replay(&self, n: i32) {
        let client: &tokio_postgres::Client = self.shared.database.superuser();
        let sql = "select id from inbox.dead_letters where consumer_id = $1 and state = 'dead' \
                   and convert_from(payload, 'UTF8')::int = $2";
        let row = client.query_one(sql, &[&self.consumer_id, &n]).await.expect("a dead letter");
        let one = Selection::default().with_id(row.get(0));
        assert_eq!(dead_letters::replay(client, &one).await.expect("replayed"), 1);
    }

    async fn forget_a_day(&self) {
        let sql = "update inbox.settings set retention_days = retention_days - 1 \
                   where retention_days > 1";
        self.shared.database.superuser().batch_execute(sql).await.expect("updated");
        // The other one does not hear of it.
        self.inboxes[0].maintain().await.expect("maintained");
    }

    async fn restart(&mut self, member: usize) {
        self.processors[member] = processor(&self.inboxes[member], self.way, &self.answers);
    }

    async fn start_offset(&self, member: usize, partition: i32) -> Option<i64> {
        if self.way != Way::Watermark {
            return None;
        }
        let known = offline::start_offset(&self.processors[member], TOPIC, partition).await;
        known.expect("the database says")
    }

    async fn seen(&self) -> Seen {
        let sql = "select \
            array(select n from effects where key = $1 order by place), \
            array(select convert_from(payload, 'UTF8')::int from inbox.parked \
                where consumer_id = $2), \
            array(select convert_from(payload, 'UTF8')::int from inbox.dead_letters \
                where consumer_id = $2 and state = 'dead' order by id), \
            array(select code from inbox.dead_letters \
                where consumer_id = $2 and state = 'dead' order by id), \
            array(select attempts from inbox.dead_letters \
                where consumer_id = $2 and state = 'dead' order by id)";
        let client = self.shared.database.superuser();
        let row = client.query_one(sql, &[&self.case, &self.consumer_id]).await.expect("seen");
        let (messages, codes, attempts): (Vec<i32>, Vec<String>, Vec<i32>) =
            (row.get(2), row.get(3), row.get(4));
        let dead = messages.into_iter().zip(codes).zip(attempts).map(|((message, code), n)| {
            Letter { message, code, attempts: u32::try_from(n).expect("a count") }
        });
        Seen { effects: row.get(0), parked: row.get(1), dead: dead.collect() }
    }
}
