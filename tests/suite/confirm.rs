//! What PostgreSQL and people are told of how far the relay has come: soon, and truly.

use std::time::Duration;

use outbox_harness::{
    Harness, database::Role, event::Event, host::report, postgres::Postgres, relay::Relay, servers,
    topic::Topic, wait,
};
use serde_json::Value;
use tokio::time::Instant;

/// It was told once a second before; a delivery takes milliseconds, on a loaded machine tens of them.
const SOON: Duration = Duration::from_millis(500);

/// The median time from a commit until the slot is confirmed past it.
async fn until_confirmed(delivery: &str) -> Duration {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().set("sink.delivery", delivery).start().await;
    let mut writer = t.database().connect(Role::Writer).await;
    let name = format!("outbox_{}", t.database().name());
    let confirmed = "select confirmed_flush_lsn > $1::text::pg_lsn from pg_replication_slots \
                     where slot_name = $2";
    let superuser = t.database().superuser();
    let confirmed = superuser.prepare(confirmed).await.expect("a statement");
    let mut took = Vec::new();
    for _ in 0..15 {
        let open = writer.transaction().await.expect("a transaction begins");
        Event::to(topic.name()).key("k").insert(open.client()).await.expect("inserted");
        let lsn = "select pg_current_wal_insert_lsn()::text";
        let lsn: String = open.query_one(lsn, &[]).await.expect("an LSN").get(0);
        open.commit().await.expect("committed");
        let committed = Instant::now();
        wait::until("it is confirmed", wait::PATIENCE, || async {
            let row = superuser.query_one(&confirmed, &[&lsn, &name]).await;
            if row.map_err(|e| e.to_string())?.get(0) { Ok(()) } else { Err(lsn.clone()) }
        })
        .await
        .expect("the relay delivers it");
        took.push(committed.elapsed());
    }
    took.sort();
    report(&format!("{delivery}: confirmed after {:.1?}", took));
    took.swap_remove(took.len() / 2)
}

#[tokio::test]
async fn a_delivery_is_confirmed_at_once() {
    for delivery in ["exactly-once", "at-least-once"] {
        let median = until_confirmed(delivery).await;
        assert!(median < SOON, "{delivery}: {median:?}");
    }
}

/// Signals a process of the test's own server.
fn signal(pid: i32, signal: libc::c_int) {
    // SAFETY: kill takes any numbers; the process is this test's.
    unsafe { libc::kill(pid, signal) };
}

/// An open transaction leaves WAL behind the last commit that no one has a reason to flush, so the server
/// does not send it, and snapshots lie behind it.
#[tokio::test]
async fn a_snapshot_counts_after_a_load_though_nobody_commits_any_more() {
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().start().await;
    let superuser = t.database().superuser();
    superuser.batch_execute("create table public.noise (n int)").await.expect("a table");
    // It would flush it sooner or later.
    let query = "select pid from pg_stat_activity where backend_type = 'background writer'";
    let writer: i32 = superuser.query_one(query, &[]).await.expect("a process").get(0);
    signal(writer, libc::SIGSTOP);
    let mut other = postgres.connect(&t.database().config(Role::Owner)).await.expect("a session");
    t.commit((0..50).map(|_| Event::to(topic.name()).key("k"))).await;
    let open = other.transaction().await.expect("a transaction begins");
    open.batch_execute("create table outbox.noise (n int)").await.expect("written");
    let xid = "select max(xid::text) from outbox.events";
    let xid: String = t.database().superuser().query_one(xid, &[]).await.expect("rows").get(0);
    let progress = t.topic_named(&format!("outbox-relay-progress-{}", t.database().name()));
    let counts = wait::until("a snapshot that shows them is stored", wait::PATIENCE, || async {
        let stored = progress.records().await.pop().and_then(|record| record.payload);
        let stored: Value = serde_json::from_slice(&stored.unwrap_or_default()).unwrap_or_default();
        let newest = stored.pointer("/snapshots/0/snapshot").and_then(Value::as_str);
        let newest = newest.ok_or_else(|| "there is none".to_owned())?;
        let shows = "select pg_visible_in_snapshot($1::text::xid8, $2::text::pg_snapshot)";
        let row = t.database().superuser().query_one(shows, &[&xid, &newest]).await;
        if row.map_err(|e| e.to_string())?.get(0) { Ok(()) } else { Err(newest.to_owned()) }
    })
    .await;
    signal(writer, libc::SIGCONT);
    counts.expect("the relay sees to it");
    drop(open);
}

async fn number(t: &Harness, query: &str) -> u64 {
    let row = t.database().superuser().query_one(query, &[]).await.expect("a number");
    row.get::<_, i64>(0).unsigned_abs()
}

/// Writes two megabytes of events, and waits until the status knows of them.
async fn shows_what_piles_up(t: &Harness, relay: &Relay, topic: &Topic) {
    const END: &str = "select (pg_current_wal_flush_lsn() - '0/0')::int8";
    let before = number(t, END).await;
    let insert = format!(
        "insert into outbox.events (topic, key, payload) select '{}', 'k', to_jsonb(repeat(md5(n::text), \
         64)) from generate_series(1, 1000) n",
        topic.name()
    );
    t.database().superuser().batch_execute(&insert).await.expect("inserted");
    let after = number(t, END).await;
    wait::until("the lag is true", wait::PATIENCE, || async {
        let status = relay.status().await;
        let lag = status.get("lag_bytes").and_then(Value::as_u64);
        match lag {
            Some(lag) if lag >= after - before => Ok(()),
            _ => Err(format!("{} of {}: {status}", lag.unwrap_or_default(), after - before)),
        }
    })
    .await
    .expect("what is committed waits");
}

#[tokio::test]
async fn the_lag_is_true_while_a_broker_is_away_and_while_a_person_is_needed() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let line = t.kafka().line().await;
    let settings = t.relay().set("sink.properties.\"bootstrap.servers\"", &line.address());
    let mut relay = settings.start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    line.freeze();
    relay.wait_for("/readyz", 503).await;
    relay.wait_log("will try again").await;
    shows_what_piles_up(&t, &relay, &topic).await;
    line.heal();
    relay.wait_ready().await;
    let drop = "alter publication outbox drop table outbox.events";
    t.database().superuser().batch_execute(drop).await.expect("dropped");
    relay.wait_log("halted").await;
    shows_what_piles_up(&t, &relay, &topic).await;
}
