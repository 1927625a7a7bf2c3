//! The harness itself, on the real servers: a check that finds nothing wrong must be able to.

use std::time::Duration;

use outbox_harness::{
    Harness, check, database::Database, event::Event, load::Plan, postgres::Postgres,
    postgres_version::Version,
};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};

const ASK: Duration = Duration::from_secs(10);

#[tokio::test]
async fn concurrent_writers_number_the_events_of_a_lane_without_gaps() {
    let t = Harness::start().await;
    let plan = Plan { topic: "numbers".into(), partitions: 4, writers: 8, transactions: 40 };
    let written = t.load(&plan).await.finish().await;
    let row = t
        .database()
        .superuser()
        .query_one(
            "with lanes as (select count(*) as events, max((headers->>'sequence')::bigint) as last \
             from outbox.events where headers ? 'sequence' group by key, partition) \
             select (select count(*) from outbox.events), (select count(*) from lanes), \
             (select count(*) from lanes where events <> last)",
            &[],
        )
        .await
        .expect("a count");
    assert_eq!(row.get::<_, i64>(0).cast_unsigned(), written, "what was rolled back is not there");
    assert!(row.get::<_, i64>(1) > 10, "there were lanes");
    assert_eq!(row.get::<_, i64>(2), 0, "lanes with gaps");
}

#[tokio::test]
async fn the_oldest_and_the_newest_postgresql_can_be_had() {
    for (version, least) in [(Version::V14, 140_000), (Version::V18, 180_000)] {
        let (postgres, _server) = Postgres::private_version(version).await;
        let database = Database::create_in(postgres).await;
        let asked = "select current_setting('server_version_num')::int";
        let found: i32 = database.superuser().query_one(asked, &[]).await.expect("a row").get(0);
        assert!((least..least + 10_000).contains(&found), "{found}");
    }
}

#[tokio::test]
async fn a_consumer_sees_committed_transactions_and_no_aborted_one() {
    let t = Harness::start().await;
    let topic = t.topic("transactions").create(2).await;
    let name = topic.name().to_owned();
    let kafka = t.kafka();
    tokio::task::spawn_blocking(move || {
        let producer: ThreadedProducer<DefaultProducerContext> =
            kafka.client().set("transactional.id", &name).create().expect("a producer");
        producer.init_transactions(ASK).expect("fenced");
        for (id, commit) in [("one", true), ("two", false), ("three", true)] {
            producer.begin_transaction().expect("begun");
            let headers = OwnedHeaders::new().insert(Header { key: "outbox-id", value: Some(id) });
            let record = BaseRecord::to(&name).key("k").payload("{}").partition(1).headers(headers);
            producer.send(record).map_err(|(error, _)| error).expect("sent");
            if commit {
                producer.commit_transaction(ASK).expect("committed");
            } else {
                producer.flush(ASK).expect("flushed");
                producer.abort_transaction(ASK).expect("aborted");
            }
        }
    })
    .await
    .expect("produced");
    let records = topic.records_with(["three".to_owned()]).await;
    let ids: Vec<_> = records.iter().filter_map(|record| record.id()).collect();
    assert_eq!(ids, ["one", "three"]);
}

#[tokio::test]
async fn looking_for_a_topic_does_not_create_it() {
    let t = Harness::start().await;
    let topic = t.topic("nowhere");
    assert!(!topic.exists().await);
    assert!(!topic.exists().await, "the first look must not have made it");
}

#[tokio::test]
async fn what_nobody_published_is_counted_as_lost() {
    let mut t = Harness::start().await;
    let topic = t.topic("lost").create(1).await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.roll_back([Event::to(topic.name()).key("k")]).await;
    let count = check::compare(&t.committed().await, &topic.records().await, 1);
    assert_eq!((count.committed, count.delivered, count.lost), (1, 0, 1));
}
