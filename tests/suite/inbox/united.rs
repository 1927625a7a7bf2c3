//! A consumer that has come to have two numbers, after what it says was typed: each message has its one effect, and
//! none that waits is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use outbox_harness::database::{Database, Role};
use outbox_idempotency::{
    Failure, Inbox, InboxError, Message, Processor, RawMessage, Retry, Stop, Tx,
};

use crate::grants::change;

use super::{
    effects::{Step, database, effects, inbox, message, number, take},
    forgotten::losses,
    processor::{PARKED, WAITING},
    rights::Log,
    sessions::work_off,
    watermark::{published, watermark},
};

const NUMBER: &str = "select id::bigint from inbox.consumers where name = 'billing'";
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
    let first = number(&database, NUMBER).await;
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

    assert_eq!(number(&database, NUMBER).await, first);
    assert_eq!(number(&database, &format!("{parked}{first}")).await, 3, "p1, p3, p4");
    assert_eq!(number(&database, PARKED).await, 3);
    assert_eq!(number(&database, GIVEN_UP).await, 3, "d1, d2, d3");
    let astray = "select count(*) from inbox.parked_lanes where consumer_id > 100";
    assert_eq!(number(&database, astray).await, 0);
    // All of them come again, and all that waits is due.
    let united = open(&database, &fixed).await;
    united.process(&all).await.expect("settled");
    change(&database, "update inbox.parked_lanes set due_at = now()").await;
    work_off(&united, &database, WAITING).await;
    assert_eq!(keys(&database).await, ["a", "b", "p1", "p2", "p3", "p4"], "each once");
    assert_eq!(number(&database, GIVEN_UP).await, 3);

    // What stays under the number that is no one's any more is not told of as no one's.
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _until_the_end = tracing_subscriber::util::SubscriberInitExt::set_default(subscriber);
    let another = Inbox::open(database.pool(Role::Consumer, 2), "another").await.expect("opened");
    assert!(!log.text().contains("messages of the numbers"), "{}", log.text());
    for inbox in [united.inbox(), &another] {
        assert_eq!(losses(inbox).await, []);
    }
}

/// The keys of all effects, sorted.
async fn keys(database: &Database) -> Vec<String> {
    let mut keys: Vec<String> = effects(database).await.into_iter().map(|step| step.key).collect();
    keys.sort();
    keys
}

/// By their positions, `p1`, `p3` and `p4` wait under the first number, where `p2` has taken effect. Under the second
/// one, which has read the first four once more, `p1` has taken effect and `p2` waits. Returns both numbers.
async fn by_position(database: &Database, fixed: &Arc<AtomicBool>) -> (i64, i64) {
    let mut places = 0_u32..;
    let all = ["a", "p1", "p3", "p2", "b", "p4"].map(|key| {
        let place = places.next().expect("endless");
        published(key, 1, place.into(), place.into())
    });
    let [a, p1, p3, p2, b, p4] = &all;
    let process = async |processor: &Processor, works, messages: &[&RawMessage]| {
        fixed.store(works, SeqCst);
        let messages: Vec<RawMessage> = messages.iter().copied().cloned().collect();
        processor.process(&messages).await.expect("settled");
    };
    let before = open(database, fixed).await.dedup(watermark());
    process(&before, false, &[a, p1, p3]).await;
    process(&before, true, &[p2, b]).await;
    process(&before, false, &[p4]).await;
    let first = number(database, NUMBER).await;
    change(database, "update inbox.consumers set id = id + 100").await;
    let after = open(database, fixed).await.dedup(watermark());
    process(&after, true, &[p1]).await;
    process(&after, false, &[p2]).await;
    assert_eq!(number(database, PARKED).await, 4);
    assert_eq!(keys(database).await, ["a", "b", "p1", "p2"]);
    fixed.store(true, SeqCst);
    (number(database, NUMBER).await, first)
}

/// All that waits is due, and succeeds.
async fn unite_and_work_off(
    database: &Database,
    fixed: &Arc<AtomicBool>,
    (from, into): (i64, i64),
) {
    let unite = format!("select inbox.unite({from}, {into})");
    database.connect(Role::Owner).await.batch_execute(&unite).await.expect("united");
    change(database, "update inbox.parked_lanes set due_at = now()").await;
    let united = open(database, fixed).await.dedup(watermark());
    work_off(&united, database, WAITING).await;
}

#[tokio::test]
async fn under_a_watermark_what_took_effect_under_one_number_is_not_done_again_under_the_other() {
    // Whichever of the two remains.
    for swapped in [false, true] {
        let (database, fixed) = (database().await, Arc::default());
        let (second, first) = by_position(&database, &fixed).await;
        if swapped {
            change(&database, &format!("update inbox.consumers set id = {first}")).await;
        }
        let numbers = if swapped { (first, second) } else { (second, first) };
        unite_and_work_off(&database, &fixed, numbers).await;
        assert_eq!(keys(&database).await, ["a", "b", "p1", "p2", "p3", "p4"], "{swapped}");
        assert_eq!(number(&database, GIVEN_UP).await, 0);
    }
}

#[tokio::test]
async fn what_may_have_taken_effect_under_a_number_that_has_forgotten_it_is_a_dead_letter() {
    let (database, fixed) = (database().await, Arc::default());
    let (second, first) = by_position(&database, &fixed).await;
    // As after a quarter of an hour.
    let forget = format!(
        "update inbox.applied set ids = '{{}}', newest = now() where consumer_id = {second}"
    );
    change(&database, &forget).await;
    unite_and_work_off(&database, &fixed, (second, first)).await;
    // The second number has not read as far as `p4`.
    assert_eq!(keys(&database).await, ["a", "b", "p1", "p2", "p4"]);
    let dead = "select string_agg(convert_from(key, 'utf8') || ' ' || code, ', ' order by id) \
        from inbox.dead_letters where state = 'dead'";
    let dead: String = database.superuser().query_one(dead, &[]).await.expect("rows").get(0);
    assert_eq!(dead, "p1 outside-window, p3 outside-window");
}

async fn text(database: &Database, sql: &str) -> String {
    database.superuser().query_one(sql, &[]).await.expect("rows").get(0)
}

#[tokio::test]
async fn two_watermarks_become_the_farther_one_and_what_either_may_have_taken_is_looked_up() {
    let database = database().await;
    let owner = database.connect(Role::Owner).await;
    let rows = "insert into inbox.consumers (id, name) values (101, 'billing'); \
        insert into inbox.watermarks (consumer_id, topic, partition, next_offset, position, before, topic_id, changed_at) \
        values (1, 'a', 0, 5, null, null, null, now()), (101, 'a', 0, 7, null, null, null, now()), \
            (1, 'a', 1, 9, null, null, null, now()), (101, 'a', 1, 8, null, null, null, now()), \
            (101, 'b', 0, 3, null, null, null, now()), \
            (1, 'line', 0, 5, '7:1:00000000000000C0:0000000003', null, null, now()), \
            (101, 'line', 0, 7, '7:2:00000000000000A0:0000000000', null, null, now()), \
            (1, 'line', 1, 9, '7:2:00000000000000C0:0000000000', '00000000000000B0:0000000000', null, now()), \
            (101, 'line', 1, 8, '7:2:00000000000000A0:0000000000', '00000000000000BF:0000000002', null, now()), \
            (1, 'era', 0, 5, '7:1:00000000000000C0:0000000003', null, null, now()), \
            (101, 'era', 0, 7, '7:1:00000000000000A0:0000000000@5', null, null, now()), \
            (1, 'anew', 0, 50, '7:1:00000000000000A0:0000000000', null, 'old', now() - interval '1 hour'), \
            (101, 'anew', 0, 7, '7:1:00000000000000C0:0000000000', null, 'new', now())";
    owner.batch_execute(rows).await.expect("rows");
    owner.batch_execute("select inbox.unite(101, 1)").await.expect("united");
    let found = "select string_agg(concat_ws(' ', topic || '/' || partition, next_offset, topic_id, \
            ltrim(split_part(position, ':', 3), '0'), 'before ' || ltrim(before, '0')), ', ' order by topic, partition) \
        from inbox.watermarks where consumer_id = 1";
    assert_eq!(
        text(&database, found).await,
        "a/0 7, a/1 9, anew/0 7 new C0 before A0:0000000000, b/0 3, \
         era/0 7 A0 before C0:18446744073709551615, line/0 7 A0 before C0:0000000003, \
         line/1 9 C0 before BF:0000000002"
    );
    owner.batch_execute("select inbox.unite(101, 1)").await.expect_err("there is no such number");
}

#[tokio::test]
async fn of_two_lanes_the_failures_are_those_of_the_message_that_is_first() {
    let database = database().await;
    let owner = database.connect(Role::Owner).await;
    // Of lane 1 the second number has the first message. Of lane 2 the first message has taken effect under the
    // second number, of lane 3 all.
    let rows = "insert into inbox.consumers (id, name) values (101, 'billing'); \
        insert into inbox.parked_lanes (consumer_id, lane, attempts, code, due_at) \
        select c, ('00000000-0000-0000-0000-00000000000' || l)::uuid, a, 'x', now() + interval '1 day' \
        from (values (1, 1, 8), (101, 1, 3), (1, 2, 8), (1, 3, 8)) as v (c, l, a); \
        insert into inbox.parked (consumer_id, lane, message_id, day, topic, headers) \
        select c, ('00000000-0000-0000-0000-00000000000' || l)::uuid, ('00000000-0000-0000-0000-0000000000' || m)::uuid, \
            current_date, 'a', '[]' \
        from (values (101, 1, 10), (1, 1, 11), (1, 2, 20), (1, 2, 21), (1, 3, 30)) as v (c, l, m); \
        insert into inbox.messages (consumer_id, id, day) \
        select 101, ('00000000-0000-0000-0000-0000000000' || m)::uuid, current_date from unnest(array[20, 30]) as v (m)";
    owner.batch_execute(rows).await.expect("rows");
    owner.batch_execute("select inbox.unite(101, 1)").await.expect("united");
    let lanes = "select string_agg(concat_ws(' ', right(lane::text, 1), attempts, code, due_at > now()), ', ' \
        order by lane) from inbox.parked_lanes";
    assert_eq!(text(&database, lanes).await, "1 3 x t, 2 0 f");
    let waits = "select string_agg(right(message_id::text, 2), ' ' order by seq) from inbox.parked \
        where consumer_id = 1";
    assert_eq!(text(&database, waits).await, "10 11 21");
}

#[tokio::test]
async fn numbers_that_can_not_be_united_are_told_and_nothing_is_changed() {
    let (database, fixed) = (database().await, Arc::default());
    let (second, first) = by_position(&database, &fixed).await;
    let owner = database.connect(Role::Owner).await;
    let told = async |sql: &str| {
        let error = owner.batch_execute(sql).await.expect_err(sql);
        let error = error.as_db_error().expect("the server's").clone();
        (error.message().to_owned(), error.hint().unwrap_or_default().to_owned())
    };
    let (message, _) = told(&format!("select inbox.unite({second}, {second})")).await;
    assert!(message.contains("nothing to unite"), "{message}");
    assert_eq!(number(&database, PARKED).await, 4);
    // What the farther watermark was is known only by its note.
    change(&database, &format!("delete from inbox.watermarks where consumer_id = {first}")).await;
    let unite = format!("select inbox.unite({second}, {first})");
    let (message, hint) = told(&unite).await;
    assert!(message.contains("watermark of steps/0 was deleted"), "{message}");
    let back = hint.split_once("type: ").expect("what to type").1;
    let back = back.split_once(". If").expect("or else").0;
    owner.batch_execute(back).await.expect("it is back");
    unite_and_work_off(&database, &fixed, (second, first)).await;
    assert_eq!(keys(&database).await, ["a", "b", "p1", "p2", "p3", "p4"]);
}
