//! With any isolation level of the handler's, a message that waits is taken up in its turn.

use std::time::Duration;

use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{Classify as _, Failure, Inbox, Isolation, Message, Processor, Retry, Tx};

use super::effects::{Step, assert_once_and_in_order, database, effects, message, number, take};

/// A session that takes a lane up stops between its snapshot and the lane's lock, as a busy server
/// may let it: at an advisory lock that a view asks for, which comes after the inbox was opened.
const GATE: &str = "create function gate() returns bool language plpgsql as $$ begin \
        if current_query() like '%skip locked%' then \
            perform pg_advisory_xact_lock_shared(14); \
        end if; \
        return true; end $$; \
    alter table inbox.parked_lanes rename to parked_lanes_behind; \
    create view inbox.parked_lanes as select * from inbox.parked_lanes_behind where gate(); \
    grant select, insert, update, delete on inbox.parked_lanes to public";
/// The same for whoever takes a message behind a head; for all others the lane is not there meanwhile, once its
/// head is done.
const GATE_BEHIND_A_HEAD: &str = "create function gate() returns bool language plpgsql as $$ begin \
        if current_query() like '%l.lane operator(pg_catalog.=) $2 and l.due_at%' then \
            perform pg_advisory_xact_lock_shared(14); \
        elsif current_query() like '%skip locked%' then \
            return exists (select from inbox.parked where record_offset = 1) \
                or pg_try_advisory_xact_lock_shared(14); \
        end if; \
        return true; end $$; \
    alter table inbox.parked_lanes rename to parked_lanes_behind; \
    create view inbox.parked_lanes as select * from inbox.parked_lanes_behind where gate(); \
    grant select, insert, update, delete on inbox.parked_lanes to public";
/// In this database: other tests have gates of their own.
const AT_THE_GATE: &str = "select least(1, count(*))::bigint from pg_locks l join pg_database d on d.oid = l.database \
    where d.datname = current_database() and locktype = 'advisory' and objid = 14 and not granted";

async fn processor(database: &Database, isolation: Isolation) -> Processor {
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        if message.payload.n == 1 && message.attempt == 1 {
            Err("not yet").transient()?;
        }
        Ok::<_, Failure>(())
    };
    let pool = database.pool(Role::Consumer, 12);
    let inbox = Inbox::open(pool, "billing").await.expect("the inbox opens");
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    Processor::new(inbox.isolation(isolation), handler).retry(retry)
}

async fn until_number(database: &Database, sql: &str, expected: i64) {
    wait::until(sql, wait::PATIENCE, || async {
        match number(database, sql).await {
            found if found == expected => Ok(()),
            found => Err(format!("{found}")),
        }
    })
    .await
    .expect("it comes to that");
}

#[tokio::test]
async fn what_comes_to_a_lane_while_it_is_taken_up_is_taken_up_too_with_any_isolation_level() {
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable]
    {
        let database = database().await;
        let processor = processor(&database, isolation).await;
        processor.process(&[message("a", 1)]).await.expect("settled");
        let shut = database.superuser();
        shut.batch_execute("select pg_advisory_lock(14)").await.expect("shut");
        shut.batch_execute(GATE).await.expect("a gate");
        let meanwhile = async {
            until_number(&database, AT_THE_GATE, 1).await;
            processor.process(&[message("a", 2)]).await.expect("settled");
            assert_eq!(number(&database, "select count(*) from inbox.parked").await, 2);
            shut.batch_execute("select pg_advisory_unlock(14)").await.expect("opened");
            until_number(&database, "select count(*) from inbox.parked_lanes", 0).await;
        };
        tokio::select! {
            stop = processor.background() => panic!("{stop:?}"),
            () = meanwhile => {}
        }
        let expected = (1..=2).map(|n| Step { key: "a".into(), n });
        assert_once_and_in_order(&effects(&database).await, expected);
        assert_eq!(number(&database, "select count(*) from inbox.parked").await, 0);
    }
}

/// The statement that takes a lane's last message has a snapshot without what comes meanwhile.
#[tokio::test]
async fn what_comes_while_the_last_of_a_lane_is_taken_does_not_lose_its_lane() {
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable]
    {
        let database = database().await;
        let processor = processor(&database, isolation).await;
        processor.process(&[message("a", 1), message("a", 2)]).await.expect("settled");
        let shut = database.superuser();
        shut.batch_execute("select pg_advisory_lock(14)").await.expect("shut");
        shut.batch_execute(GATE_BEHIND_A_HEAD).await.expect("a gate");
        let meanwhile = async {
            until_number(&database, AT_THE_GATE, 1).await;
            processor.process(&[message("a", 3)]).await.expect("settled");
            assert_eq!(number(&database, "select count(*) from inbox.parked").await, 2);
            shut.batch_execute("select pg_advisory_unlock(14)").await.expect("opened");
            until_number(&database, "select count(*) from effects", 3).await;
            until_number(&database, "select count(*) from inbox.parked_lanes", 0).await;
        };
        // Not so long that what has no lane would be found by the look for those.
        let soon = Duration::from_secs(10);
        tokio::select! {
            stop = processor.background() => panic!("{stop:?}"),
            done = tokio::time::timeout(soon, meanwhile) => done.expect("its lane is kept"),
        }
        let expected = (1..=3).map(|n| Step { key: "a".into(), n });
        assert_once_and_in_order(&effects(&database).await, expected);
        assert_eq!(number(&database, "select count(*) from inbox.parked").await, 0);
    }
}

/// As a version that freed a lane by an older snapshot has left it, or a person who deleted a row.
#[tokio::test]
async fn messages_whose_lane_has_no_row_are_taken_up_by_the_next_look() {
    let database = database().await;
    let processor = processor(&database, Isolation::ReadCommitted).await;
    processor.process(&[message("a", 1), message("a", 2)]).await.expect("settled");
    database.superuser().batch_execute("delete from inbox.parked_lanes").await.expect("deleted");
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        () = until_number(&database, "select count(*) from inbox.parked", 0) => {}
    }
    // Its attempts are forgotten with the row.
    until_number(&database, "select count(*) from effects", 2).await;
}

/// Each transaction reads what all others write, and locks two of four rows in an order of its own. If those
/// that have met began again all at once, they would collide again: ten of the 36 were parked, after 40 s.
#[tokio::test]
async fn messages_whose_transactions_collide_again_and_again_all_take_effect_soon() {
    const KEYS: i32 = 12;
    let database = database().await;
    let rows = "create table totals (id int primary key, n int not null); \
        insert into totals select id, 0 from generate_series(0, 3) as id; \
        grant select, update on totals to public";
    database.superuser().batch_execute(rows).await.expect("rows");
    let handler = |tx: Tx, message: Message<Step>| async move {
        let Step { key, n } = &message.payload;
        let from = key.parse::<i32>().expect("a number") + n;
        tx.query("select sum(n) from totals", &[]).await?;
        for id in [from % 4, (from * 3 + 1) % 4] {
            tx.execute("update totals set n = n + 1 where id = $1", &[&id]).await?;
            tx.execute("select pg_sleep(0.002)", &[]).await?;
        }
        take(&tx, &message.payload).await?;
        Ok(())
    };
    let pool = database.pool(Role::Consumer, 24);
    let inbox = Inbox::open(pool, "billing").await.expect("the inbox opens");
    let processor = Processor::new(inbox.isolation(Isolation::Serializable), handler);
    let each = (0..KEYS).map(|key| {
        let processor = processor.clone();
        async move {
            let messages: Vec<_> = (1..=3).map(|n| message(&key.to_string(), n)).collect();
            processor.process(&messages).await.expect("settled");
        }
    });
    let all = async {
        futures_util::future::join_all(each).await;
        let parked = number(&database, "select count(*) from inbox.parked").await;
        assert!(parked <= 3, "{parked} of 36");
        until_number(&database, "select count(*) from effects", 36).await;
    };
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        () = all => {}
    }
    assert_eq!(number(&database, "select count(*) from inbox.dead_letters").await, 0);
}
