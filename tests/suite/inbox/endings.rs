//! A handler may undo a part of its transaction, and can't end it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use outbox_harness::{database::Role, wait};
use outbox_idempotency::{
    Failure, Inbox, InboxError, Message, Once, OnceError, Processor, Retry, Tx,
};

use super::{
    effects::{Step, assert_once_and_in_order, database, effects, message, number, take},
    sessions::{DEAD, one_session, work_off},
};

const ENDED: &str = "select count(*) from inbox.dead_letters where code = 'transaction-ended'";

#[tokio::test]
async fn a_statement_whose_failure_the_handler_undoes_fails_nothing() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        tx.execute("savepoint mine", &[]).await?;
        tx.execute("select 1 / $1::int", &[&0_i32]).await.expect_err("a division by zero");
        tx.execute("rollback to savepoint mine", &[]).await?;
        if message.attempt == 1 && message.payload.n == 2 {
            return Err(Failure::transient("once more"));
        }
        Ok(())
    };
    let pool = database.pool(Role::Consumer, 4);
    let inbox = Inbox::open(pool, "billing").await.expect("the inbox opens");
    let processor = Processor::new(inbox, handler).retry(Retry::default().attempts(2));
    processor.process(&[message("a", 1), message("a", 2)]).await.expect("settled");
    work_off(&processor, &database, "select count(*) from inbox.parked").await;
    let expected = (1..=2).map(|n| Step { key: "a".into(), n });
    assert_once_and_in_order(&effects(&database).await, expected);
    assert_eq!(number(&database, DEAD).await, 0);
}

#[tokio::test]
async fn a_savepoint_of_any_name_keeps_nothing_of_a_message_that_fails() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        let attempt = message.attempt.cast_signed();
        take(&tx, &Step { n: attempt, ..message.payload }).await?;
        for name in ["work", "ended", "checked"] {
            tx.execute(&format!("savepoint {name}"), &[]).await?;
        }
        match message.attempt {
            ..4 => Err(Failure::transient("not yet")),
            _ => Ok(()),
        }
    };
    let pool = database.pool(Role::Consumer, 4);
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    let inbox = Inbox::open(pool, "billing").await.expect("the inbox opens");
    let processor = Processor::new(inbox, handler).retry(retry);
    processor.process(&[message("a", 1)]).await.expect("settled");
    work_off(&processor, &database, "select count(*) from inbox.parked").await;
    assert_eq!(effects(&database).await, [Step { key: "a".into(), n: 4 }], "of the last attempt");
}

#[tokio::test]
async fn a_handler_that_ends_its_transaction_is_refused_and_the_message_is_a_dead_letter() {
    let ends =
        ["commit", "/* done */ END;", "rollback", "abort and chain", "prepare transaction 'x'"];
    for ignores in [false, true] {
        let database = database().await;
        let inbox = one_session(&database).await;
        for (n, end) in ends.into_iter().enumerate() {
            let handler = move |tx: Tx, message: Message<Step>| async move {
                take(&tx, &message.payload).await?;
                let ended = tx.execute(end, &[]).await;
                if ignores { Ok(()) } else { ended.map(drop).map_err(Failure::from) }
            };
            let n = i32::try_from(n).expect("few");
            let processor = Processor::new(inbox.clone(), handler);
            processor.process(&[message("a", n)]).await.expect("settled");
            let handler = move |tx: Tx, message: Message<Step>| async move {
                take(&tx, &message.payload).await?;
                let ended = tx.batch_execute(end).await;
                if ignores { Ok(()) } else { ended.map_err(Failure::from) }
            };
            let processor = Processor::new(inbox.clone(), handler);
            processor.process(&[message("b", n)]).await.expect("settled");
        }
        assert_eq!(effects(&database).await, []);
        let dead = "select count(*) from inbox.dead_letters where code = 'sqlstate-2D000'";
        assert_eq!(number(&database, dead).await, 10);
    }
}

#[tokio::test]
async fn a_transaction_that_ends_among_several_statements_is_found_out() {
    let database = database().await;
    let ends = [("rollback; begin", false), ("commit; begin", true), ("commit", true)];
    for (sql, remains) in ends {
        for statement_before in [true, false] {
            // A session in which nothing was prepared: the very first statement may be the one.
            let inbox = one_session(&database).await;
            let id = message("a", 1).id;
            let ends = |tx: Tx| async move {
                if statement_before {
                    let made = "create temporary table t () on commit drop; select 1";
                    tx.batch_execute(made).await?;
                }
                drop(tx.batch_execute(&format!("select 1; {sql}; select 2")).await);
                Ok::<_, tokio_postgres::Error>(())
            };
            let error = inbox.once(&id, ends).await.expect_err("it was ended");
            assert!(matches!(error, OnceError::Inbox(InboxError::Ended)), "{sql}: {error:?}");
            let again = inbox.once(&id, |_| async { Ok::<_, InboxError>(()) }).await;
            let expected = if remains { Once::Duplicate } else { Once::Applied(()) };
            assert_eq!(again.expect("asked"), expected, "{sql}");
        }
    }
}

/// Its claim may be committed then, and not all of its effect: somebody must look.
#[tokio::test]
async fn a_message_whose_handler_ends_its_transaction_among_others_is_a_dead_letter() {
    const ENDS: [&str; 7] = [
        "commit",
        "commit; begin",
        "commit; begin; select 1 / 0",
        "rollback; begin",
        "prepare transaction 'of {}'",
        "prepare transaction 'of {}'; begin",
        "prepare transaction 'of {}'; begin; select 1 / 0",
    ];
    for (waits_first, ignores) in [(false, false), (true, false), (false, true), (true, true)] {
        let database = database().await;
        let name = database.name().to_owned();
        let inbox =
            Inbox::open(database.pool(Role::Consumer, 2), "billing").await.expect("it opens");
        let handler = move |tx: Tx, message: Message<Step>| {
            let end = ENDS[usize::try_from(message.payload.n).expect("few")].replace("{}", &name);
            async move {
                if waits_first && message.attempt == 1 {
                    return Err(Failure::transient("later"));
                }
                let ended = tx.batch_execute(&format!("savepoint s; {end}")).await;
                if ignores { Ok(()) } else { ended.map_err(Failure::from) }
            }
        };
        let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
        let processor = Processor::new(inbox, handler).retry(retry.attempts(2));
        for n in 0..7 {
            let one = [message(&n.to_string(), n)];
            let settled = tokio::time::timeout(wait::PATIENCE, processor.process(&one)).await;
            settled.unwrap_or_else(|_| panic!("{n}: its key waits")).expect("settled");
        }
        work_off(&processor, &database, "select 7 - count(*) from inbox.dead_letters").await;
        let how = format!("waits first: {waits_first}, ignores: {ignores}");
        assert_eq!(number(&database, ENDED).await, 7, "{how}");
        assert_eq!(number(&database, "select count(*) from inbox.parked").await, 0);
        let left = "select count(*) from pg_prepared_xacts where database = current_database()";
        assert_eq!(number(&database, left).await, 0, "{how}");
    }
}

/// What it has committed of a batch is not new any more, so no one would ever handle the rest of it.
#[tokio::test]
async fn of_a_batch_that_its_handler_commits_in_part_each_message_is_a_dead_letter() {
    for (ends, dead) in [("commit; begin", 3), ("rollback; begin", 1)] {
        for waits_first in [false, true] {
            let database = database().await;
            let fixed = Arc::new(AtomicBool::new(!waits_first));
            let handler = {
                let fixed = Arc::clone(&fixed);
                move |tx: Tx, messages: Vec<Message<Step>>| {
                    let fixed = fixed.load(SeqCst);
                    async move {
                        if !fixed {
                            return Err(Failure::transient("later"));
                        }
                        if messages.iter().any(|message| message.payload.n == 2) {
                            tx.batch_execute(&format!("select 1; {ends}")).await?;
                        }
                        for message in &messages {
                            take(&tx, &message.payload).await?;
                        }
                        Ok(())
                    }
                }
            };
            let inbox =
                Inbox::open(database.pool(Role::Consumer, 4), "billing").await.expect("it opens");
            let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
            let processor = Processor::batch(inbox, 3, handler).retry(retry);
            let messages: Vec<_> = (1..=3).map(|n| message("a", n)).collect();
            processor.process(&messages).await.expect("settled");
            fixed.store(true, SeqCst);
            let left = "select 3 - (select count(*) from inbox.dead_letters) - (select count(*) from effects)";
            work_off(&processor, &database, left).await;
            // The first one that waits is tried alone.
            let dead = if waits_first { dead.min(2) } else { dead };
            let how = format!("{ends}, waits first: {waits_first}");
            assert_eq!(number(&database, ENDED).await, dead, "{how}");
            assert_eq!(number(&database, "select count(*) from inbox.parked").await, 0);
        }
    }
}

#[tokio::test]
async fn a_handler_goes_back_to_its_savepoint_by_one_statement_or_among_several() {
    let database = database().await;
    let inbox = one_session(&database).await;
    let sets = ["execute", "query", "batch"];
    for (n, set) in (1..).zip(sets) {
        let goes_back = |tx: Tx| async move {
            let savepoint = "savepoint before";
            match set {
                "execute" => drop(tx.execute(savepoint, &[]).await?),
                "query" => drop(tx.query(savepoint, &[]).await?),
                _ => tx.batch_execute(savepoint).await?,
            }
            drop(tx.execute("select 1 / 0", &[]).await);
            tx.batch_execute("rollback to savepoint before; release savepoint before").await?;
            take(&tx, &Step { key: "a".into(), n }).await
        };
        let done = inbox.once(&message("a", n).id, goes_back).await.expect(set);
        assert_eq!(done, Once::Applied(1), "{set}");
    }
    assert_eq!(effects(&database).await.len(), sets.len());
}

/// The very first statements of a handler, of which it never has the answer.
#[tokio::test]
async fn a_transaction_is_found_out_whose_end_was_sent_and_not_waited_for() {
    for end in ["commit", "commit; begin"] {
        for (waits_first, ignores) in [(false, false), (true, false), (false, true), (true, true)] {
            let database = database().await;
            let handler = move |tx: Tx, message: Message<Step>| async move {
                if message.payload.key == "before" {
                    // What such statements take is prepared from now on, so theirs are sent at once.
                    return Ok(tx.batch_execute("select 1; select 2").await?);
                }
                if waits_first && message.attempt == 1 {
                    return Err(Failure::transient("later"));
                }
                let sent = tx.batch_execute(&format!("select 1; {end}")).now_or_never();
                assert!(sent.is_none(), "no answer was waited for");
                if ignores { Ok(()) } else { Err(Failure::transient("no")) }
            };
            let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
            let processor = Processor::new(one_session(&database).await, handler).retry(retry);
            processor.process(&[message("before", 1), message("a", 1)]).await.expect("settled");
            let how = format!("{end}, waits first: {waits_first}, ignores: {ignores}");
            let left = "select 1 - count(*) from inbox.dead_letters";
            work_off(&processor, &database, left).await;
            assert_eq!(number(&database, ENDED).await, 1, "{how}");
            assert_eq!(number(&database, "select count(*) from inbox.parked").await, 0, "{how}");
        }
    }
}
