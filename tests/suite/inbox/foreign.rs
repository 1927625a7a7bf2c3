//! Another program in the consumer's group: what it reads is missing here, and that is said.

use std::{collections::BTreeSet, time::Duration};

use outbox_harness::{database::Role, servers, topic::Topic, wait};
use outbox_idempotency::{Alert, Failure, Inbox, Message, Processor, Tx};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    producer::{FutureProducer, FutureRecord},
};

use super::{
    effects::{Step, database, effects},
    records::{Member, topic, until_effects},
};

const PARTITIONS: i32 = 2;
const ASK: Duration = Duration::from_secs(10);

/// One record for each partition.
async fn send(topic: &Topic, n: i32) {
    let producer: FutureProducer = servers::kafka().await.client().create().expect("a producer");
    for partition in 0..PARTITIONS {
        let step = Step { key: format!("k{partition}"), n };
        let payload = serde_json::to_string(&step).expect("JSON");
        let record = FutureRecord::to(topic.name()).key(&step.key).payload(&payload);
        producer.send(record.partition(partition), wait::PATIENCE).await.expect("it is stored");
    }
}

/// What a program does that joins the group for a look: it takes a partition, reads a record that comes
/// meanwhile, commits, and leaves. Returns the partition.
async fn look(group: &str, topic: &Topic) -> i32 {
    let client = servers::kafka().await.client();
    let (group, name) = (group.to_owned(), topic.name().to_owned());
    let (joined, is_in) = tokio::sync::oneshot::channel();
    let looking = tokio::task::spawn_blocking(move || {
        let mut client = client.clone();
        client.set("group.id", &group).set("partition.assignment.strategy", "cooperative-sticky");
        let consumer: BaseConsumer = client.create().expect("a consumer");
        consumer.subscribe(&[&name]).expect("subscribed");
        let mut joined = Some(joined);
        loop {
            let record = consumer.poll(Duration::from_millis(50)).transpose().ok().flatten();
            if record.is_some() {
                consumer.commit_consumer_state(CommitMode::Sync).expect("committed");
                let list = consumer.assignment().expect("an assignment");
                return list.elements().first().expect("it has one").partition();
            }
            if consumer.assignment().expect("an assignment").count() == 1
                && let Some(joined) = joined.take()
            {
                joined.send(()).expect("somebody waits");
            }
        }
    });
    is_in.await.expect("it has joined");
    // The end of the topic when it joined, where the group had committed.
    send(topic, 2).await;
    looking.await.expect("no panic")
}

async fn until_alerts(member: &Member, wanted: &[(i32, i64)]) {
    let wanted: BTreeSet<(i32, i64)> = wanted.iter().copied().collect();
    wait::until("it is told", wait::PATIENCE, || async {
        let found: BTreeSet<(i32, i64)> = member
            .alerts()
            .iter()
            .filter_map(|alert| match alert {
                Alert::Foreign { partition, offset, .. } => Some((*partition, *offset)),
                _ => None,
            })
            .collect();
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await
    .expect("once for each place");
}

#[tokio::test]
async fn what_another_program_in_the_group_has_read_is_told_when_its_partition_comes_back() {
    let database = database().await;
    let topic = topic(&database, "stolen").await.create(PARTITIONS).await;
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    send(&topic, 1).await;
    until_effects(&database, 2).await;
    let stolen = look(database.name(), &topic).await;
    until_alerts(&member, &[(stolen, 2)]).await;
    assert_eq!(effects(&database).await.len(), 3, "what the other one has read is missing");
    send(&topic, 3).await;
    until_effects(&database, 5).await;
    // A member of our own takes over, and has nothing to tell.
    let other = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    member.stop().await;
    send(&topic, 4).await;
    until_effects(&database, 7).await;
    until_alerts(&other, &[]).await;
    other.stop().await;
}

/// Each has its own effects, and what one of them has read the other misses.
#[tokio::test]
async fn what_another_consumer_of_this_crate_in_the_group_has_read_is_told() {
    let database = database().await;
    let topic = topic(&database, "shared").await.create(PARTITIONS).await;
    let other = Inbox::open(database.pool(Role::Consumer, 8), "mail").await.expect("it opens");
    let nothing = |_: Tx, _: Message<Step>| async move { Ok::<_, Failure>(()) };
    let other = Processor::new(other, nothing);
    send(&topic, 1).await;
    let other = Member::of(other, database.name(), &[topic.name()], &[], |runner| runner).await;
    let superuser = database.superuser();
    wait::until("the other one has both", wait::PATIENCE, || async {
        let row = superuser.query_one("select count(*) from inbox.messages", &[]).await;
        match row.expect("a count").get::<_, i64>(0) {
            2 => Ok(()),
            count => Err(count),
        }
    })
    .await
    .expect("its own");
    until_alerts(&other, &[]).await;
    other.stop().await;
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_alerts(&member, &[(0, 1), (1, 1)]).await;
    assert_eq!(effects(&database).await.len(), 0);
    member.stop().await;
}

#[tokio::test]
async fn offsets_that_somebody_set_while_no_member_ran_are_told_and_the_first_start_is_not() {
    let database = database().await;
    let topic = topic(&database, "set").await.create(PARTITIONS).await;
    send(&topic, 1).await;
    send(&topic, 2).await;
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_effects(&database, 4).await;
    until_alerts(&member, &[]).await;
    member.stop().await;
    send(&topic, 3).await;
    let (client, group, name) =
        (servers::kafka().await.client(), database.name().to_owned(), topic.name().to_owned());
    let set = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client.clone().set("group.id", &group).create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&name, 0, Offset::Offset(3))?;
        consumer.commit(&list, CommitMode::Sync)?;
        consumer.committed_offsets(list, ASK)
    });
    set.await.expect("no panic").expect("set");
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_effects(&database, 5).await;
    until_alerts(&member, &[(0, 3)]).await;
    member.stop().await;
}
