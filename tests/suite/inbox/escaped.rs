//! Handlers that keep their transaction for a message that was parked: it is called as often as a new one
//! would be, and no message but the one at fault is given up.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use outbox_idempotency::{Classify as _, Message, Processor, Tx};

use super::{
    effects::{Step, assert_once_and_in_order, database, effects, inbox, message, number, take},
    processor::{Background, DEAD, PARKED, soon, step, until_zero},
};

const KEPT: &str = "select count(*) from inbox.dead_letters where code = 'transaction-kept'";

/// Many keys, so that the workers are all there to take what one of them lets go of.
#[tokio::test]
async fn a_parked_message_whose_handler_keeps_its_transaction_is_called_once_more() {
    const KEYS: usize = 24;
    let database = database().await;
    let (calls, kept) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let handler = {
        let (calls, kept) = (Arc::clone(&calls), Arc::clone(&kept));
        move |tx: Tx, message: Message<Step>| {
            let (calls, kept) = (Arc::clone(&calls), Arc::clone(&kept));
            async move {
                take(&tx, &message.payload).await?;
                if message.payload.n == 2 {
                    return Ok(());
                }
                calls.lock().expect("no panic").push((message.payload.key, message.attempt));
                if message.attempt == 1 {
                    return Err("not yet").transient();
                }
                kept.lock().expect("no panic").push(tx);
                Ok(())
            }
        }
    };
    let processor = Processor::new(inbox(&database).await, handler).retry(soon());
    let keys: Vec<String> = (0..KEYS).map(|key| format!("key {key:02}")).collect();
    let messages: Vec<_> = keys.iter().flat_map(|key| (1..=2).map(|n| message(key, n))).collect();
    processor.process(&messages).await.expect("settled");
    let (one, other) = (Background::start(&processor), Background::start(&processor));
    until_zero(&database, PARKED).await;
    one.stop().await;
    other.stop().await;
    let mut calls = calls.lock().expect("no panic").clone();
    calls.sort();
    let expected: Vec<_> =
        keys.iter().flat_map(|key| [(key.clone(), 1), (key.clone(), 2)]).collect();
    assert_eq!(calls, expected);
    assert_eq!(number(&database, KEPT).await, i64::try_from(KEYS).expect("few"));
    assert_once_and_in_order(&effects(&database).await, keys.iter().map(|key| step(key, 2)));
}

#[tokio::test]
async fn of_a_parked_batch_the_message_is_given_up_for_which_the_transaction_is_kept() {
    let database = database().await;
    let fixed = Arc::new(AtomicBool::new(false));
    let kept = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let (fixed, kept) = (Arc::clone(&fixed), Arc::clone(&kept));
        move |tx: Tx, messages: Vec<Message<Step>>| {
            let (fixed, kept) = (fixed.load(SeqCst), Arc::clone(&kept));
            async move {
                for message in &messages {
                    take(&tx, &message.payload).await?;
                }
                if !fixed {
                    return Err("not yet").transient();
                }
                if messages.iter().any(|message| [4, 7].contains(&message.payload.n)) {
                    kept.lock().expect("no panic").push(tx);
                }
                Ok(())
            }
        }
    };
    let processor = Processor::batch(inbox(&database).await, 100, handler).retry(soon());
    let messages: Vec<_> = (1..=9).map(|n| message("a", n)).collect();
    processor.process(&messages).await.expect("settled");
    assert_eq!(number(&database, PARKED).await, 9);
    fixed.store(true, SeqCst);
    let background = Background::start(&processor);
    until_zero(&database, PARKED).await;
    background.stop().await;
    let expected = [1, 2, 3, 5, 6, 8, 9].map(|n| step("a", n));
    assert_once_and_in_order(&effects(&database).await, expected);
    let offsets = "select sum(record_offset)::bigint from inbox.dead_letters";
    assert_eq!((number(&database, DEAD).await, number(&database, KEPT).await), (2, 2));
    assert_eq!(number(&database, offsets).await, 11, "4 and 7");
}
