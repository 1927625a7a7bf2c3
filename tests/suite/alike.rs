//! Events that share id, time, topic and key: nothing makes an id unique. A repair leaves out what is parked
//! or was discarded, and nothing that only looks like it.

use outbox_harness::{
    Harness,
    relay::Settings,
    topic::{Record, Topic},
};
use uuid::Uuid;

use crate::{
    dead_letters::{dead_letters, list, wait_parked},
    repair::{drop_slot, run_into, wait_snapshot},
    rows::{insert, run},
};

/// What all events of a test share: id and key.
#[derive(Clone, Copy)]
struct Alike<'a> {
    topic: &'a Topic,
    id: &'a str,
    key: &'a str,
}

impl Alike<'_> {
    /// The values of such events in one transaction, each with its payload, and a partition that the
    /// topic may not have.
    async fn insert(self, t: &Harness, events: &[(&str, &str)]) {
        let Alike { topic, id, key } = self;
        let row = |(payload, partition): &(&str, &str)| {
            format!("('{id}', '{}', {key}, {payload}, {partition}, '2026-01-01')", topic.name())
        };
        let rows: Vec<String> = events.iter().map(row).collect();
        let columns = "id, topic, key, payload, partition, created_at";
        run(t, &format!("insert into outbox.events ({columns}) values {}", rows.join(", "))).await;
    }

    /// The payloads of those that have arrived, once another event has, which was committed last.
    async fn arrived(self, t: &Harness) -> Vec<String> {
        let last = insert(t, self.topic, "now()").await;
        let records = self.topic.records_with([last]).await;
        let alike = records.iter().filter(|record| record.id() == Some(self.id));
        let payload = |record: &Record| {
            String::from_utf8(record.payload.clone().unwrap_or_default()).expect("text")
        };
        let mut payloads: Vec<String> = alike.map(payload).collect();
        payloads.sort();
        payloads
    }
}

fn settings(t: &Harness) -> Settings {
    t.relay().set_toml("batch.record_bytes_max", "\"64 KiB\"")
}

#[tokio::test]
async fn what_is_committed_after_a_parked_event_of_its_id_time_topic_and_key_is_repaired() {
    for first in [("'1'", "9"), ("to_jsonb(repeat('x', 70000))", "null")] {
        let t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let id = Uuid::now_v7().to_string();
        let alike = Alike { topic: &topic, id: &id, key: "null" };
        let mut relay = settings(&t).start().await;
        alike.insert(&t, &[first]).await;
        wait_parked(&t, |parked| parked == 1).await;
        wait_snapshot(&t).await;
        assert!(relay.sigterm().await.success());
        drop_slot(&t).await;
        alike.insert(&t, &[("'2'", "null")]).await;
        relay.restart();
        assert_eq!(alike.arrived(&t).await, ["2"], "{first:?} is parked");
        assert_eq!(list(&t).await.len(), 1);
    }
}

#[tokio::test]
async fn what_is_committed_after_a_discarded_event_of_its_id_time_topic_and_key_is_repaired() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let id = Uuid::now_v7().to_string();
    let alike = Alike { topic: &topic, id: &id, key: "'k'" };
    let mut relay = settings(&t).start().await;
    alike.insert(&t, &[("'1'", "9")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    let number = list(&t).await[0]["id"].to_string();
    dead_letters(&t, &["discard", &number, "--yes"]).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    alike.insert(&t, &[("'2'", "null")]).await;
    relay.restart();
    assert_eq!(alike.arrived(&t).await, ["2"]);
}

/// A page of the repair for each of them, and the first one is parked before the repair is cut short.
#[tokio::test]
async fn of_one_transactions_events_that_share_all_only_those_are_left_out_that_are_parked() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let id = Uuid::now_v7().to_string();
    let alike = Alike { topic: &topic, id: &id, key: "null" };
    let settings = settings(&t).set_toml("batch.records_max", "1");
    let mut relay = settings.clone().start().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    alike.insert(&t, &[("'1000'", "9"), ("'20'", "null"), ("'3'", "null")]).await;
    run_into(&settings, "repair-page-stored:1").await;
    relay.restart();
    assert_eq!(alike.arrived(&t).await, ["20", "3"]);
    assert_eq!(list(&t).await.len(), 1, "it is parked once");
}

/// The stream has it in many pieces, and keeps its small columns.
#[tokio::test]
async fn an_event_that_is_far_too_large_is_parked_once_though_a_repair_reads_it_again() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = settings(&t).start().await;
    insert(&t, &topic, "now()").await;
    wait_snapshot(&t).await;
    let large = format!(
        "insert into outbox.events (topic, key, type, payload, created_at) values \
             ('{0}', 'a', 'small', to_jsonb(repeat('x', 3000000)), '2026-01-01'), \
             ('{0}', 'b', repeat('t', 3000000), null, '2026-01-02'), \
             ('{0}', 'c', 'small', to_jsonb(repeat('y', 3000000)), '2026-01-03')",
        topic.name()
    );
    run(&t, &large).await;
    wait_parked(&t, |parked| parked == 3).await;
    relay.kill9().await;
    drop_slot(&t).await;
    // Else the newest snapshot may show them.
    let last = insert(&t, &topic, "now()").await;
    relay.restart();
    topic.records_with([last]).await;
    let entries = list(&t).await;
    assert_eq!(entries.len(), 3, "{entries:?}");
    let times = "select to_char(to_timestamp(timestamp_ms / 1000), 'DD') || ' ' || key::text \
                 from outbox.dead_letters order by id";
    let rows = t.database().superuser().query(times, &[]).await.expect("rows");
    let times: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(times.len(), 3, "{times:?}");
    for (number, time) in (1..).zip(&times) {
        assert!(time.starts_with(&format!("0{number} ")), "{times:?}");
    }
}
