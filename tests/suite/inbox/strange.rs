//! Records in a relay's topic that the relay did not send, and a consumer that keeps a watermark of it.

use outbox_harness::database::{Database, Role};
use outbox_idempotency::{
    Alert, InboxError, Message, Processor, RawMessage, Stop, Tx,
    dead_letters::{self, Selection},
};
use tracing_subscriber::filter::LevelFilter;

use super::{
    effects::{Step, database, effects, inbox, message, number, take, with},
    processor::WAITING,
    rights::Log,
    sessions::work_off,
    watermark::{batches, published, steps, watermark, with_header},
};

const DEAD: &str = "select count(*) from inbox.dead_letters where state = 'dead'";

async fn one_by_one(database: &Database) -> Processor {
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Ok(())
    };
    Processor::new(inbox(database).await, handler).dedup(watermark())
}

fn of_no_relay(n: i32, offset: i64) -> RawMessage {
    with(message("a", n), |message| message.source.offset = Some(offset))
}

fn of_another_relay(n: i32, offset: i64) -> RawMessage {
    with_header(published("a", n, 1_000, offset), "outbox-relay", "other")
}

#[tokio::test]
async fn a_record_of_no_relay_is_a_dead_letter_and_the_others_of_its_batch_take_effect() {
    for by_batch in [false, true] {
        let database = database().await;
        let processor =
            if by_batch { batches(&database).await } else { one_by_one(&database).await };
        let codes = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let processor = processor.on_alert({
            let codes = std::sync::Arc::clone(&codes);
            move |alert| {
                if let Alert::DeadLetter { code, .. } = alert {
                    codes.lock().expect("no panic").push(code.clone());
                }
            }
        });
        let garbled = with_header(published("a", 9, 90, 3), "outbox-position", "nowhere");
        let batch = [
            published("a", 1, 10, 0),
            of_no_relay(8, 1),
            published("a", 2, 20, 2),
            garbled,
            of_no_relay(7, 4),
        ];
        let (log, _until_the_end) = Log::written(LevelFilter::ERROR);
        processor.process(&batch).await.expect("none ends it");
        assert_eq!(effects(&database).await, steps(&[1, 2]));
        assert_eq!(*codes.lock().expect("no panic"), ["no-relay", "no-position", "no-relay"]);
        let text = log.text();
        assert_eq!(text.matches("a record did not come from the relay").count(), 2, "{text}");
        let next = "select next_offset from inbox.watermarks";
        assert_eq!(number(&database, next).await, 5, "the watermark passes them");

        // As after a rebalance, in another process.
        let another = batches(&database).await;
        another.process(&batch).await.expect("nothing new");
        another.process(&[published("a", 3, 30, 5)]).await.expect("settled");
        processor
            .process(&[published("a", 3, 30, 5), published("a", 4, 40, 6)])
            .await
            .expect("settled");
        assert_eq!(number(&database, DEAD).await, 3);
        assert_eq!(effects(&database).await, steps(&[1, 2, 3, 4]));

        let client: &tokio_postgres::Client = database.superuser();
        let all = Selection::default().with_code("no-relay");
        assert_eq!(dead_letters::replay(client, &all).await.expect("replayed"), 2);
        work_off(&processor, &database, WAITING).await;
        assert_eq!(effects(&database).await, steps(&[1, 2, 3, 4, 8, 7]));
        another.process(&batch).await.expect("nothing new");
        work_off(&processor, &database, WAITING).await;
        assert_eq!(number(&database, "select count(*) from effects").await, 6);
        assert_eq!(number(&database, DEAD).await, 1);
    }
}

/// Somebody has put a copy of a record there, without the relay's headers.
#[tokio::test]
async fn a_record_of_no_relay_with_the_id_of_one_that_took_effect_has_none_when_it_is_replayed() {
    let database = database().await;
    let processor = one_by_one(&database).await;
    let ours = published("a", 1, 10, 0);
    let copy = with(of_no_relay(1, 1), |message| message.id = ours.id);
    processor.process(&[ours, copy]).await.expect("settled");
    assert_eq!(number(&database, DEAD).await, 1);
    let client: &tokio_postgres::Client = database.superuser();
    let replayed = dead_letters::replay(client, &Selection::default()).await.expect("replayed");
    assert_eq!(replayed, 1);
    work_off(&processor, &database, WAITING).await;
    assert_eq!(effects(&database).await, steps(&[1]));
}

/// The setting may be wrong, so nothing of it is taken; what was said to type passes it.
#[tokio::test]
async fn a_record_of_another_relay_stops_the_consumer_behind_all_before_it_and_what_it_says_passes_it()
 {
    for by_batch in [false, true] {
        let database = database().await;
        let processor =
            if by_batch { batches(&database).await } else { one_by_one(&database).await };
        let batch: Vec<RawMessage> = (0..9)
            .map(|n| match n {
                6 => of_another_relay(7, 6),
                n => published("a", n + 1, 10 + u64::from(n.unsigned_abs()), n.into()),
            })
            .collect();
        let stop = processor.process(&batch).await.expect_err("it can't tell");
        let Stop::Inbox(InboxError::Unsafe(why)) = &stop else { panic!("{stop:?}") };
        assert!(why.contains("\"other\"") && why.contains("Dedup::Rows"), "{why}");
        assert_eq!(effects(&database).await, steps(&[1, 2, 3, 4, 5, 6]));
        let typed = why.split('`').find(|part| part.starts_with("insert into inbox.watermarks"));
        let owner = database.connect(Role::Owner).await;
        owner.batch_execute(typed.expect("what to type")).await.expect("it can be typed");
        assert_eq!(number(&database, "select next_offset from inbox.watermarks").await, 7);
        let restarted = batches(&database).await;
        restarted.process(&batch[7..]).await.expect("settled");
        assert_eq!(effects(&database).await, steps(&[1, 2, 3, 4, 5, 6, 8, 9]));
    }
}
