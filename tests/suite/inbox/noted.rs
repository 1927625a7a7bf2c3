//! Notes about what is forgotten, and the upkeep, where several are at work at the same time, or where snapshots
//! last for a transaction.

use std::time::Duration;

use outbox_harness::{
    database::{Database, Role},
    postgres::{Postgres, Session},
    postgres_version::Version,
    wait,
};
use outbox_idempotency::{Inbox, InboxError, Isolation, LossKind, Once, OnceError, Processor};
use outbox_relay::throwaway::Shutdown;
use tracing_subscriber::filter::LevelFilter;

use super::{
    effects::{database, database_in, effects, inbox, message, number},
    forgotten::{handle, losses, today},
    recreated::{HOLD, WAITING},
    rights::Log,
    sessions::DEAD,
};
use crate::grants::change;

async fn open(database: &Database) -> Processor {
    Processor::new(inbox(database).await, handle)
}

async fn kinds(inbox: &Inbox) -> Vec<LossKind> {
    losses(inbox).await.iter().map(|loss| loss.kind).collect()
}

/// A session with a transaction that is open.
async fn begun(database: &Database, role: Role, level: &str) -> Session {
    let session = database.connect(role).await;
    // Its snapshot is taken, where it lasts.
    let begin = format!(
        "set lock_timeout = '5s'; begin isolation level {level}; select from inbox.consumers"
    );
    session.batch_execute(&begin).await.expect("begun");
    session
}

async fn waiting(database: &Database, sessions: i64) {
    wait::until("they wait for the upkeep's lock", wait::PATIENCE, || async {
        match number(database, WAITING).await {
            some if some == sessions => Ok(()),
            some => Err(format!("{some} wait")),
        }
    })
    .await
    .expect("they need the day");
}

async fn workers_that_find_a_day_dropped(database: &Database) {
    let (number_of_day, _) = today(database).await;
    let (first, second) = (open(database).await, open(database).await);
    let messages = [message("a", 1), message("b", 1), message("c", 1)];
    change(database, &format!("drop table inbox.messages_{number_of_day}")).await;
    let holder = database.connect(Role::Consumer).await;
    holder.batch_execute(HOLD).await.expect("held");
    let release = async {
        waiting(database, 2).await;
        // Longer than inbox.maintain() waits.
        tokio::time::sleep(Duration::from_secs(3)).await;
        holder.batch_execute("rollback").await.expect("released");
    };
    let (one, two, ()) =
        tokio::join!(first.process(&messages[..1]), second.process(&messages[1..2]), release);
    one.expect("settled");
    two.expect("settled");
    assert_eq!(number(database, DEAD).await, 0, "no message is given up");
    assert_eq!(effects(database).await.len(), 2);
    assert_eq!(kinds(first.inbox()).await, [LossKind::Dropped]);
    // Whoever claims by hand is not told that the message is too old, either.
    change(database, &format!("drop table inbox.messages_{number_of_day}")).await;
    let once = async || {
        first.inbox().once(&messages[2].id, async |_tx| Ok::<(), std::io::Error>(())).await
    };
    let again = once().await;
    assert!(matches!(again, Err(OnceError::Inbox(InboxError::Conflict(_)))), "{again:?}");
    assert!(matches!(once().await, Ok(Once::Applied(()))), "the day is there");
}

async fn what_others_hold_is_passed_over(database: &Database) {
    let (number_of_day, _) = today(database).await;
    let processor = open(database).await;
    let maintain = async || processor.inbox().maintain().await.expect("maintained");
    let old = "insert into inbox.losses (what, first_day, last_day) \
        values ('dropped', '2020-01-01', '2020-01-01')";
    let olds = "select count(*) from inbox.losses where last_day = '2020-01-01'";
    change(database, old).await;
    let cleaner = begun(database, Role::Owner, "read committed").await;
    for hold in ["update inbox.losses set messages = 1", "truncate inbox.losses"] {
        cleaner.batch_execute(hold).await.expect("held");
        change(database, "select inbox.maintain()").await;
        cleaner.batch_execute("rollback; begin").await.expect("released");
    }
    assert_eq!(number(database, olds).await, 1);
    maintain().await;
    assert_eq!(number(database, olds).await, 0);
    // Another role's partition is first in the list, and one that can be watched again is behind it.
    change(
        database,
        &format!(
            "drop trigger note_delete on inbox.messages_{number_of_day}; do $$ declare t text; begin \
             select min(relname) into t from pg_class where relname ~ '^messages_[0-9]{{8}}$'; \
             execute format('drop trigger note_truncate on inbox.%I', t); \
             execute format('alter table inbox.%I owner to {}', t); end $$",
            database.name_of(Role::Relay)
        ),
    )
    .await;
    maintain().await;
    let watched = format!(
        "select count(*) from pg_trigger where tgrelid = 'inbox.messages_{number_of_day}'::regclass \
         and tgname = 'note_delete' and tgenabled = 'A'"
    );
    assert_eq!(number(database, &watched).await, 1);
    // A drop that is held up does not hold up the triggers.
    let drop = format!("drop trigger note_delete on inbox.messages_{number_of_day}");
    change(database, &drop).await;
    change(database, "update inbox.settings set retention_days = 3").await;
    let oldest = "select ((now() at time zone 'utc')::date - oldest)::bigint from inbox.window()";
    let reader = database.connect(Role::Owner).await;
    let read = "begin; select from inbox.messages";
    reader.batch_execute(read).await.expect("read");
    maintain().await;
    assert!(number(database, oldest).await > 3, "it was held up");
    assert_eq!(number(database, &watched).await, 1);
    assert_eq!(losses(processor.inbox()).await, []);
}

async fn cleaners_do_not_wait_for_one_another(database: &Database) {
    let processor = open(database).await;
    let messages = [message("a", 1), message("b", 1), message("c", 1)];
    processor.process(&messages).await.expect("settled");
    let one =
        "delete from inbox.messages where id = (select min(id::text)::uuid from inbox.messages)";
    let other = database.connect(Role::Owner).await;
    other.batch_execute("set lock_timeout = '5s'").await.expect("set");
    other.batch_execute(one).await.expect("deleted");
    let first = begun(database, Role::Owner, "read committed").await;
    first.batch_execute(one).await.expect("deleted");
    let last =
        "delete from inbox.messages where id = (select max(id::text)::uuid from inbox.messages)";
    other.batch_execute(last).await.expect("it waits for no one");
    first.batch_execute("commit").await.expect("deleted");
    let told: i64 = losses(processor.inbox()).await.iter().filter_map(|loss| loss.messages).sum();
    assert_eq!(told, 3);
    let (notes, again) = (losses(processor.inbox()).await.len(), [message("d", 1)]);
    processor.process(&again).await.expect("settled");
    other.batch_execute(one).await.expect("deleted");
    assert_eq!(losses(processor.inbox()).await.len(), notes, "within an hour they are one note");
}

async fn transactions_with_one_snapshot(database: &Database) {
    let (number_of_day, _) = today(database).await;
    for level in ["repeatable read", "serializable"] {
        let processor = open(database).await;
        // The days' rows were not there when it began.
        let strict = begun(database, Role::Owner, level).await;
        processor.process(&[message("a", 1)]).await.expect("settled");
        strict
            .batch_execute(&format!("truncate inbox.messages_{number_of_day}; commit"))
            .await
            .expect("truncated");
        assert_eq!(kinds(processor.inbox()).await, [LossKind::Truncated], "{level}");
        change(database, "delete from inbox.losses").await;
        // Another's note is newer than its snapshot.
        processor.process(&[message("a", 1), message("b", 1)]).await.expect("settled");
        change(
            database,
            "insert into inbox.losses (what, consumer_id, first_day, last_day, messages) \
            select 'deleted', id, now()::date, now()::date, 1 from inbox.consumers",
        )
        .await;
        let strict = begun(database, Role::Owner, level).await;
        let other = database.connect(Role::Owner).await;
        let one = "delete from inbox.messages where id = (select min(id::text)::uuid from inbox.messages)";
        other.batch_execute(one).await.expect("deleted");
        let last = "delete from inbox.messages where id = (select max(id::text)::uuid from inbox.messages)";
        strict.batch_execute(last).await.expect(level);
        strict.batch_execute("commit").await.expect(level);
        let told: i64 =
            losses(processor.inbox()).await.iter().filter_map(|loss| loss.messages).sum();
        assert_eq!(told, 3, "{level}");
        change(database, "delete from inbox.losses").await;
        // An upkeep that does not see what another one has made meanwhile.
        let strict = begun(database, Role::Owner, level).await;
        change(
            database,
            "update inbox.settings set ahead_days = ahead_days + 1; select inbox.maintain()",
        )
        .await;
        let stale = strict.batch_execute("select inbox.maintain(); commit").await;
        drop(stale);
        assert_eq!(losses(processor.inbox()).await, [], "{level}: no day is detached");
        // The consumer's own sees it, whatever its messages' transactions are.
        let level = if level == "serializable" {
            Isolation::Serializable
        } else {
            Isolation::RepeatableRead
        };
        let inbox = processor.inbox().clone().isolation(level);
        let holder = database.connect(Role::Owner).await;
        holder.batch_execute(HOLD).await.expect("held");
        let release = async {
            waiting(database, 1).await;
            let more = "update inbox.settings set ahead_days = ahead_days + 1; select inbox.maintain(); commit";
            holder.batch_execute(more).await.expect("days are made");
        };
        let (maintained, ()) = tokio::join!(inbox.maintain(), release);
        maintained.expect("maintained");
        assert_eq!(losses(&inbox).await, []);
    }
}

async fn a_day_that_is_being_detached(database: &Database) {
    let (number_of_day, day) = today(database).await;
    let messages = [message("a", 1)];
    let processor = open(database).await;
    processor.process(&messages).await.expect("settled");
    let reader = begun(database, Role::Consumer, "read committed").await;
    reader.batch_execute("select from inbox.messages").await.expect("read");
    let owner = database.connect(Role::Owner).await;
    owner.batch_execute("set statement_timeout = '500ms'").await.expect("set");
    let detach = format!(
        "alter table inbox.messages detach partition inbox.messages_{number_of_day} concurrently"
    );
    owner.batch_execute(&detach).await.expect_err("it waits for the reader");
    owner.batch_execute("reset statement_timeout").await.expect("set");
    reader.batch_execute("rollback").await.expect("ended");
    processor.inbox().maintain().await.expect("maintained");
    processor.inbox().maintain().await.expect("maintained");
    let processed = tokio::time::timeout(wait::PATIENCE, processor.process(&messages)).await;
    processed.expect("it does not try forever").expect("settled");
    let letters = "select count(*) from inbox.dead_letters where code = 'outside-window'";
    assert_eq!(number(database, letters).await, 1, "it is not taken for new");
    let found = losses(processor.inbox()).await;
    let [loss] = &found[..] else { panic!("{found:?}") };
    assert_eq!((loss.kind, loss.days.clone()), (LossKind::Detached, Some((day.clone(), day))));
    let text = loss.to_string();
    let (before, remedy) = text.rsplit_once("for each day: ").expect("what to type");
    owner.batch_execute(remedy).await.expect_err("it is a partition already");
    let before = before.rsplit_once("first type: ").expect("what to type first").1;
    owner.batch_execute(before.trim_end_matches("), ")).await.expect("detached");
    owner.batch_execute(remedy).await.expect("attached");
    assert_eq!(losses(processor.inbox()).await, []);
    processor.process(&messages).await.expect("settled");
    assert_eq!(effects(database).await.len(), 1, "nothing is forgotten");
}

async fn more_notes_than_are_told(database: &Database) {
    let (log, _until_the_end) = Log::written(LevelFilter::ERROR);
    let processor = open(database).await;
    processor.process(&[message("a", 1)]).await.expect("settled");
    change(
        database,
        "insert into inbox.losses (what, first_day, last_day) \
         select 'dropped', now()::date, now()::date from generate_series(1, 150)",
    )
    .await;
    assert_eq!(losses(processor.inbox()).await.len(), 100);
    change(database, "delete from inbox.messages").await;
    let found = losses(processor.inbox()).await;
    let newest = found.first().map(|loss| loss.kind);
    assert_eq!((found.len(), newest), (100, Some(LossKind::Deleted)), "the newest is told");
    assert!(log.text().contains("has 151 notes"), "{}", log.text());
}

async fn a_watermark_that_is_blank_is_not_back(database: &Database) {
    let processor = open(database).await;
    let consumer_id = number(database, "select max(id)::bigint from inbox.consumers").await;
    let rows = "select count(*) from inbox.losses where what = 'watermark'";
    let row = |offset: i32| {
        format!(
            "insert into inbox.watermarks (consumer_id, topic, partition, next_offset) \
             values ({consumer_id}, 'steps', 0, {offset})"
        )
    };
    change(database, &format!("{}; delete from inbox.watermarks", row(7))).await;
    change(database, &row(0)).await;
    processor.inbox().maintain().await.expect("maintained");
    assert_eq!(number(database, rows).await, 1);
    change(database, "update inbox.watermarks set next_offset = 7").await;
    processor.inbox().maintain().await.expect("maintained");
    assert_eq!(number(database, rows).await, 0);
}

async fn a_new_consumer_takes_no_number_that_is_in_use(database: &Database) {
    let id_of = async |name: &str| {
        let id = format!("select id::bigint from inbox.consumers where name = '{name}'");
        number(database, &id).await
    };
    let named = async |name: &str| {
        Inbox::open(database.pool(Role::Consumer, 2), name).await.expect("opened")
    };
    open(database).await.process(&[message("a", 1)]).await.expect("settled");
    let first = id_of("billing").await;
    change(database, "alter sequence inbox.consumers_id_seq restart").await;
    drop(named("second").await);
    assert!(id_of("second").await > first, "the sequence was set back");
    // Without a note, as if someone has disabled the triggers; and one number has nothing but a watermark.
    let second = id_of("second").await;
    let harm = format!(
        "insert into inbox.watermarks (consumer_id, topic, partition) values ({second}, 'steps', 0); \
         set session_replication_role = replica; alter table inbox.consumers disable trigger all; \
         truncate inbox.consumers restart identity; reset session_replication_role; \
         alter table inbox.consumers enable always trigger note_delete, enable always trigger note_truncate"
    );
    change(database, &harm).await;
    let (log, _until_the_end) = Log::written(LevelFilter::ERROR);
    let (one, two) = tokio::join!(named("third"), named("fourth"));
    drop((one, two));
    let (third, fourth) = (id_of("third").await, id_of("fourth").await);
    assert!(third > second && fourth > second && third != fourth, "{third} {fourth}");
    // The consumer can't know whose messages these are; a person may, and can say it.
    drop(open(database).await);
    let text = log.text();
    assert!(text.contains(&format!("messages of the numbers [{first}]")), "{text}");
    let now = processor_number(&text);
    let unite = format!("select inbox.unite({now}, {first})");
    database.connect(Role::Owner).await.batch_execute(&unite).await.expect("united");
    assert_eq!(id_of("billing").await, first);
}

/// The number in the last statement that is to be typed.
fn processor_number(text: &str) -> i64 {
    let number = text.rsplit_once("inbox.unite(").expect("what to type").1;
    number.split_once(',').expect("two numbers").0.parse().expect("a number")
}

#[tokio::test]
async fn no_message_is_given_up_by_workers_that_find_a_day_dropped_at_the_same_time() {
    workers_that_find_a_day_dropped(&database().await).await;
}

#[tokio::test]
async fn the_upkeep_passes_over_what_others_hold_or_own() {
    what_others_hold_is_passed_over(&database().await).await;
}

#[tokio::test]
async fn two_who_delete_do_not_wait_for_one_anothers_notes() {
    cleaners_do_not_wait_for_one_another(&database().await).await;
}

#[tokio::test]
async fn transactions_with_one_snapshot_note_what_they_forget_and_nothing_else() {
    transactions_with_one_snapshot(&database().await).await;
}

#[tokio::test]
async fn a_day_whose_detaching_did_not_end_is_told_and_can_be_attached_again() {
    a_day_that_is_being_detached(&database().await).await;
}

#[tokio::test]
async fn of_more_notes_than_are_told_the_newest_are_told_and_all_are_counted() {
    more_notes_than_are_told(&database().await).await;
}

#[tokio::test]
async fn a_watermark_is_put_back_where_it_is_as_far_as_it_was() {
    a_watermark_that_is_blank_is_not_back(&database().await).await;
}

#[tokio::test]
async fn a_new_consumer_takes_no_number_under_which_anything_is_kept() {
    a_new_consumer_takes_no_number_that_is_in_use(&database().await).await;
}

#[tokio::test]
async fn notes_and_the_upkeep_are_the_same_on_postgresql_14_and_18() {
    for version in [Version::V14, Version::V18] {
        let (postgres, mut server) = Postgres::private_version(version).await;
        let database = async || database_in(postgres, "").await;
        workers_that_find_a_day_dropped(&database().await).await;
        what_others_hold_is_passed_over(&database().await).await;
        cleaners_do_not_wait_for_one_another(&database().await).await;
        transactions_with_one_snapshot(&database().await).await;
        a_day_that_is_being_detached(&database().await).await;
        a_watermark_that_is_blank_is_not_back(&database().await).await;
        a_new_consumer_takes_no_number_that_is_in_use(&database().await).await;
        server.stop(Shutdown::Immediate).expect("it ends");
    }
}
