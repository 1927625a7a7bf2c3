//! Another topic comes to have a topic's name, and no one is there to see it: an offset, of the group or
//! of a watermark, is a place in the topic that it was given for, and in no other.

use outbox_harness::{database::Database, servers, topic::Topic, wait};
use outbox_idempotency::{Alert, Dedup};
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};

use super::{
    effects::{Step, database, effects, number},
    records::{Member, topic, until_effects},
    topics::until_no_lag,
    watermark::watermark,
};

/// As the relay would, which continues where it was.
pub(super) async fn publish(topic: &Topic, ns: std::ops::RangeInclusive<i32>) {
    let producer: FutureProducer = servers::kafka().await.client().create().expect("a producer");
    for n in ns {
        let payload = serde_json::to_string(&Step { key: "a".into(), n }).expect("JSON");
        let position = format!("7:1:{n:016X}:0000000000");
        let header = |key, value| Header { key, value: Some(value) };
        let headers = OwnedHeaders::new()
            .insert(header("outbox-relay", "orders"))
            .insert(header("outbox-position", &position));
        let record = FutureRecord::to(topic.name()).key("a").payload(&payload).headers(headers);
        producer.send(record, wait::PATIENCE).await.expect("it is stored");
    }
}

async fn member(database: &Database, topic: &Topic, dedup: &Dedup) -> Member {
    // What is not in range is left: only who knows that the topic is another one reads it all.
    let latest = [("auto.offset.reset", "latest")];
    let settings: &[_] = if *dedup == Dedup::Rows { &[] } else { &latest };
    Member::start_with(database, &[topic.name()], settings, dedup.clone(), |runner| runner).await
}

/// The group's offset, with what its members wrote along with it.
async fn committed(database: &Database, topic: &Topic) -> (BaseConsumer, TopicPartitionList) {
    let (group, topic) = (database.name().to_owned(), topic.name().to_owned());
    let client = servers::kafka().await.client();
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client.clone().set("group.id", &group).create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, 0);
        let committed = consumer.committed_offsets(list, wait::PATIENCE)?;
        Ok::<_, rdkafka::error::KafkaError>((consumer, committed))
    });
    asked.await.expect("no panic").expect("the broker answers")
}

#[tokio::test]
async fn a_topic_that_was_made_anew_while_no_member_ran_is_read_from_its_beginning() {
    for dedup in [watermark(), Dedup::Rows] {
        let database = database().await;
        let topic = topic(&database, "anew").await.create(1).await;
        if dedup == Dedup::Rows {
            publish(&topic, 1..=5).await;
        }
        let first = member(&database, &topic, &dedup).await;
        if dedup != Dedup::Rows {
            // It begins at the end, where it has nothing of before.
            until_no_lag(&database, &topic, 1).await;
            publish(&topic, 1..=5).await;
        }
        until_effects(&database, 5).await;
        until_no_lag(&database, &topic, 1).await;
        first.stop().await;
        let (consumer, list) = committed(&database, &topic).await;
        topic.delete().await;
        let topic = topic.create(1).await;
        // More than the old one had: where that ended is a place in this one.
        publish(&topic, 6..=25).await;
        if dedup == Dedup::Rows {
            // The broker forgot the group's offset along with the topic. A member that had not seen
            // that commits it once more with its last breath.
            tokio::task::spawn_blocking(move || consumer.commit(&list, CommitMode::Sync))
                .await
                .expect("no panic")
                .expect("committed");
        }
        let second = member(&database, &topic, &dedup).await;
        until_effects(&database, 25).await;
        let restarted = Alert::Restarted {
            consumer: "billing".into(),
            topic: topic.name().into(),
            partition: 0,
            from: 5,
            to: 0,
        };
        assert_eq!(second.alerts(), [restarted], "{dedup:?}");
        until_no_lag(&database, &topic, 1).await;
        second.stop().await;
        // It is known by then, and read on.
        let third = member(&database, &topic, &dedup).await;
        publish(&topic, 26..=26).await;
        until_effects(&database, 26).await;
        assert_eq!(third.alerts(), [], "{dedup:?}");
        third.stop().await;
        let all: Vec<Step> = (1..=26).map(|n| Step { key: "a".into(), n }).collect();
        assert_eq!(effects(&database).await, all, "{dedup:?}");
    }
}

/// It reads on in the new topic, where the old one ended, until it notices.
#[tokio::test]
async fn a_topic_that_is_made_anew_under_a_member_with_a_watermark_is_read_whole() {
    let database = database().await;
    let topic = topic(&database, "under").await.create(1).await;
    publish(&topic, 1..=5).await;
    let member =
        Member::start_with(&database, &[topic.name()], &[], watermark(), |runner| runner).await;
    until_no_lag(&database, &topic, 1).await;
    topic.delete().await;
    let topic = topic.create(1).await;
    publish(&topic, 6..=25).await;
    until_effects(&database, 25).await;
    publish(&topic, 26..=26).await;
    until_effects(&database, 26).await;
    member.stop().await;
    let mut ns: Vec<i32> = effects(&database).await.iter().map(|step| step.n).collect();
    ns.sort_unstable();
    assert_eq!(ns, Vec::from_iter(1..=26));
    let dead = number(&database, "select count(*) from inbox.dead_letters").await;
    assert_eq!(dead, 0);
}
