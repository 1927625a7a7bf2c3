//! Transactions of unusual shapes: huge, nested, prepared, empty.

use outbox_tests::{Harness, database::Role, event::Event, topic::Topic, wait};
use serde_json::Value;

/// Statements that insert events without the harness' numbering, each lane's in order.
fn insert(topic: &Topic, lane: &str, first: usize, count: usize) -> String {
    format!(
        "insert into outbox.events (topic, key, headers) \
         select '{}', '{lane}', jsonb_build_object('sequence', n::text) \
         from generate_series({first}, {}) n;",
        topic.name(),
        first + count - 1
    )
}

#[tokio::test]
async fn savepoints_by_the_hundred_and_those_rolled_back_leave_what_was_committed_in_order() {
    const SAVEPOINTS: usize = 400;
    let t = Harness::start().await;
    let topic = t.topic("orders").create(4).await;
    // Decoding spills to disk what it does not hold, sub-transaction by sub-transaction.
    let url =
        format!("{}?options=-c%20logical_decoding_work_mem%3D64kB", t.database().url(Role::Relay));
    let _relay = t.relay().set("postgres.url", &url).start().await;
    let mut statements = String::from("begin;");
    let mut next = 1;
    for n in 0..SAVEPOINTS {
        statements += &format!("savepoint a{n};");
        statements += &insert(&topic, "k", next, 5);
        // Nested: an inner one that is released, in an outer one that may be rolled back.
        statements += &format!("savepoint b{n};");
        statements += &insert(&topic, "k", next + 5, 3);
        statements += &format!("release savepoint b{n};");
        if n % 3 == 0 {
            statements += &format!("rollback to savepoint a{n};");
        } else {
            next += 8;
        }
    }
    let superuser = t.database().superuser();
    superuser.batch_execute(&format!("{statements}rollback")).await.expect("rolled back");
    superuser.batch_execute(&format!("{statements}commit")).await.expect("committed");
    let count = t.count(&topic, 4).await;
    count.assert_exactly_once();
    assert_eq!(count.delivered, next - 1);
}

#[tokio::test]
async fn prepared_transactions_arrive_when_they_are_committed_and_not_when_rolled_back() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    let superuser = t.database().superuser();
    let name = t.database().name();
    let prepare = |id: &str, events: String| {
        let statements = format!("begin; {events} prepare transaction '{name}-{id}'");
        async move { superuser.batch_execute(&statements).await.expect("prepared") }
    };
    prepare("kept", insert(&topic, "k", 11, 10)).await;
    prepare("dropped", insert(&topic, "k", 1001, 10)).await;
    // Committed meanwhile, so before.
    superuser.batch_execute(&insert(&topic, "k", 1, 10)).await.expect("inserted");
    t.count(&topic, 2).await.assert_exactly_once();
    relay.kill9().await;
    let end = format!("rollback prepared '{name}-dropped'");
    superuser.batch_execute(&end).await.expect("rolled back");
    let end = format!("commit prepared '{name}-kept'");
    superuser.batch_execute(&end).await.expect("committed");
    relay.restart();
    superuser.batch_execute(&insert(&topic, "k", 21, 10)).await.expect("inserted");
    let count = t.count(&topic, 2).await;
    count.assert_exactly_once();
    assert_eq!(count.delivered, 30);
}

#[tokio::test]
async fn what_adds_no_event_moves_the_slot_and_nothing_else() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let _relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 2).await.assert_exactly_once();
    let superuser = t.database().superuser();
    for nothing in [
        "update outbox.events set topic = 'elsewhere'",
        "delete from outbox.events",
        "insert into outbox.events (topic) select 'none' where false",
        "begin; commit",
        "select pg_current_xact_id()",
        "begin; truncate outbox.events; insert into outbox.events (topic) values ('none'); \
         truncate outbox.events; rollback",
        "select pg_logical_emit_message(true, 'another', 'word')",
        "select pg_logical_emit_message(false, 'outbox', 'not part of a transaction')",
    ] {
        superuser.batch_execute(nothing).await.expect(nothing);
    }
    let records = topic.records().await;
    superuser.batch_execute("truncate outbox.events").await.expect("truncated");
    t.commit([Event::to(topic.name()).key("k"), Event::to(topic.name()).key("k")]).await;
    let truth = t.committed().await;
    let all = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    assert_eq!((records.len(), all.len()), (1, 3));
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_large_transaction_of_many_savepoints_repeats_none_of_it() {
    const PARTS: usize = 30;
    const EVENTS: usize = 5_000;
    let t = Harness::start().await;
    let topic = t.topic("large").create(4).await;
    let mut relay = t.relay().set("batch.bytes_max", "256 KiB").start().await;
    let mut statements = String::from("begin;");
    for part in 0..PARTS {
        let lane = format!("customer-{}", part % 7);
        let events = insert(&topic, &lane, (part / 7) * EVENTS + 1, EVENTS);
        statements += &format!("savepoint s{part}; {events}");
    }
    let superuser = t.database().superuser();
    superuser.batch_execute(&format!("{statements}commit")).await.expect("committed");
    let mut before = 0;
    for _ in 0..2 {
        before = wait::until("more of it arrives", wait::PATIENCE, || async {
            let status = relay.try_status().await.map_err(|error| error.to_string())?;
            match status.get("records_delivered").and_then(Value::as_u64) {
                Some(delivered) if delivered > 0 => Ok(delivered),
                found => Err(format!("{found:?} after {before}")),
            }
        })
        .await
        .expect("the relay delivers");
        relay.kill9().await;
        assert!(topic.records().await.len() < PARTS * EVENTS, "the kill came too late");
        relay.restart();
    }
    let count = t.count(&topic, 4).await;
    count.assert_exactly_once();
    assert_eq!(count.delivered, PARTS * EVENTS);
}
