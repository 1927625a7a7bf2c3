//! A relay that publishes to a stream of NATS JetStream: exactly once, whatever is killed; and what it
//! says and does where the stream, or somebody beside it, is not as it should be.

mod claimed;
mod full;
mod rolled_up;
mod sealed;
mod sizes;

use std::{collections::BTreeSet, time::Duration};

use outbox_harness::{
    Harness, check,
    event::Event,
    load::{Load, Plan},
    murmur2,
    nats::{Nats, Stream},
    relay::{Relay, Settings},
    servers,
    topic::Record,
    wait,
};
use serde_json::{Value, json};

use crate::{checks, dead_letters::wait_parked, leader::wait_confirmed, remedies::halted};

const PARTITIONS: i32 = 4;

/// A stream of the test's own, named after its database, with one topic and this relay's progress.
async fn stream(t: &Harness, nats: &Nats, settings: &Value) -> Stream {
    let name = t.database().name();
    let subjects = [format!("{name}.orders.*"), progress(t)];
    nats.stream(name, &subjects.each_ref().map(String::as_str), settings).await
}

fn progress(t: &Harness) -> String {
    format!("outbox-relay-progress.{}", t.database().name())
}

fn topic(t: &Harness) -> String {
    format!("{}.orders", t.database().name())
}

fn to(stream: &Stream, base: Settings) -> Settings {
    base.to("nats")
        .set("sink.nats.url", &format!("nats://{}", stream.server()))
        .set("sink.nats.stream", stream.name())
        .set_toml("sink.nats.partitions", &PARTITIONS.to_string())
}

/// Waits until all that is committed is in the stream.
async fn all_arrive(t: &Harness, stream: &Stream) {
    let committed = t.committed().await;
    let filter = format!("{}.>", t.database().name());
    let arrived = wait::until("all arrive", wait::PATIENCE, || async {
        let records = stream.records(&filter).await;
        match check::compare(&committed, &records, PARTITIONS) {
            count if count.lost == 0 => Ok(count),
            count => Err(count.to_string()),
        }
    });
    arrived.await.expect("they do").assert_exactly_once();
}

#[tokio::test]
async fn events_are_there_once_and_in_order_while_relay_and_server_are_killed() {
    let mut nats = Nats::start().expect("a server of its own");
    let t = Harness::start().await;
    let stream = stream(&t, &nats, &json!({})).await;
    let plan =
        Plan { topic: topic(&t), partitions: PARTITIONS, writers: 3, transactions: u64::MAX };
    let mut relay = to(&stream, t.relay()).start().await;
    let load = Load::paced(t.database(), &plan, Duration::from_millis(25)).await;
    for round in 0..6 {
        let before = stream.records(&format!("{}.*", topic(&t))).await.len();
        wait::until("more arrives", wait::PATIENCE, || async {
            match stream.records(&format!("{}.*", topic(&t))).await.len() {
                now if now > before => Ok(()),
                now => Err(format!("{now} records")),
            }
        })
        .await
        .expect("the relay goes on");
        if round % 2 == 0 {
            nats.kill9();
            nats.restart();
        } else {
            relay.kill9().await;
            relay.restart();
        }
    }
    load.stop().await;
    all_arrive(&t, &stream).await;
}

#[tokio::test]
async fn no_row_tells_the_server_what_to_do() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({})).await;
    let relay = to(&stream, t.relay()).start().await;
    let topic = topic(&t);
    t.commit([Event::to(&topic).key("a"), Event::to(&topic).key("b")]).await;
    all_arrive(&t, &stream).await;
    let orders = [
        ("Nats-Rollup", "all", "reserved_header"),
        ("nats-msg-id", "1", "reserved_header"),
        ("NATS-Expected-Last-Sequence", "1", "reserved_header"),
        ("two words", "1", "invalid_characters"),
        ("a:b", "1", "invalid_characters"),
        ("lines", "1\r\nNats-Rollup: all", "invalid_characters"),
    ];
    for (number, (name, value, _)) in orders.iter().enumerate() {
        let event = Event::to(&topic).key(&format!("odd-{number}")).header(name, value);
        t.commit([event]).await;
    }
    wait_parked(&t, |parked| usize::try_from(parked).is_ok_and(|parked| parked == orders.len()))
        .await;
    let reasons = "select headers::text, reason from outbox.dead_letters where state = 'parked'";
    let parked = t.database().superuser().query(reasons, &[]).await.expect("the parked ones");
    for (name, _, reason) in orders {
        let found = parked.iter().find(|row| row.get::<_, String>(0).contains(name));
        assert_eq!(found.expect("it is parked").get::<_, &str>(1), reason, "{name}");
    }
    let records = stream.records(&format!("{topic}.*")).await;
    assert_eq!(records.len(), 2, "what was there is there: {records:?}");
    // Each reason is one that the metrics know.
    assert!(!relay.logs_contain("panic"), "{}", relay.log_text());
    let metrics = relay.page("/metrics").await;
    let counted = r#"outbox_relay_refused_total{reason="invalid_characters"} 3"#;
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn an_event_whose_subject_the_stream_lacks_is_parked_and_released_when_it_has_it() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({})).await;
    let _relay = to(&stream, t.relay()).set("sink.topic_grace", "60s").start().await;
    let (known, unknown) = (topic(&t), format!("{}.late", t.database().name()));
    t.commit([Event::to(&unknown).key("a"), Event::to(&known).key("b")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    let here = async || stream.records(&format!("{known}.*")).await.len();
    wait::until("the other goes on", wait::PATIENCE, || async {
        if here().await == 1 { Ok(()) } else { Err("not yet") }
    })
    .await
    .expect("another lane waits for nothing");
    let subjects = [format!("{known}.*"), format!("{unknown}.*"), progress(&t)];
    stream.change(&json!({ "subjects": subjects })).await;
    all_arrive(&t, &stream).await;
}

#[tokio::test]
async fn a_stream_that_does_not_fit_is_named_by_check_and_by_the_halt_and_flows_once_it_fits() {
    let mut t = Harness::start().await;
    let nats = servers::nats().await;
    let name = t.database().name().to_owned();
    let settings = {
        let base = t.relay().without("sink.properties.\"bootstrap.servers\"");
        base.set("sink.kind", "nats")
            .set("sink.nats.url", &format!("nats://{}", nats.address()))
            .set("sink.nats.stream", &name)
            .set_toml("sink.nats.partitions", &PARTITIONS.to_string())
    };
    let problem = async |words: &[&str]| {
        let findings = checks::check(&settings).await;
        let told =
            findings.iter().find(|finding| finding.verdict == "problem" && finding.name == "NATS");
        let told = told.unwrap_or_else(|| panic!("no problem in {findings:#?}"));
        let text = format!("{} {}", told.seen, told.remedy);
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let create = format!("`nats stream add {name} --subjects 'TOPIC.*,{}' --storage", progress(&t));
    problem(&["does not exist", "sink.nats.stream", &create]).await;
    let stream =
        stream(&t, nats, &json!({ "allow_atomic": false, "allow_rollup_hdrs": false })).await;
    problem(&["allow_atomic", "--allow-batch", "allow_rollup_hdrs", "--allow-rollup"]).await;
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    let relay = settings.clone().spawn();
    relay.wait_log("allow_atomic").await;
    stream.change(&json!({ "allow_atomic": true, "allow_rollup_hdrs": true })).await;
    let findings = checks::check(&settings).await;
    let seen = findings.iter().find(|finding| finding.name == "NATS").expect("a finding");
    assert_eq!(seen.verdict, "ok", "{findings:#?}");
    // The halt is looked at again by itself, or by a start.
    drop(relay);
    let _relay = settings.start().await;
    all_arrive(&t, &stream).await;
}

/// A purge takes what no one has read yet, and the progress with it.
#[tokio::test]
async fn what_a_purge_took_is_published_again_by_obeying_the_halt() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({})).await;
    let mut relay = to(&stream, t.relay()).start().await;
    let event = |n: i32| Event::to(&topic(&t)).key(&format!("key {n}"));
    let events: Vec<Event> = (0..9).map(event).collect();
    t.commit(events).await;
    all_arrive(&t, &stream).await;
    stream.purge().await;
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    let detail = halted(&relay).await;
    let (_, every) = detail.split_once("events that were not read yet").expect("what to type");
    for statement in every.split('`').skip(1).step_by(2) {
        let typed = t.database().superuser().batch_execute(statement).await;
        typed.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    relay.wait_ready().await;
    all_arrive(&t, &stream).await;
}

/// As a person makes it do who wants room, while the relay streams.
#[tokio::test]
async fn a_stream_that_begins_to_delete_what_was_not_read_is_named_while_the_relay_streams() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({ "discard": "new" })).await;
    let relay = to(&stream, t.relay()).start().await;
    stream.change(&json!({ "discard": "old", "max_msgs": 1000 })).await;
    relay.wait_log("--discard new").await;
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    all_arrive(&t, &stream).await;
}

/// Without a limit for the whole stream it deletes as much.
#[tokio::test]
async fn a_stream_that_begins_to_keep_few_of_each_subject_is_named_while_the_relay_streams() {
    let t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({})).await;
    let relay = to(&stream, t.relay()).start().await;
    stream.change(&json!({ "max_msgs_per_subject": 1 })).await;
    relay.wait_log("--max-msgs-per-subject=-1").await;
}

/// Progress that is stored elsewhere is not found, and each claim would look like another relay's.
#[tokio::test]
async fn a_stream_that_moves_progress_to_another_subject_is_named_and_flows_once_it_does_not() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({})).await;
    let mut relay = to(&stream, t.relay()).start().await;
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    all_arrive(&t, &stream).await;
    let elsewhere = json!({ "src": progress(&t), "dest": format!("{}.elsewhere", topic(&t)) });
    stream.change(&json!({ "subject_transform": elsewhere })).await;
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    assert!(halted(&relay).await.contains("--no-transform"));
    stream.change(&json!({ "subject_transform": null })).await;
    relay.wait_ready().await;
    all_arrive(&t, &stream).await;
}

#[tokio::test]
async fn what_a_stranger_stores_under_the_progress_subject_does_not_count() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({})).await;
    let mut relay = to(&stream, t.relay()).start().await;
    let topic = topic(&t);
    for round in 0..3 {
        for key in ["a", "b"] {
            t.commit([Event::to(&topic).key(key)]).await;
        }
        all_arrive(&t, &stream).await;
        stream.publish(&progress(&t), &[], "{\"round\":1}").await;
        if round == 1 {
            relay.kill9().await;
            stream.publish(&progress(&t), &[("outbox-relay-claim", "x")], "").await;
            relay.restart();
        }
    }
    t.commit([Event::to(&topic).key("a")]).await;
    all_arrive(&t, &stream).await;
    relay.wait_log("does not count").await;
}

/// Messages go at their age, and progress does not: a relay that was idle for longer continues.
#[tokio::test]
async fn a_stream_that_deletes_by_age_keeps_progress_or_is_refused() {
    let mut t = Harness::start().await;
    let aging = json!({ "max_age": 1_000_000_000_u64, "duplicate_window": 1_000_000_000_u64 });
    let stream = stream(&t, servers::nats().await, &aging).await;
    let settings = to(&stream, t.relay());
    let halted = settings.clone().spawn();
    halted.wait_log("--allow-msg-ttl").await;
    drop(halted);
    stream.change(&json!({ "allow_msg_ttl": true })).await;
    let mut relay = settings.start().await;
    let topic = topic(&t);
    for round in 0..2 {
        let before = stream.last().await;
        t.commit([Event::to(&topic).key("a")]).await;
        let arrives = wait::until("it and progress arrive", wait::PATIENCE, || async {
            match stream.last().await {
                last if last >= before + 2 => Ok(()),
                last => Err(format!("{last}, {before} before")),
            }
        });
        arrives.await.expect("they do");
        let goes = wait::until("its age ends it", wait::PATIENCE, || async {
            match stream.records(&format!("{topic}.*")).await.len() {
                0 => Ok(()),
                found => Err(format!("{found} records")),
            }
        });
        goes.await.expect("it does");
        if round == 0 {
            relay.kill9().await;
            relay.restart();
            relay.wait_ready().await;
        }
    }
}

/// As after a power cut: the server confirmed events, the relay told PostgreSQL so, and they are gone.
#[tokio::test]
async fn what_the_server_has_lost_after_it_confirmed_is_published_again() {
    let Lost { mut t, stream, relay, _nats } = Lost::tell("repair").await;
    relay.wait_log("ahead of what the broker has kept").await;
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    let committed = t.committed().await;
    let filter = format!("{}.*", topic(&t));
    let arrived = wait::until("all arrive", wait::PATIENCE, || async {
        let records = stream.records(&filter).await;
        match check::compare(&committed, &records, PARTITIONS) {
            count if count.lost == 0 => Ok((count, records)),
            count => Err(count.to_string()),
        }
    });
    let (count, records) = arrived.await.expect("they do");
    assert_eq!((count.out_of_order, count.uncommitted, count.altered), (0, 0, 0), "{count}");
    let marked =
        |record: &&Record| record.headers.iter().any(|(name, _)| name == "outbox-repaired");
    let marked = records.iter().filter(marked).count();
    assert!(marked >= LOST && count.duplicated <= marked - LOST, "{marked} marked: {count}");
}

#[tokio::test]
async fn what_the_server_has_lost_halts_a_relay_that_is_told_so() {
    let Lost { relay, stream, t, _nats } = Lost::tell("halt").await;
    relay.wait_log("somebody moved the slot or progress was lost").await;
    let here = stream.records(&format!("{}.*", topic(&t))).await.len();
    assert_eq!(here, KEPT, "nothing is published before a person decides");
}

/// Events that the server has when it is put back to what it was, and others that it has not.
const KEPT: usize = 12;
const LOST: usize = 9;

struct Lost {
    t: Harness,
    stream: Stream,
    relay: Relay,
    /// Ends with it.
    _nats: Nats,
}

impl Lost {
    async fn tell(on_broker_loss: &str) -> Self {
        let mut nats = Nats::start().expect("a server of its own");
        let mut t = Harness::start().await;
        let stream = stream(&t, &nats, &json!({})).await;
        let settings = to(&stream, t.relay()).set("sink.nats.on_broker_loss", on_broker_loss);
        let mut relay = settings.start().await;
        let events = |topic: &str, number: usize| -> Vec<Event> {
            (0..number).map(|n| Event::to(topic).key(&format!("key {}", n % 4))).collect()
        };
        t.commit(events(&topic(&t), KEPT)).await;
        all_arrive(&t, &stream).await;
        let saved = nats.saved();
        t.commit(events(&topic(&t), LOST)).await;
        all_arrive(&t, &stream).await;
        wait_confirmed(&t).await;
        relay.kill9().await;
        nats.put_back(&saved);
        nats.restart();
        relay.restart();
        Lost { t, stream, relay, _nats: nats }
    }
}

#[tokio::test]
async fn events_without_a_key_are_spread_by_their_ids_also_where_headers_are_cloudevents() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({})).await;
    let _relay = to(&stream, t.relay()).set("outbox.headers", "cloudevents").start().await;
    let topic = topic(&t);
    t.commit((0..40).map(|_| Event::to(&topic).kind("OrderPlaced"))).await;
    let records = wait::until("all arrive", wait::PATIENCE, || async {
        match stream.records(&format!("{topic}.*")).await {
            records if records.len() == 40 => Ok(records),
            records => Err(format!("{} records", records.len())),
        }
    });
    let records = records.await.expect("they do");
    for record in &records {
        let id = record.id().expect("an id");
        assert_eq!(record.partition, murmur2::partition(id.as_bytes(), PARTITIONS), "{id}");
    }
    let used: BTreeSet<i32> = records.iter().map(|record| record.partition).collect();
    assert_eq!(used.len(), 4, "{used:?}");
}
