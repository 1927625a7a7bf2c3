//! The inbox without a broker: one effect for each message, whoever else delivers it.

use std::time::{Duration, SystemTime};

use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{Claim, Event, Inbox, InboxError, MessageId, Once, OnceError, Tx};
use tokio::{sync::oneshot, task::JoinSet, time::timeout};
use uuid::Uuid;

/// A table where each effect is a row, so that two are seen to be two.
const EFFECTS: &str = "create table effects (message uuid not null); \
                       grant select, insert on effects to public";

async fn database() -> Database {
    let database = Database::create_inbox().await;
    database.superuser().batch_execute(EFFECTS).await.expect("a table for effects");
    database
}

async fn inbox(database: &Database, consumer: &str) -> Inbox {
    Inbox::open(database.pool(Role::Consumer, 8), consumer).await.expect("the inbox opens")
}

fn new_id() -> MessageId {
    MessageId::from_uuid(Uuid::now_v7()).expect("version 7 has a time")
}

async fn effect(tx: &Tx, id: MessageId) -> Result<u64, tokio_postgres::Error> {
    tx.execute("insert into effects values ($1)", &[&id.uuid()]).await
}

async fn effects(database: &Database) -> i64 {
    let count = "select count(*) from effects";
    database.superuser().query_one(count, &[]).await.expect("a count").get(0)
}

#[tokio::test]
async fn a_message_takes_effect_once_for_each_consumer() {
    let database = database().await;
    let (billing, mail) = (inbox(&database, "billing").await, inbox(&database, "mail").await);
    let id = new_id();
    for (consumer, expected) in [
        (&billing, Once::Applied(1)),
        (&billing, Once::Duplicate),
        (&mail, Once::Applied(1)),
        (&mail, Once::Duplicate),
    ] {
        let once = consumer.once(&id, |tx| async move { effect(&tx, id).await }).await;
        assert_eq!(once.expect("no failure"), expected);
    }
    // Another process of the same consumer.
    let again = inbox(&database, "billing").await;
    let once = again.once(&id, |tx| async move { effect(&tx, id).await }).await;
    assert_eq!(once.expect("no failure"), Once::Duplicate);
    assert_eq!(effects(&database).await, 2);
}

#[tokio::test]
async fn of_many_copies_at_once_one_takes_effect_also_when_others_fail_half_way() {
    const MESSAGES: usize = 20;
    let database = database().await;
    let inbox = inbox(&database, "billing").await;
    let ids: Vec<MessageId> = (0..MESSAGES).map(|_| new_id()).collect();
    let mut copies = JoinSet::new();
    for copy in 0..12 * MESSAGES {
        let (inbox, id) = (inbox.clone(), ids[copy % MESSAGES]);
        copies.spawn(async move {
            let fails = copy % 3 == 0;
            let work = |tx: Tx| async move {
                effect(&tx, id).await.map_err(|error| error.to_string())?;
                if fails { Err("a failure after the effect".to_owned()) } else { Ok(()) }
            };
            inbox.once(&id, work).await
        });
    }
    let (mut applied, mut duplicates) = (0, 0);
    for outcome in copies.join_all().await {
        match outcome {
            Ok(Once::Applied(())) => applied += 1,
            Ok(Once::Duplicate) => duplicates += 1,
            Err(OnceError::Work(error)) => assert_eq!(error, "a failure after the effect"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((applied, effects(&database).await), (MESSAGES, MESSAGES as i64));
    assert!(duplicates > 0, "no copy ever met another");
}

#[tokio::test]
async fn work_that_is_dropped_half_way_leaves_nothing_behind() {
    let database = database().await;
    // One connection: the next user gets the very one that was in the middle of a transaction.
    let pool = database.pool(Role::Consumer, 1);
    let inbox = Inbox::open(pool, "billing").await.expect("the inbox opens");
    let id = new_id();
    let (reached, at_work) = oneshot::channel();
    let task = tokio::spawn({
        let inbox = inbox.clone();
        async move {
            let work = |tx: Tx| async move {
                effect(&tx, id).await?;
                let _ = reached.send(());
                std::future::pending::<Result<u64, tokio_postgres::Error>>().await
            };
            inbox.once(&id, work).await
        }
    });
    at_work.await.expect("the work began");
    task.abort();
    assert!(task.await.expect_err("aborted").is_cancelled());
    let once = inbox.once(&id, |tx| async move { effect(&tx, id).await }).await;
    assert_eq!(once.expect("no failure"), Once::Applied(1));
    assert_eq!(effects(&database).await, 1);
}

#[tokio::test]
async fn a_failure_that_the_work_ignores_is_not_taken_for_success() {
    let database = database().await;
    let inbox = inbox(&database, "billing").await;
    let id = new_id();
    let ignores = |tx: Tx| async move {
        effect(&tx, id).await?;
        drop(tx.execute("select 1 / $1::int", &[&0_i32]).await);
        Ok::<_, tokio_postgres::Error>(())
    };
    let error = inbox.once(&id, ignores).await.expect_err("PostgreSQL keeps nothing of it");
    assert!(
        matches!(&error, OnceError::Inbox(InboxError::Aborted(state)) if state == "22012"),
        "{error:?}"
    );
    let once = inbox.once(&id, |tx| async move { effect(&tx, id).await }).await;
    assert_eq!(once.expect("as good as new"), Once::Applied(1));
}

/// The work does not wait for a statement: no one sees it fail.
#[tokio::test]
async fn a_failure_that_nobody_sees_is_not_taken_for_success() {
    let database = database().await;
    let inbox = inbox(&database, "billing").await;
    let id = new_id();
    let gives_up = |tx: Tx| async move {
        effect(&tx, id).await?;
        let slow = "do $$ begin perform pg_sleep(0.5); raise exception 'too late'; end $$";
        let waited = timeout(Duration::from_millis(100), tx.execute(slow, &[])).await;
        assert!(waited.is_err(), "its failure was seen");
        Ok::<_, tokio_postgres::Error>(())
    };
    let error = inbox.once(&id, gives_up).await.expect_err("PostgreSQL keeps nothing of it");
    assert!(matches!(&error, OnceError::Inbox(InboxError::Aborted(_))), "{error:?}");
    assert_eq!(effects(&database).await, 0);
    let once = inbox.once(&id, |tx| async move { effect(&tx, id).await }).await;
    assert_eq!(once.expect("as good as new"), Once::Applied(1));
}

#[tokio::test]
async fn a_transaction_that_outlives_its_work_can_write_nothing() {
    for fails in [false, true] {
        let database = database().await;
        let inbox = inbox(&database, "billing").await;
        let id = new_id();
        let (kept, mut escaped) = tokio::sync::mpsc::channel(1);
        let keeps = |tx: Tx| async move {
            effect(&tx, id).await.expect("inserted");
            kept.try_send(tx).expect("room for one");
            if fails { Err("it gave up") } else { Ok(()) }
        };
        let error = inbox.once(&id, keeps).await.expect_err("refused");
        assert!(matches!(error, OnceError::Inbox(InboxError::Escaped)), "{error:?}");
        let tx = escaped.recv().await.expect("the one that was kept");
        effect(&tx, id).await.expect_err("it has no transaction to write in");
        drop(tx);
        assert_eq!(effects(&database).await, 0);
        let once = inbox.once(&id, |tx| async move { effect(&tx, id).await }).await;
        assert_eq!(once.expect("as good as new"), Once::Applied(1));
    }
}

#[tokio::test]
async fn a_constraint_that_is_checked_at_the_commit_is_the_works_failure() {
    let database = database().await;
    let deferred = "create table parents (id int primary key); \
                    create table children (parent int references parents deferrable initially deferred); \
                    grant insert on children to public";
    database.superuser().batch_execute(deferred).await.expect("tables");
    let inbox = inbox(&database, "billing").await;
    let id = new_id();
    let orphan =
        |tx: Tx| async move { tx.execute("insert into children values ($1)", &[&1_i32]).await };
    let error = inbox.once(&id, orphan).await.expect_err("no such parent");
    assert!(matches!(error, OnceError::Inbox(InboxError::Uncommitted(_))), "{error:?}");
    let once = inbox.once(&id, |tx| async move { effect(&tx, id).await }).await;
    assert_eq!(once.expect("as good as new"), Once::Applied(1));
}

#[tokio::test]
async fn a_claim_lives_and_dies_with_the_callers_own_transaction() {
    let database = database().await;
    let inbox = inbox(&database, "billing").await;
    let mut session = database.connect(Role::Consumer).await;
    let id = new_id();
    for (commit, expected) in
        [(false, Claim::Fresh), (true, Claim::Fresh), (true, Claim::Duplicate)]
    {
        let transaction = session.transaction().await.expect("begun");
        assert_eq!(inbox.claim(&transaction, &id).await.expect("claimed"), expected);
        if commit {
            transaction.commit().await.expect("committed");
        } else {
            transaction.rollback().await.expect("rolled back");
        }
    }
    let pool = database.pool(Role::Consumer, 1);
    let mut pooled = pool.get().await.expect("a connection");
    let transaction = pooled.transaction().await.expect("begun");
    assert_eq!(inbox.claim(&transaction, &id).await.expect("asked"), Claim::Duplicate);
}

#[tokio::test]
async fn a_batch_tells_each_of_its_messages_apart() {
    let database = database().await;
    let inbox = inbox(&database, "billing").await;
    let (old, new, twice) = (new_id(), new_id(), new_id());
    let ancient = MessageId::at(Uuid::now_v7(), SystemTime::UNIX_EPOCH);
    inbox.once(&old, |tx| async move { effect(&tx, old).await }).await.expect("applied");
    let mut session = database.connect(Role::Consumer).await;
    let transaction = session.transaction().await.expect("begun");
    let claims = inbox.claim_batch(&transaction, &[twice, old, new, ancient, twice]).await;
    let expected =
        [Claim::Fresh, Claim::Duplicate, Claim::Fresh, Claim::OutsideWindow, Claim::Duplicate];
    assert_eq!(claims.expect("claimed"), expected);
    assert_eq!(inbox.claim_batch(&transaction, &[]).await.expect("claimed"), []);
}

#[tokio::test]
async fn batches_that_overlap_wait_for_one_another_and_never_deadlock() {
    const MESSAGES: usize = 200;
    let database = database().await;
    let inbox = inbox(&database, "billing").await;
    let ids: Vec<MessageId> = (0..MESSAGES).map(|_| new_id()).collect();
    let mut tasks = JoinSet::new();
    for worker in 0..8_usize {
        let mut session = database.connect(Role::Consumer).await;
        let (inbox, mut batch) = (inbox.clone(), ids.clone());
        // Each in an order of its own: sorted or not is the inbox's to decide.
        batch.rotate_left(worker * MESSAGES / 8);
        if worker % 2 == 0 {
            batch.reverse();
        }
        tasks.spawn(async move {
            for batch in batch.chunks(50) {
                let transaction = session.transaction().await.expect("begun");
                let claims = inbox.claim_batch(&transaction, batch).await.expect("no deadlock");
                for (id, claim) in batch.iter().zip(claims) {
                    if claim == Claim::Fresh {
                        let effect = "insert into effects values ($1)";
                        transaction.execute(effect, &[&id.uuid()]).await.expect("inserted");
                    }
                }
                transaction.commit().await.expect("committed");
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(effects(&database).await, MESSAGES as i64);
}

#[tokio::test]
async fn an_event_that_the_work_publishes_is_there_if_and_only_if_it_took_effect() {
    let database = database().await;
    let inbox = inbox(&database, "billing").await;
    let id = new_id();
    for fails in [true, false, false] {
        let work = |tx: Tx| async move {
            let event = Event::new("charged", serde_json::json!({ "cents": 100 }));
            tx.publish(&event.key("customer-1").kind("Charged").header("a", "b")).await?;
            if fails { tx.execute("select 1 / $1::int", &[&0_i32]).await } else { Ok(0) }
        };
        assert_eq!(inbox.once(&id, work).await.is_err(), fails);
    }
    let rows = outbox_harness::event::committed(database.superuser()).await;
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.topic.as_str(), row.key.as_deref()), ("charged", Some("customer-1")));
    assert_eq!((row.kind.as_deref(), row.headers["a"].as_str()), (Some("Charged"), "b"));
}

#[tokio::test]
async fn a_database_that_goes_away_is_unavailable_and_the_next_call_finds_out_what_happened() {
    let database = database().await;
    let inbox = inbox(&database, "billing").await;
    let id = new_id();
    let cut = |tx: Tx| async move {
        effect(&tx, id).await?;
        tx.execute("select pg_terminate_backend(pg_backend_pid())", &[]).await
    };
    let error = inbox.once(&id, cut).await.expect_err("the session is gone");
    assert!(matches!(error, OnceError::Work(_)), "{error:?}");
    let source = std::error::Error::source(&error).expect("the work's own error");
    assert!(source.downcast_ref::<tokio_postgres::Error>().is_some(), "{source:?}");
    let again = || inbox.once(&id, |tx| async move { effect(&tx, id).await });
    let once = wait::until("a new connection", wait::PATIENCE, again).await;
    assert_eq!(once.expect("no failure"), Once::Applied(1));
    assert_eq!(effects(&database).await, 1);
}

#[tokio::test]
async fn a_missing_migration_is_refused_with_what_to_do() {
    let database = Database::create().await;
    let pool = database.pool(Role::Consumer, 1);
    let error = Inbox::open(pool, "billing").await.expect_err("no schema inbox");
    assert!(matches!(error, InboxError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("migration set inbox"), "{error}");
}
