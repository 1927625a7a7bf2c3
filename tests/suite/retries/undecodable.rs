//! A row that the server can't decode: its walsender fails at it again and again.

use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    postgres::{self, Postgres},
    relay::{Relay, Settings},
    servers,
    topic::Topic,
    wait,
};

use super::says;
use crate::{
    obeyed::typed,
    repair::wait_snapshot,
    rows::{insert, run},
};

const TYPE: &str = "create type public.odd; \
    create function public.odd_in(cstring) returns public.odd \
        language internal immutable strict as 'textin'";
const COLUMN: &str = "create type public.odd (input = public.odd_in, output = public.odd_out, like = text); \
     alter table outbox.events add column odd public.odd";

/// A value of that type can't be shown while `out` is another function than `textout`. A walsender decodes a row with
/// the function that was there when the row was written, whatever there is by now.
fn shown_by(out: &str) -> String {
    format!(
        "create or replace function public.odd_out(public.odd) returns cstring \
         language internal immutable strict as '{out}'"
    )
}

/// The table of events has a column of that type, which can be shown.
pub(crate) async fn odd_column(t: &Harness) {
    for statement in [TYPE, &shown_by("textout"), COLUMN] {
        run(t, statement).await;
    }
}

/// A transaction of another table, which a walsender reads and sends nothing of.
const LONG: &str = "create table public.other (n bigint); \
    insert into public.other select n from generate_series(1, 400000) n; ";

/// Rows that have such a value, in one transaction, behind what comes `before` them in it.
async fn odd(t: &Harness, topic: &Topic, before: &str, sequence: std::ops::RangeInclusive<usize>) {
    let rows = format!(
        "{before}insert into outbox.events (topic, key, headers, odd) \
         select '{}', 'odd', jsonb_build_object('sequence', n::text), 'odd' \
         from generate_series({}, {}) n",
        topic.name(),
        sequence.start(),
        sequence.end()
    );
    run(t, &rows).await;
}

/// One row was delivered while it could be shown; three that can't be shown by now wait, and one behind them.
async fn undecodable(
    before: &str,
    settings: impl Fn(Settings) -> Settings,
) -> (Harness, Topic, Relay) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    odd_column(&t).await;
    let relay = settings(t.relay()).start().await;
    odd(&t, &topic, "", 1..=1).await;
    t.count(&topic, 1).await.assert_exactly_once();
    wait_snapshot(&t).await;
    run(&t, &shown_by("any_out")).await;
    odd(&t, &topic, before, 2..=4).await;
    insert(&t, &topic, "now()").await;
    (t, topic, relay)
}

/// Types the statement that drops the slot, once, while the relay runs.
async fn drop_as_told(t: &Harness, relay: &Relay) {
    let words =
        ["Nothing is lost, and everything waits", "the server can't decode", "outbox.events"];
    let told = says(relay, &words).await;
    run(t, typed(&told, "pg_drop_replication_slot")).await;
}

/// Types a statement that names rows in warnings: their ids.
fn found_as_told(t: &Harness, statement: &str) -> Vec<String> {
    let psql = std::process::Command::new(postgres::program("psql").expect("psql"))
        .args(["--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-c", statement])
        .arg(t.database().url(Role::Owner))
        .output()
        .expect("psql runs");
    let told = String::from_utf8_lossy(&psql.stderr);
    assert!(psql.status.success(), "{told}");
    let ids = told.lines().filter_map(|line| line.strip_prefix("WARNING:  "));
    ids.filter_map(|line| line.split_once(" of outbox.events: "))
        .map(|(id, _)| id.to_owned())
        .collect()
}

async fn all_arrive(mut t: Harness, topic: Topic, mut relay: Relay) {
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let truth = t.committed().await;
    assert_eq!(truth.len(), 6);
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    assert_eq!(records.len(), 6, "each once");
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn a_row_that_the_server_can_not_decode_is_published_from_the_table_once_the_slot_is_dropped()
{
    let (t, topic, relay) = undecodable("", |settings| settings).await;
    let told = says(&relay, &["If it stays so"]).await;
    assert!(told.contains("cannot display a value"), "{told}");
    // It stays so, whatever there is by now.
    run(&t, &shown_by("textout")).await;
    drop_as_told(&t, &relay).await;
    all_arrive(t, topic, relay).await;
}

/// As of a row that takes more than 1 GB as text, in a column that the relay reads.
#[tokio::test]
async fn a_row_that_can_not_be_read_from_the_table_either_is_found_and_published_once_it_can() {
    let (t, topic, relay) =
        undecodable("", |settings| settings.set("outbox.columns.key", "odd")).await;
    drop_as_told(&t, &relay).await;
    let words = ["reading the outbox tables", "cannot display a value", "Nothing is lost"];
    let told = says(&relay, &words).await;
    assert_eq!(topic.records().await.len(), 1, "everything waits");
    // One of them was published; it can't be read any more either.
    let found = found_as_told(&t, typed(&told, "raise warning"));
    assert_eq!(found.len(), 4, "{found:?}");
    for id in found {
        run(&t, &format!("update outbox.events set odd = null where id = '{id}'")).await;
    }
    all_arrive(t, topic, relay).await;
}

/// The walsender reads a long transaction of another table before it fails, so each stream lives for a while.
#[tokio::test]
async fn a_relay_whose_stream_dies_again_and_again_is_not_ready_and_its_slot_is_dropped_as_it_says()
{
    let (t, topic, relay) = undecodable(LONG, |settings| settings).await;
    says(&relay, &["the server can't decode"]).await;
    let (mut ready, mut told, mut died, mut streamed) = (0, Vec::new(), 0, false);
    let looks = async {
        while died < 3 {
            let status = relay.status().await;
            let streams = status["phase"] == "streaming";
            died += u32::from(streamed && !streams);
            streamed = streams;
            ready += u32::from(status["ready"] == true);
            told.extend(streams.then(|| status["not_ready_because"].to_string()));
        }
    };
    tokio::time::timeout(wait::PATIENCE, looks).await.expect("the next streams die as well");
    assert_eq!(ready, 0, "of {} looks at a stream", told.len());
    assert!(told.iter().all(|why| why.contains("nothing is delivered yet")), "{told:?}");
    run(&t, &shown_by("textout")).await;
    let told = says(&relay, &["the server can't decode"]).await;
    wait::until("it has the slot", wait::PATIENCE, || async {
        let status = relay.status().await;
        (status["phase"] == "streaming").then_some(()).ok_or(status)
    })
    .await
    .expect("it has the slot");
    run(&t, typed(&told, "pg_drop_replication_slot")).await;
    all_arrive(t, topic, relay).await;
}

/// As in a hurry to make room on a full disk. The server says that the slot's WAL is there.
#[tokio::test]
async fn a_slot_whose_wal_somebody_has_deleted_is_dropped_as_it_says_and_nothing_is_lost() {
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    let event = || Event::to(topic.name()).key("k");
    let mut relay = t.relay().start().await;
    t.commit([event()]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    wait_snapshot(&t).await;
    relay.kill9().await;
    t.commit([event()]).await;
    let segment = "select current_setting('data_directory') || '/pg_wal/' || pg_walfile_name(restart_lsn) \
                   from pg_replication_slots";
    let segment = t.database().superuser().query_one(segment, &[]).await.expect("a slot");
    run(&t, "select pg_switch_wal()").await;
    t.commit([event()]).await;
    run(&t, "checkpoint").await;
    std::fs::remove_file(segment.get::<_, String>(0)).expect("it was there");
    relay.restart();
    let told = says(&relay, &["Nothing is lost, and everything waits", "is gone"]).await;
    run(&t, typed(&told, "pg_drop_replication_slot")).await;
    relay.wait_ready().await;
    t.commit([event()]).await;
    let ids: Vec<_> = t.committed().await.iter().map(|row| row.id.clone()).collect();
    let records = topic.records_with(ids).await;
    assert_eq!(records.len(), 4, "each once");
    assert!(relay.sigterm().await.success());
}
