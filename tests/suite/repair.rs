//! A lost slot: what is in the table arrives, each row once, in order; what may come twice says so.

mod under_load;

use std::{collections::HashMap, time::Duration};

use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    load::Plan,
    relay::{Relay, Settings},
    topic::{Record, Topic},
    wait,
};
use serde_json::Value;

use crate::{obeyed::one_published, remedies};

/// More transactions than the writers get to: they end when told.
const ENDLESS: u64 = 1_000_000;

/// Of each of those writers: what they leave behind while a relay is away must not depend on how
/// slow the machine is.
const PACE: Duration = Duration::from_millis(5);
/// From a start to the fault that ends it.
const FAULT: Duration = Duration::from_secs(60);

pub(crate) fn plan(topic: &Topic, transactions: u64) -> Plan {
    Plan { topic: topic.name().to_owned(), partitions: 8, writers: 6, transactions }
}

fn slot(t: &Harness) -> String {
    format!("outbox_{}", t.database().name())
}

/// As a person, a failover or a limit on WAL would.
pub(crate) async fn drop_slot(t: &Harness) {
    drop_slot_named(t, &slot(t)).await;
}

/// The server keeps no more WAL for a slot than this.
pub(crate) async fn limit_wal(t: &Harness) {
    for statement in ["alter system set max_slot_wal_keep_size = '1MB'", "select pg_reload_conf()"]
    {
        t.database().superuser().batch_execute(statement).await.expect("a setting");
    }
}

/// Writes until the only slot of the server has lost WAL that it needs.
pub(crate) async fn lose_wal(t: &Harness) {
    let superuser = t.database().superuser();
    wait::until("the slot is lost", wait::PATIENCE, || async {
        for statement in
            ["select pg_logical_emit_message(true, 'fill', repeat('x', 20000000))", "checkpoint"]
        {
            superuser.batch_execute(statement).await.expect("WAL");
        }
        let row = superuser.query_one("select wal_status from pg_replication_slots", &[]).await;
        match row.map(|row| row.get::<_, String>(0)) {
            Ok(status) if status == "lost" => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await
    .expect("it holds more than it may");
}

/// As soon as no one uses it: the server may not have noticed yet that a relay was killed.
pub(crate) async fn drop_slot_named(t: &Harness, slot: &str) {
    let sql = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
               where slot_name = $1";
    wait::until("the slot is dropped", wait::PATIENCE, || async {
        t.database().superuser().query_one(sql, &[&slot]).await.map(drop)
    })
    .await
    .expect("it was there, and not active");
}

/// Waits until the newest snapshot in stored progress fulfils a condition on `s.snapshot`.
async fn wait_snapshot_that(t: &Harness, condition: &str) {
    let progress = t.topic_named(&format!("outbox-relay-progress-{}", t.database().name()));
    let query = format!(
        "with moved as materialized (select pg_logical_emit_message(true, 'test', '')) \
         select {condition} from moved, (select $1::text::pg_snapshot as snapshot) s"
    );
    wait::until("a snapshot is stored", wait::PATIENCE, || async {
        let stored = progress.records().await.pop().and_then(|record| record.payload);
        let stored: Value = serde_json::from_slice(&stored.unwrap_or_default()).unwrap_or_default();
        let newest = stored.pointer("/snapshots/0/snapshot").and_then(Value::as_str);
        let newest = newest.ok_or_else(|| "there is none".to_owned())?;
        // It writes, too: without a commit after a snapshot no position passes it.
        let found = t.database().superuser().query_one(&query, &[&newest]).await;
        if found.expect("a condition").get(0) { Ok(()) } else { Err(newest.to_owned()) }
    })
    .await
    .expect("the relay takes one every second");
}

/// Waits until stored progress has a snapshot that shows all that is committed by now.
pub(crate) async fn wait_snapshot(t: &Harness) {
    let now = transaction(t).await;
    wait_snapshot_that(t, &format!("pg_visible_in_snapshot('{now}', s.snapshot)")).await;
}

/// Waits until it has one before which nothing is open, of any other test.
pub(crate) async fn wait_quiet_snapshot(t: &Harness) {
    let now = transaction(t).await;
    wait_snapshot_that(t, &format!("pg_snapshot_xmin(s.snapshot) > '{now}'")).await;
}

async fn transaction(t: &Harness) -> String {
    let sql = "select pg_current_xact_id()::text";
    let row = t.database().superuser().query_one(sql, &[]).await.expect("a transaction");
    row.get(0)
}

fn repaired(record: &Record) -> bool {
    record.header("outbox-repaired") == Some("1")
}

/// How many records repeat another, by id. Each of them must say that a repair sent it, and come
/// after the one that does not, where both are in one partition: without a key they may not be.
pub(crate) fn repeated(records: &[Record]) -> usize {
    let mut seen: HashMap<_, Vec<&Record>> = HashMap::new();
    records.iter().for_each(|record| seen.entry(record.id()).or_default().push(record));
    for same in seen.values() {
        let streamed: Vec<_> = same.iter().filter(|record| !repaired(record)).collect();
        assert!(streamed.len() <= 1, "repeated without saying so: {streamed:?}");
        let Some(first) = streamed.first() else { continue };
        let before =
            |record: &&&Record| record.partition == first.partition && record.offset < first.offset;
        assert!(!same.iter().any(|record| before(&record)), "streamed after its repair: {same:?}");
    }
    records.len() - seen.len()
}

/// Relay with a fault, until that has ended it.
pub(crate) async fn run_into(settings: &Settings, fault: &str) {
    let mut relay = settings.clone().env("OUTBOX_FAULT", fault).spawn();
    relay.wait_end(FAULT).await;
    assert!(relay.logs_contain(&format!("fault: {}", fault.split(':').next().expect("a name"))));
}

#[tokio::test]
async fn a_dropped_slot_is_repaired_and_what_was_seen_before_does_not_come_again() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let mut relay = t.relay().start().await;
    t.load(&plan(&topic, 20)).await.finish().await;
    t.count(&topic, 8).await.assert_exactly_once();
    // Written before the snapshot, committed after it: not in it.
    let mut writer = t.database().connect(Role::Writer).await;
    let open = writer.transaction().await.expect("a transaction begins");
    Event::to(topic.name()).key("late").insert(open.client()).await.expect("inserted");
    let xid = open.query_one("select pg_current_xact_id()::text", &[]).await.expect("an id");
    let later = format!("pg_snapshot_xmax(s.snapshot) > '{}'::xid8", xid.get::<_, &str>(0));
    wait_snapshot_that(&t, &later).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    open.commit().await.expect("committed");
    t.load(&plan(&topic, 20)).await.finish().await;
    t.roll_back([Event::to(topic.name()).key("never")]).await;

    relay.restart();
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("after")]).await;
    t.count(&topic, 8).await.assert_exactly_once();
    let records = topic.records().await;
    let by_key = |key: &str| {
        let key = Some(key.as_bytes().to_vec());
        records.iter().find(|record| record.key == key).expect("it arrived")
    };
    assert!(repaired(by_key("late")) && !repaired(by_key("after")));
    assert!(relay.logs_contain("publishing what was committed meanwhile"));
    // And the slot that was made continues as any other.
    assert!(relay.sigterm().await.success());
    t.commit([Event::to(topic.name()).key("after")]).await;
    relay.restart();
    t.count(&topic, 8).await.assert_exactly_once();
}

pub(crate) async fn wait_more(topic: &Topic, before: usize) {
    wait::until("more records arrive", wait::PATIENCE, || async {
        match topic.records().await.len() {
            found if found > before => Ok(()),
            found => Err(format!("{found} records")),
        }
    })
    .await
    .expect("the relay delivers");
}

#[tokio::test]
async fn a_repair_that_is_killed_at_each_of_its_steps_resumes_and_repeats_nothing() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let settings = t.relay().set_toml("batch.records_max", "50");
    let mut relay = settings.clone().start().await;
    t.load(&plan(&topic, 5)).await.finish().await;
    t.count(&topic, 8).await.assert_exactly_once();
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    t.load(&plan(&topic, 30)).await.finish().await;
    for fault in [
        "repair-announced",
        "slot-made",
        "repair-begun",
        "repair-page-stored:3",
        "committed:2",
        "repair-delivered",
        "repair-ended",
    ] {
        run_into(&settings, fault).await;
    }
    relay.restart();
    t.count(&topic, 8).await.assert_exactly_once();
}

#[tokio::test]
async fn a_slot_that_is_lost_in_the_middle_of_a_repair_repeats_nothing_either() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let settings = t.relay().set_toml("batch.records_max", "50");
    let mut relay = settings.clone().start().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    t.load(&plan(&topic, 20)).await.finish().await;
    run_into(&settings, "repair-page-stored:2").await;
    drop_slot(&t).await;
    t.load(&plan(&topic, 20)).await.finish().await;
    relay.restart();
    t.count(&topic, 8).await.assert_exactly_once();
}

/// Stops a relay, changes the database, and finds it halted for `reason`; `resume --at now` continues.
async fn halts_without_a_slot(change: &str, reason: &str) {
    let (t, topic, mut relay) = one_published().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    t.database().superuser().batch_execute(change).await.expect("changed");
    relay.restart();
    halted(&relay, reason).await;
    let output = t.relay().command(&["resume", "--at", "now", "--yes"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    let before = topic.records().await.len();
    let insert = format!("insert into outbox.events (topic) values ('{}')", topic.name());
    t.database().superuser().batch_execute(&insert).await.expect("inserted");
    wait_more(&topic, before).await;
}

async fn halted(relay: &Relay, reason: &str) {
    let detail = remedies::halted(relay).await;
    for word in [reason, "resume --at now", "committed between "] {
        assert!(detail.contains(word), "{word:?} is not in: {detail}");
    }
}

#[tokio::test]
async fn a_table_without_xid_halts_with_the_interval_and_the_command() {
    let change = "alter table outbox.events drop column xid cascade";
    halts_without_a_slot(change, "no column xid").await;
}

#[tokio::test]
async fn a_release_whose_announcement_was_lost_is_announced_again() {
    let mut t = Harness::start().await;
    let topic = t.topic("late");
    let mut relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let parked = "select count(*) from outbox.dead_letters where state = $1";
    wait::until("they are parked", wait::PATIENCE, || async {
        let row = t.database().superuser().query_one(parked, &[&"parked"]).await;
        match row.map(|row| row.get::<_, i64>(0)) {
            Ok(3) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await
    .expect("the topic is not there");
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    let topic = topic.create(1).await;
    let operator = t.relay().set("postgres.url", &t.database().url(Role::Operator));
    let released = operator.command(&["dead-letters", "release", "--all"]).await;
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    drop_slot(&t).await;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    relay.restart();
    t.count(&topic, 1).await.assert_exactly_once();
}

#[tokio::test]
async fn rows_of_every_shape_are_repaired_as_they_would_have_been_streamed() {
    let mut t = Harness::start().await;
    let topic = t.topic("shapes").create(2).await;
    let settings = t.relay().set("outbox.headers", "cloudevents");
    let mut relay = settings.set_toml("batch.record_bytes_max", "\"64 KiB\"").start().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    let shapes = || {
        let event = || Event::to(topic.name()).kind("k");
        [
            event().key("ä \" \\ ' \n\t").header("traceparent", "00-1-2-01"),
            event().key("gone").tombstone(),
            event().key("").payload(Value::Null),
            event().partition(1).payload(serde_json::json!({"a": [1.10, "\u{1F980}", {}]})),
            event().key("large").payload(Value::from("x".repeat(40_000))),
        ]
    };
    t.commit(shapes()).await;
    t.commit([Event::to(topic.name()).kind("k").key("huge").payload("x".repeat(70_000).into())])
        .await;
    relay.restart();
    wait_more(&topic, 4).await;
    drop_slot_when_idle(&t, &mut relay).await;
    t.commit(shapes()).await;
    t.commit([Event::to(topic.name()).kind("k").key("huge").payload("y".repeat(70_000).into())])
        .await;
    relay.restart();
    wait_more(&topic, 9).await;
    let records = topic.records().await;
    let (again, first): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| record.header("ce_outboxrepaired") == Some("1"));
    assert_eq!((first.len(), again.len()), (5, 5));
    // But for what tells them apart, both are the same.
    let shape = |record: &&Record| {
        let changing = ["ce_id", "ce_time", "ce_outboxposition", "ce_outboxrepaired", "sequence"];
        let headers = record.headers.iter().filter(|(name, _)| !changing.contains(&name.as_str()));
        let headers: Vec<_> = headers.cloned().collect();
        (record.partition, record.key.clone(), record.payload.clone(), headers)
    };
    let count = |records: &[&Record]| {
        let mut shapes = HashMap::new();
        records.iter().for_each(|record| *shapes.entry(shape(record)).or_insert(0) += 1);
        shapes
    };
    assert_eq!(count(&first), count(&again));
    // What is too large is parked either way.
    let sql = "select count(*) from outbox.dead_letters where reason = 'too_large'";
    wait::until("both huge rows are parked", wait::PATIENCE, || async {
        match t.database().superuser().query_one(sql, &[]).await.map(|row| row.get::<_, i64>(0)) {
            Ok(1) => Err("one".to_owned()),
            Ok(2) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await
    .expect("refused");
}

pub(crate) async fn drop_slot_when_idle(t: &Harness, relay: &mut Relay) {
    wait_snapshot(t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(t).await;
}
