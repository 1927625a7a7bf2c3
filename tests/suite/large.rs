//! Transactions of unusual shapes: huge, nested, prepared, empty.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    host::report,
    relay::Relay,
    topic::{Record, Topic},
    wait,
};
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

/// Rows of the largest transaction: 150,000 in the suite, another number for a whole minute's worth.
const ROWS: &str = "OUTBOX_TEST_LARGE_ROWS";
const PARTS: u64 = 30;
const KILLS: u64 = 4;
const LANES: u64 = 7;

/// What a consumer of one numbered transaction has seen.
#[derive(Debug, Default)]
struct Seen {
    numbers: HashSet<u64>,
    /// The newest number of each key.
    newest: HashMap<Vec<u8>, u64>,
    delivered: u64,
    duplicated: u64,
    out_of_order: u64,
}

impl Seen {
    fn take(&mut self, record: &Record) {
        let key = record.key.clone().expect("a key");
        let number: u64 = record.header("sequence").and_then(|n| n.parse().ok()).expect("a number");
        if !self.numbers.insert(number) {
            self.duplicated += 1;
            return;
        }
        self.delivered += 1;
        let newest = self.newest.entry(key).or_default();
        self.out_of_order += u64::from(number < *newest);
        *newest = number.max(*newest);
    }

    async fn of(topic: &Topic) -> Self {
        topic.fold(Seen::default(), |seen, record| seen.take(&record)).await
    }
}

async fn delivered_more_than(relay: &Relay, records: u64) {
    wait::until("more of it arrives", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        match status.get("records_delivered").and_then(Value::as_u64) {
            Some(delivered) if delivered > records => Ok(()),
            found => Err(format!("{found:?} records")),
        }
    })
    .await
    .expect("the relay delivers");
}

#[tokio::test]
async fn kills_in_the_middle_of_a_large_transaction_of_many_savepoints_repeat_none_of_it() {
    let rows: u64 = std::env::var(ROWS).map_or(150_000, |rows| rows.parse().expect(ROWS));
    let part = rows / PARTS;
    let t = Harness::start().await;
    let topic = t.topic("large").create(4).await;
    let mut relay = t.relay().start().await;
    let mut statements = String::from("begin;");
    for n in 0..PARTS {
        statements += &format!(
            "savepoint s{n}; \
             insert into outbox.events (topic, key, payload, headers) \
             select '{}', 'customer-' || n % {LANES}, jsonb_build_object('text', repeat('x', 200)), \
                 jsonb_build_object('sequence', n::text) \
             from generate_series({} + 1, {}) n;",
            topic.name(),
            n * part,
            (n + 1) * part,
        );
    }
    let superuser = t.database().superuser();
    superuser.batch_execute(&format!("{statements}commit")).await.expect("committed");
    let begun = Instant::now();
    let mut memory_bytes = 0;
    for _ in 0..KILLS {
        delivered_more_than(&relay, rows / (2 * KILLS)).await;
        memory_bytes = relay.peak_memory_bytes().max(memory_bytes);
        relay.kill9().await;
        let delivered = Seen::of(&topic).await.delivered;
        assert!(delivered < PARTS * part, "the kill came too late: {delivered} are there");
        relay.restart();
    }
    // What is left is more than one life's share, and each life has the server decode all of it.
    let patience = wait::PATIENCE + Duration::from_millis(rows / 20);
    let slot = format!("outbox_{}", t.database().name());
    let end = "select pg_current_wal_insert_lsn()::text";
    let end: String = superuser.query_one(end, &[]).await.expect("an LSN").get(0);
    wait::until("all of it is confirmed", patience, || async {
        let sql = "select confirmed_flush_lsn >= $1::text::pg_lsn, confirmed_flush_lsn::text \
                   from pg_replication_slots where slot_name = $2";
        let row = superuser.query_one(sql, &[&end, &slot]).await.map_err(|e| e.to_string())?;
        if row.get(0) { Ok(()) } else { Err(row.get::<_, String>(1)) }
    })
    .await
    .expect("it is confirmed");
    let took = begun.elapsed();
    memory_bytes = relay.peak_memory_bytes().max(memory_bytes);
    let Seen { delivered, duplicated, out_of_order, .. } = Seen::of(&topic).await;
    let lost = PARTS * part - delivered;
    report(&format!(
        "{rows} rows in one transaction, {KILLS} kills: delivered {delivered}, lost {lost}, \
         duplicated {duplicated}, out of order {out_of_order}; {took:.1?}, peak {} MiB",
        memory_bytes >> 20
    ));
    assert_eq!((lost, duplicated, out_of_order), (0, 0, 0));
}
