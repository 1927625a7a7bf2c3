//! A consumer that has come to have two numbers, after what it says was typed: each message has its one effect, and
//! none that waits is lost.

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
    forgotten::change,
    processor::PARKED,
    watermark::{published, watermark},
};

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

/// Two numbers of a consumer with a watermark. Under the first, `a` took effect and `p1`, `p2`, `p3` wait. Under the
/// second, `p1` took effect, and `p4` waits. Returns both, and `p3`.
async fn two_numbers(database: &Database) -> (i64, i64, RawMessage) {
    let fixed = Arc::new(AtomicBool::new(false));
    let [a, p1, p2, p3] = [("a", 10), ("p1", 20), ("p2", 30), ("p3", 40)]
        .map(|(key, commit)| published(key, 1, commit, i64::try_from(commit / 10).expect("small")));
    let before = open(database, &fixed).await.dedup(watermark());
    let id = "select id::bigint from inbox.consumers where name = 'billing'";
    let first = number(database, id).await;
    before.process(&[a, p1.clone(), p2, p3.clone()]).await.expect("settled");
    change(database, "update inbox.consumers set id = id + 100").await;
    let after = open(database, &fixed).await.dedup(watermark());
    let second = number(database, id).await;
    fixed.store(true, SeqCst);
    after.process(&[p1]).await.expect("settled");
    fixed.store(false, SeqCst);
    after.process(&[published("p4", 1, 50, 5)]).await.expect("settled");
    (first, second, p3)
}

/// All that waits is due, until nothing does.
async fn run_until_settled(database: &Database) -> Vec<String> {
    let united = open(database, &Arc::new(AtomicBool::new(true))).await.dedup(watermark());
    change(database, "update inbox.parked_lanes set due_at = now()").await;
    let done = wait::until("nothing waits", wait::PATIENCE, || async {
        match number(database, PARKED).await {
            0 => Ok(()),
            some => Err(format!("{some} wait")),
        }
    });
    tokio::select! {
        stop = united.background() => panic!("{stop:?}"),
        done = done => done.expect("they are taken up"),
    }
    let mut found: Vec<String> = effects(database).await.into_iter().map(|step| step.key).collect();
    found.sort();
    found
}

#[tokio::test]
async fn what_a_watermark_has_taken_under_one_number_does_not_wait_under_the_other() {
    let database = database().await;
    let (first, second, _) = two_numbers(&database).await;
    assert_eq!(number(&database, PARKED).await, 4);
    change(&database, &format!("select inbox.unite({second}, {first})")).await;
    assert_eq!(number(&database, PARKED).await, 3, "p2, p3, p4");
    assert_eq!(run_until_settled(&database).await, ["a", "p1", "p2", "p3", "p4"], "each once");
}

/// As by the upkeep, some minutes later.
#[tokio::test]
async fn what_may_have_taken_effect_under_a_number_that_has_forgotten_it_is_given_up() {
    let database = database().await;
    let (first, second, p3) = two_numbers(&database).await;
    let forget = format!(
        "insert into inbox.applied (consumer_id, topic, partition, ids, newest) \
         select {second}, 'steps', 0, '{{}}', to_timestamp({})",
        p3.id.uuid().get_timestamp().map_or(0.0, |at| {
            let (seconds, nanos) = at.to_unix();
            seconds as f64 + f64::from(nanos) / 1e9
        })
    );
    change(&database, &forget).await;
    change(&database, &format!("select inbox.unite({second}, {first})")).await;
    // `p4` lies behind all that the first number has read.
    let code =
        "select count(*) from inbox.dead_letters where code = 'outside-window' and state = 'dead'";
    assert_eq!(number(&database, code).await, 2, "p2, p3");
    assert_eq!(run_until_settled(&database).await, ["a", "p1", "p4"]);
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
