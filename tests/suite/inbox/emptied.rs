//! Somebody empties a table that has the only copy of messages: that is told, and what is said to type is true.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use outbox_harness::database::{Database, Role};
use outbox_idempotency::{Dedup, Failure, Message, Processor, RawMessage, Tx};

use super::{
    effects::{Step, database, effects, inbox, number, take},
    forgotten::losses,
    processor::WAITING,
    sessions::work_off,
    watermark::{published, steps, watermark},
};
use crate::grants::change;

/// Messages of the key `p` wait, and those of `d` are given up, until `fixed`.
async fn open(database: &Database, dedup: Dedup, fixed: &Arc<AtomicBool>) -> Processor {
    let fixed = Arc::clone(fixed);
    let handler = move |tx: Tx, message: Message<Step>| {
        let fixed = fixed.load(SeqCst);
        async move {
            match message.payload.n {
                2 if !fixed => return Err(Failure::transient("later")),
                3 if !fixed => return Err(Failure::permanent("odd", "never")),
                _ => take(&tx, &message.payload).await?,
            };
            Ok(())
        }
    };
    Processor::new(inbox(database).await, handler).dedup(dedup)
}

fn all() -> Vec<RawMessage> {
    [("a", 1), ("a", 2), ("b", 3), ("c", 4)].iter().map(|(key, n)| with_place(key, *n)).collect()
}

fn with_place(key: &str, n: i32) -> RawMessage {
    published(key, n, u64::try_from(n).expect("few"), i64::from(n))
}

/// What is to be typed, of a text that says it.
fn statements(text: &str) -> &str {
    let from = text.find("delete from inbox.messages").expect("what to type");
    text[from..].split_once(". Then").expect("and then").0
}

#[tokio::test]
async fn messages_that_somebody_truncates_are_told_and_take_effect_again_only_with_all_others() {
    for dedup in [Dedup::Rows, watermark()] {
        for table in ["parked", "dead_letters"] {
            let (database, fixed) = (database().await, Arc::new(AtomicBool::new(false)));
            let processor = open(&database, dedup.clone(), &fixed).await;
            let all = all();
            processor.process(&all).await.expect("settled");
            assert_eq!(effects(&database).await.len(), 2);
            change(&database, &format!("truncate inbox.{table}")).await;
            fixed.store(true, SeqCst);
            let found = losses(processor.inbox()).await;
            let [loss] = &found[..] else { panic!("{dedup:?} {table}: {found:?}") };
            assert_eq!(loss.messages, Some(1));
            let text = loss.to_string();
            assert!(text.contains(&format!("truncated inbox.{table}, with 1 messages")), "{text}");
            // As the offsets alone have it.
            open(&database, dedup.clone(), &fixed).await.process(&all).await.expect("settled");
            assert_eq!(effects(&database).await.len(), 2, "{dedup:?} {table}");
            let owner = database.connect(Role::Owner).await;
            owner.batch_execute(statements(&text)).await.expect("it can be typed");
            let other = published("z", 9, 100, 4);
            let mut again = all.clone();
            again.push(other);
            let restarted = open(&database, dedup.clone(), &fixed).await;
            restarted.process(&again).await.expect("settled");
            work_off(&restarted, &database, WAITING).await;
            let lost = if table == "parked" { 2 } else { 3 };
            let of = format!("select count(*) from effects where n = {lost}");
            assert_eq!(number(&database, &of).await, 1, "{dedup:?} {table}: {text}");
            assert_eq!(number(&database, "select count(*) from effects where n = 1").await, 2);
            assert_eq!(number(&database, "select count(*) from effects where n = 9").await, 1);
        }
    }
}

/// Nothing is lost with it.
#[tokio::test]
async fn history_that_somebody_truncates_is_not_told() {
    let (database, fixed) = (database().await, Arc::new(AtomicBool::new(false)));
    let processor = open(&database, Dedup::Rows, &fixed).await;
    processor.process(&all()[2..]).await.expect("settled");
    change(&database, "update inbox.dead_letters set state = 'discarded'").await;
    change(&database, "truncate inbox.dead_letters; truncate inbox.parked").await;
    assert_eq!(losses(processor.inbox()).await, []);
    assert_eq!(effects(&database).await.len(), 1);
}

#[tokio::test]
async fn what_is_said_of_a_dropped_table_brings_its_messages_back() {
    for dedup in [Dedup::Rows, watermark()] {
        let (database, fixed) = (database().await, Arc::new(AtomicBool::new(false)));
        let processor = open(&database, dedup.clone(), &fixed).await;
        processor.process(&all()).await.expect("settled");
        let superuser = database.superuser();
        superuser.batch_execute("drop table inbox.parked, inbox.dead_letters").await.expect("gone");
        let mut owner = database.connect(Role::Owner).await;
        let absent = outbox_migrations::recreate_inbox(&mut owner).await.expect("recreated");
        database.grant().await;
        let text = outbox_migrations::meaning(&absent);
        fixed.store(true, SeqCst);
        let id = number(&database, "select id::bigint from inbox.consumers").await.to_string();
        let day = superuser.query_one("select (now() - interval '1 day')::date::text", &[]).await;
        let day: String = day.expect("a day").get(0);
        let typed = statements(&text).replace("<id>", &id).replace("<day>", &day);
        owner.batch_execute(&typed).await.expect("it can be typed");
        let restarted = open(&database, dedup.clone(), &fixed).await;
        restarted.process(&all()).await.expect("settled");
        work_off(&restarted, &database, WAITING).await;
        for n in steps(&[2, 3]) {
            let of = format!("select count(*) from effects where n = {}", n.n);
            assert_eq!(number(&database, &of).await, 1, "{dedup:?}: {text}");
        }
    }
}
