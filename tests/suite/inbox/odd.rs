//! Handlers and messages that no one would write, and somebody does: none ends the consumer, holds
//! another key, or is met by the next message.

use std::time::Duration;

use bytes::Bytes;
use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_idempotency::{Failure, Inbox, Message, Processor, Retry, Tx};

use super::effects::{Step, database, effects, message, number, take, with};

const DEAD: &str = "select count(*) from inbox.dead_letters";

/// One session, so that the next message gets the very one.
async fn one_session(database: &Database) -> Inbox {
    Inbox::open(database.pool(Role::Consumer, 1), "billing").await.expect("the inbox opens")
}

/// What a handler does, and the code of its dead letter if it has one.
const ODD: &[(&str, Option<&str>)] = &[
    ("call commits()", Some("sqlstate-2D000")),
    ("do $$ begin rollback; end $$", Some("sqlstate-2D000")),
    ("discard all", Some("sqlstate-25001")),
    ("discard plans", None),
    ("discard temp", None),
    ("vacuum effects", Some("sqlstate-25001")),
    ("create temporary table t (n int) on commit drop", None),
    ("create temporary table t (n int) on commit delete rows", None),
    ("create temporary table t (n int) on commit preserve rows", None),
    ("listen scratch; notify scratch, 'mine'", None),
    ("select pg_cancel_backend(pg_backend_pid()); select pg_sleep(60)", Some("sqlstate-57014")),
    ("set constraints all deferred", None),
    ("set transaction read only", None),
    ("set session characteristics as transaction read only", None),
    ("set session authorization default", None),
    ("set client_encoding = 'SQL_ASCII'; set datestyle = 'SQL, DMY'; set row_security = off", None),
    ("set local search_path = pg_temp; set session search_path = ''", None),
    // The names that the driver gives, those of now and of later.
    (
        "do $$ begin for n in 0..20000 loop execute format('prepare s%s as select 1', n); \
         end loop; exception when duplicate_prepared_statement then null; end $$",
        None,
    ),
    ("declare c cursor with hold for select generate_series(1, 1000); listen a; listen b", None),
    ("select pg_advisory_lock(1); select pg_advisory_lock_shared(2)", None),
    ("lock table inbox.messages in share row exclusive mode", Some("sqlstate-42501")),
    ("drop table inbox.parked", Some("sqlstate-42501")),
    ("alter table inbox.messages disable trigger all", Some("sqlstate-42501")),
    ("delete from inbox.messages", Some("sqlstate-42501")),
    ("lock table inbox.parked in access exclusive mode", None),
    ("do $$ begin for n in 1..2000 loop raise notice 'n'; end loop; end $$", None),
];

#[tokio::test]
async fn what_a_handler_may_think_of_ends_no_consumer_and_is_not_met_by_the_next_message() {
    let database = database().await;
    let made = "create procedure commits() language plpgsql as $$ begin commit; end $$";
    database.superuser().batch_execute(made).await.expect("a procedure");
    let inbox = one_session(&database).await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        if let Ok(odd) = message.payload.key.parse::<usize>() {
            tx.batch_execute(ODD[odd].0).await?;
        }
        Ok(())
    };
    let processor = Processor::new(inbox, handler).retry(Retry::default().attempts(1));
    for (odd, (sql, code)) in ODD.iter().enumerate() {
        let messages =
            [message(&odd.to_string(), 1), message("next", i32::try_from(odd).expect("few"))];
        let settled = tokio::time::timeout(wait::PATIENCE, processor.process(&messages)).await;
        settled.unwrap_or_else(|_| panic!("{sql}: it stands still")).expect(sql);
        let found = "select code from inbox.dead_letters order by id";
        let found = database.superuser().query(found, &[]).await.expect("dead letters");
        let expected: Vec<&str> = ODD[..=odd].iter().filter_map(|(_, code)| *code).collect();
        let found: Vec<String> = found.iter().map(|row| row.get(0)).collect();
        assert_eq!(found, expected, "{sql}");
        let taken = format!("select count(*) from effects where key = '{odd}'");
        assert_eq!(number(&database, &taken).await, i64::from(code.is_none()), "{sql}");
        let next = format!("select count(*) from effects where key = 'next' and n = {odd}");
        assert_eq!(number(&database, &next).await, 1, "{sql}");
    }
}

#[tokio::test]
async fn a_handler_that_panics_in_the_middle_of_a_copy_fails_its_message_alone() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        if message.payload.key == "panics" {
            let rows =
                (0..3).map(|n| if n < 2 { Bytes::from("a,1\n") } else { panic!("on purpose") });
            tx.copy_in("copy effects (key, n) from stdin (format csv)", rows).await?;
        }
        Ok(())
    };
    let inbox = one_session(&database).await;
    let processor = Processor::new(inbox, handler).retry(Retry::default().attempts(1));
    let messages = [message("panics", 1), message("next", 1)];
    let settled = tokio::time::timeout(wait::PATIENCE, processor.process(&messages)).await;
    settled.expect("it does not stand still").expect("settled");
    assert_eq!(effects(&database).await, [Step { key: "next".into(), n: 1 }]);
    assert_eq!(number(&database, DEAD).await, 1);
}

/// A key and headers are no smaller for being none of the payload.
#[tokio::test]
async fn a_message_with_a_key_of_a_megabyte_and_ten_thousand_headers_is_the_same_after_it_waited() {
    let database = database().await;
    let headers = (0..10_000).map(|n| (format!("h{}", n % 100), Some(n.to_string().into_bytes())));
    let key: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut sent = message("a", 1).with_key(key).with_headers(headers.collect());
    sent.payload = None;
    let (seen, mut found) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |tx: Tx, message: Message<Option<Bytes>>| {
        let seen = seen.clone();
        async move {
            if message.attempt == 1 {
                return Err(Failure::transient("not yet"));
            }
            take(&tx, &Step { key: "a".into(), n: 1 }).await?;
            seen.send(message).expect("received");
            Ok(())
        }
    };
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    let pool = database.pool(Role::Consumer, 4);
    let inbox = Inbox::open(pool, "billing").await.expect("the inbox opens");
    let processor = Processor::raw(inbox, handler).retry(retry);
    processor.process(std::slice::from_ref(&sent)).await.expect("settled");
    let again = tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        again = found.recv() => again.expect("it is taken up"),
    };
    assert_eq!(again, with(sent, |m| m.attempt = 2));
}

#[tokio::test]
async fn consumers_of_one_name_in_two_databases_have_nothing_in_common() {
    let (one, two) = (database().await, database().await);
    let sent = message("a", 1);
    for database in [&one, &two] {
        let work = |tx: Tx| async move { take(&tx, &Step { key: "a".into(), n: 1 }).await };
        one_session(database).await.once(&sent.id, work).await.expect("taken");
        assert_eq!(effects(database).await.len(), 1);
    }
}

/// One changes all that it can of its sessions, the other one looks.
#[tokio::test]
async fn two_consumers_of_one_pool_meet_nothing_of_one_another() {
    let database = database().await;
    let pool = database.pool(Role::Consumer, 1);
    let (one, two) = (Inbox::open(pool.clone(), "one").await, Inbox::open(pool, "two").await);
    let leaves = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        tx.batch_execute(
            "set search_path = pg_temp; create temporary table effects (n int); listen a; \
             select set_config('app.tenant', 'acme', false)",
        )
        .await?;
        Ok(())
    };
    let looks = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        let sql = "select coalesce(current_setting('app.tenant', true), ''), \
            (select count(*) from pg_listening_channels())";
        let row = tx.query_one(sql, &[]).await?;
        match (row.get(0), row.get(1)) {
            ("", 0_i64) => Ok(()),
            met => Err(Failure::permanent("met", format!("{met:?}"))),
        }
    };
    let one = Processor::new(one.expect("it opens"), leaves);
    let two = Processor::new(two.expect("it opens"), looks);
    let messages = [message("a", 1), message("a", 2)];
    for message in messages.chunks(1) {
        one.process(message).await.expect("settled");
        two.process(message).await.expect("settled");
    }
    assert_eq!(effects(&database).await.len(), 4, "each message for each of them");
    assert_eq!(number(&database, DEAD).await, 0);
}
