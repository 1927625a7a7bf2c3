//! Another transaction in the way of the inbox's own statements: no message's fault, however long it is.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use outbox_harness::{database::Role, wait};
use outbox_idempotency::{Claim, Failure, Inbox, Message, Processor, Retry, Tx};
use tracing_subscriber::filter::LevelFilter;

use super::{
    effects::{Step, database, effects, inbox, message, number, take},
    processor::{PARKED, WAITING},
    rights::Log,
    sessions::{DEAD, work_off},
};

#[tokio::test]
async fn of_a_batch_that_takes_longer_than_a_statement_may_the_parts_are_tried() {
    let _heard = Log::written(LevelFilter::WARN);
    let database = database().await;
    let inbox = inbox(&database).await;
    let limited = format!("alter database {} set lock_timeout = '50ms'", database.name());
    database.superuser().batch_execute(&limited).await.expect("limited");
    let handler = |tx: Tx, messages: Vec<Message<Step>>| async move {
        for message in messages {
            take(&tx, &message.payload).await?;
        }
        Ok(())
    };
    let hour = Duration::from_secs(3_600);
    let retry = Retry::exponential(hour, hour).attempts(1);
    let limited = Inbox::open(database.pool(Role::Consumer, 4), "billing").await.expect("opened");
    let processor = Processor::batch(limited, 10, handler).retry(retry);
    let messages = [message("a", 1), message("b", 1), message("c", 1)];
    let mut frozen = database.connect(Role::Consumer).await;
    let held = frozen.transaction().await.expect("begun");
    let claim = inbox.claim(&held, &messages[2].id).await.expect("claimed");
    assert_eq!(claim, Claim::Fresh);
    let mut processed = pin!(processor.process(&messages));
    let others = wait::until("the others take effect", wait::PATIENCE, || async {
        match effects(&database).await.len() {
            2 => Ok(()),
            some => Err(format!("{some} effects")),
        }
    });
    tokio::select! {
        done = &mut processed => panic!("acknowledged, and one of them is not stored: {done:?}"),
        others = others => others.expect("no one is in their way"),
    }
    held.rollback().await.expect("the frozen one's session is ended");
    processed.await.expect("settled");
    assert_eq!((number(&database, DEAD).await, number(&database, PARKED).await), (0, 0));
    assert_eq!(effects(&database).await.len(), 3);
}

#[tokio::test]
async fn a_message_whose_claim_waits_for_another_costs_no_attempt_and_that_is_told() {
    for limit in ["lock_timeout", "statement_timeout"] {
        let database = database().await;
        // Opened without it: making the days takes longer, beside other tests.
        let inbox = inbox(&database).await;
        let limited = format!(
            "alter database {0} set {limit} = '100ms'; select pg_terminate_backend(pid, 5000) \
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
        // Whatever is counted makes a dead letter, or parks for an hour.
        let hour = Duration::from_secs(3_600);
        let retry = Retry::exponential(hour, hour).attempts(1);
        let processor = Processor::new(inbox, handler).retry(retry);
        let messages = [message("a", 1)];
        let mut frozen = database.connect(Role::Consumer).await;
        frozen.batch_execute("set statement_timeout = 0").await.expect("set");
        let held = frozen.transaction().await.expect("begun");
        let claim = processor.inbox().claim(&held, &messages[0].id).await.expect("claimed");
        assert_eq!(claim, Claim::Fresh);

        let (log, _until_the_end) = Log::written(LevelFilter::WARN);
        let mut processed = pin!(processor.process(&messages));
        let told = wait::until("it is told what is in the way", wait::PATIENCE, || async {
            match log.text() {
                text if text.contains(&limit.replace('_', " ")) => Ok(()),
                text => Err(text),
            }
        });
        tokio::select! {
            done = &mut processed => panic!("acknowledged, and nothing of it is stored: {done:?}"),
            told = told => told.expect("after so many tries"),
        }
        held.rollback().await.expect("the frozen one's session is ended");
        processed.await.expect("settled");
        assert_eq!((number(&database, DEAD).await, number(&database, PARKED).await), (0, 0));
        assert_eq!(effects(&database).await, [Step { key: "a".into(), n: 1 }], "{limit}");
    }
}

/// Two messages of a key that wait, and are handled together. Whatever is counted makes a dead letter.
async fn two_that_wait(inbox: Inbox, key: &str) -> Processor {
    let early = Arc::new(AtomicBool::new(true));
    let handler = {
        let early = Arc::clone(&early);
        move |tx: Tx, messages: Vec<Message<Step>>| {
            let early = early.load(SeqCst);
            async move {
                for message in &messages {
                    if early {
                        return Err(Failure::defer(SystemTime::now()));
                    }
                    take(&tx, &message.payload).await?;
                    if message.payload.key == "collides" && message.payload.n == 2 {
                        let no = "do $$ begin raise 'no' using errcode = '40001'; end $$";
                        tx.batch_execute(no).await?;
                    }
                }
                Ok(())
            }
        }
    };
    let hour = Duration::from_secs(3_600);
    let retry = Retry::exponential(hour, hour).attempts(1);
    let processor = Processor::batch(inbox, 10, handler).retry(retry);
    let messages = [message(key, 1), message(key, 2)];
    processor.process(&messages).await.expect("they wait");
    early.store(false, SeqCst);
    processor
}

#[tokio::test]
async fn of_a_batch_that_waited_and_meets_another_transaction_the_message_that_meets_it_has_failed()
{
    let database = database().await;
    let processor = two_that_wait(inbox(&database).await, "collides").await;
    assert_eq!(number(&database, PARKED).await, 2);
    work_off(&processor, &database, WAITING).await;
    let culprit = "select count(*) from inbox.dead_letters where record_offset = 2 and code = 'sqlstate-40001'";
    assert_eq!((number(&database, culprit).await, number(&database, DEAD).await), (1, 1));
    assert_eq!(effects(&database).await, [Step { key: "collides".into(), n: 1 }]);
}

#[tokio::test]
async fn of_messages_that_waited_those_before_one_that_is_locked_take_effect() {
    let _heard = Log::written(LevelFilter::WARN);
    let database = database().await;
    // Its days are made without the limit.
    drop(inbox(&database).await);
    let limited = format!("alter database {} set lock_timeout = '50ms'", database.name());
    database.superuser().batch_execute(&limited).await.expect("limited");
    let processor = two_that_wait(inbox(&database).await, "locked").await;
    let mut frozen = database.connect(Role::Owner).await;
    let held = frozen.transaction().await.expect("begun");
    let lock = "select from inbox.parked where record_offset = 2 for update";
    assert_eq!(held.query(lock, &[]).await.expect("locked").len(), 1);
    let first = wait::until("the first takes effect", wait::PATIENCE, || async {
        match effects(&database).await.len() {
            1 => Ok(()),
            some => Err(format!("{some} effects")),
        }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        first = first => first.expect("no one is in its way"),
    }
    held.rollback().await.expect("it ends");
    work_off(&processor, &database, WAITING).await;
    assert_eq!((number(&database, DEAD).await, effects(&database).await.len()), (0, 2));
}
