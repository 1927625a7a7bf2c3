//! A consumer that has come to have two numbers, after what it says was typed: each message has its one effect, and
//! nothing that waits is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{Failure, InboxError, Message, Processor, RawMessage, Retry, Stop, Tx};

use super::{
    effects::{Step, database, effects, inbox, message, number, take},
    processor::PARKED,
};
use crate::grants::change;

const GIVEN_UP: &str = "select count(*) from inbox.dead_letters where state = 'dead'";

/// Messages whose keys say so wait for an hour, or are given up, until `fixed`.
async fn open(database: &Database, fixed: &Arc<AtomicBool>) -> Processor {
    let fixed = Arc::clone(fixed);
    let handler = move |tx: Tx, message: Message<Step>| {
        let fails = !fixed.load(SeqCst);
        async move {
            match message.payload.key.get(..1) {
                Some("p") if fails => return Err(Failure::transient("later")),
                Some("d") if fails => return Err(Failure::permanent("odd", "never")),
                _ => take(&tx, &message.payload).await?,
            };
            Ok(())
        }
    };
    let hour = Duration::from_secs(3_600);
    Processor::new(inbox(database).await, handler).retry(Retry::exponential(hour, hour).attempts(9))
}

#[tokio::test]
async fn whoever_has_two_numbers_unites_them_and_nothing_that_waits_is_lost_or_done_twice() {
    let database = database().await;
    let fixed = Arc::new(AtomicBool::new(false));
    let all: Vec<RawMessage> = ["a", "p1", "p2", "d1", "d2", "p3", "d3", "p4", "b"]
        .iter()
        .map(|key| message(key, 1))
        .collect();
    let [a, p1, p2, d1, d2, p3, d3, p4, b] = &all[..] else { panic!("nine") };
    let before = open(&database, &fixed).await;
    let id = "select id::bigint from inbox.consumers where name = 'billing'";
    let first = number(&database, id).await;
    // `p1` waits, `d1` is given up; so do `p2` and `d2`, which come again under the other number.
    before.process(&[a, p1, p2, d1, d2, p4].map(Clone::clone)).await.expect("settled");
    change(&database, "update inbox.consumers set id = id + 100").await;
    let after = open(&database, &fixed).await;
    after.process(&[p3, d3, p4, d2].map(Clone::clone)).await.expect("settled");
    fixed.store(true, SeqCst);
    after.process(&[p2, b].map(Clone::clone)).await.expect("settled");
    let parked = "select count(*) from inbox.parked where consumer_id = ";
    assert_eq!(number(&database, &format!("{parked}{first}")).await, 3);

    let Stop::Inbox(InboxError::Setting(text)) = before.background().await else {
        panic!("it has two numbers")
    };
    let remedy = text.rsplit_once("inbox: ").expect("what to type").1;
    database.connect(Role::Owner).await.batch_execute(remedy).await.expect("corrected");

    assert_eq!(number(&database, id).await, first);
    assert_eq!(number(&database, &format!("{parked}{first}")).await, 3, "p1, p3, p4");
    assert_eq!(number(&database, PARKED).await, 3);
    assert_eq!(number(&database, GIVEN_UP).await, 3, "d1, d2, d3");
    let astray = "select count(*) from inbox.parked_lanes where consumer_id > 100";
    assert_eq!(number(&database, astray).await, 0);
    // All of them come again, and all that waits is due.
    let united = open(&database, &fixed).await;
    united.process(&all).await.expect("settled");
    change(&database, "update inbox.parked_lanes set due_at = now()").await;
    let done = wait::until("nothing waits", wait::PATIENCE, || async {
        match number(&database, PARKED).await {
            0 => Ok(()),
            some => Err(format!("{some} wait")),
        }
    });
    tokio::select! {
        stop = united.background() => panic!("{stop:?}"),
        done = done => done.expect("they are taken up"),
    }
    let mut found: Vec<String> =
        effects(&database).await.into_iter().map(|step| step.key).collect();
    found.sort();
    assert_eq!(found, ["a", "b", "p1", "p2", "p3", "p4"], "each once");
    assert_eq!(number(&database, GIVEN_UP).await, 3);
}

#[tokio::test]
async fn two_watermarks_become_the_farther_one() {
    let database = database().await;
    let owner = database.connect(Role::Owner).await;
    let rows = "insert into inbox.consumers (id, name) values (101, 'billing'); \
        insert into inbox.watermarks (consumer_id, topic, partition, next_offset) \
        values (1, 'a', 0, 5), (101, 'a', 0, 7), (1, 'a', 1, 9), (101, 'a', 1, 8), (101, 'b', 0, 3)";
    owner.batch_execute(rows).await.expect("rows");
    owner.batch_execute("select inbox.unite(101, 1)").await.expect("united");
    let found = "select string_agg(format('%s/%s: %s', topic, partition, next_offset), ', ' order by topic, partition) \
        from inbox.watermarks where consumer_id = 1";
    let found: String = database.superuser().query_one(found, &[]).await.expect("rows").get(0);
    assert_eq!(found, "a/0: 7, a/1: 9, b/0: 3");
    owner.batch_execute("select inbox.unite(101, 1)").await.expect_err("there is no such number");
}
