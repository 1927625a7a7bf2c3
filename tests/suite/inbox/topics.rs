//! What becomes of topics while they are read: transactions, cuts, recreated topics. Nothing is passed
//! over in silence, and the group's lag is what is left to do.

use std::time::Duration;

use outbox_harness::{database::Database, servers, topic::Topic, wait};
use outbox_idempotency::{Alert, kafka::RunError};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    producer::{BaseProducer, BaseRecord, FutureProducer, FutureRecord, Producer as _},
};

use super::{
    counted::Counted,
    effects::{Step, assert_once_and_in_order, database, effects, number},
    records::{Member, topic, until_effects},
    watermark::watermark,
};

const ASK: Duration = Duration::from_secs(10);

fn steps(key: &str, ns: impl Iterator<Item = i32>) -> impl Iterator<Item = Step> {
    ns.map(move |n| Step { key: key.into(), n })
}

async fn send(topic: &Topic, steps: impl Iterator<Item = Step>) {
    let producer: FutureProducer = servers::kafka().await.client().create().expect("a producer");
    for step in steps {
        let payload = serde_json::to_string(&step).expect("JSON");
        let record = FutureRecord::to(topic.name()).key(&step.key).payload(&payload).partition(0);
        producer.send(record, wait::PATIENCE).await.expect("it is stored");
    }
}

/// A producer of transactions.
async fn transactional(database: &Database) -> BaseProducer {
    let mut client = servers::kafka().await.client();
    let producer: BaseProducer =
        client.set("transactional.id", database.name()).create().expect("a producer");
    producer.init_transactions(ASK).expect("initialized");
    producer
}

fn transaction(
    producer: &BaseProducer,
    topic: &Topic,
    partition: i32,
    steps: impl Iterator<Item = Step>,
    commit: bool,
) {
    producer.begin_transaction().expect("begun");
    for step in steps {
        let payload = serde_json::to_string(&step).expect("JSON");
        let record = BaseRecord::to(topic.name()).key(&step.key).payload(&payload);
        assert!(producer.send(record.partition(partition)).is_ok(), "it is queued");
    }
    producer.flush(ASK).expect("stored");
    if commit { producer.commit_transaction(ASK) } else { producer.abort_transaction(ASK) }
        .expect("ended");
}

/// For each partition, the group's offset and the topic's end. A broker that has just started says for a
/// moment that it coordinates no group.
async fn offsets(
    database: &Database,
    topic: &Topic,
    partitions: i32,
) -> Result<Vec<(Offset, i64)>, rdkafka::error::KafkaError> {
    let (group, topic) = (database.name().to_owned(), topic.name().to_owned());
    let client = servers::kafka().await.client();
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client.clone().set("group.id", &group).create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&topic, 0, partitions - 1);
        let committed = consumer.committed_offsets(list, ASK)?;
        let each = committed.elements().into_iter().map(|one| {
            let (_, end) = consumer.fetch_watermarks(&topic, one.partition(), ASK)?;
            Ok((one.offset(), end))
        });
        each.collect::<Result<Vec<_>, rdkafka::error::KafkaError>>()
    });
    asked.await.expect("no panic")
}

pub(super) async fn until_no_lag(database: &Database, topic: &Topic, partitions: i32) {
    wait::until("the group has no lag", wait::PATIENCE, || async {
        let found = offsets(database, topic, partitions).await.map_err(|e| e.to_string())?;
        let done = found.iter().all(|(at, end)| *at == Offset::Offset(*end));
        if done { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await
    .expect("its offsets are the topic's ends");
}

#[tokio::test]
async fn the_groups_lag_is_zero_behind_markers_and_aborted_transactions() {
    let database = database().await;
    let topic = topic(&database, "marked").await.create(2).await;
    let producer = transactional(&database).await;
    for n in 1..=3 {
        transaction(&producer, &topic, 0, steps("a", n..=n), true);
    }
    transaction(&producer, &topic, 1, steps("no", 1..=1000), false);
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_no_lag(&database, &topic, 2).await;
    transaction(&producer, &topic, 0, steps("no", 1..=5), false);
    transaction(&producer, &topic, 0, steps("a", 4..=5), true);
    until_effects(&database, 5).await;
    // Another member takes over a partition and continues exactly behind.
    let other = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_no_lag(&database, &topic, 2).await;
    for n in 6..=9 {
        transaction(&producer, &topic, 0, steps("a", n..=n), true);
        transaction(&producer, &topic, 1, steps("b", n..=n), true);
    }
    until_effects(&database, 13).await;
    member.stop().await;
    transaction(&producer, &topic, 1, steps("b", 10..=10), true);
    until_effects(&database, 14).await;
    until_no_lag(&database, &topic, 2).await;
    other.stop().await;
    until_no_lag(&database, &topic, 2).await;
    let expected = steps("a", 1..=9).chain(steps("b", 6..=10));
    assert_once_and_in_order(&effects(&database).await, expected);
}

async fn admin() -> AdminClient<DefaultClientContext> {
    servers::kafka().await.client().create().expect("an admin client")
}

async fn cut(topic: &Topic, before: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic.name(), 0, Offset::Offset(before)).expect("an offset");
    admin().await.delete_records(&list, &AdminOptions::new()).await.expect("it is cut");
}

#[tokio::test]
async fn records_that_were_cut_before_they_were_read_are_counted_and_alerted() {
    let counted = Counted::everywhere();
    let database = database().await;
    let topic = topic(&database, "cut").await.create(1).await;
    send(&topic, steps("a", 1..=3)).await;
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_effects(&database, 3).await;
    // The commit at the end is only tried once.
    until_no_lag(&database, &topic, 1).await;
    member.stop().await;
    send(&topic, steps("a", 4..=10)).await;
    cut(&topic, 6).await;
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_effects(&database, 7).await;
    assert_once_and_in_order(&effects(&database).await, steps("a", (1..=3).chain(7..=10)));
    let skipped = Alert::Skipped {
        consumer: "billing".into(),
        topic: topic.name().into(),
        partition: 0,
        from: 3,
        to: 6,
    };
    assert_eq!(member.alerts(), [skipped]);
    // An alert counts from what was committed.
    until_no_lag(&database, &topic, 1).await;
    // All of it: nothing comes that could tell.
    member.stop().await;
    send(&topic, steps("a", 11..=12)).await;
    cut(&topic, 12).await;
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    let alerted = wait::until("it is noticed", wait::PATIENCE, || async {
        match member.alerts().pop() {
            Some(Alert::Skipped { from: 10, to: 12, .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    alerted.await.expect("an alert");
    until_no_lag(&database, &topic, 1).await;
    member.stop().await;
    let skipped = counted.all("outbox_inbox_skipped_offsets_total consumer=billing topic=");
    assert_eq!(skipped, [(topic.name().to_owned(), 5)].into());
}

#[tokio::test]
async fn where_offsets_are_gone_and_none_may_be_chosen_the_consumer_stops_with_what_to_type() {
    let database = database().await;
    let topic = topic(&database, "gone").await.create(1).await;
    send(&topic, steps("a", 1..=3)).await;
    let error = ("auto.offset.reset", "error");
    // No offset yet, and later one that was cut away.
    let member = Member::start(&database, &[topic.name()], &[error], |runner| runner).await;
    let ended = member.ended().await;
    assert!(matches!(ended, RunError::OffsetGone { .. }), "{ended}");
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_effects(&database, 3).await;
    member.stop().await;
    send(&topic, steps("a", 4..=6)).await;
    cut(&topic, 5).await;
    let member = Member::start(&database, &[topic.name()], &[error], |runner| runner).await;
    let ended = member.ended().await.to_string();
    let typed = format!("--topic {}:0 --reset-offsets --to-earliest --execute", topic.name());
    assert!(ended.contains(&typed) && ended.contains(database.name()), "{ended}");
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_effects(&database, 4).await;
    member.stop().await;
}

#[tokio::test]
async fn a_topic_that_is_made_anew_is_read_from_its_beginning() {
    let database = database().await;
    let topic = topic(&database, "anew").await.create(1).await;
    send(&topic, steps("old", 1..=5)).await;
    let member = Member::start(&database, &[topic.name()], &[], |runner| runner).await;
    until_no_lag(&database, &topic, 1).await;
    topic.delete().await;
    let topic = topic.create(1).await;
    // More than the old one had: where that ended is a place in this one.
    send(&topic, steps("new", 1..=20)).await;
    until_effects(&database, 25).await;
    member.stop().await;
    let expected = steps("old", 1..=5).chain(steps("new", 1..=20));
    let found = effects(&database).await;
    let (mut found, mut expected): (Vec<_>, Vec<_>) = (found, expected.collect());
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_group_may_have_any_name_and_one_without_a_name_or_a_topic_is_refused_with_what_to_set() {
    let database = database().await;
    let topic = topic(&database, "named").await.create(1).await;
    let odd = [" a group with spaces ", "line\nbreak\t", "…", &"g".repeat(300)]
        .map(|group| format!("{}{group}", database.name()));
    for (n, group) in (1..).zip(&odd) {
        send(&topic, steps("a", n..=n)).await;
        let group = [("group.id", group.as_str())];
        let member = Member::start(&database, &[topic.name()], &group, |runner| runner).await;
        until_effects(&database, usize::try_from(n).expect("few")).await;
        member.stop().await;
    }
    for (topics, group, named) in [
        (vec![], "g", "topics"),
        (vec![topic.name(), ""], "g", "topics"),
        (vec![topic.name()], " ", "group.id"),
    ] {
        let group = [("group.id", group)];
        let member = Member::start(&database, &topics, &group, |runner| runner).await;
        let ended = member.ended().await;
        assert!(matches!(ended, RunError::Setting(_)), "{ended:?}");
        assert!(ended.to_string().contains(named), "{ended}");
    }
}

/// Both are found by looking at the cluster again.
async fn what_appears_later_is_read_whole(settings: &[(&str, &str)]) {
    let database = database().await;
    let (first, later) =
        (topic(&database, "first").await.create(1).await, topic(&database, "later").await);
    let member =
        Member::start(&database, &[first.name(), later.name()], settings, |runner| runner).await;
    until_no_lag(&database, &first, 1).await;
    send(&first, steps("a", 1..=1)).await;
    until_effects(&database, 1).await;
    let later = later.create(1).await;
    send(&later, steps("b", 1..=1)).await;
    until_effects(&database, 2).await;
    let more = NewPartitions::new(later.name(), 3);
    let added = admin().await.create_partitions(&[more], &AdminOptions::new()).await;
    added.expect("asked").into_iter().for_each(|topic| drop(topic.expect("added")));
    let producer: FutureProducer = servers::kafka().await.client().create().expect("a producer");
    for (partition, step) in (1..).zip(steps("c", 1..=2)) {
        let payload = serde_json::to_string(&step).expect("JSON");
        let record = FutureRecord::to(later.name()).key(&step.key).payload(&payload);
        producer.send(record.partition(partition), wait::PATIENCE).await.expect("it is stored");
    }
    until_effects(&database, 4).await;
    member.stop().await;
}

#[tokio::test]
async fn a_topic_that_appears_later_and_partitions_that_are_added_are_read_from_their_beginnings() {
    what_appears_later_is_read_whole(&[]).await;
}

#[tokio::test]
async fn what_appears_later_is_read_from_its_beginning_also_where_reading_begins_at_the_end() {
    what_appears_later_is_read_whole(&[("auto.offset.reset", "latest")]).await;
}

/// A table that is older than the crate: nothing could be read, and no time makes it better.
#[tokio::test]
async fn a_watermark_that_can_not_be_read_when_partitions_come_stops_the_consumer_with_what_to_type()
 {
    let database = database().await;
    let topic = topic(&database, "older").await.create(1).await;
    let older = "alter table inbox.watermarks drop column topic_id cascade";
    database.superuser().batch_execute(older).await.expect("older");
    let topics = [topic.name()];
    let member = Member::start_with(&database, &topics, &[], watermark(), |runner| runner).await;
    let ended = member.ended().await;
    let RunError::Stop(stop) = &ended else { panic!("{ended:?}") };
    let why = std::error::Error::source(stop).map(ToString::to_string).unwrap_or_default();
    assert!(why.contains("outbox-relay migrate --set inbox"), "{why}");
}

/// The poll thread continues polling while handlers run, so the group does not take it for stuck; and
/// whoever gets the partition meanwhile waits at the claim.
#[tokio::test]
async fn a_handler_that_runs_longer_than_the_poll_interval_has_one_effect_also_when_members_come() {
    let database = database().await;
    let slow = "create sequence calls; \
        create function slow() returns trigger language plpgsql security definer as \
            $$ begin perform nextval('calls'); perform pg_sleep(4); return new; end $$; \
        create trigger slow before insert on effects \
            for each row when (new.n = 1) execute function slow()";
    database.superuser().batch_execute(slow).await.expect("a slow effect");
    let topic = topic(&database, "slow").await.create(1).await;
    send(&topic, steps("a", 1..=3)).await;
    let settings = [
        ("max.poll.interval.ms", "1500"),
        ("session.timeout.ms", "1500"),
        ("heartbeat.interval.ms", "200"),
        ("auto.offset.reset", "earliest"),
    ];
    let first = Member::start(&database, &[topic.name()], &settings, |runner| runner).await;
    wait::until("the handler is at work", wait::PATIENCE, || async {
        let called = "select case when is_called then last_value else 0 end from calls";
        match number(&database, called).await {
            0 => Err("not called".to_owned()),
            _ => Ok(()),
        }
    })
    .await
    .expect("it is called");
    let second = Member::start(&database, &[topic.name()], &settings, |runner| runner).await;
    until_effects(&database, 3).await;
    let found = effects(&database).await;
    assert_once_and_in_order(&found, steps("a", 1..=3));
    assert_eq!(number(&database, "select count(*) from inbox.dead_letters").await, 0);
    second.stop().await;
    first.stop().await;
    assert_eq!(effects(&database).await.len(), 3, "none came again");
    assert_eq!(number(&database, "select last_value from calls").await, 1, "it was called once");
}
