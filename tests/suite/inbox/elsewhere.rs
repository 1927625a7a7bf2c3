//! Two programs with one consumer's name, or a deployment that adds a topic: parked messages are handled by a program that
//! reads their topic.

use std::time::Duration;

use outbox_harness::{database::Database, wait};
use outbox_idempotency::{Failure, Message, Processor, Source, Tx};
use tracing_subscriber::filter::LevelFilter;

use super::{
    effects::{Step, database, effects, inbox, message, number, with},
    processor::{PARKED, WAITING, soon},
    records::{Member, topic},
    rights::Log,
};

const WARNING: &str = "parked messages of a topic that this process does not read";

/// Writes which of the programs has handled a message.
async fn program(database: &Database, name: &'static str) -> Processor {
    let handler = move |tx: Tx, message: Message<Step>| async move {
        let sql = "insert into effects (key, n) values ($1, $2)";
        tx.execute(sql, &[&name, &message.payload.n]).await?;
        Ok(())
    };
    Processor::new(inbox(database).await, handler).retry(soon())
}

/// Leaves a message of a topic parked.
async fn park(database: &Database, topic: &str, n: i32) {
    let handler = |_: Tx, _: Message<Step>| async { Err::<(), _>(Failure::transient("not now")) };
    let processor = Processor::new(inbox(database).await, handler).retry(soon());
    let message = with(message("k", n), |m| m.source = Source::new(topic, 0, n.into()));
    processor.process(&[message]).await.expect("parked");
}

async fn until_parked(database: &Database, left: i64) {
    wait::until("parked messages are handled", wait::PATIENCE, || async {
        match number(database, PARKED).await {
            parked if parked == left => Ok(()),
            parked => Err(format!("{parked} parked")),
        }
    })
    .await
    .expect("handled");
}

#[tokio::test]
async fn a_parked_message_is_handled_by_a_program_that_reads_its_topic() {
    let database = database().await;
    let (one, other) = (topic(&database, "one").await, topic(&database, "other").await);
    let (one, other) = (one.create(1).await, other.create(1).await);
    let pattern = format!("^{}", other.name());
    for (round, reads_other) in (0..).step_by(2).zip([other.name(), pattern.as_str()]) {
        park(&database, other.name(), round + 1).await;
        park(&database, one.name(), round + 2).await;
        let wrong = program(&database, "wrong").await;
        let group = format!("{}.{round}", database.name());
        let first = Member::of(wrong, &group, &[one.name()], &[], |runner| runner).await;
        until_parked(&database, 1).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(number(&database, PARKED).await, 1, "{:?}", effects(&database).await);
        let right = program(&database, "right").await;
        let group = format!("{group}.other");
        let second = Member::of(right, &group, &[reads_other], &[], |runner| runner).await;
        until_parked(&database, 0).await;
        first.stop().await;
        second.stop().await;
    }
    let found = effects(&database).await;
    let by = |n: i32| found.iter().find(|step| step.n == n).map(|step| step.key.as_str());
    assert_eq!([1, 2, 3, 4].map(by), ["right", "wrong", "right", "wrong"].map(Some));
}

/// Without a runner no one has said which topics are read.
#[tokio::test]
async fn a_processor_without_a_runner_takes_up_messages_of_every_topic() {
    let database = database().await;
    park(&database, "one", 1).await;
    park(&database, "other", 2).await;
    let processor = program(&database, "any").await;
    super::sessions::work_off(&processor, &database, WAITING).await;
    assert_eq!(effects(&database).await.len(), 2);
}

#[tokio::test]
async fn messages_of_a_topic_that_no_process_reads_any_more_are_told_with_what_gives_them_up() {
    let database = database().await;
    let topic = topic(&database, "one").await.create(1).await;
    park(&database, "gone", 1).await;
    park(&database, "slow", 2).await;
    let long_ago = "update inbox.parked_lanes as l set due_at = now() - interval '3 minutes' from inbox.parked as p \
        where p.lane = l.lane and p.topic = 'gone'";
    database.superuser().batch_execute(long_ago).await.expect("written");
    let (log, _until_the_end) = Log::written(LevelFilter::WARN);
    let processor = program(&database, "one").await;
    let group = database.name();
    let member = Member::of(processor, group, &[topic.name()], &[], |runner| runner).await;
    wait::until("it is said", wait::PATIENCE, || async {
        if log.text().contains(WARNING) { Ok(()) } else { Err(log.text()) }
    })
    .await
    .expect("it is said");
    let text = log.text();
    assert!(text.contains("topic=\"gone\"") && !text.contains("topic=\"slow\""), "{text}");
    let from = text.find("delete from inbox.parked").expect("what to type");
    let typed = text[from..].split(" consumer=").next().expect("a statement");
    database.superuser().batch_execute(typed).await.expect("it can be typed");
    let lanes = "select count(*) from inbox.parked_lanes";
    wait::until("the key is free again", wait::PATIENCE, || async {
        match number(&database, lanes).await {
            1 => Ok(()),
            lanes => Err(format!("{lanes} keys")),
        }
    })
    .await
    .expect("freed");
    member.stop().await;
    assert_eq!(effects(&database).await, []);
}
