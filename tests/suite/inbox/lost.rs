//! Handlers that lose their session, or keep it: neither holds another key, or lasts for ever.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use futures_util::future;
use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{Failure, Inbox, Message, Processor, RawMessage, Retry, Tx};

use super::effects::{Step, database, effects, inbox, message, number, take};

const DEAD: &str = "select count(*) from inbox.dead_letters";

/// By the key of the message that does so. The database is there for whoever asks again.
const LOSES: &[(&str, &str)] = &[
    ("terminates", "select pg_terminate_backend(pg_backend_pid())"),
    ("is-told-in-latin", "set client_encoding = 'LATIN1'; do $$ begin raise '%', chr(233); end $$"),
    ("at-commit", "select 1"),
];

async fn until_dead(processor: &Processor, database: &Database, count: i64) {
    let given_up = wait::until("they are given up", wait::PATIENCE, || async {
        match number(database, DEAD).await {
            dead if dead == count => Ok(()),
            dead => Err(format!("{dead} of {count}")),
        }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        done = given_up => done.expect("none of them waits for ever"),
    }
}

#[tokio::test]
async fn a_message_that_loses_its_session_each_time_is_a_dead_letter_in_the_end_and_others_flow() {
    let database = database().await;
    let at_commit = "create function leave() returns trigger language plpgsql security definer as \
            $$ begin perform pg_terminate_backend(pg_backend_pid()); return null; end $$; \
        create constraint trigger late after insert on effects deferrable initially deferred \
            for each row when (new.key = 'at-commit') execute function leave()";
    database.superuser().batch_execute(at_commit).await.expect("a trigger");
    // A full disk is no one's fault, however long it takes.
    let full = Arc::new(AtomicU32::new(0));
    let handler = move |tx: Tx, message: Message<Step>| {
        let full = Arc::clone(&full);
        async move {
            take(&tx, &message.payload).await?;
            if message.payload.key == "full" && full.fetch_add(1, SeqCst) < 6 {
                let full = "do $$ begin raise exception using errcode = '53100'; end $$";
                tx.batch_execute(full).await?;
            }
            let loses = LOSES.iter().find(|(key, _)| *key == message.payload.key);
            if let Some((_, sql)) = loses {
                tx.batch_execute(sql).await?;
            }
            Ok(())
        }
    };
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1)).attempts(2);
    let processor = Processor::new(inbox(&database).await, handler).retry(retry);
    let keys = LOSES.iter().map(|(key, _)| *key).chain(["full"]);
    let each = keys.map(|key| {
        let processor = processor.clone();
        async move {
            let messages = [message(key, 1), message("fine", 1)];
            let settled = tokio::time::timeout(wait::PATIENCE, processor.process(&messages)).await;
            settled.unwrap_or_else(|_| panic!("{key}: it stands still")).expect(key);
        }
    });
    future::join_all(each).await;
    until_dead(&processor, &database, i64::try_from(LOSES.len()).expect("few")).await;
    assert_eq!(effects(&database).await.len(), LOSES.len() + 2, "the others, and the full disk's");
    assert_eq!(number(&database, "select count(*) from inbox.parked").await, 0);
    let attempts = "select count(*) from inbox.dead_letters where attempts <> 2";
    assert_eq!(number(&database, attempts).await, 0);
}

/// A batch of a lane, and its third message is to blame.
#[tokio::test]
async fn a_message_of_a_parked_batch_that_loses_its_session_is_given_up_and_none_before_it() {
    let database = database().await;
    let waits = Arc::new(AtomicBool::new(true));
    let handler = {
        let waits = Arc::clone(&waits);
        move |tx: Tx, messages: Vec<Message<Step>>| {
            let waits = waits.load(SeqCst);
            async move {
                if waits {
                    return Err(Failure::defer(SystemTime::now()));
                }
                for message in &messages {
                    take(&tx, &message.payload).await?;
                    if message.payload.n == 3 {
                        tx.batch_execute("select pg_terminate_backend(pg_backend_pid())").await?;
                    }
                }
                Ok(())
            }
        }
    };
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1)).attempts(1);
    let processor = Processor::batch(inbox(&database).await, 4, handler).retry(retry);
    let messages: Vec<RawMessage> = (1..=4).map(|n| message("a", n)).collect();
    processor.process(&messages).await.expect("settled");
    waits.store(false, SeqCst);
    let done = wait::until("the others take effect", wait::PATIENCE, || async {
        match effects(&database).await.len() {
            3 => Ok(()),
            some => Err(format!("{some} effects")),
        }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        done = done => done.expect("all but one"),
    }
    let found: Vec<i32> = effects(&database).await.iter().map(|step| step.n).collect();
    assert_eq!(found, [1, 2, 4]);
    let guilty = "select count(*) from inbox.dead_letters \
        where attempts = 1 and convert_from(payload, 'UTF8')::jsonb ->> 'n' = '3'";
    assert_eq!((number(&database, guilty).await, number(&database, DEAD).await), (1, 1));
}

/// With one connection for all: whoever keeps it would keep everybody.
#[tokio::test]
async fn a_handler_that_keeps_its_transaction_holds_neither_its_key_nor_a_connection() {
    for waits_first in [false, true] {
        let database = database().await;
        let pool = database.pool(Role::Consumer, 1);
        let inbox = Inbox::open(pool.clone(), "billing").await.expect("the inbox opens");
        let (keeper, mut kept) = tokio::sync::mpsc::unbounded_channel();
        let handler = move |tx: Tx, message: Message<Step>| {
            let keeper = keeper.clone();
            async move {
                if waits_first && message.attempt == 1 {
                    return Err(Failure::transient("later"));
                }
                take(&tx, &message.payload).await?;
                if message.payload.n <= 3 {
                    keeper.send(tx).expect("room");
                }
                Ok(())
            }
        };
        let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
        let processor = Processor::new(inbox, handler).retry(retry.attempts(3));
        let messages: Vec<RawMessage> = (1..=4).map(|n| message("a", n)).collect();
        let settled = tokio::time::timeout(wait::PATIENCE, processor.process(&messages)).await;
        settled.expect("it does not stand still").expect("settled");
        until_dead(&processor, &database, 3).await;
        let taken = wait::until("the fourth takes effect", wait::PATIENCE, || async {
            match effects(&database).await.as_slice() {
                [Step { n: 4, .. }] => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        tokio::select! {
            stop = processor.background() => panic!("{stop:?}"),
            done = taken => done.expect("its key goes on"),
        }
        let code = "select count(*) from inbox.dead_letters where code = 'transaction-kept'";
        assert_eq!(number(&database, code).await, 3, "waits first: {waits_first}");
        kept.close();
        while let Some(tx) = kept.recv().await {
            take(&tx, &Step { key: "a".into(), n: 9 }).await.expect_err("it has no transaction");
        }
        assert_eq!(effects(&database).await.len(), 1);
        assert_eq!(pool.status().max_size, 1, "each place is given back");
    }
}

/// As a pool that was set by hand, beside other services of the role.
#[tokio::test]
async fn where_the_database_has_fewer_connections_than_the_pool_all_takes_effect() {
    let database = database().await;
    let inbox = inbox(&database).await;
    let limit = format!(
        "alter database {0} connection limit 2; select pg_terminate_backend(pid, 5000) \
         from pg_stat_activity where usename = '{1}' and datname = '{0}'",
        database.name(),
        database.name_of(Role::Consumer)
    );
    database.superuser().batch_execute(&limit).await.expect("limited");
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        tx.execute("select pg_sleep(0.05)", &[]).await?;
        Ok(())
    };
    let processor = Processor::new(inbox, handler).retry(Retry::default().attempts(1));
    let owners = (0..8).map(|key| {
        let processor = processor.clone();
        async move {
            let messages = [message(&format!("k{key}"), 1), message(&format!("k{key}"), 2)];
            processor.process(&messages).await.expect("settled");
        }
    });
    let all = tokio::time::timeout(wait::PATIENCE, future::join_all(owners)).await;
    all.expect("they do not stand still");
    assert_eq!(effects(&database).await.len(), 16);
    assert_eq!(number(&database, DEAD).await, 0);
}
