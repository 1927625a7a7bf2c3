//! WAL messages with the relay's prefix: any role may write them, so none is believed.

use outbox_harness::{Harness, database::Role, event::Event, relay::Relay, wait};
use serde_json::Value;

use crate::dead_letters::{count_parked, dead_letters, wait_parked};

/// A release that there is none of.
const RELEASE: &str = "00000000-0000-7000-8000-00000000000a";

/// What the relay counts of messages that it ignores, of one reason.
async fn ignored(relay: &Relay, reason: &str) -> u64 {
    let name = format!("outbox_relay_ignored_messages_total{{reason=\"{reason}\"}} ");
    let page = relay.page("/metrics").await;
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no {reason} in {page}"))
}

async fn progress(t: &Harness) -> Value {
    let topic = t.topic_named(&format!("outbox-relay-progress-{}", t.database().name()));
    let stored = topic.records().await.pop().and_then(|record| record.payload);
    serde_json::from_slice(&stored.expect("some is stored")).expect("a progress record")
}

#[tokio::test]
async fn messages_that_a_stranger_writes_wait_for_nothing_and_are_logged_once_a_kind() {
    const FORGED: u64 = 500;
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let stranger = t.database().connect(Role::Consumer).await;
    let name = t.database().name();
    let forged =
        format!("{{\"relay\": \"{name}\", \"release\": \"{RELEASE}\", \"writer\": \"999999999\"}}");
    let another = format!("{{\"relay\": \"not_{name}\", \"release\": \"{RELEASE}\"}}");
    let garbled = format!("{{\"relay\": \"{name}\", \"release\": \"7\"}}");
    // A transaction each, and some of each kind in one.
    let each = format!(
        "do $$ begin for n in 1..{FORGED} loop \
             perform pg_logical_emit_message(true, 'outbox', '{forged}'); commit; \
         end loop; end $$"
    );
    stranger.batch_execute(&each).await.expect("any role may write them");
    let kinds = format!(
        "select pg_logical_emit_message(true, 'outbox', '{garbled}'), \
             pg_logical_emit_message(true, 'outbox', 'no json'), \
             pg_logical_emit_message(true, 'outbox', ''), \
             pg_logical_emit_message(true, 'outbox', '{another}'), \
             pg_logical_emit_message(false, 'outbox', '{forged}'), \
             pg_logical_emit_message(true, 'outbox2', '{forged}'), \
             pg_logical_emit_message(true, 'outbox', '{forged}' || repeat(' ', 2000))"
    );
    stranger.batch_execute(&kinds).await.expect("any role may write them");
    let many = format!(
        "select pg_logical_emit_message(true, 'outbox', '{forged}') from generate_series(1, 150)"
    );
    stranger.batch_execute(&many).await.expect("any role may write them");
    t.commit([Event::to(topic.name()).key("a")]).await;
    t.count(&topic, 1).await.assert_exactly_once();

    let counted = [
        ("no_such_release", FORGED + 100),
        ("malformed", 3),
        ("not_transactional", 1),
        ("too_large", 1),
        ("too_many", 50),
        ("not_visible", 0),
    ];
    for (reason, expected) in counted {
        assert_eq!(ignored(&relay, reason).await, expected, "{reason}");
    }
    let log = relay.log_text();
    assert_eq!(log.matches("was ignored").count(), 5, "each kind is logged once: {log}");
    assert_eq!(progress(&t).await["releases"], Value::Array(vec![]), "no row of it is here");
    // Nor do they keep it from starting again.
    relay.kill9().await;
    relay.restart();
    t.commit([Event::to(topic.name()).key("a")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn messages_of_any_size_and_prefix_are_read_past_without_being_stored() {
    const MESSAGES: u64 = 12;
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("a")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let before = relay.peak_memory_bytes();
    let stranger = t.database().connect(Role::Consumer).await;
    let name = t.database().name();
    let release = "repeat('x', 15000000)";
    let large = format!(
        "select pg_logical_emit_message(true, 'outbox', \
                 '{{\"relay\": \"{name}\", \"release\": \"' || {release} || '\"}}'), \
             pg_logical_emit_message(true, 'others', {release}) \
         from generate_series(1, {MESSAGES})"
    );
    stranger.batch_execute(&large).await.expect("any role may write them");
    t.commit([Event::to(topic.name()).key("a")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert_eq!(ignored(&relay, "too_large").await, MESSAGES);
    let grown = relay.peak_memory_bytes().saturating_sub(before);
    assert!(grown < 12_000_000, "less than one of them takes: {grown} bytes");
}

#[tokio::test]
async fn a_release_whose_message_is_lost_among_forged_ones_is_carried_out_all_the_same() {
    let mut t = Harness::start().await;
    let topic = t.topic("late");
    let _relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    t.commit([Event::to(topic.name()).key("a"), Event::to(topic.name())]).await;
    wait_parked(&t, |parked| parked == 2).await;
    let topic = topic.create(1).await;
    // Rows as a release leaves them, in a transaction whose message is one too many.
    let release = format!(
        "begin; \
         select pg_logical_emit_message(true, 'outbox', \
             '{{\"relay\": \"{0}\", \"release\": \"{RELEASE}\"}}') from generate_series(1, 100); \
         with released as (update outbox.dead_letters set state = 'releasing', \
             release_id = '00000000-0000-7000-8000-00000000000b' returning relay, release_id) \
         select pg_logical_emit_message(true, 'outbox', \
             jsonb_build_object('relay', relay, 'release', release_id)::text) from released limit 1; \
         commit",
        t.database().name()
    );
    t.database().superuser().batch_execute(&release).await.expect("released");
    t.count(&topic, 1).await.assert_exactly_once();
    wait_parked(&t, |parked| parked == 0).await;
}

/// One in each transaction, with events between them: none ends a batch, and each has its place.
#[tokio::test]
async fn releases_and_events_in_one_backlog_are_delivered_in_the_order_of_the_stream() {
    const LANES: usize = 20;
    let mut t = Harness::start().await;
    let topic = t.topic("late");
    let mut relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    let keys: Vec<String> = (0..LANES).map(|n| format!("k{n}")).collect();
    t.commit(keys.iter().map(|key| Event::to(topic.name()).key(key))).await;
    wait_parked(&t, |parked| parked == 20).await;
    relay.kill9().await;
    let topic = topic.create(2).await;
    for key in &keys {
        t.commit(keys.iter().map(|key| Event::to(topic.name()).key(key))).await;
        dead_letters(&t, &["release", "--topic", topic.name(), "--key", key]).await;
        t.commit(keys.iter().map(|key| Event::to(topic.name()).key(key))).await;
    }
    relay.restart();
    // What is behind a lane's event goes with it, whichever release it is parked by.
    t.count(&topic, 2).await.assert_exactly_once();
    wait::until("nothing is parked", wait::PATIENCE, || async {
        match count_parked(&t).await {
            0 => Ok(()),
            parked => Err(format!("{parked} are parked")),
        }
    })
    .await
    .expect("each lane is released");
}

/// Each would be a record at the broker, and a reason for others to wait.
#[tokio::test]
async fn a_flood_of_forged_messages_stores_progress_no_more_than_once_a_second() {
    let t = Harness::start().await;
    let relay = t.relay().start().await;
    let stranger = t.database().connect(Role::Consumer).await;
    let name = t.database().name();
    let forged = format!("{{\"relay\": \"{name}\", \"release\": \"{RELEASE}\"}}");
    let flood = format!(
        "do $$ begin for n in 1..300 loop \
             perform pg_logical_emit_message(true, 'outbox', '{forged}'); commit; \
             perform pg_sleep(0.01); \
         end loop; end $$"
    );
    let topic = t.topic_named(&format!("outbox-relay-progress-{name}"));
    let (before, begun) = (topic.records().await.len(), std::time::Instant::now());
    stranger.batch_execute(&flood).await.expect("any role may write them");
    wait::until("all are looked at", wait::PATIENCE, || async {
        match ignored(&relay, "no_such_release").await {
            300 => Ok(()),
            found => Err(found),
        }
    })
    .await
    .expect("they are counted");
    let stored = topic.records().await.len() - before;
    let seconds = usize::try_from(begun.elapsed().as_secs()).expect("few");
    assert!(stored <= seconds + 2, "{stored} in {seconds} s");
}
