//! Parked lanes and dead letters: what is refused permanently waits in order, and the rest flows.

mod commits;
mod edits;
mod kills;

use std::{collections::BTreeSet, os::unix::process::ExitStatusExt};

use outbox_harness::{
    Harness, check,
    database::Role,
    event::Event,
    load::Plan,
    postgres::Postgres,
    relay::{Relay, Settings},
    servers,
    topic::Topic,
    wait,
};
use outbox_relay::throwaway::LocalPostgres;
use serde_json::Value;

use crate::idle::received;

/// Refused soon, for a topic that is not there.
fn impatient(t: &Harness) -> Settings {
    t.relay().set("sink.topic_grace", "100ms")
}

/// Runs `outbox-relay dead-letters …` with an operator's rights, and returns its JSON.
pub(crate) async fn dead_letters(t: &Harness, arguments: &[&str]) -> Value {
    let (code, stdout, stderr) = try_dead_letters(t, arguments).await;
    assert_eq!(code, Some(0), "{arguments:?}: {stdout}{stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

pub(crate) async fn try_dead_letters(
    t: &Harness,
    arguments: &[&str],
) -> (Option<i32>, String, String) {
    let settings = t.relay().set("postgres.url", &t.database().url(Role::Operator));
    let settings = settings.without("sink.properties.\"bootstrap.servers\"");
    let all = [&["dead-letters"], arguments, &["--json"]].concat();
    let output = settings.command(&all).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

pub(crate) async fn list(t: &Harness) -> Vec<Value> {
    match dead_letters(t, &["list"]).await {
        Value::Array(entries) => entries,
        other => panic!("{other}"),
    }
}

pub(crate) fn texts<'a>(entries: &'a [Value], field: &str) -> Vec<&'a str> {
    entries.iter().map(|entry| entry[field].as_str().unwrap_or("null")).collect()
}

pub(crate) async fn count_parked(t: &Harness) -> i64 {
    let sql = "select count(*) from outbox.dead_letters where state in ('parked', 'releasing')";
    t.database().superuser().query_one(sql, &[]).await.expect("a count").get(0)
}

pub(crate) async fn wait_parked(t: &Harness, wanted: impl Fn(i64) -> bool) -> i64 {
    wait::until("events are parked or released", wait::PATIENCE, || async {
        match count_parked(t).await {
            found if wanted(found) => Ok(found),
            found => Err(format!("{found} are parked")),
        }
    })
    .await
    .expect("as many as wanted")
}

pub(crate) async fn wait_records(topic: &Topic, wanted: usize) {
    wait::until(&format!("{wanted} records"), wait::PATIENCE, || async {
        match topic.records().await.len() {
            found if found == wanted => Ok(()),
            found => Err(format!("{found} records")),
        }
    })
    .await
    .expect("they arrive");
}

/// Values of the header `sequence`, in the order of the topic.
pub(crate) async fn sequences(topic: &Topic, key: &str) -> Vec<u64> {
    let records = topic.records().await;
    let of_key = records.iter().filter(|record| record.key.as_deref() == Some(key.as_bytes()));
    of_key.filter_map(|record| record.header("sequence")?.parse().ok()).collect()
}

async fn insert(t: &Harness, columns: &str, values: &str) {
    let sql = format!("insert into outbox.events ({columns}) values ({values})");
    t.database().superuser().batch_execute(&sql).await.expect("inserted");
}

/// Waits until the relay has ended itself at the point.
pub(crate) async fn ended_at(relay: &mut Relay, point: &str) {
    let status = relay.wait_end(wait::PATIENCE).await;
    assert_eq!(status.signal(), Some(libc::SIGKILL), "at {point}: {status}");
    assert!(relay.logs_contain(&format!("fault: {point}")), "it ended at {point}");
}

async fn parked_lanes(relay: &Relay) -> Option<u64> {
    relay.status().await.get("parked_lanes")?.as_u64()
}

async fn wait_lanes(relay: &Relay, wanted: u64) {
    wait::until(&format!("{wanted} lanes are parked"), wait::PATIENCE, || async {
        match parked_lanes(relay).await {
            Some(found) if found == wanted => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await
    .expect("the status says so");
}

#[tokio::test]
async fn what_goes_to_a_missing_topic_is_parked_and_other_lanes_flow() {
    let mut t = Harness::start().await;
    let (there, missing) = (t.topic("there").create(1).await, t.topic("missing"));
    let mut relay = impatient(&t).start().await;
    let lost = || Event::to(missing.name()).key("k");
    let fine = || Event::to(there.name()).key("k");
    t.commit([fine(), lost(), fine(), lost(), Event::to(missing.name())]).await;
    wait_parked(&t, |parked| parked == 3).await;
    t.commit([fine(), lost()]).await;
    wait_parked(&t, |parked| parked == 4).await;
    wait_records(&there, 3).await;
    let entries = list(&t).await;
    // The second of the lane is refused with the first if one batch has both, else it is held.
    let reasons = texts(&entries, "reason");
    let second = reasons.get(1).copied().unwrap_or_default();
    assert!(["unknown_topic", "lane_parked"].contains(&second), "{reasons:?}");
    assert_eq!(reasons, ["unknown_topic", second, "unknown_topic", "lane_parked"]);
    assert_eq!(texts(&entries, "key"), ["k", "k", "null", "k"]);
    let fields = ["id", "event_id", "topic", "key", "position", "reason", "error", "parked_at"];
    for entry in &entries {
        let entry = entry.as_object().expect("an object");
        assert_eq!(entry.len(), fields.len(), "{entry:?}");
        assert!(fields.iter().all(|field| entry.contains_key(*field)), "{entry:?}");
    }
    assert!(!missing.exists().await);
    assert_eq!(parked_lanes(&relay).await, Some(1), "an event alone is no lane");
    relay.wait_for("/readyz", 200).await;
    let metrics = relay.page("/metrics").await;
    let missed = reasons.iter().filter(|reason| **reason == "unknown_topic").count();
    let line = format!("outbox_relay_parked_total{{reason=\"unknown_topic\"}} {missed}\n");
    assert!(metrics.contains(&line), "{metrics}");
    relay.wait_log("an event can't be delivered").await;
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn each_reason_parks_its_event_and_its_lane() {
    let t = Harness::start().await;
    let small = [("max.message.bytes", "2000"), ("message.timestamp.before.max.ms", "3600000")];
    let topic = t.topic("orders").create_with(2, &small).await;
    let relay = impatient(&t).set("batch.record_bytes_max", "64 KiB").start().await;
    let compacted = t.topic("latest").create_with(1, &[("cleanup.policy", "compact")]).await;
    let (name, missing) = (topic.name(), t.topic("missing").name().to_owned());
    // In one session, so in one order.
    let cases = [
        (
            "topic, key, payload",
            format!("'{name}', 'a', to_jsonb(repeat(md5('1'), 200))"),
            "too_large",
            "max.message.bytes",
        ),
        (
            "topic, key, created_at",
            format!("'{name}', 'b', '2001-01-01'"),
            "invalid_timestamp",
            "message.timestamp.before.max.ms",
        ),
        (
            "topic, key, created_at",
            format!("'{name}', 'c', '1901-01-01'"),
            "bad_timestamp",
            "correct it",
        ),
        ("topic, key", format!("'{missing}', 'd'"), "unknown_topic", "--create --topic"),
        ("topic, key", "'no topic!', 'e'".to_owned(), "invalid_topic", "a-z"),
        (
            "topic, key, partition",
            format!("'{name}', 'f', 7"),
            "no_such_partition",
            "partitions 0 to 1",
        ),
        ("topic, key, partition", format!("'{name}', 'g', -7"), "negative_partition", "use null"),
        (
            "topic, key, headers",
            format!("'{name}', 'h', '{{\"a\": 1}}'"),
            "headers_shape",
            "flat object of strings",
        ),
        (
            "topic, key, headers",
            format!("'{name}', 'i', '{{\"outbox-id\": \"x\"}}'"),
            "reserved_header",
            "use another name",
        ),
        ("topic, key", "'', 'j'".to_owned(), "no_topic", "set it"),
        (
            "topic, key, payload",
            format!(
                "'{name}', 'k', (select to_jsonb(string_agg(md5(n::text), '')) from generate_series(1, 4000) n)"
            ),
            "too_large",
            "batch.record_bytes_max",
        ),
        ("topic", format!("'{}'", compacted.name()), "invalid_record", "without a key"),
    ];
    for (columns, values, ..) in &cases {
        insert(&t, columns, values).await;
    }
    let total = i64::try_from(cases.len()).expect("few");
    wait_parked(&t, |parked| parked == total).await;
    for key in ["a", "b", "c", "f", "g", "h", "i", "k", "fine"] {
        insert(&t, "topic, key, headers", &format!("'{name}', '{key}', '{{\"late\": \"1\"}}'"))
            .await;
    }
    wait_parked(&t, |parked| parked == total + 8).await;
    wait_records(&topic, 1).await;
    let entries = list(&t).await;
    let mut expected: Vec<&str> = cases.iter().map(|(_, _, reason, _)| *reason).collect();
    expected.extend(["lane_parked"; 8]);
    assert_eq!(texts(&entries, "reason"), expected);
    for (entry, (.., words)) in entries.iter().zip(&cases) {
        let error = entry["error"].as_str().expect("an error");
        assert!(error.contains(words), "it says what to do, {words}: {entry}");
    }
    assert!(texts(&entries, "event_id").iter().all(|id| *id != "null"), "{entries:?}");
    // (no topic, j) has no lane that is known; the unknown and the invalid topic's have.
    assert_eq!(parked_lanes(&relay).await, Some(10));
}

/// The announcement of a release is lost with the slot's WAL, and a later one of the same lane is not.
#[tokio::test]
async fn a_release_that_comes_before_an_earlier_one_of_its_lane_keeps_their_order() {
    let mut t = Harness::start().await;
    let missing = t.topic("missing");
    let mut relay = impatient(&t).start().await;
    t.commit([1, 2, 3, 4].map(|_| Event::to(missing.name()).key("k"))).await;
    wait_parked(&t, |parked| parked == 4).await;
    assert!(relay.sigterm().await.success());
    let topic = missing.create(1).await;
    let earlier = "update outbox.dead_letters d set state = 'releasing', release_ordinal = place, \
                       release_id = '00000000-0000-7000-8000-000000000001' \
                   from (select id, row_number() over (order by commit_lsn, ordinal) - 1 as place \
                         from outbox.dead_letters) o where d.id = o.id and place < 2";
    t.database().superuser().batch_execute(earlier).await.expect("as if it was announced");
    let later = dead_letters(&t, &["release", "--all"]).await;
    assert_eq!(later["events"], 2);
    relay.restart();
    wait_parked(&t, |parked| parked == 0).await;
    wait_records(&topic, 4).await;
    assert_eq!(sequences(&topic, "k").await, [1, 2, 3, 4]);
}

/// Waits until the relay has come to a release and parked its events again.
pub(crate) async fn wait_parked_again(t: &Harness) -> i64 {
    let sql = "select count(*) filter (where state = 'parked'), \
                      count(*) filter (where state = 'releasing') from outbox.dead_letters";
    wait::until("the release is over", wait::PATIENCE, || async {
        let row = t.database().superuser().query_one(sql, &[]).await.map_err(|e| e.to_string())?;
        match row.get::<_, i64>(1) {
            0 => Ok(row.get::<_, i64>(0)),
            releasing => Err(format!("{releasing} are being released")),
        }
    })
    .await
    .expect("it ends")
}

#[tokio::test]
async fn discarding_the_only_event_of_a_lane_lets_the_lane_flow() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let relay = t.relay().start().await;
    let event = || Event::to(topic.name()).key("a");
    t.commit([event().partition(9)]).await;
    wait_parked(&t, |parked| parked == 1).await;
    let id = list(&t).await[0]["id"].to_string();
    dead_letters(&t, &["discard", &id]).await;
    t.commit([event()]).await;
    wait_records(&topic, 1).await;
    wait_lanes(&relay, 0).await;
    assert_eq!(count_parked(&t).await, 0);
}

#[tokio::test]
async fn thousands_of_lanes_are_parked_and_released_at_once() {
    const EVENTS: i64 = 6_000;
    let t = Harness::start().await;
    let topic = t.topic("late");
    let relay = impatient(&t).start().await;
    let many = format!(
        "insert into outbox.events (topic, key, headers) \
         select '{}', 'k' || n % (3 * {EVENTS} / 4), \
             jsonb_build_object('sequence', (n / (3 * {EVENTS} / 4) + 1)::text) \
         from generate_series(0, {EVENTS} - 1) n",
        topic.name()
    );
    t.database().superuser().batch_execute(&many).await.expect("inserted");
    wait_parked(&t, |parked| parked == EVENTS).await;
    wait_lanes(&relay, 4_500).await;
    let topic = topic.create(4).await;
    dead_letters(&t, &["release", "--all"]).await;
    t.count(&topic, 4).await.assert_exactly_once();
    wait_lanes(&relay, 0).await;
    wait_parked(&t, |parked| parked == 0).await;
}

#[tokio::test]
async fn more_lanes_than_memory_is_for_keep_their_order_and_halt_nobody() {
    let mut t = Harness::start().await;
    let (topic, other) = (t.topic("late"), t.topic("other").create(2).await);
    let mut relay = impatient(&t).set_toml("parking.lanes_max", "3").start().await;
    let name = topic.name().to_owned();
    let lanes = |lanes: u32| (0..lanes).map(|n| Event::to(&name).key(&format!("k{n}")));
    t.commit(lanes(20)).await;
    wait_parked(&t, |parked| parked == 20).await;
    wait_lanes(&relay, 20).await;
    // They hold what comes later, also after a restart, and nothing else.
    t.commit(lanes(20).chain([Event::to(other.name()).key("k")])).await;
    wait_parked(&t, |parked| parked == 40).await;
    wait_records(&other, 1).await;
    relay.kill9().await;
    relay.restart();
    t.commit(lanes(20).chain([Event::to(other.name()).key("k")])).await;
    wait_parked(&t, |parked| parked == 60).await;
    wait_records(&other, 2).await;
    relay.wait_for("/readyz", 200).await;
    let topic = topic.create(2).await;
    dead_letters(&t, &["release", "--all"]).await;
    wait_parked(&t, |parked| parked == 0).await;
    t.commit(lanes(25)).await;
    let mut truth = t.committed().await;
    truth.retain(|row| row.topic == name);
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    check::compare(&truth, &records, 2).assert_exactly_once();
}

/// A topic's limit, and payloads that it refuses.
const LIMIT: &str = "max.message.bytes";

fn payload(bytes: usize) -> Value {
    let digits: String = (0..bytes / 16).map(|n| format!("{n:016}")).collect();
    digits.into()
}

#[tokio::test]
async fn with_at_least_once_a_refused_event_parks_what_comes_later() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create_with(1, &[("max.message.bytes", "4000")]).await;
    let relay = t.relay().set("sink.delivery", "at-least-once").start().await;
    let event = |key: &str| Event::to(topic.name()).key(key);
    let large: String = (0..400).map(|n| format!("{n:015}")).collect();
    t.commit([event("a").payload(large.into())]).await;
    wait_parked(&t, |parked| parked == 1).await;
    t.commit([event("a"), event("b")]).await;
    wait_parked(&t, |parked| parked == 2).await;
    wait_records(&topic, 1).await;
    assert_eq!(texts(&list(&t).await, "reason"), ["too_large", "lane_parked"]);
    wait_lanes(&relay, 1).await;
}

/// A copy of the table's rows, as by logical replication, does not bring along which id comes next.
#[tokio::test]
async fn events_are_parked_though_the_tables_next_id_is_behind_its_rows() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let events = || (0..3).map(|n| Event::to(topic.name()).key(&n.to_string()).partition(9));
    t.commit(events()).await;
    wait_parked(&t, |parked| parked == 3).await;
    let behind = "select setval(pg_get_serial_sequence('outbox.dead_letters', 'id'), 1, false)";
    t.database().superuser().batch_execute(behind).await.expect("it is set");
    for parked in [6, 9] {
        t.commit(events()).await;
        wait_parked(&t, |found| found == parked).await;
    }
    let log = relay.log_text();
    assert_eq!(log.matches("streaming from=").count(), 1, "nothing is begun again: {log}");
    // The log says how the owner sets it right.
    let (_, told) = log.split_once("as the table's owner: ").expect("a statement");
    let statement = told.split('\n').next().expect("a line").split('"').next().expect("its end");
    let owner = t.database().connect(Role::Owner).await;
    owner.batch_execute(statement).await.expect(statement);
    relay.kill9().await;
    relay.restart();
    t.commit(events()).await;
    wait_parked(&t, |parked| parked == 12).await;
    let log = relay.log_text();
    assert_eq!(log.matches("as the table's owner").count(), 1, "it is right: {log}");
}
