//! What a handler leaves may panic when it is dropped, and a statement of its may take long at the very end: neither
//! ends the consumer, and both are counted as failures of the message.

use std::{
    fmt,
    panic::panic_any,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use outbox_idempotency::{Failure, Message, Processor, Retry, Tx};

use super::{
    effects::{Step, database, effects, inbox, message, number, take},
    sessions::{DEAD, work_off},
};

const PARKED: &str = "select count(*) from inbox.parked_lanes";

/// Panics when it is dropped, as a runtime of tokio's does in a task, and with it a blocking HTTP client.
#[derive(Debug)]
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped");
    }
}

impl fmt::Display for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an error that panics when it is dropped")
    }
}

impl std::error::Error for Bomb {}

#[tokio::test(flavor = "multi_thread")]
async fn what_panics_when_it_is_dropped_is_the_messages_failure() {
    let database = database().await;
    for (how, code) in [("limit", "timed-out"), ("panic", "panic"), ("error", "bad")] {
        for waits_first in [false, true] {
            database
                .superuser()
                .batch_execute("delete from effects; delete from inbox.dead_letters")
                .await
                .expect("none");
            let handler = move |tx: Tx, message: Message<Step>| async move {
                take(&tx, &message.payload).await?;
                if message.payload.key == "a" {
                    if waits_first && message.attempt == 1 {
                        return Err(Failure::transient("not yet"));
                    }
                    match how {
                        "limit" => {
                            let _held = Bomb;
                            std::future::pending::<()>().await;
                        }
                        "panic" => panic_any(Bomb),
                        _ => return Err(Failure::permanent("bad", Bomb)),
                    }
                }
                Ok(())
            };
            let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(5));
            let processor = Processor::new(inbox(&database).await, handler)
                .retry(retry.attempts(2))
                .time_limit(Duration::from_millis(if how == "limit" { 500 } else { 30_000 }));
            for key in ["a", "b"] {
                processor.process(&[message(key, 1)]).await.expect("the consumer continues");
            }
            work_off(&processor, &database, PARKED).await;
            let codes = format!("{DEAD} where code = '{code}'");
            assert_eq!(number(&database, &codes).await, 1, "{how}, waits first: {waits_first}");
            assert_eq!(effects(&database).await.len(), 1, "{how}, waits first: {waits_first}");
        }
    }
}

/// How often the handler is called until its message is given up, where `at_commit` is what a trigger does at the
/// commit of each call but the first, which fails by itself.
async fn calls_until_given_up(at_commit: &str, attempts: u32, limit: Option<Duration>) -> usize {
    let database = database().await;
    let sql = format!(
        "create table odd (n int); grant insert on odd to public; \
         create function at_commit() returns trigger language plpgsql as \
             $$ begin {at_commit}; return null; end $$; \
         create constraint trigger at_commit after insert on odd deferrable initially deferred \
             for each row execute function at_commit()"
    );
    database.superuser().batch_execute(&sql).await.expect("a trigger");
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let handler = move |tx: Tx, message: Message<Step>| {
        counted.fetch_add(1, SeqCst);
        async move {
            if message.attempt == 1 {
                return Err(Failure::transient("not yet"));
            }
            tx.execute("insert into odd values (1)", &[]).await?;
            Ok(())
        }
    };
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(5));
    let mut processor =
        Processor::new(inbox(&database).await, handler).retry(retry.attempts(attempts));
    if let Some(limit) = limit {
        processor = processor.time_limit(limit);
    }
    processor.process(&[message("a", 1)]).await.expect("settled");
    work_off(&processor, &database, PARKED).await;
    assert_eq!(number(&database, DEAD).await, 1);
    calls.load(SeqCst)
}

#[tokio::test]
async fn a_commit_that_takes_longer_than_the_limit_is_counted_as_a_failure() {
    let limit = Some(Duration::from_millis(200));
    let calls = calls_until_given_up("perform pg_sleep(2)", 3, limit).await;
    assert_eq!(calls, 3, "as many as the policy allows");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_parked_message_that_collides_the_collisions_are_counted_once_for_all_workers() {
    let calls = calls_until_given_up("raise 'no' using errcode = '40001'", 2, None).await;
    assert_eq!(calls, 22, "once as it came, and 21 times until that counts as a failure");
}
