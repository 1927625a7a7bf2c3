//! Whoever puts something on the inbox's tables that keeps rows out, or hides them, stops the consumer
//! with what to type. Nothing is lost, and nothing doubled.

use outbox_harness::database::Role;
use outbox_idempotency::{
    Claim, Classify, Inbox, InboxError, Message, Processor, RawMessage, Stop, Tx,
};

use super::effects::{Step, database, effects, inbox, message, number, take};
use crate::grants::change;

const NOTHING: &str = "create function nothing() returns trigger language plpgsql as \
    $$ begin return null; end $$";

fn stopped(stop: Result<(), Stop>, table: &str) {
    let error = match stop.expect_err(table) {
        Stop::Inbox(error @ InboxError::Setting(_)) => error.to_string(),
        other => panic!("{table}: {other:?}"),
    };
    assert!(error.contains(table), "{error}");
}

async fn handle(tx: Tx, message: Message<Step>) -> Result<(), outbox_idempotency::Failure> {
    take(&tx, &message.payload).await?;
    match (message.payload.key.as_str(), message.attempt) {
        ("waits", 1) => Err("not yet").transient()?,
        ("dies", _) => Err("never").permanent("never")?,
        _ => Ok(()),
    }
}

/// A trigger that returns nothing, on each table that a message may be written into.
#[tokio::test]
async fn a_row_that_a_trigger_or_a_rule_keeps_out_is_noticed_before_its_message_is_acknowledged() {
    let database = database().await;
    change(&database, NOTHING).await;
    let today = "select to_char(now() at time zone 'utc', 'YYYYMMDD')";
    let today: String = database.superuser().query_one(today, &[]).await.expect("a day").get(0);
    let of_a_day = format!("inbox.messages_{today}");
    let one = Processor::new(inbox(&database).await, handle);
    let many = |tx: Tx, messages: Vec<Message<Step>>| async move {
        for message in messages {
            take(&tx, &message.payload).await?;
        }
        Ok(())
    };
    let many = Processor::batch(inbox(&database).await, 10, many);
    let trigger = |table: &str| {
        let on = format!("before insert on {table} for each row execute function nothing()");
        (format!("create trigger t {on}"), format!("drop trigger t on {table}"))
    };
    for (n, (table, key)) in (1..).zip([
        ("inbox.messages", "fine"),
        (of_a_day.as_str(), "fine"),
        ("inbox.parked_lanes", "waits"),
        ("inbox.parked", "waits"),
        ("inbox.dead_letters", "dies"),
    ]) {
        let (create, drop) = trigger(table);
        change(&database, &create).await;
        let named = if table == of_a_day { "inbox.messages" } else { table };
        let messages = [message(key, n), message("fine", 10 * n)];
        stopped(one.process(&messages).await, named);
        if named == "inbox.messages" {
            stopped(many.process(&messages).await, named);
        }
        let opened = Inbox::open(database.pool(Role::Consumer, 1), "another").await;
        let refusal = opened.expect_err("it is refused").to_string();
        assert!(refusal.contains(&drop), "{refusal}");
        assert_eq!(number(&database, "select count(*) from effects where n >= 10").await, 0);
        change(&database, &drop).await;
        one.process(&messages).await.expect("settled");
        let aside = "select (select count(*) from inbox.parked where convert_from(key, 'utf8') = 'waits') \
            + (select count(*) from inbox.dead_letters)";
        let stored = i64::try_from(effects(&database).await.len()).expect("few")
            + number(&database, aside).await;
        assert_eq!(stored, 2, "{table}");
        change(
            &database,
            "delete from inbox.parked; delete from inbox.parked_lanes; \
            delete from inbox.dead_letters; delete from effects",
        )
        .await;
    }
    let rule = "create rule r as on insert to inbox.parked do instead nothing";
    change(&database, rule).await;
    let opened = Inbox::open(database.pool(Role::Consumer, 1), "another").await;
    let refusal = opened.expect_err("it is refused").to_string();
    assert!(refusal.contains("drop rule r on inbox.parked"), "{refusal}");
}

#[tokio::test]
async fn what_looks_like_a_copy_and_was_never_here_is_no_duplicate_in_any_form_of_a_claim() {
    let database = database().await;
    change(&database, NOTHING).await;
    let inbox = inbox(&database).await;
    let on =
        "create trigger t before insert on inbox.messages for each row execute function nothing()";
    change(&database, on).await;
    let id = message("a", 1).id;
    let once = inbox.once(&id, |_| async { Ok::<_, InboxError>(()) }).await;
    assert!(once.expect_err("once").to_string().contains("inbox.messages"));
    let mut client = database.connect(Role::Consumer).await;
    let open = client.transaction().await.expect("begun");
    let claim = inbox.claim(&open, &id).await;
    assert!(matches!(claim, Err(InboxError::Setting(_))), "{claim:?}");
    let claims = inbox.claim_batch(&open, &[id]).await;
    assert!(matches!(claims, Err(InboxError::Setting(_))), "{claims:?}");
    open.rollback().await.expect("rolled back");
    change(&database, "drop trigger t on inbox.messages").await;
    let open = client.transaction().await.expect("begun");
    let claims = inbox.claim_batch(&open, &[id, id]).await.expect("asked");
    assert_eq!(claims, [Claim::Fresh, Claim::Duplicate]);
}

#[tokio::test]
async fn what_only_looks_on_may_stay_and_what_hides_rows_later_stops_the_consumer() {
    let database = database().await;
    let audit = "create function audit() returns trigger language plpgsql as \
            $$ begin return null; end $$; \
        create trigger audit after insert on inbox.messages for each row execute function audit(); \
        create trigger audit before insert on inbox.parked for each statement execute function audit()";
    change(&database, audit).await;
    let processor = Processor::new(inbox(&database).await, handle);
    let messages: Vec<RawMessage> = vec![message("fine", 1), message("waits", 1)];
    processor.process(&messages).await.expect("settled");
    assert_eq!(effects(&database).await.len(), 1);
    change(&database, "alter table inbox.parked_lanes enable row level security").await;
    match processor.background().await {
        Stop::Inbox(InboxError::Setting(text)) => {
            assert!(text.contains("inbox.parked_lanes"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

/// Rows of before the change, and what has the table as it was.
#[tokio::test]
async fn a_table_that_forgets_or_can_not_tell_a_copy_is_refused_with_what_mends_it() {
    let database = database().await;
    let processor = Processor::new(inbox(&database).await, handle);
    let messages = [message("fine", 1)];
    processor.process(&messages).await.expect("settled");
    let today = "select to_char(now() at time zone 'utc', 'YYYYMMDD')";
    let today: String = database.superuser().query_one(today, &[]).await.expect("a day").get(0);
    for (harm, remedy) in [
        (
            "alter table inbox.messages drop constraint messages_pkey",
            "create unique index on inbox.messages (consumer_id, id, day)".to_owned(),
        ),
        (
            "alter table inbox.watermarks drop constraint watermarks_pkey",
            "create unique index on inbox.watermarks (consumer_id, topic, partition)".to_owned(),
        ),
        (
            "alter table inbox.parked_lanes drop constraint parked_lanes_pkey",
            "create unique index on inbox.parked_lanes (consumer_id, lane)".to_owned(),
        ),
        (
            &format!("alter table inbox.messages_{today} set unlogged"),
            format!("alter table inbox.messages_{today} set logged"),
        ),
        ("alter table inbox.parked set unlogged", "alter table inbox.parked set logged".to_owned()),
    ] {
        change(&database, harm).await;
        let opened = Inbox::open(database.pool(Role::Consumer, 1), "another").await;
        let refusal = opened.expect_err(harm).to_string();
        assert!(refusal.contains(&remedy), "{harm}: {refusal}");
        match processor.background().await {
            Stop::Inbox(InboxError::Setting(text)) => assert!(text.contains(&remedy), "{text}"),
            other => panic!("{harm}: {other:?}"),
        }
        change(&database, &remedy).await;
        inbox(&database).await;
    }
    processor.process(&messages).await.expect("settled");
    assert_eq!(effects(&database).await.len(), 1);
}
