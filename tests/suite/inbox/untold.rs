//! Messages whose day is not kept, and their copies: before and after somebody replays them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use outbox_harness::{database::Database, host::report, wait};
use outbox_idempotency::{
    Dedup, Failure, Message, MessageId, Processor, RawMessage, Tx,
    dead_letters::{self, Selection},
    testing::{Fate, MemoryInbox},
};
use uuid::Uuid;

use super::{
    effects::{Step, database, effects, inbox, message, number, take, with},
    processor::{Background, DEAD, WAITING, until_zero},
    watermark::{published, steps, stored_again, watermark},
};

const LETTERS: &str = "select count(*) from inbox.dead_letters";
const DAY: Duration = Duration::from_secs(86_400);

/// Without a key a watermark looks for the id.
fn old(n: i32) -> RawMessage {
    let id = MessageId::at(Uuid::now_v7(), SystemTime::now() - 30 * DAY);
    let place = u64::try_from(n).expect("few");
    with(published("a", n, place, i64::from(n)), |m| {
        m.id = id;
        m.key = None;
    })
}

async fn replay(database: &Database, processor: &Processor) {
    let client: &tokio_postgres::Client = database.superuser();
    let background = Background::start(processor);
    dead_letters::replay(client, &Selection::default()).await.expect("replayed");
    until_zero(database, WAITING).await;
    background.stop().await;
}

/// A call that finds the table busy leaves the days to the next one.
async fn keep_longer(database: &Database, processor: &Processor) {
    let keep = "update inbox.settings set retention_days = 60";
    database.superuser().batch_execute(keep).await.expect("updated");
    let missing = "select count(*) from generate_series(0, 60) as d (n) \
        where inbox.partition_of((now() at time zone 'utc')::date - d.n) is null";
    wait::until("all days are kept", wait::PATIENCE, || async {
        processor.inbox().maintain().await.map_err(|error| error.to_string())?;
        match number(database, missing).await {
            0 => Ok(()),
            days => {
                report(&format!("{days} days were not made: the table was busy"));
                Err(format!("{days} are missing"))
            }
        }
    })
    .await
    .expect("a call makes them");
}

async fn open(database: &Database, dedup: Dedup, broken: &Arc<AtomicBool>) -> Processor {
    let broken = Arc::clone(broken);
    let handler = move |tx: Tx, messages: Vec<Message<Step>>| {
        let broken = broken.load(SeqCst);
        async move {
            for message in &messages {
                take(&tx, &message.payload).await?;
            }
            if broken { Err(Failure::permanent("broken", "no")) } else { Ok(()) }
        }
    };
    Processor::batch(inbox(database).await, 10, handler).dedup(dedup)
}

/// The process that takes it up has not heard yet that its day was dropped.
#[tokio::test]
async fn a_replayed_message_whose_day_another_process_has_dropped_is_handled() {
    let (database, sound) = (database().await, Arc::new(AtomicBool::new(false)));
    let processor = open(&database, Dedup::Rows, &sound).await;
    let other = open(&database, Dedup::Rows, &sound).await;
    let keep_less = "update inbox.settings set retention_days = 5";
    database.superuser().batch_execute(keep_less).await.expect("updated");
    other.inbox().maintain().await.expect("maintained");
    let id = MessageId::at(Uuid::now_v7(), SystemTime::now() - 10 * DAY);
    let old = with(published("a", 1, 1, 1), |m| m.id = id);
    other.process(&[old]).await.expect("a dead letter");
    assert_eq!(number(&database, DEAD).await, 1);
    replay(&database, &processor).await;
    assert_eq!(effects(&database).await.len(), 1);
}

#[tokio::test]
async fn a_replayed_message_whose_copy_was_taken_meanwhile_is_a_duplicate() {
    for dedup in [Dedup::Rows, watermark()] {
        let (database, broken) = (database().await, Arc::new(AtomicBool::new(false)));
        let processor = open(&database, dedup.clone(), &broken).await;
        let all = [old(1), old(2), old(3)];
        processor.process(&all).await.expect("settled");
        assert_eq!(number(&database, DEAD).await, 3, "{dedup:?}");
        // It fails once more, and no one has a claim for it still.
        broken.store(true, SeqCst);
        replay(&database, &processor).await;
        assert_eq!(number(&database, DEAD).await, 3, "{dedup:?}");
        broken.store(false, SeqCst);
        keep_longer(&database, &processor).await;
        let again = [stored_again(&all[0], 4), stored_again(&all[1], 5)];
        processor.process(&again).await.expect("settled");
        assert_eq!(effects(&database).await, steps(&[1, 2]), "{dedup:?}");
        replay(&database, &processor).await;
        assert_eq!(effects(&database).await, steps(&[1, 2, 3]), "{dedup:?}");
        // What was replayed is claimed now.
        processor.process(&[stored_again(&all[2], 6)]).await.expect("settled");
        assert_eq!(effects(&database).await, steps(&[1, 2, 3]), "{dedup:?}");
    }
}

#[tokio::test]
async fn a_copy_of_a_dead_letter_outside_the_window_makes_no_second_one() {
    for dedup in [Dedup::Rows, watermark()] {
        let (database, broken) = (database().await, Arc::new(AtomicBool::new(false)));
        let processor = open(&database, dedup.clone(), &broken).await;
        let (one, other) = (old(1), old(2));
        // Copies in one batch, too.
        let batch = [one.clone(), stored_again(&one, 2), stored_again(&other, 3)];
        processor.process(&batch).await.expect("settled");
        assert_eq!(number(&database, LETTERS).await, 2, "{dedup:?}");
        let client: &tokio_postgres::Client = database.superuser();
        let second = "select max(id) from inbox.dead_letters";
        let second = Selection::default().with_id(number(&database, second).await);
        dead_letters::discard(client, &second).await.expect("discarded");
        replay(&database, &processor).await;
        assert_eq!(effects(&database).await, steps(&[1]), "{dedup:?}");
        let again = [stored_again(&one, 4), stored_again(&other, 5)];
        processor.process(&again).await.expect("settled");
        assert_eq!(number(&database, LETTERS).await, 2, "{dedup:?}");
        replay(&database, &processor).await;
        assert_eq!(effects(&database).await, steps(&[1]), "{dedup:?}");
    }
}

#[test]
fn the_inbox_in_memory_knows_copies_of_what_it_can_not_tell() {
    let handler = |state: &mut Vec<i32>, message: Message<Step>| {
        state.push(message.payload.n);
        Ok(())
    };
    let mut inbox = MemoryInbox::new(Vec::new(), handler);
    let ahead = MessageId::at(Uuid::now_v7(), SystemTime::now() + 10 * DAY);
    let [one, other] = [1, 2].map(|n| with(message(if n == 1 { "a" } else { "b" }, n), |_| ()));
    let one = with(one, |m| m.id = ahead);
    let other_id = MessageId::at(Uuid::now_v7(), SystemTime::now() + 10 * DAY);
    let other = with(other, |m| m.id = other_id);
    assert_eq!(inbox.process(&one).expect("settled"), Fate::Dead);
    assert_eq!(inbox.process(&other).expect("settled"), Fate::Dead);
    assert_eq!(inbox.replay(|dead| dead.message.payload == one.payload), 1);
    inbox.advance(Duration::from_secs(1)).expect("settled");
    assert_eq!(inbox.process(&one).expect("settled"), Fate::Duplicate);
    // The day comes, and a copy with it.
    inbox.advance(9 * DAY).expect("settled");
    assert_eq!(inbox.process(&other).expect("settled"), Fate::Applied);
    assert_eq!(inbox.replay(|_| true), 1);
    inbox.advance(Duration::from_secs(1)).expect("settled");
    assert_eq!(*inbox.state(), [1, 2]);
}
