//! The database's clock is ahead for a moment while messages fail, and is set back: no key waits for that time to come.

use std::time::{Duration, SystemTime};

use outbox_harness::{database::Database, wait};
use outbox_idempotency::{Failure, Message, Processor, Tx};
use tracing_subscriber::filter::LevelFilter;

use super::{
    effects::{Step, database, effects, inbox, message, number, take},
    processor::{PARKED, WAITING, soon},
    rights::Log,
    sessions::work_off,
};

const WARNING: &str = "the database's clock was ahead";

/// Fails once, or defers for an hour.
async fn open(database: &Database) -> Processor {
    let handler = |tx: Tx, message: Message<Step>| async move {
        if message.payload.key == "later" {
            return Err(Failure::defer(SystemTime::now() + Duration::from_secs(3600)));
        }
        if message.attempt == 1 {
            return Err(Failure::transient("not now"));
        }
        take(&tx, &message.payload).await?;
        Ok(())
    };
    Processor::new(inbox(database).await, handler).retry(soon())
}

/// As the messages that failed since are found when the clock is right again.
async fn was_ahead(database: &Database, by: &str) {
    let sql = format!(
        "update inbox.parked_lanes set set_at = set_at + interval '{by}', since = since + interval '{by}', \
         due_at = case when asked is null then due_at + interval '{by}' \
             else greatest(due_at, now() + interval '{by} 200 milliseconds') end"
    );
    database.superuser().batch_execute(&sql).await.expect("written");
}

#[tokio::test]
async fn a_key_that_was_parked_while_the_clock_was_ahead_waits_no_longer_than_its_retry_says() {
    for by in ["1 day", "20 minutes", "500 days"] {
        let database = database().await;
        let processor = open(&database).await;
        let messages: Vec<_> = (1..=3).map(|n| message(&format!("k{n}"), n)).collect();
        processor.process(&messages).await.expect("parked");
        assert_eq!(number(&database, PARKED).await, 3);
        was_ahead(&database, by).await;
        let (log, _until_the_end) = Log::written(LevelFilter::WARN);
        work_off(&processor, &database, WAITING).await;
        assert_eq!(effects(&database).await.len(), 3, "{by}");
        let text = log.text();
        assert_eq!(text.matches(WARNING).count(), 1, "{text}");
        assert!(text.contains("keys=3"), "{text}");
    }
}

#[tokio::test]
async fn a_key_whose_handler_deferred_it_by_the_clock_of_its_process_waits_for_as_long_as_that_asked()
 {
    let database = database().await;
    let processor = open(&database).await;
    processor.process(&[message("later", 1), message("k", 2)]).await.expect("parked");
    was_ahead(&database, "30 days").await;
    let of_the_key = "select count(*) from inbox.parked where record_offset = 2";
    work_off(&processor, &database, of_the_key).await;
    let seconds = "select extract(epoch from due_at - now())::bigint from inbox.parked_lanes where code = 'deferred'";
    let seconds = number(&database, seconds).await;
    assert!((3_300..=3_601).contains(&seconds), "{seconds}");
}

/// What was asked for is not doubted: only a time that was set in the future is.
#[tokio::test]
async fn a_key_that_is_deferred_for_long_while_the_clock_is_right_is_left_alone() {
    let database = database().await;
    let processor = open(&database).await;
    processor.process(&[message("later", 1), message("k", 2)]).await.expect("parked");
    let (log, _until_the_end) = Log::written(LevelFilter::WARN);
    let of_the_key = "select count(*) from inbox.parked where record_offset = 2";
    work_off(&processor, &database, of_the_key).await;
    let seconds = "select extract(epoch from due_at - now())::bigint from inbox.parked_lanes where code = 'deferred'";
    assert!(number(&database, seconds).await > 3_300);
    assert!(!log.text().contains(WARNING), "{}", log.text());
}

/// A database that has trouble while its clock was set back would be asked again without a pause.
#[tokio::test]
async fn a_key_that_waits_since_a_time_in_the_future_is_not_tried_without_a_pause() {
    let database = database().await;
    let handler = |tx: Tx, _: Message<Step>| async move {
        tx.execute("select nextval('calls')", &[]).await?;
        let full = "do $$ begin raise exception 'full' using errcode = '53100'; end $$";
        tx.execute(full, &[]).await?;
        Ok(())
    };
    database
        .superuser()
        .batch_execute("create sequence calls; grant all on sequence calls to public")
        .await
        .expect("made");
    let processor = Processor::new(inbox(&database).await, handler);
    let parked = "insert into inbox.parked_lanes (consumer_id, lane, since, set_at) \
            select id, gen_random_uuid(), now() + interval '1 day', now() from inbox.consumers; \
        insert into inbox.parked (consumer_id, lane, message_id, day, topic, partition, record_offset, payload, headers) \
            select consumer_id, lane, gen_random_uuid(), current_date, 'steps', 0, 1, '{\"key\":\"a\",\"n\":1}', '[]' \
            from inbox.parked_lanes";
    database.superuser().batch_execute(parked).await.expect("it waits");
    let postponed = "select count(*) from inbox.parked_lanes where code is null";
    work_off(&processor, &database, postponed).await;
    let due = "select (due_at > now() + interval '1 second')::int::bigint from inbox.parked_lanes";
    wait::until("it is due later", Duration::from_secs(1), || async {
        match number(&database, due).await {
            1 => Ok(()),
            _ => Err("due in the past".to_owned()),
        }
    })
    .await
    .expect("it waits for seconds");
}
