//! Who has committed: that a message is handled does not say that the handler called here has done it.

use std::{
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
use outbox_idempotency::{Failure, Inbox, Message, Processor, Retry, Tx};
use tokio::sync::Semaphore;

use super::{
    effects::{Step, assert_once_and_in_order, database, effects, inbox, message, number, take},
    sessions::{DEAD, work_off},
};

const ENDED: &str = "select count(*) from inbox.dead_letters where code = 'transaction-ended'";
const PARKED: &str = "select count(*) from inbox.parked";

/// Whoever comes there waits until the test lets go.
const GATE: &str = "select pg_advisory_xact_lock(7)";

async fn shut(database: &Database) {
    database.superuser().execute("select pg_advisory_lock(7)", &[]).await.expect("shut");
}

async fn open(database: &Database) {
    database.superuser().execute("select pg_advisory_unlock(7)", &[]).await.expect("open");
}

async fn until_somebody_waits(database: &Database) {
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
        and database = (select oid from pg_database where datname = current_database())";
    wait::until("a handler waits", wait::PATIENCE, || async {
        match number(database, waiting).await {
            1 => Ok(()),
            other => Err(format!("{other}")),
        }
    })
    .await
    .expect("one comes there");
}

fn quickly() -> Retry {
    Retry::exponential(Duration::from_millis(1), Duration::from_millis(1))
}

/// Who rolls back lets others have the message: what these have done is done.
#[tokio::test]
async fn what_another_process_handles_after_a_handler_rolled_back_is_no_dead_letter() {
    for batch in [false, true] {
        let database = database().await;
        shut(&database).await;
        let ends = format!("select 1; rollback; begin; {GATE}");
        let each = {
            let ends = ends.clone();
            move |tx: Tx, message: Message<Step>| {
                let ends = ends.clone();
                async move {
                    tx.batch_execute(&ends).await?;
                    take(&tx, &message.payload).await?;
                    Ok(())
                }
            }
        };
        let many = move |tx: Tx, messages: Vec<Message<Step>>| {
            let ends = ends.clone();
            async move {
                if messages.len() > 1 {
                    tx.batch_execute(&ends).await?;
                }
                for message in messages {
                    take(&tx, &message.payload).await?;
                }
                Ok(())
            }
        };
        let ends_it = inbox(&database).await;
        let ends_it = match batch {
            false => Processor::new(ends_it, each),
            true => Processor::batch(ends_it, 3, many),
        };
        let other = |tx: Tx, message: Message<Step>| async move {
            take(&tx, &message.payload).await?;
            Ok::<_, Failure>(())
        };
        let other = Processor::new(inbox(&database).await, other);
        let messages: Vec<_> = (1..=if batch { 3 } else { 1 }).map(|n| message("a", n)).collect();
        let slow = tokio::spawn({
            let messages = messages.clone();
            async move { ends_it.process(&messages).await }
        });
        until_somebody_waits(&database).await;
        other.process(&messages).await.expect("the other one handles them");
        open(&database).await;
        slow.await.expect("no panic").expect("settled");
        let expected = (1..).take(messages.len()).map(|n| Step { key: "a".into(), n });
        assert_once_and_in_order(&effects(&database).await, expected);
        assert_eq!(number(&database, DEAD).await, 0, "of a batch: {batch}");
    }
}

/// The same for messages that are parked.
#[tokio::test]
async fn what_another_process_has_taken_since_a_handler_rolled_back_is_no_dead_letter() {
    // As many as two processes have workers of parked keys: when all are held, none is busy with anything else.
    const WORKERS: usize = 16;
    let database = database().await;
    shut(&database).await;
    let (fixed, slow) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let (held, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
    let handler = {
        let (fixed, slow, held, gate) =
            (Arc::clone(&fixed), Arc::clone(&slow), Arc::clone(&held), Arc::clone(&gate));
        move |tx: Tx, messages: Vec<Message<Step>>| {
            let (fixed, slow) = (fixed.load(SeqCst), Arc::clone(&slow));
            let (held, gate) = (Arc::clone(&held), Arc::clone(&gate));
            async move {
                if !fixed {
                    return Err(Failure::defer(SystemTime::now()));
                }
                if messages.iter().any(|message| message.payload.key == "held") {
                    held.fetch_add(1, SeqCst);
                    let _held = gate.acquire().await;
                    held.fetch_sub(1, SeqCst);
                    return Ok(());
                }
                if messages.iter().any(|message| message.payload.n == 2) {
                    let gate = if slow.swap(false, SeqCst) { GATE } else { "select 1" };
                    tx.batch_execute(&format!("select 1; rollback; begin; {gate}")).await?;
                }
                for message in &messages {
                    take(&tx, &message.payload).await?;
                }
                Ok(())
            }
        }
    };
    let process = async || {
        let inbox = Inbox::open(database.pool(Role::Consumer, 10), "billing").await;
        Processor::batch(inbox.expect("the inbox opens"), 3, handler.clone()).retry(quickly())
    };
    let (processor, other) = (process().await, process().await);
    let messages: Vec<_> = (1..=3).map(|n| message("a", n)).collect();
    processor.process(&messages).await.expect("settled");
    fixed.store(true, SeqCst);
    let in_background = |processor: &Processor| {
        let processor = processor.clone();
        tokio::spawn(async move { processor.background().await })
    };
    let background = in_background(&processor);
    until_somebody_waits(&database).await;
    let beside = in_background(&other);
    let others = wait::until("others have handled them", wait::PATIENCE, || async {
        let left = "select 2 - count(*) from effects";
        match (number(&database, left).await, number(&database, ENDED).await) {
            (0, 1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    others.await.expect("the lane is free");
    open(&database).await;
    fixed.store(false, SeqCst);
    for n in 0..WORKERS {
        let mut one = message("held", 1);
        one.key = Some(format!("held-{n}").into_bytes());
        processor.process(&[one]).await.expect("it waits");
    }
    fixed.store(true, SeqCst);
    wait::until("every worker is held, the slow one too", wait::PATIENCE, || async {
        match held.load(SeqCst) {
            held if held as usize == WORKERS => Ok(()),
            held => Err(format!("{held}")),
        }
    })
    .await
    .expect("each comes to its end");
    assert_eq!(number(&database, ENDED).await, 1);
    let expected = [1, 3].map(|n| Step { key: "a".into(), n });
    assert_once_and_in_order(&effects(&database).await, expected);
    gate.add_permits(WORKERS);
    background.abort();
    beside.abort();
}

/// A handler that commits, and then can't be asked any more: its session is lost, or its time is over. What it
/// has committed is claimed, so to whoever looks it seems to be handled.
#[tokio::test]
async fn what_a_handler_has_committed_before_it_was_ended_is_a_dead_letter() {
    const ENDS: [&str; 3] = [
        "select 1; commit; select pg_terminate_backend(pg_backend_pid())",
        "select 1; commit; begin; select pg_terminate_backend(pg_backend_pid())",
        "select 1; commit; select pg_sleep(60)",
    ];
    for (waits_first, batch) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
        let database = database().await;
        let handler = move |tx: Tx, messages: Vec<Message<Step>>| async move {
            let first = messages.first().expect("one");
            if waits_first && first.attempt == 1 {
                return Err(Failure::transient("later"));
            }
            let end = ENDS[usize::try_from(first.payload.n - 1).expect("few") / 2];
            tx.batch_execute(end).await?;
            for message in &messages {
                take(&tx, &message.payload).await?;
            }
            Ok(())
        };
        let processor = Processor::batch(inbox(&database).await, batch, handler);
        let processor = processor.retry(quickly()).time_limit(Duration::from_millis(500));
        let mut sent = 0;
        for (n, _) in (0..).zip(ENDS) {
            let key = n.to_string();
            let messages: Vec<_> = (0..batch)
                .map(|i| message(&key, 2 * n + 1 + i32::try_from(i).expect("few")))
                .collect();
            sent += messages.len();
            let settled = tokio::time::timeout(wait::PATIENCE, processor.process(&messages)).await;
            settled.expect("it ends").expect("settled");
        }
        let left = format!("select {sent} - count(*) from inbox.dead_letters");
        work_off(&processor, &database, &left).await;
        let how = format!("waits first: {waits_first}, in batches of {batch}");
        assert_eq!(number(&database, ENDED).await, i64::try_from(sent).expect("few"), "{how}");
        assert_eq!(number(&database, PARKED).await, 0, "{how}");
        assert_eq!(effects(&database).await, [], "{how}");
    }
}

/// Statements that a handler does not wait for go on, and may end its transaction: what it does next would be
/// in another one, without the message's claim.
#[tokio::test]
async fn a_handler_that_does_not_wait_for_what_ends_its_transaction_is_found_out() {
    for end in ["rollback; begin", "commit; begin"] {
        let database = database().await;
        let handler = move |tx: Tx, message: Message<Step>| async move {
            let ends = format!("select 1; select pg_sleep(0.2); {end}");
            let ended = tokio::time::timeout(Duration::from_millis(50), tx.batch_execute(&ends));
            ended.await.expect_err("it takes longer");
            take(&tx, &message.payload).await?;
            Ok(())
        };
        let processor = Processor::new(inbox(&database).await, handler);
        let one = message("a", 1);
        processor.process(std::slice::from_ref(&one)).await.expect("settled");
        processor.process(&[one]).await.expect("settled");
        assert_eq!(effects(&database).await, [], "{end}");
        assert_eq!(number(&database, ENDED).await, 1, "{end}");
    }
}
