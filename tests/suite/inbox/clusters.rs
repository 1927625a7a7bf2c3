//! A relay that comes from another cluster, and a person who has the consumer continue with it.

use outbox_harness::database::{Database, Role};
use outbox_idempotency::{Inbox, Message, Processor, RawMessage, Tx};

use super::{
    effects::{Step, database, effects, number, take},
    watermark::{published, steps, watermark, with_header},
};

async fn open(database: &Database, consumer: &str) -> Processor {
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Ok(())
    };
    let inbox = Inbox::open(database.pool(Role::Consumer, 4), consumer).await.expect("opened");
    Processor::new(inbox, handler).dedup(watermark())
}

/// The same message of another cluster, further in its WAL.
fn of_another_cluster(message: &RawMessage, place: u64, offset: i64) -> RawMessage {
    let position = format!("9:1:{place:016X}:0000000000");
    let mut again = with_header(message.clone(), "outbox-position", &position);
    again.source.offset = Some(offset);
    again
}

#[tokio::test]
async fn what_another_cluster_sends_again_is_known_by_its_id_if_a_person_lets_it_in() {
    let database = database().await;
    let sent = [published("a", 1, 10, 0), published("a", 2, 20, 1), published("a", 3, 30, 2)];
    open(&database, "billing").await.process(&sent).await.expect("settled");
    open(&database, "mail").await.process(&sent).await.expect("settled");
    database.superuser().batch_execute("delete from effects").await.expect("billing's are meant");
    let again: Vec<_> = sent
        .iter()
        .zip(3_u32..)
        .map(|(message, offset)| {
            of_another_cluster(message, 1_000 + u64::from(offset), offset.into())
        })
        .collect();
    let processor = open(&database, "billing").await;
    let stop = processor.process(&again).await.expect_err("it can't tell");
    let text = format!("{stop:?}");
    let mut typed = text.split('`').filter(|part| part.starts_with("update "));
    let owner = database.connect(Role::Owner).await;
    owner.batch_execute(typed.next().expect("what to type")).await.expect("it can be typed");
    let others = "select count(*) from inbox.watermarks join inbox.consumers on id = consumer_id \
        where name = 'mail' and position is not null and before is null";
    assert_eq!(number(&database, others).await, 1, "another consumer's is as it was");

    let restarted = open(&database, "billing").await;
    restarted.process(&again).await.expect("settled");
    assert_eq!(effects(&database).await, []);
    let new = |n: i32, offset| {
        of_another_cluster(&published("a", n, 0, 0), 2_000 + u64::from(n.unsigned_abs()), offset)
    };
    restarted.process(&[new(4, 6)]).await.expect("settled");
    assert_eq!(number(&database, "select count(*) from inbox.messages").await, 1);
    // From then on positions tell again.
    owner.batch_execute(typed.next().expect("what to type then")).await.expect("it can be typed");
    let restarted = open(&database, "billing").await;
    let newer = [new(4, 6), new(5, 7)];
    restarted.process(&newer).await.expect("settled");
    restarted.process(&newer).await.expect("settled");
    assert_eq!(effects(&database).await, steps(&[4, 5]));
    assert_eq!(number(&database, "select count(*) from inbox.messages").await, 1);
}
