//! Duplicates told by the relay's positions: one row for each partition.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outbox_harness::{database::Database, wait};
use outbox_idempotency::{
    Dedup, Failure, Headers, InboxError, Message, MessageId, Processor, RawMessage, Retry, Stop,
    Tx, kafka::offline::start_offset,
};
use tokio::task::JoinSet;

use super::effects::{
    Step, assert_once_and_in_order, database, effects, inbox, message, number, take, with,
};

pub(crate) fn watermark() -> Dedup {
    Dedup::Watermark { relay: "orders".into() }
}

/// A message as the relay publishes it, at a place of the WAL and an offset of the topic.
pub(crate) fn published(key: &str, n: i32, commit: u64, offset: i64) -> RawMessage {
    let mut message = message(key, n);
    message.headers = Headers::from_iter([
        ("outbox-relay", Some("orders".to_owned())),
        ("outbox-position", Some(format!("7:1:{commit:016X}:0000000000"))),
    ]);
    message.source.offset = Some(offset);
    message
}

pub(super) fn with_header(mut message: RawMessage, name: &str, value: &str) -> RawMessage {
    message.headers.set(name, Some(value.as_bytes().to_vec()));
    message
}

async fn processor(database: &Database) -> Processor {
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Ok(())
    };
    Processor::new(inbox(database).await, handler).dedup(watermark())
}

pub(super) fn steps(ns: &[i32]) -> Vec<Step> {
    ns.iter().map(|n| Step { key: "a".into(), n: *n }).collect()
}

/// A batch at a time, each message by itself.
pub(super) async fn batches(database: &Database) -> Processor {
    let handler = |tx: Tx, messages: Vec<Message<Step>>| async move {
        for message in messages {
            take(&tx, &message.payload).await?;
        }
        Ok(())
    };
    Processor::batch(inbox(database).await, 10, handler).dedup(watermark())
}

/// The same message as the broker has it once more.
pub(super) fn stored_again(message: &RawMessage, offset: i64) -> RawMessage {
    with(message.clone(), |m| m.source.offset = Some(offset))
}

/// As after a rebalance, or a restart.
#[tokio::test]
async fn what_is_read_again_is_known_by_its_position_alone() {
    let database = database().await;
    let (one, two) = (processor(&database).await, batches(&database).await);
    one.process(&[published("a", 1, 10, 0), published("a", 2, 20, 1)]).await.expect("settled");
    // Ids that no one has stored: none is asked for.
    let again = [published("a", 1, 10, 0), published("a", 2, 20, 1), published("a", 3, 30, 2)];
    two.process(&again).await.expect("settled");
    one.process(&again).await.expect("settled");
    assert_eq!(effects(&database).await, steps(&[1, 2, 3]));
    assert_eq!(number(&database, "select count(*) from inbox.messages").await, 0);
    assert_eq!(number(&database, "select next_offset from inbox.watermarks").await, 3);
}

#[tokio::test]
async fn another_relay_is_an_error_and_never_a_skip() {
    let database = database().await;
    let processor = processor(&database).await;
    let ours = published("a", 1, 10, 0);
    let other = with_header(published("a", 2, 5, 1), "outbox-relay", "other");
    processor.process(std::slice::from_ref(&ours)).await.expect("settled");
    for foreign in [other, with_header(ours.clone(), "outbox-position", "9:1:FF:0")] {
        let stop = processor.process(&[foreign]).await.expect_err("it can't tell");
        assert!(matches!(stop, Stop::Inbox(InboxError::Unsafe(_))), "{stop:?}");
    }
    assert_eq!(effects(&database).await, steps(&[1]));
}

#[tokio::test]
async fn what_a_repair_published_is_looked_up_by_its_id() {
    let database = database().await;
    let processor = processor(&database).await;
    let (first, second) = (published("a", 1, 10, 0), published("a", 2, 20, 1));
    processor.process(&[first.clone(), second.clone()]).await.expect("settled");
    // A repair: old ids under the position where it began, which is past all others; one of the
    // three was never published before.
    let missed = published("a", 3, 99, 4);
    let repaired = |id: MessageId, n, offset| {
        let message = with(published("a", n, 99, offset), |m| m.id = id);
        with_header(message, "outbox-repaired", "1")
    };
    let repair = [repaired(first.id, 1, 2), repaired(second.id, 2, 3), repaired(missed.id, 3, 4)];
    processor.process(&repair).await.expect("settled");
    processor.process(&repair).await.expect("settled again");
    processor.process(&[published("a", 4, 100, 5)]).await.expect("settled");
    assert_eq!(effects(&database).await, steps(&[1, 2, 3, 4]));
}

/// A repair repeats what was published a moment before, so a consumer may find both in one batch.
#[tokio::test]
async fn what_a_repair_published_again_is_known_in_the_batch_of_the_first_copy() {
    let database = database().await;
    let processor = batches(&database).await;
    let first = published("a", 1, 10, 0);
    let again = with(published("a", 1, 99, 1), |m| m.id = first.id);
    let batch = [first, with_header(again, "outbox-repaired", "1"), published("a", 2, 100, 2)];
    processor.process(&batch).await.expect("settled");
    assert_eq!(effects(&database).await, steps(&[1, 2]));
}

/// As a relay in at-least-once does that ended after it had stored them again with the mark.
#[tokio::test]
async fn what_was_taken_with_a_repairs_mark_is_not_taken_again_without_it() {
    let database = database().await;
    let processor = processor(&database).await;
    let first = published("a", 1, 10, 0);
    let again = [published("a", 2, 20, 1), published("a", 3, 30, 2)];
    let marked = again.clone().map(|message| with_header(message, "outbox-repaired", "1"));
    processor.process(&[first]).await.expect("settled");
    processor.process(&marked).await.expect("settled");
    let mut plain = again.to_vec();
    plain.push(published("a", 4, 40, 5));
    plain.iter_mut().zip(3..).for_each(|(message, offset)| message.source.offset = Some(offset));
    processor.process(&plain).await.expect("settled");
    assert_eq!(effects(&database).await, steps(&[1, 2, 3, 4]));
}

/// As from a host whose clock is ahead, or in another zone.
#[tokio::test]
async fn a_message_whose_own_time_is_in_the_future_is_known_when_ids_are_forgotten() {
    let database = database().await;
    let processor = processor(&database).await;
    let at = |n: i32, minutes: u64, commit: u64| {
        let time = SystemTime::now() + Duration::from_secs(minutes * 60);
        let id = MessageId::at(uuid::Builder::from_random_bytes(rand::random()).into_uuid(), time);
        with(published("a", n, commit, i64::from(n)), |m| m.id = id)
    };
    let ahead = [at(1, 50, 10), at(2, 60 * 24 * 30, 20)];
    processor.process(&ahead).await.expect("settled");
    let forgotten = "update inbox.applied set ids = '{}', newest = now() - interval '5 minutes'";
    database.superuser().batch_execute(forgotten).await.expect("forgotten");
    processor.process(&[published("a", 3, 30, 3)]).await.expect("settled");
    // After a `resume --at slot`.
    let of_an_era = |message: RawMessage, offset| {
        let mut message = with_header(message, "outbox-era", "5");
        message.source.offset = Some(offset);
        message
    };
    let [soon, far] = ahead;
    let again = [of_an_era(soon, 4), of_an_era(far, 5), of_an_era(at(4, 50, 25), 6)];
    processor.process(&again).await.expect("settled");
    assert_eq!(effects(&database).await, steps(&[1, 2, 3, 4]));
    let dead = "select count(*) from inbox.dead_letters where code = 'outside-window'";
    assert_eq!(number(&database, dead).await, 1, "of which nobody can tell");
}

/// A relay that starts again may put it into another partition, behind later positions.
#[tokio::test]
async fn what_has_no_key_is_known_by_its_id_in_whichever_partition_it_comes() {
    let database = database().await;
    let processor = processor(&database).await;
    let keyless = |n, partition| {
        let mut message = with(published("a", n, 10, 1), |m| m.key = None);
        message.source.partition = Some(partition);
        message
    };
    let first = keyless(1, 0);
    let again = with(keyless(1, 1), |m| m.id = first.id);
    // Never stored in its first partition, and behind a later position in this one.
    let missed = keyless(3, 1);
    let later = with(published("a", 2, 20, 0), |m| m.source = missed.source.clone());
    processor.process(&[first, later, again.clone(), missed]).await.expect("settled");
    processor.process(&[again]).await.expect("settled");
    assert_eq!(effects(&database).await, steps(&[1, 2, 3]));
}

#[tokio::test]
async fn a_database_that_lost_its_end_stops_the_process_that_knows_better() {
    let database = database().await;
    let processor = processor(&database).await;
    processor.process(&[published("a", 1, 10, 0)]).await.expect("settled");
    let earlier = "create table earlier as select * from inbox.watermarks";
    database.superuser().batch_execute(earlier).await.expect("copied");
    processor.process(&[published("a", 2, 20, 1)]).await.expect("settled");
    // A standby that was promoted without the last commits.
    let lose = "update inbox.watermarks w set position = e.position, next_offset = e.next_offset \
                from earlier e; delete from effects where n = 2";
    database.superuser().batch_execute(lose).await.expect("lost");
    let stop = processor.process(&[published("a", 3, 30, 2)]).await.expect_err("a gap");
    assert!(matches!(stop, Stop::Inbox(InboxError::Unsafe(_))), "{stop:?}");
    assert_eq!(effects(&database).await, steps(&[1]));
}

/// What a process read when the partition came to it is what it knows better.
#[tokio::test]
async fn a_database_that_lost_its_end_since_the_partition_came_stops_the_process() {
    let database = database().await;
    processor(&database).await.process(&[published("a", 1, 10, 0)]).await.expect("settled");
    let heir = processor(&database).await;
    assert_eq!(start_offset(&heir, "steps", 0).await.expect("read"), Some(1));
    let lose = "delete from inbox.watermarks; delete from effects";
    database.superuser().batch_execute(lose).await.expect("lost");
    let stop = heir.process(&[published("a", 2, 20, 1)]).await.expect_err("a gap");
    assert!(matches!(stop, Stop::Inbox(InboxError::Unsafe(_))), "{stop:?}");
    assert_eq!(effects(&database).await, []);
}

#[tokio::test]
async fn a_partition_in_which_nothing_has_a_key_goes_on_where_the_database_is() {
    let database = database().await;
    let processor = processor(&database).await;
    let keyless = with(published("a", 1, 10, 7), |m| m.key = None);
    processor.process(&[keyless]).await.expect("settled");
    assert_eq!(start_offset(&processor, "steps", 0).await.expect("read"), Some(8));
}

/// Offsets start over where a topic was recreated, and positions continue.
#[tokio::test]
async fn offsets_that_step_back_are_where_reading_goes_on() {
    let database = database().await;
    let processor = processor(&database).await;
    processor.process(&[published("a", 1, 10, 10_000)]).await.expect("settled");
    processor.process(&[published("a", 2, 20, 0)]).await.expect("settled");
    assert_eq!(start_offset(&processor, "steps", 0).await.expect("read"), Some(1));
    assert_eq!(effects(&database).await, steps(&[1, 2]));
}

/// All transactions of the partition wait meanwhile.
#[tokio::test]
async fn looking_up_many_ids_takes_about_as_long_as_looking_up_a_few() {
    let database = database().await;
    let remembered = "insert into inbox.applied (consumer_id, topic, partition, ids) \
        select 1, 'steps', 0, array(select gen_random_uuid() from generate_series(1, 20) where n > 0) \
        from generate_series(1, 5000) as n";
    database.superuser().batch_execute(remembered).await.expect("remembered");
    let claim = "select count(*) from inbox.claim_by_id(1, 'steps', 0, \
            array(select gen_random_uuid() from generate_series(1, $1)), \
            array(select current_date from generate_series(1, $1)))";
    let mut shortest = [Duration::MAX; 2];
    for _ in 0..3 {
        for (count, shortest) in [5_i32, 500].into_iter().zip(&mut shortest) {
            let begun = Instant::now();
            let row = database.superuser().query_one(claim, &[&count]).await.expect("claimed");
            *shortest = begun.elapsed().min(*shortest);
            assert_eq!(row.get::<_, i64>(0), i64::from(count));
        }
    }
    let [few, many] = shortest;
    assert!(many < few * 10, "{many:?} for 500, {few:?} for 5");
}

/// Its own time says that it may have been among those whose ids are kept no more.
#[tokio::test]
async fn what_is_looked_up_and_may_have_been_forgotten_is_a_dead_letter_and_never_taken_for_new() {
    let database = database().await;
    let processor = processor(&database).await;
    let aged = |n: i32, minutes: u64, commit: u64, offset: i64| {
        let time = SystemTime::now() - Duration::from_secs(minutes * 60);
        let since = time.duration_since(UNIX_EPOCH).expect("after 1970");
        let stamp = uuid::Timestamp::from_unix(uuid::NoContext, since.as_secs(), 0);
        let id = MessageId::from_uuid(uuid::Uuid::new_v7(stamp)).expect("version 7");
        with(published("a", n, commit, offset), |m| m.id = id)
    };
    let (first, other) = (aged(1, 50, 9, 0), aged(6, 51, 10, 0));
    let kept = aged(2, 2, 20, 1);
    processor.process(&[first.clone(), other.clone()]).await.expect("settled");
    let hour_ago = "update inbox.applied set applied_at = applied_at - interval '49 minutes'";
    database.superuser().batch_execute(hour_ago).await.expect("aged");
    processor.process(std::slice::from_ref(&kept)).await.expect("settled");
    let forgotten =
        "select count(*) from inbox.applied where applied_at < now() - interval '20 minutes'";
    // Upkeep forgets the first.
    let trimmed = wait::until("it is forgotten", wait::PATIENCE, || async {
        match number(&database, forgotten).await {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        }
    });
    tokio::select! {
        stop = processor.background() => panic!("{stop:?}"),
        done = trimmed => done.expect("it is"),
    }
    // A repair repeats both, and has two that were never published: one of a time that is known whole.
    let (missed, missed_old) = (aged(3, 40, 0, 4), aged(4, 55, 0, 5));
    let again = |id, n, offset| {
        with_header(with(published("a", n, 99, offset), |m| m.id = id), "outbox-repaired", "1")
    };
    let repair = [
        again(first.id, 1, 2),
        again(kept.id, 2, 3),
        again(missed.id, 3, 4),
        again(missed_old.id, 4, 5),
    ];
    processor.process(&repair).await.expect("settled");
    processor.process(&repair).await.expect("settled again");
    assert_eq!(effects(&database).await, steps(&[1, 6, 2, 3]));
    let dead = "select count(*) from inbox.dead_letters where code = 'outside-window'";
    assert_eq!(number(&database, dead).await, 2, "the first, and one that is as old");
    // Without a mark, and behind the watermark.
    let behind = [published("a", 5, 100, 6), stored_again(&other, 7), aged(7, 30, 50, 8)];
    processor.process(&behind).await.expect("settled");
    processor.process(&behind).await.expect("settled again");
    assert_eq!(effects(&database).await, steps(&[1, 6, 2, 3, 5, 7]));
    assert_eq!(number(&database, dead).await, 3, "the other forgotten one too");
}

/// As with rows: several processes that all believe the partition to be theirs.
#[tokio::test]
async fn processes_that_share_a_partition_lose_double_and_reorder_nothing() {
    const KEYS: i32 = 8;
    const STEPS: i32 = 40;
    let database = database().await;
    let handler = |tx: Tx, messages: Vec<Message<Step>>| async move {
        for message in messages {
            take(&tx, &message.payload).await?;
        }
        match rand::random_range(0..10) {
            0 | 1 => Err(Failure::transient("at random")),
            _ => Ok(()),
        }
    };
    let retry =
        Retry::exponential(Duration::from_millis(1), Duration::from_millis(10)).attempts(1_000);
    let mut log = Vec::new();
    for n in 1..=STEPS {
        for key in 0..KEYS {
            let offset = i64::try_from(log.len()).expect("few");
            let place = u64::try_from(offset).expect("few") + 1;
            log.push(published(&format!("k{key}"), n, place, offset));
        }
    }
    let mut processes = JoinSet::new();
    for batch_max in [1, 7, 30] {
        let processor = Processor::batch(inbox(&database).await, batch_max, handler);
        let processor = processor.retry(retry).dedup(watermark());
        let background = processor.clone();
        processes.spawn(async move { panic!("{}", background.background().await) });
        let log = log.clone();
        processes.spawn(async move {
            for batch in log.chunks(25) {
                processor.process(batch).await.expect("settled");
            }
        });
    }
    let expected = i64::from(KEYS * STEPS);
    wait::until("all take effect", wait::PATIENCE, || async {
        match number(&database, "select count(*) from effects").await {
            count if count >= expected => Ok(()),
            count => Err(format!("{count} of {expected}")),
        }
    })
    .await
    .expect("nothing is lost");
    // Those that are behind find only duplicates.
    for _ in 0..3 {
        processes.join_next().await.expect("one of three").expect("no panic");
    }
    let sent =
        (1..=STEPS).flat_map(|n| (0..KEYS).map(move |key| Step { key: format!("k{key}"), n }));
    assert_once_and_in_order(&effects(&database).await, sent);
    assert_eq!(number(&database, "select count(*) from inbox.parked").await, 0);
}
