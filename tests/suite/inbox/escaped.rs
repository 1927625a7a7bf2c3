//! Handlers that keep their transaction for a message that was parked: it is called as often as a new one
//! would be, and no message but the one at fault is given up.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{Alert, Classify as _, Message, Processor, Tx};
use tokio_postgres::Client;

use super::{
    effects::{Step, assert_once_and_in_order, database, effects, inbox, message, number, take},
    processor::{Background, DEAD, PARKED, WAITING, soon, step, until_zero},
};

const KEPT: &str = "select count(*) from inbox.dead_letters where code = 'transaction-kept'";

/// Many keys, so that the workers are all there to take what one of them lets go of.
#[tokio::test]
async fn a_parked_message_whose_handler_keeps_its_transaction_is_called_once_more() {
    const KEYS: usize = 24;
    let database = database().await;
    let (calls, kept) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let handler = {
        let (calls, kept) = (Arc::clone(&calls), Arc::clone(&kept));
        move |tx: Tx, message: Message<Step>| {
            let (calls, kept) = (Arc::clone(&calls), Arc::clone(&kept));
            async move {
                take(&tx, &message.payload).await?;
                if message.payload.n == 2 {
                    return Ok(());
                }
                calls.lock().expect("no panic").push((message.payload.key, message.attempt));
                if message.attempt == 1 {
                    return Err("not yet").transient();
                }
                kept.lock().expect("no panic").push(tx);
                Ok(())
            }
        }
    };
    let processor = Processor::new(inbox(&database).await, handler).retry(soon());
    let keys: Vec<String> = (0..KEYS).map(|key| format!("key {key:02}")).collect();
    let messages: Vec<_> = keys.iter().flat_map(|key| (1..=2).map(|n| message(key, n))).collect();
    processor.process(&messages).await.expect("settled");
    let (one, other) = (Background::start(&processor), Background::start(&processor));
    until_zero(&database, WAITING).await;
    one.stop().await;
    other.stop().await;
    let mut calls = calls.lock().expect("no panic").clone();
    calls.sort();
    let expected: Vec<_> =
        keys.iter().flat_map(|key| [(key.clone(), 1), (key.clone(), 2)]).collect();
    assert_eq!(calls, expected);
    assert_eq!(number(&database, KEPT).await, i64::try_from(KEYS).expect("few"));
    assert_once_and_in_order(&effects(&database).await, keys.iter().map(|key| step(key, 2)));
}

#[tokio::test]
async fn of_a_parked_batch_the_message_is_given_up_for_which_the_transaction_is_kept() {
    let database = database().await;
    let fixed = Arc::new(AtomicBool::new(false));
    let kept = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let (fixed, kept) = (Arc::clone(&fixed), Arc::clone(&kept));
        move |tx: Tx, messages: Vec<Message<Step>>| {
            let (fixed, kept) = (fixed.load(SeqCst), Arc::clone(&kept));
            async move {
                for message in &messages {
                    take(&tx, &message.payload).await?;
                }
                if !fixed {
                    return Err("not yet").transient();
                }
                if messages.iter().any(|message| [4, 7].contains(&message.payload.n)) {
                    kept.lock().expect("no panic").push(tx);
                }
                Ok(())
            }
        }
    };
    let processor = Processor::batch(inbox(&database).await, 100, handler).retry(soon());
    let messages: Vec<_> = (1..=9).map(|n| message("a", n)).collect();
    processor.process(&messages).await.expect("settled");
    assert_eq!(number(&database, PARKED).await, 9);
    fixed.store(true, SeqCst);
    let background = Background::start(&processor);
    until_zero(&database, WAITING).await;
    background.stop().await;
    let expected = [1, 2, 3, 5, 6, 8, 9].map(|n| step("a", n));
    assert_once_and_in_order(&effects(&database).await, expected);
    let offsets = "select sum(record_offset)::bigint from inbox.dead_letters";
    assert_eq!((number(&database, DEAD).await, number(&database, KEPT).await), (2, 2));
    assert_eq!(number(&database, offsets).await, 11, "4 and 7");
}

/// After several statements at once the crate must find out whether a handler has ended its transaction. What it
/// then commits itself is no such thing.
#[tokio::test]
async fn a_parked_message_whose_transaction_is_kept_is_announced_once() {
    let database = database().await;
    let (kept, alerts) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let handler = {
        let kept = Arc::clone(&kept);
        move |tx: Tx, message: Message<Step>| {
            let kept = Arc::clone(&kept);
            async move {
                if message.attempt == 1 {
                    return Err("not yet").transient();
                }
                tx.batch_execute("select 1; select 2").await?;
                kept.lock().expect("no panic").push(tx);
                Ok(())
            }
        }
    };
    let processor = Processor::new(inbox(&database).await, handler).retry(soon()).on_alert({
        let alerts = Arc::clone(&alerts);
        move |alert| alerts.lock().expect("no panic").push(alert.clone())
    });
    let keys: Vec<String> = (0..8).map(|key| format!("key {key}")).collect();
    let messages: Vec<_> = keys.iter().map(|key| message(key, 1)).collect();
    processor.process(&messages).await.expect("settled");
    let background = Background::start(&processor);
    until_zero(&database, WAITING).await;
    // Whatever a worker still believes of these it says before it takes others.
    let messages: Vec<_> = keys.iter().map(|key| message(key, 2)).collect();
    processor.process(&messages).await.expect("settled");
    until_zero(&database, WAITING).await;
    background.stop().await;
    assert_eq!((number(&database, DEAD).await, number(&database, KEPT).await), (16, 16));
    let said = alerts.lock().expect("no panic").clone();
    let dead = said.iter().filter(|alert| matches!(alert, Alert::DeadLetter { .. })).count();
    assert_eq!((dead, said.len()), (16, 16), "{said:?}");
}

/// The worker learns late what became of its batch: it waits for a lock. Meanwhile another one handles the messages.
#[tokio::test]
async fn what_another_worker_handles_after_a_transaction_was_kept_is_no_dead_letter() {
    let database = database().await;
    let locks = Arc::new(database.connect(Role::Owner).await);
    let (broken, kept) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let handler = {
        let (broken, kept, locks) = (Arc::clone(&broken), Arc::clone(&kept), Arc::clone(&locks));
        move |tx: Tx, messages: Vec<Message<Step>>| {
            let (broken, kept, locks) =
                (broken.load(SeqCst), Arc::clone(&kept), Arc::clone(&locks));
            async move {
                if !broken {
                    return Err("not yet").transient();
                }
                if messages.len() > 1 {
                    tx.batch_execute("select 1; select 2").await?;
                    until_somebody_waits(&locks).await;
                }
                kept.lock().expect("no panic").push(tx);
                Ok(())
            }
        }
    };
    let processor = Processor::batch(inbox(&database).await, 100, handler).retry(soon());
    let messages: Vec<_> = (1..=3).map(|n| message("a", n)).collect();
    processor.process(&messages).await.expect("settled");
    // The first alone has failed before, so a lane without failures is needed for a batch.
    let fresh =
        "update inbox.parked_lanes set attempts = 0, code = null, error = null, due_at = now()";
    database.superuser().batch_execute(fresh).await.expect("it is due");
    broken.store(true, SeqCst);
    let background = Background::start(&processor);
    until_kept_by_a_handler(&database).await;
    let other = "begin; lock table inbox.parked in access exclusive mode; \
        insert into effects (key, n) select 'a', record_offset from inbox.parked order by seq; \
        delete from inbox.parked; delete from inbox.parked_lanes; commit";
    database.superuser().batch_execute(other).await.expect("it handles them");
    let at_work = format!(
        "select count(*) from pg_stat_activity where datname = current_database() \
            and usename = '{}' and state <> 'idle'",
        database.name_of(Role::Consumer)
    );
    until_zero(&database, &at_work).await;
    background.stop().await;
    assert_once_and_in_order(&effects(&database).await, (1..=3).map(|n| step("a", n)));
    assert_eq!(number(&database, DEAD).await, 0, "they were handled");
}

const WAITS: &str = "select count(*) from pg_locks \
    where not granted and relation = 'inbox.parked'::regclass and mode = 'AccessExclusiveLock' \
    and database = (select oid from pg_database where datname = current_database())";

async fn until_somebody_waits(client: &Client) {
    let waits = wait::until("somebody waits for the table", wait::PATIENCE, || async {
        match client.query_one(WAITS, &[]).await.expect("locks").get::<_, i64>(0) {
            0 => Err("no one"),
            _ => Ok(()),
        }
    });
    waits.await.expect("it is asked for");
}

/// A handler is at work, in a transaction that has taken from the table.
async fn until_kept_by_a_handler(database: &Database) {
    let taken = "select count(*) from pg_locks \
        where granted and relation = 'inbox.parked'::regclass and mode = 'RowExclusiveLock' \
        and database = (select oid from pg_database where datname = current_database())";
    let at_work = wait::until("a handler is at work", wait::PATIENCE, || async {
        match number(database, taken).await {
            0 => Err("not yet"),
            _ => Ok(()),
        }
    });
    at_work.await.expect("it is called");
}
