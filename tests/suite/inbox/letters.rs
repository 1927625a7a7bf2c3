//! Messages that can't be handled become dead letters, with their reasons; what becomes of those then.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::SystemTime,
};

use outbox_harness::database::Database;
use outbox_idempotency::{
    Alert, Classify, Failure, Message, MessageId, Processor, Tx,
    dead_letters::{self, Page, Selection},
};

use super::{
    effects::{Step, database, effects, inbox, message, number, take, with},
    processor::{Background, DEAD, PARKED, WAITING, soon, step, until_zero},
};

#[tokio::test]
async fn a_message_that_fails_too_often_is_a_dead_letter_and_its_key_goes_on() {
    let database = database().await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let alerts = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let attempts = Arc::clone(&attempts);
        move |tx: Tx, message: Message<Step>| {
            let attempts = Arc::clone(&attempts);
            async move {
                take(&tx, &message.payload).await?;
                if message.payload.n == 1 {
                    attempts.lock().expect("no panic").push(message.attempt);
                    Err("never").transient()?;
                }
                Ok(())
            }
        }
    };
    let processor = Processor::new(inbox(&database).await, handler).retry(soon()).on_alert({
        let alerts = Arc::clone(&alerts);
        move |alert| alerts.lock().expect("no panic").push(alert.clone())
    });
    let background = Background::start(&processor);
    for key in ["a", "b"] {
        processor.process(&[message(key, 1), message(key, 2)]).await.expect("settled");
        until_zero(&database, WAITING).await;
    }
    background.stop().await;
    assert_eq!(effects(&database).await, [step("a", 2), step("b", 2)]);
    assert_eq!(*attempts.lock().expect("no panic"), [1, 2, 3, 4, 1, 2, 3, 4]);
    let letters = all(&database, Selection::default()).await;
    let seen: Vec<_> = letters.iter().map(|l| (l.code.as_str(), l.attempts, l.offset)).collect();
    assert_eq!(seen, [("transient", 4, Some(1)), ("transient", 4, Some(1))]);
    assert_eq!(letters[0].error, "never");
    let new: Vec<bool> = alerts
        .lock()
        .expect("no panic")
        .iter()
        .map(|alert| match alert {
            Alert::DeadLetter { new_code, .. } => *new_code,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(new, [true, false]);
}

pub(super) async fn all(
    database: &Database,
    selection: Selection,
) -> Vec<dead_letters::DeadLetter> {
    let client: &tokio_postgres::Client = database.superuser();
    dead_letters::list(client, &selection, Page::first(100)).await.expect("a list")
}

#[tokio::test]
async fn a_message_behind_one_that_waited_is_tried_as_often_and_its_key_goes_on() {
    let database = database().await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let fixed = Arc::new(AtomicBool::new(false));
    let handler = {
        let (attempts, fixed) = (Arc::clone(&attempts), Arc::clone(&fixed));
        move |tx: Tx, message: Message<Step>| {
            let (attempts, fixed) = (Arc::clone(&attempts), fixed.load(SeqCst));
            async move {
                take(&tx, &message.payload).await?;
                if message.payload.n == 3 {
                    attempts.lock().expect("no panic").push(message.attempt);
                }
                if message.payload.n == 3 || !fixed {
                    Err("not yet").transient()?;
                }
                Ok(())
            }
        }
    };
    let processor = Processor::new(inbox(&database).await, handler).retry(soon());
    let messages: Vec<_> = (1..=5).map(|n| message("a", n)).collect();
    processor.process(&messages).await.expect("settled");
    assert_eq!(number(&database, PARKED).await, 5);
    fixed.store(true, SeqCst);
    let background = Background::start(&processor);
    until_zero(&database, WAITING).await;
    background.stop().await;
    assert_eq!(effects(&database).await, [1, 2, 4, 5].map(|n| step("a", n)));
    assert_eq!(*attempts.lock().expect("no panic"), [1, 2, 3, 4]);
    let letters = all(&database, Selection::default()).await;
    assert_eq!(letters.iter().map(|l| l.attempts).collect::<Vec<_>>(), [4]);
}

/// Many keys, so that the workers are all there to take what one of them lets go of.
#[tokio::test]
async fn what_fails_permanently_behind_a_parked_message_is_called_once() {
    const KEYS: usize = 16;
    let database = database().await;
    let calls = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let calls = Arc::clone(&calls);
        move |tx: Tx, message: Message<Step>| {
            let calls = Arc::clone(&calls);
            async move {
                let step = message.payload;
                take(&tx, &step).await?;
                match step.n {
                    1 if message.attempt == 1 => Err("not yet").transient(),
                    1 => Ok(()),
                    _ => {
                        calls.lock().expect("no panic").push((step.key, step.n));
                        Err("no").permanent("refused-by-us")
                    }
                }
            }
        }
    };
    let processor = Processor::new(inbox(&database).await, handler).retry(soon());
    let keys: Vec<String> = (0..KEYS).map(|key| format!("key {key}")).collect();
    let messages: Vec<_> = keys.iter().flat_map(|key| (1..=5).map(|n| message(key, n))).collect();
    processor.process(&messages).await.expect("settled");
    let (one, other) = (Background::start(&processor), Background::start(&processor));
    until_zero(&database, WAITING).await;
    one.stop().await;
    other.stop().await;
    assert_eq!(number(&database, DEAD).await, i64::try_from(KEYS * 4).expect("few"));
    let mut calls = calls.lock().expect("no panic").clone();
    calls.sort();
    let expected = keys.iter().flat_map(|key| (2..=5).map(|n| (key.clone(), n)));
    let mut expected: Vec<_> = expected.collect();
    expected.sort();
    assert_eq!(calls, expected);
}

#[tokio::test]
async fn what_can_never_succeed_is_a_dead_letter_at_once_with_its_reason() {
    let database = database().await;
    let unique = "create unique index on effects (key) where key = 'twice'";
    database.superuser().batch_execute(unique).await.expect("an index");
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        match message.payload.key.as_str() {
            "refused" => Err("no").permanent("refused-by-us")?,
            "panics" => panic!("a bug"),
            _ => Ok(()),
        }
    };
    let processor = Processor::new(inbox(&database).await, handler).retry(soon().attempts(1));
    let garbage = with(message("garbage", 1), |m| m.payload = Some(b"{\xff"[..].into()));
    let ancient = MessageId::at(uuid::Uuid::now_v7(), SystemTime::UNIX_EPOCH);
    let ancient = with(message("ancient", 1), |m| m.id = ancient);
    let tombstone = with(message("tombstone", 1), |m| m.payload = None);
    let messages = [
        message("twice", 1),
        message("twice", 2),
        message("refused", 1),
        message("panics", 1),
        garbage.clone(),
        ancient.clone(),
        tombstone,
        message("fine", 1),
    ];
    processor.process(&messages).await.expect("settled");
    processor.process(&messages).await.expect("settled again");
    let letters = all(&database, Selection::default()).await;
    let codes: Vec<&str> = letters.iter().map(|letter| letter.code.as_str()).collect();
    let expected = [
        "sqlstate-23505",
        "refused-by-us",
        "panic",
        "undecodable",
        "outside-window",
        "undecodable",
    ];
    assert_eq!(codes, expected);
    assert_eq!(effects(&database).await, [step("twice", 1), step("fine", 1)]);
    let client: &tokio_postgres::Client = database.superuser();
    let whole = dead_letters::show(client, letters[3].id).await.expect("asked").expect("there");
    assert_eq!(whole.payload, serde_json::json!({ "base64": "e/8=" }));
    assert_eq!(whole.headers, serde_json::json!([["outbox-type", "step"]]));
    assert_eq!(whole.entry.message_id, garbage.id.to_string());
    let json = serde_json::to_value(&whole).expect("plain data has a JSON form");
    let times = "select to_char(first_failed_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), \
                     to_char(died_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') \
                 from inbox.dead_letters where id = $1";
    let times = client.query_one(times, &[&whole.entry.id]).await.expect("its times");
    assert_eq!(json["first_failed_at"], times.get::<_, String>(0));
    assert_eq!(json["died_at"], times.get::<_, String>(1));
    let history = Selection::default().with_history();
    assert_eq!(dead_letters::discard(client, &Selection::default()).await.expect("discarded"), 6);
    assert_eq!(all(&database, Selection::default()).await, []);
    assert_eq!(all(&database, history.clone()).await.len(), 6);
    let last = dead_letters::list(client, &history, Page::first(9).after(letters[4].id)).await;
    assert_eq!(last.expect("a page").first().map(|letter| letter.id), Some(letters[5].id));
    assert_eq!(dead_letters::replay(client, &history).await.expect("none is dead"), 0);
}

#[tokio::test]
async fn a_replay_is_handled_once_in_its_order_and_a_discard_never() {
    let database = database().await;
    let broken = Arc::new(AtomicBool::new(true));
    let handler = {
        let broken = Arc::clone(&broken);
        move |tx: Tx, message: Message<Step>| {
            let broken = broken.load(SeqCst);
            async move {
                take(&tx, &message.payload).await?;
                if broken { Err(Failure::permanent("broken", "no")) } else { Ok(()) }
            }
        }
    };
    let processor = Processor::new(inbox(&database).await, handler);
    let messages = [message("a", 1), message("a", 2), message("a", 3), message("b", 1)];
    processor.process(&messages).await.expect("settled");
    let client: &tokio_postgres::Client = database.superuser();
    let last = all(&database, Selection::default()).await.pop().expect("four");
    let one = Selection::default().with_id(last.id);
    assert_eq!(dead_letters::discard(client, &one).await.expect("discarded"), 1);
    let others = Selection::default().with_consumer("mail");
    assert_eq!(dead_letters::replay(client, &others).await.expect("no such consumer"), 0);
    let code = Selection::default().with_code("broken");
    let background = Background::start(&processor);
    // Still broken: they die again, and count their replays.
    assert_eq!(dead_letters::replay(client, &code).await.expect("replayed"), 3);
    until_zero(&database, WAITING).await;
    let again = all(&database, code.clone()).await;
    assert_eq!(again.iter().map(|letter| letter.replays).collect::<Vec<_>>(), [1, 1, 1]);
    broken.store(false, SeqCst);
    assert_eq!(dead_letters::replay(client, &code).await.expect("replayed"), 3);
    assert_eq!(dead_letters::replay(client, &code).await.expect("nothing left"), 0);
    until_zero(&database, WAITING).await;
    background.stop().await;
    assert_eq!(effects(&database).await, [step("a", 1), step("a", 2), step("a", 3)]);
    assert_eq!(number(&database, DEAD).await, 0);
    // What came of it is remembered: a copy from the broker is a duplicate.
    processor.process(&messages).await.expect("settled");
    assert_eq!(effects(&database).await.len(), 3);
}
