//! `auto.offset.reset=latest`, and a partition that is added while no process runs.

use std::time::Duration;

use outbox_harness::{
    database::{Database, Role},
    servers,
    topic::Topic,
    wait,
};
use outbox_idempotency::{Alert, Dedup};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};

use super::{
    effects::{Step, database, effects},
    records::{Member, topic, until_effects},
    watermark::watermark,
};

/// The `n`-th record, as the relay publishes it.
async fn send(topic: &Topic, partition: i32, n: i32) {
    let producer: FutureProducer = servers::kafka().await.client().create().expect("a producer");
    let step = Step { key: format!("k{n}"), n };
    let payload = serde_json::to_string(&step).expect("JSON");
    let position = format!("7:1:{:016X}:0000000000", n * 10);
    let headers = [("outbox-relay", "orders"), ("outbox-position", position.as_str())];
    let headers = headers.into_iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value) })
    });
    let record = FutureRecord::to(topic.name()).key(&step.key).payload(&payload).headers(headers);
    producer.send(record.partition(partition), wait::PATIENCE).await.expect("it is stored");
}

async fn add_partition(topic: &Topic) {
    let admin: AdminClient<DefaultClientContext> =
        servers::kafka().await.client().create().expect("an admin client");
    let more = NewPartitions::new(topic.name(), 2);
    let added = admin.create_partitions(&[more], &AdminOptions::new()).await;
    added.expect("asked").into_iter().for_each(|topic| drop(topic.expect("added")));
}

/// As `kafka-consumer-groups.sh --reset-offsets --to-offset 0` does.
async fn set_back(database: &Database, topic: &Topic) {
    let (group, topic) = (database.name().to_owned(), topic.name().to_owned());
    let client = servers::kafka().await.client();
    let done = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client.clone().set("group.id", &group).create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 1, Offset::Offset(0))?;
        consumer.commit(&list, CommitMode::Sync)
    });
    done.await.expect("no panic").expect("committed");
}

async fn until_told(member: &Member) -> Alert {
    wait::until("what is passed over is told", wait::PATIENCE, || async {
        let skipped = |alert: &Alert| matches!(alert, Alert::Skipped { .. });
        member.alerts().into_iter().find(skipped).ok_or("nothing is told".to_owned())
    })
    .await
    .expect("told")
}

#[tokio::test]
async fn records_of_a_partition_that_was_added_while_no_process_ran_are_told_and_read_as_is_said() {
    let settings = [("auto.offset.reset", "latest")];
    for dedup in [Dedup::Rows, watermark()] {
        let database = database().await;
        let topic = topic(&database, "grows").await.create(1).await;
        let names = [topic.name()];
        let start = || Member::start_with(&database, &names, &settings, dedup.clone(), |r| r);
        // There before the group is: not read, and not spoken of.
        send(&topic, 0, 1).await;
        let member = start().await;
        let mut n = 1;
        while effects(&database).await.is_empty() {
            n += 1;
            send(&topic, 0, n).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let before = usize::try_from(n).expect("few") - 1;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(member.alerts(), []);
        member.stop().await;
        let taken = effects(&database).await.len();
        assert!(taken <= before, "{dedup:?}: {taken}");

        add_partition(&topic).await;
        send(&topic, 1, n + 1).await;
        send(&topic, 1, n + 2).await;
        let member = start().await;
        let alert = until_told(&member).await;
        let Alert::Skipped { partition: 1, from: 0, to: 2, .. } = alert else {
            panic!("{alert:?}")
        };
        send(&topic, 1, n + 3).await;
        until_effects(&database, taken + 1).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        member.stop().await;
        match dedup {
            Dedup::Rows => set_back(&database, &topic).await,
            _ => {
                let typed = "update inbox.watermarks set next_offset = 0 where partition = 1";
                let owner = database.connect(Role::Owner).await;
                owner.batch_execute(typed).await.expect("it can be typed");
            }
        }
        let member = start().await;
        until_effects(&database, taken + 3).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        member.stop().await;
        assert_eq!(effects(&database).await.len(), taken + 3, "{dedup:?}");
    }
}
