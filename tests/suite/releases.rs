//! What is parked and released, beside large tables, tombstones and lost slots.

use outbox_harness::{Harness, database::Database, event::Event, wait};
use serde_json::Value;

use crate::dead_letters::{dead_letters, ended_at, list, sequences, wait_parked, wait_records};

/// As many bytes that no server compresses away.
fn payload(bytes: usize) -> Value {
    let digits: String = (0..bytes / 16).map(|n| format!("{n:016}")).collect();
    digits.into()
}

/// More than is read at a time by bytes, in fewer rows than are read at a time.
#[tokio::test]
async fn a_release_of_many_megabytes_leaves_out_nothing_before_a_tombstone() {
    const EVENTS: usize = 480;
    const TOMBSTONE: usize = 450;
    let mut t = Harness::start().await;
    let missing = t.topic("missing");
    let _relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    t.commit((0..EVENTS).map(|number| {
        let event = Event::to(missing.name()).key("k");
        if number == TOMBSTONE { event.tombstone() } else { event.payload(payload(10_000)) }
    }))
    .await;
    wait_parked(&t, |parked| parked == 480).await;
    let topic = missing.create(1).await;
    dead_letters(&t, &["release", "--all"]).await;
    wait_parked(&t, |parked| parked == 0).await;
    wait_records(&topic, EVENTS).await;
    let expected: Vec<u64> = (1..=EVENTS as u64).collect();
    assert_eq!(sequences(&topic, "k").await, expected);
}

#[tokio::test]
async fn a_repair_leaves_what_is_parked_and_what_is_discarded_to_the_table() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create_with(1, &[("max.message.bytes", "4000")]).await;
    let mut relay = t.relay().start().await;
    let alone = || async {
        let records = topic.records().await;
        let alone = records.iter().filter(|record| record.key.is_none());
        alone.filter_map(|record| record.id().map(str::to_owned)).collect::<Vec<_>>()
    };
    for (key, discard) in [("a", true), ("b", false)] {
        topic.set("max.message.bytes", "4000").await;
        relay.kill9().await;
        relay.restart_with(Some("parked"));
        relay.wait_for("/readyz", 200).await;
        // By itself: no lane is parked. Progress does not cover it, so a repair reads it.
        t.commit([Event::to(topic.name()).payload(payload(8_000))]).await;
        ended_at(&mut relay, "parked").await;
        let parked = list(&t).await;
        assert_eq!(parked.len(), 1, "{parked:?}");
        if discard {
            dead_letters(&t, &["discard", &parked[0]["id"].to_string()]).await;
        }
        topic.set("max.message.bytes", "100000").await;
        let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                    where database = current_database()";
        t.database().superuser().batch_execute(drop).await.expect("dropped");
        relay.restart_with(None);
        t.commit([Event::to(topic.name()).key(key)]).await;
        wait::until("what comes later arrives", wait::PATIENCE, || async {
            if sequences(&topic, key).await.is_empty() { Err("not yet") } else { Ok(()) }
        })
        .await
        .expect("it arrives");
        assert_eq!(alone().await, Vec::<String>::new(), "the repair has not published it");
        if !discard {
            dead_letters(&t, &["release", "--all"]).await;
            wait_parked(&t, |parked| parked == 0).await;
            assert_eq!(alone().await, [parked[0]["event_id"].as_str().expect("an id")]);
        }
    }
}

/// As the suite's servers are never analysed, the planner knows nothing of the table's size.
#[tokio::test]
async fn what_waits_is_found_by_its_own_indexes_however_much_is_parked() {
    let mut t = Harness::start().await;
    let missing = t.topic("missing");
    let relay = t.relay().start().await;
    let name = relay.status().await["name"].as_str().expect("its name").to_owned();
    let many = "insert into outbox.dead_letters (relay, system_id, commit_lsn, ordinal, event_id, lane, \
                    topic, headers, fit, reason, error) \
                select $1, (select system_identifier::text from pg_control_system()), '0/1', n, n::text, \
                    gen_random_uuid(), 'elsewhere', '[]', true, 'not_authorised', '' \
                from generate_series(1, 30000) n";
    t.database().superuser().execute(many, &[&name]).await.expect("parked");
    t.commit([Event::to(missing.name()).key("k")]).await;
    wait::until("both looks went by their indexes", wait::PATIENCE, || async {
        let unused = unused_indexes(t.database()).await;
        if unused.is_empty() { Ok(()) } else { Err(unused.join(", ")) }
    })
    .await
    .expect("they do");
    let topic = missing.create(1).await;
    wait_records(&topic, 1).await;
}

async fn unused_indexes(database: &Database) -> Vec<String> {
    let sql = "select indexrelname::text from pg_stat_user_indexes \
               where indexrelname in ('dead_letters_missing', 'dead_letters_suspected') \
                   and idx_scan = 0";
    let rows = database.superuser().query(sql, &[]).await.expect("statistics");
    rows.iter().map(|row| row.get(0)).collect()
}
