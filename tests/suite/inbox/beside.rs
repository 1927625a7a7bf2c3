//! A message whose key waits for a retry is put behind it at once, whatever the handler that retries it does meanwhile:
//! it holds up no other key of its batch or partition.

use std::{sync::Arc, time::Duration};

use outbox_harness::wait;
use outbox_idempotency::{Dedup, Failure, Isolation, Message, Processor, RawMessage, Retry, Tx};
use tokio::sync::Semaphore;

use super::{
    effects::{Step, assert_once_and_in_order, database, effects, inbox, number, take},
    watermark::{published, watermark},
};

const WAITING: &str = "select count(*) from inbox.parked";
const KEYS_WAITING: &str = "select count(*) from inbox.parked_lanes";

/// The first message of `a` fails once, and its second call waits for the gate; then it fails to the end, or not.
async fn first_of_a(
    step: &Step,
    attempt: u32,
    gate: &Semaphore,
    dies: bool,
) -> Result<(), Failure> {
    if (step.key.as_str(), step.n) != ("a", 1) {
        return Ok(());
    }
    match attempt {
        1 => Err(Failure::transient("not yet")),
        _ => {
            gate.acquire().await.expect("it is never closed").forget();
            if dies { Err(Failure::permanent("bad", "never")) } else { Ok(()) }
        }
    }
}

struct Case {
    dedup: Dedup,
    isolation: Isolation,
    in_batches: bool,
    dies: bool,
}

async fn no_one_waits(case: Case) {
    let Case { dedup, isolation, in_batches, dies } = case;
    let database = database().await;
    let gate = Arc::new(Semaphore::new(0));
    let inbox = inbox(&database).await.isolation(isolation);
    let shut = Arc::clone(&gate);
    let processor = if in_batches {
        Processor::batch(inbox, 10, move |tx: Tx, messages: Vec<Message<Step>>| {
            let gate = Arc::clone(&shut);
            async move {
                for message in &messages {
                    take(&tx, &message.payload).await?;
                    first_of_a(&message.payload, message.attempt, &gate, dies).await?;
                }
                Ok(())
            }
        })
    } else {
        Processor::new(inbox, move |tx: Tx, message: Message<Step>| {
            let gate = Arc::clone(&shut);
            async move {
                take(&tx, &message.payload).await?;
                first_of_a(&message.payload, message.attempt, &gate, dies).await
            }
        })
    };
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(1));
    let processor = processor.dedup(dedup).retry(retry);
    let mut offset: i64 = 0;
    let mut messages = |steps: &[(&str, i32)]| -> Vec<RawMessage> {
        let message = |&(key, n): &(&str, i32)| {
            offset += 1;
            published(key, n, 10 + offset.unsigned_abs(), offset)
        };
        steps.iter().map(message).collect()
    };
    processor.process(&messages(&[("a", 1)])).await.expect("settled");
    let background = processor.clone();
    let background = tokio::spawn(async move { background.background().await });
    wait::until("the handler is at the gate", wait::PATIENCE, || async {
        let sql = "select count(*) from pg_locks where relation = 'effects'::regclass \
                   and mode = 'RowExclusiveLock'";
        if number(&database, sql).await > 0 { Ok(()) } else { Err("no") }
    })
    .await
    .expect("it is called again");
    let all = messages(&[("b", 1), ("a", 2), ("c", 1), ("a", 3), ("b", 2)]);
    tokio::time::timeout(wait::PATIENCE, processor.process(&all))
        .await
        .expect("no message waits for the handler")
        .expect("settled");
    // The handler has not gone on: its message is deleted by a transaction that is open.
    assert_eq!(number(&database, WAITING).await, 3);
    assert_eq!(effects(&database).await.len(), 3, "b and c");
    gate.add_permits(1);
    wait::until("nothing waits", wait::PATIENCE, || async {
        match number(&database, KEYS_WAITING).await + number(&database, WAITING).await {
            0 => Ok(()),
            some => Err(some.to_string()),
        }
    })
    .await
    .expect("all are taken up, and the key is free");
    background.abort();
    let first = if dies { 2 } else { 1 };
    let steps = (first..=3).map(|n| ("a", n)).chain([("b", 1), ("b", 2), ("c", 1)]);
    let expected = steps.map(|(key, n)| Step { key: key.to_owned(), n });
    assert_once_and_in_order(&effects(&database).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_behind_a_slow_retry_is_put_aside_at_once() {
    for dedup in [Dedup::Rows, Dedup::Off, watermark()] {
        for in_batches in [false, true] {
            for dies in [false, true] {
                let isolation = Isolation::ReadCommitted;
                no_one_waits(Case { dedup: dedup.clone(), isolation, in_batches, dies }).await;
            }
        }
        let isolation = Isolation::RepeatableRead;
        no_one_waits(Case { dedup, isolation, in_batches: false, dies: false }).await;
    }
}
