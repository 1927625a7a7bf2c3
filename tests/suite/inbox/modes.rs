//! A consumer that comes to remember in another way, after orderly stops.

use outbox_idempotency::{Dedup, Message, Processor, Tx, kafka::offline::start_offset};

use super::{
    anew::publish,
    effects::{Step, database, effects, inbox, number, take},
    records::{Member, topic, until_effects},
    topics::until_no_lag,
    watermark::{published, steps, watermark},
};

#[tokio::test]
async fn a_consumer_that_keeps_watermarks_again_takes_nothing_again() {
    for between in [Dedup::Rows, Dedup::Off] {
        let database = database().await;
        let topic = topic(&database, "modes").await.create(1).await;
        let mut sent = 0;
        for dedup in [watermark(), between.clone(), watermark()] {
            publish(&topic, sent + 1..=sent + 5).await;
            sent += 5;
            let dedup = dedup.clone();
            let member =
                Member::start_with(&database, &[topic.name()], &[], dedup, |runner| runner).await;
            until_effects(&database, usize::try_from(sent).expect("few")).await;
            until_no_lag(&database, &topic, 1).await;
            member.stop().await;
        }
        assert_eq!(effects(&database).await, steps(&Vec::from_iter(1..=15)), "{between:?}");
    }
}

#[tokio::test]
async fn what_comes_again_behind_a_watermark_that_was_outdated_is_looked_up_by_its_id() {
    let database = database().await;
    let handler = |tx: Tx, message: Message<Step>| async move {
        take(&tx, &message.payload).await?;
        Ok(())
    };
    let marked = Processor::new(inbox(&database).await, handler).dedup(watermark());
    let rows = Processor::new(inbox(&database).await, handler);
    let all: Vec<_> = [(1, 10, 0), (2, 20, 1), (3, 30, 2), (4, 40, 3)]
        .map(|(n, place, offset)| published("a", n, place, offset))
        .to_vec();
    marked.process(&all[..2]).await.expect("settled");
    assert_eq!(start_offset(&marked, "steps", 0).await.expect("read"), Some(2));
    rows.process(&all[2..3]).await.expect("settled");
    assert_eq!(start_offset(&marked, "steps", 0).await.expect("read"), None, "the group's");
    marked.process(&[all[0].clone(), all[1].clone(), all[3].clone()]).await.expect("settled");
    assert_eq!(effects(&database).await, steps(&[1, 2, 3, 4]));
    assert_eq!(start_offset(&marked, "steps", 0).await.expect("read"), Some(4));
    let notes = "select count(*) from inbox.losses";
    assert_eq!(number(&database, notes).await, 0);
    // A member that keeps watermarks, and does not know of another one that does not.
    let other = Processor::new(inbox(&database).await, handler);
    other.process(&[published("a", 5, 50, 4)]).await.expect("settled");
    let stop = marked.process(&[published("a", 6, 60, 5)]).await.expect_err("it stops");
    assert!(format!("{stop:?}").contains("keeps no watermark"), "{stop:?}");
}
