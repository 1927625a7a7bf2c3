//! One effect for each message in the order of its key, through failures of every kind.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{
    Claim, Classify, Failure, Message, Processor, RawMessage, Retry, Stop, Tx,
    dead_letters::Selection,
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{
    effects::{Step, assert_once_and_in_order, database, effects, inbox, message, number, take},
    letters,
};

pub(super) const PARKED: &str = "select count(*) from inbox.parked";
const LANES: &str = "select count(*) from inbox.parked_lanes";
/// Zero when a background may be stopped: a key is freed after its last message is settled, and until then what comes
/// waits behind it.
pub(super) const WAITING: &str =
    "select (select count(*) from inbox.parked) + (select count(*) from inbox.parked_lanes)";
pub(super) const DEAD: &str = "select count(*) from inbox.dead_letters where state = 'dead'";

/// Delays that a test can wait for.
pub(super) fn soon() -> Retry {
    Retry::exponential(Duration::from_millis(5), Duration::from_millis(20)).attempts(4)
}

pub(super) fn step(key: &str, n: i32) -> Step {
    Step { key: key.to_owned(), n }
}

pub(super) struct Background(JoinHandle<Stop>);

impl Background {
    pub(super) fn start(processor: &Processor) -> Self {
        let processor = processor.clone();
        Background(tokio::spawn(async move { processor.background().await }))
    }

    pub(super) async fn stop(self) {
        self.0.abort();
        assert!(self.0.await.expect_err("it had no reason to stop").is_cancelled());
    }
}

pub(super) async fn until_zero(database: &Database, sql: &str) {
    wait::until(sql, wait::PATIENCE, || async {
        match number(database, sql).await {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        }
    })
    .await
    .expect("nothing is left");
}

#[tokio::test]
async fn while_a_message_waits_its_keys_later_ones_wait_behind_it_and_others_flow() {
    let database = database().await;
    let broken = Arc::new(AtomicBool::new(true));
    let handler = {
        let broken = Arc::clone(&broken);
        move |tx: Tx, message: Message<Step>| {
            let broken = Arc::clone(&broken);
            async move {
                take(&tx, &message.payload).await?;
                if message.payload == step("a", 1) && broken.load(SeqCst) {
                    Err("not yet").transient()?;
                }
                Ok(())
            }
        }
    };
    let patient = Retry::exponential(Duration::from_millis(5), Duration::from_millis(20));
    let processor = Processor::new(inbox(&database).await, handler).retry(patient.attempts(1_000));
    let messages = [message("a", 1), message("a", 2), message("b", 1), message("a", 3)];
    let background = Background::start(&processor);
    for message in &messages {
        processor.process(std::slice::from_ref(message)).await.expect("settled");
    }
    assert_eq!(effects(&database).await, [step("b", 1)]);
    assert_eq!(number(&database, PARKED).await, 3);
    // Copies of what waits are not stored twice.
    processor.process(&messages[..2]).await.expect("settled");
    assert_eq!(number(&database, PARKED).await, 3);
    broken.store(false, SeqCst);
    until_zero(&database, WAITING).await;
    processor.process(&[message("a", 4)]).await.expect("settled");
    background.stop().await;
    let expected = [step("b", 1), step("a", 1), step("a", 2), step("a", 3), step("a", 4)];
    assert_eq!(effects(&database).await, expected);
    assert_eq!(number(&database, LANES).await, 0);
}

#[tokio::test]
async fn a_message_that_is_not_due_waits_with_its_key_and_costs_no_attempt() {
    let database = database().await;
    let inbox = inbox(&database).await;
    let due = SystemTime::now() + Duration::from_secs(3);
    let handler = move |tx: Tx, message: Message<Step>| async move {
        assert_eq!(message.attempt, 1);
        if message.payload == step("a", 1) && SystemTime::now() < due {
            return Err(Failure::defer(due));
        }
        take(&tx, &message.payload).await?;
        Ok(())
    };
    let processor = Processor::new(inbox, handler).retry(soon().attempts(1));
    let background = Background::start(&processor);
    let messages = [message("a", 1), message("a", 2), message("b", 1)];
    processor.process(&messages).await.expect("settled");
    assert_eq!(effects(&database).await, [step("b", 1)]);
    until_zero(&database, WAITING).await;
    assert!(SystemTime::now() >= due);
    background.stop().await;
    assert_eq!(effects(&database).await, [step("b", 1), step("a", 1), step("a", 2)]);
    assert_eq!(number(&database, DEAD).await, 0);
}

#[tokio::test]
async fn an_outage_and_a_deadlock_cost_no_attempt_and_make_no_dead_letter() {
    let database = database().await;
    let calls = Arc::new(AtomicU32::new(0));
    let handler = {
        let calls = Arc::clone(&calls);
        move |tx: Tx, message: Message<Step>| {
            let call = calls.fetch_add(1, SeqCst);
            async move {
                take(&tx, &message.payload).await?;
                match call {
                    0 | 2 => {
                        let cut = "select pg_terminate_backend(pg_backend_pid())";
                        tx.execute(cut, &[]).await?;
                    }
                    1 => {
                        let deadlock =
                            "do $$ begin raise exception using errcode = '40P01'; end $$";
                        tx.execute(deadlock, &[]).await?;
                    }
                    _ => {}
                }
                Ok(())
            }
        }
    };
    let processor = Processor::new(inbox(&database).await, handler).retry(soon().attempts(1));
    processor.process(&[message("a", 1)]).await.expect("settled");
    assert_eq!(calls.load(SeqCst), 4);
    assert_eq!(effects(&database).await, [step("a", 1)]);
    assert_eq!((number(&database, DEAD).await, number(&database, PARKED).await), (0, 0));
}

/// A frozen process holds the claim, and the server lets no one wait for it.
#[tokio::test]
async fn a_message_whose_fate_can_not_be_stored_yet_is_not_acknowledged() {
    for limit in ["lock_timeout", "statement_timeout"] {
        let database = database().await;
        // Opened without it: making the days takes longer, beside other tests.
        let inbox = inbox(&database).await;
        let limited = format!(
            "alter database {0} set {limit} = '20ms'; select pg_terminate_backend(pid, 5000) \
             from pg_stat_activity where datname = '{0}' and usename = '{1}'",
            database.name(),
            database.name_of(Role::Consumer)
        );
        database.superuser().batch_execute(&limited).await.expect("limited");
        // The limit is for what waits, and not for what a busy machine takes for a statement.
        let handler = |tx: Tx, message: Message<Step>| async move {
            tx.execute("set local statement_timeout = 0", &[]).await?;
            take(&tx, &message.payload).await?;
            Ok(())
        };
        let processor = Processor::new(inbox, handler).retry(soon());
        let message = message("a", 1);
        let mut frozen = database.connect(Role::Consumer).await;
        frozen.batch_execute("set statement_timeout = 0").await.expect("set");
        let held = frozen.transaction().await.expect("begun");
        let claim = processor.inbox().claim(&held, &message.id).await.expect("claimed");
        assert_eq!(claim, Claim::Fresh);

        let messages = [message];
        let mut processed = pin!(processor.process(&messages));
        let early = timeout(Duration::from_secs(2), &mut processed).await;
        assert!(early.is_err(), "acknowledged, and nothing of it is stored: {early:?}");
        held.rollback().await.expect("the frozen one's session is ended");
        processed.await.expect("settled");
        let background = Background::start(&processor);
        until_zero(&database, "select 1 - count(*) from effects").await;
        background.stop().await;
        assert_eq!(effects(&database).await, [step("a", 1)]);
    }
}

#[tokio::test]
async fn a_handler_that_can_not_go_on_stops_the_consumer_and_touches_nothing() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Err("the configuration is wrong").fatal()
    };
    let processor = Processor::new(inbox(&database).await, handler);
    let stop = processor.process(&[message("a", 1)]).await.expect_err("it stops");
    assert!(matches!(stop, Stop::Handler(_)), "{stop:?}");
    assert_eq!(effects(&database).await, []);
    assert_eq!(number(&database, "select count(*) from inbox.messages").await, 0);
}

#[tokio::test]
async fn of_a_batch_the_message_that_fails_is_put_aside_alone() {
    let database = database().await;
    let handler = |tx: Tx, messages: Vec<Message<Step>>| async move {
        for message in messages {
            if message.payload == step("k3", 2) {
                Err("poison").permanent("poison")?;
            }
            take(&tx, &message.payload).await?;
        }
        Ok(())
    };
    let processor = Processor::batch(inbox(&database).await, 64, handler);
    let all: Vec<Step> =
        (1..=10).flat_map(|n| (0..7).map(move |k| step(&format!("k{k}"), n))).collect();
    let messages: Vec<RawMessage> = all.iter().map(|step| message(&step.key, step.n)).collect();
    // Copies within a batch, and the whole again.
    let twice: Vec<RawMessage> = messages.iter().flat_map(|m| [m.clone(), m.clone()]).collect();
    processor.process(&twice).await.expect("settled");
    processor.process(&messages).await.expect("settled");
    let letters = letters::all(&database, Selection::default()).await;
    assert_eq!(letters.iter().map(|l| l.code.as_str()).collect::<Vec<_>>(), ["poison"]);
    let expected = all.into_iter().filter(|found| *found != step("k3", 2));
    assert_once_and_in_order(&effects(&database).await, expected);
}

/// The whole of it: several processes that all believe every message to be theirs, failures at
/// random, singly and in batches, while parked keys are taken up. Nothing is remembered outside the
/// database, so this is what zombies and rebalances come to.
#[tokio::test]
async fn processes_that_share_all_messages_lose_double_and_reorder_nothing() {
    const KEYS: usize = 12;
    const STEPS: i32 = 25;
    let database = database().await;
    let random_failure = || match rand::random_range(0..10) {
        0 | 1 => Err(Failure::transient("at random")),
        2 => Err(Failure::retry_after(Duration::from_millis(30), "at random")),
        _ => Ok(()),
    };
    let one = move |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        random_failure()
    };
    let many = move |tx: Tx, messages: Vec<Message<Step>>| async move {
        for message in messages {
            take(&tx, &message.payload).await?;
        }
        random_failure()
    };
    let retry =
        Retry::exponential(Duration::from_millis(1), Duration::from_millis(10)).attempts(1_000);
    let processors = [
        Processor::new(inbox(&database).await, one).retry(retry),
        Processor::new(inbox(&database).await, one).retry(retry),
        Processor::batch(inbox(&database).await, 20, many).retry(retry),
    ];
    let keys: Vec<Vec<RawMessage>> = (0..KEYS)
        .map(|key| (1..=STEPS).map(|n| message(&format!("k{key}"), n)).collect())
        .collect();
    let background: Vec<_> = processors.iter().map(Background::start).collect();
    let mut owners = JoinSet::new();
    for processor in &processors {
        for key in &keys {
            let (processor, key) = (processor.clone(), key.clone());
            owners.spawn(async move {
                for batch in key.chunks(processor.batch_max()) {
                    processor.process(batch).await.expect("settled");
                }
            });
        }
    }
    owners.join_all().await;
    until_zero(&database, WAITING).await;
    // The last lane is freed after its message.
    until_zero(&database, LANES).await;
    for background in background {
        background.stop().await;
    }
    let expected = (0..KEYS).flat_map(|key| (1..=STEPS).map(move |n| step(&format!("k{key}"), n)));
    assert_once_and_in_order(&effects(&database).await, expected);
    assert_eq!(number(&database, DEAD).await, 0);
    assert_eq!(number(&database, LANES).await, 0);
}
