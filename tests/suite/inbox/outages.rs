//! The line to the consumer's database breaks, at the worst moments.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use futures_util::future;
use outbox_harness::{
    database::{self, Database, Role},
    proxy::{From, Proxy, Trap, contains},
    wait,
};
use outbox_idempotency::{Dedup, Inbox, Message, Processor, Retry, Tx};

use super::{
    effects::{Step, database, effects, inbox, message, number, take},
    watermark::{published, watermark},
};

/// An inbox whose every statement goes through a proxy.
async fn inbox_behind_a_proxy(database: &Database) -> (Inbox, Proxy) {
    let (host, port) = database.postgres().address();
    let server = format!("{host}:{port}");
    let proxy = Proxy::to(&server).await;
    let url = database.url(Role::Consumer).replace(&server, &proxy.address());
    let pool = database::pool(url.parse().expect("a URL"), 4);
    let inbox = Inbox::open(pool, "billing").await.expect("the inbox opens");
    (inbox, proxy)
}

/// A processor of it, and how often its handler was called.
async fn behind_a_proxy(database: &Database) -> (Processor, Proxy, Arc<AtomicU32>) {
    let (inbox, proxy) = inbox_behind_a_proxy(database).await;
    let calls = Arc::new(AtomicU32::new(0));
    let handler = {
        let calls = Arc::clone(&calls);
        move |tx: Tx, message: Message<Step>| {
            calls.fetch_add(1, SeqCst);
            async move {
                take(&tx, &message.payload).await?;
                Ok(())
            }
        }
    };
    (Processor::new(inbox, handler).retry(Retry::default().attempts(1)), proxy, calls)
}

async fn assert_nothing_aside(database: &Database) {
    let aside =
        "select (select count(*) from inbox.parked) + (select count(*) from inbox.dead_letters)";
    assert_eq!(number(database, aside).await, 0, "an outage is nobody's fault");
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_has_happened_once_or_happens_once_more() {
    let database = database().await;
    let (processor, proxy, calls) = behind_a_proxy(&database).await;
    for (n, trap, calls_expected) in [(1, Trap::Answer, 1), (2, Trap::Before, 3)] {
        let sprung = proxy.trap(From::Client, trap, |bytes| contains(bytes, b"commit\0"));
        processor.process(&[message("a", n)]).await.expect("settled");
        sprung.await.expect("the commit was met");
        assert_eq!(calls.load(SeqCst), calls_expected, "{trap:?}");
    }
    let expected = [1, 2].map(|n| Step { key: "a".into(), n });
    assert_eq!(effects(&database).await, expected);
    assert_nothing_aside(&database).await;
}

#[tokio::test]
async fn a_batch_whose_commit_is_lost_has_happened_once_or_happens_once_more() {
    for dedup in [Dedup::Rows, watermark()] {
        let database = database().await;
        let (inbox, proxy) = inbox_behind_a_proxy(&database).await;
        let calls = Arc::new(AtomicU32::new(0));
        let handler = {
            let calls = Arc::clone(&calls);
            move |tx: Tx, messages: Vec<Message<Step>>| {
                calls.fetch_add(1, SeqCst);
                async move {
                    for message in messages {
                        take(&tx, &message.payload).await?;
                    }
                    Ok(())
                }
            }
        };
        let processor = Processor::batch(inbox, 10, handler).retry(Retry::default().attempts(1));
        let processor = processor.dedup(dedup.clone());
        for (first, trap, calls_expected) in [(1, Trap::Answer, 1), (4, Trap::Before, 3)] {
            let batch: Vec<_> = (first..first + 3)
                .map(|n| published("a", n, n.unsigned_abs().into(), n.into()))
                .collect();
            let sprung = proxy.trap(From::Client, trap, |bytes| contains(bytes, b"commit\0"));
            processor.process(&batch).await.expect("settled");
            sprung.await.expect("the commit was met");
            assert_eq!(calls.load(SeqCst), calls_expected, "{trap:?} {dedup:?}");
        }
        let expected: Vec<_> = (1..=6).map(|n| Step { key: "a".into(), n }).collect();
        assert_eq!(effects(&database).await, expected, "{dedup:?}");
        assert_nothing_aside(&database).await;
    }
}

#[tokio::test]
async fn while_the_database_is_away_messages_wait_and_nothing_is_counted_against_them() {
    let database = database().await;
    let (processor, proxy, calls) = behind_a_proxy(&database).await;
    proxy.refuse();
    let before = proxy.accepted();
    let waiting = tokio::spawn({
        let processor = processor.clone();
        async move { processor.process(&[message("a", 1), message("a", 2)]).await }
    });
    wait::until("several attempts to connect", wait::PATIENCE, || async {
        match proxy.accepted() - before {
            tries if tries >= 4 => Ok(()),
            tries => Err(format!("{tries}")),
        }
    })
    .await
    .expect("it tries again");
    assert!(!waiting.is_finished());
    assert_eq!(calls.load(SeqCst), 0);
    proxy.heal();
    waiting.await.expect("no panic").expect("settled");
    assert_eq!(effects(&database).await, [1, 2].map(|n| Step { key: "a".into(), n }));
    assert_nothing_aside(&database).await;
}

/// PostgreSQL and its extensions raise XX000 for a value as well as for a defect of their own.
#[tokio::test]
async fn a_message_that_fails_inside_the_server_is_a_dead_letter_in_the_end_and_others_flow() {
    let fails =
        "raise exception using errcode = 'XX000', message = 'parse error - invalid geometry'";
    let at_commit = format!(
        "create function refuse() returns trigger language plpgsql as $$ begin {fails}; end $$; \
         create constraint trigger late after insert on effects deferrable initially deferred \
         for each row when (new.key = 'late') execute function refuse()"
    );
    let database = database().await;
    database.superuser().batch_execute(&at_commit).await.expect("a trigger");
    let handler = move |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        if message.payload.key == "bad" {
            tx.batch_execute(&format!("do $$ begin {fails}; end $$")).await?;
        }
        Ok(())
    };
    let retry = Retry::default().attempts(2);
    let processor = Processor::new(inbox(&database).await, handler).retry(retry);
    let each = ["bad", "late"].map(|key| {
        let processor = processor.clone();
        async move {
            let messages = [message(key, 1), message("fine", 1)];
            let settled = tokio::time::timeout(wait::PATIENCE, processor.process(&messages)).await;
            settled.expect("others flow").expect("settled");
        }
    });
    future::join_all(each).await;
    assert_eq!(number(&database, "select count(*) from effects where key = 'fine'").await, 2);
    let dead =
        "select count(*) from inbox.dead_letters where code = 'sqlstate-XX000' and attempts = 2";
    let given_up = wait::until("both are given up", wait::PATIENCE, || async {
        match number(&database, dead).await {
            2 => Ok(()),
            others => Err(format!("{others} of 2")),
        }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        done = given_up => done.expect("no message waits for ever"),
    }
    assert_eq!(number(&database, "select count(*) from effects").await, 2);
}
