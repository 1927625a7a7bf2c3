//! Statements that still run when their handler is done with.

use std::time::Duration;

use futures_util::{FutureExt as _, future};
use outbox_harness::wait;
use outbox_idempotency::{Failure, Message, Processor, Retry, Tx};

use super::effects::{Step, database, effects, inbox, message, number, take};

/// Ways to leave one running, with the codes of their dead letters.
const LEAVING: [(&str, &str); 5] = [
    ("at-once", "statement-unfinished"),
    ("succeeds", "statement-unfinished"),
    ("fails", "mine"),
    ("takes-too-long", "timed-out"),
    ("keeps-it", "transaction-kept"),
];

/// As long as no test waits, and no limit of the server ends it.
const UNLIMITED: &str = "set local statement_timeout = 0";
const FOR_EVER: &str = "select pg_sleep(3600)";

async fn leave_running(tx: Tx, way: &str) -> Result<(), Failure> {
    if way == "at-once" {
        // The first that it sends, and no answer of the session is seen by it.
        let all = format!("{UNLIMITED}; {FOR_EVER}");
        assert!(tx.batch_execute(&all).now_or_never().is_none(), "it is sent, and runs on");
        return Ok(());
    }
    tx.execute(UNLIMITED, &[]).await?;
    match way {
        "takes-too-long" => drop(tx.query(FOR_EVER, &[]).await?),
        "keeps-it" => drop(tokio::spawn(async move { tx.query(FOR_EVER, &[]).await })),
        _ => {
            let soon = Duration::from_millis(50);
            let given_up = tokio::time::timeout(soon, tx.query(FOR_EVER, &[])).await;
            given_up.expect_err("it runs on");
        }
    }
    if way == "fails" { Err(Failure::permanent("mine", "no")) } else { Ok(()) }
}

#[tokio::test]
async fn a_statement_that_runs_on_behind_its_handler_is_ended_and_holds_up_no_key() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        let Step { key, n } = &message.payload;
        let (when, way) = key.split_once('/').expect("both");
        if *n == 2 {
            take(&tx, &message.payload).await?;
            return Ok(());
        }
        if when == "later" && message.attempt == 1 {
            return Err(Failure::retry_after(Duration::ZERO, "not yet"));
        }
        leave_running(tx, way).await
    };
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    let processor = Processor::new(inbox(&database).await, handler)
        .retry(retry.attempts(2))
        .time_limit(Duration::from_millis(500));
    let keys = ["now", "later"].map(|when| LEAVING.map(|(way, _)| format!("{when}/{way}")));
    let each = keys.as_flattened().iter().map(|key| {
        let processor = processor.clone();
        async move {
            let messages = [message(key, 1), message(key, 2)];
            let settled = tokio::time::timeout(wait::PATIENCE, processor.process(&messages)).await;
            settled.unwrap_or_else(|_| panic!("{key}: it is waited for")).expect(key);
        }
    });
    future::join_all(each).await;
    let all = wait::until("each key goes on", wait::PATIENCE, || async {
        match effects(&database).await.len() {
            10 => Ok(()),
            other => Err(format!("{other} of 10")),
        }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        done = all => done.expect("none waits for what was left"),
    }
    for (way, code) in LEAVING {
        let sql = format!(
            "select count(*) from inbox.dead_letters where code = '{code}' \
                 and convert_from(key, 'UTF8') in ('now/{way}', 'later/{way}')"
        );
        assert_eq!(number(&database, &sql).await, 2, "{way}");
    }
    let left = "select count(*) from pg_stat_activity where datname = current_database() \
        and state = 'active' and query like '%pg_sleep(3600)' and pid <> pg_backend_pid()";
    assert_eq!(number(&database, left).await, 0, "none runs on");
}
