//! The setting `sink.progress` is changed, and changed back: the other place has no progress, or older one.

use outbox_harness::{Harness, event::Event, relay::Settings, topic::Topic};

use super::{obey, says, typed};
use crate::{checks, remedies};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stopped {
    Orderly,
    Killed,
}

fn keeping(t: &Harness, home: &str) -> Settings {
    t.relay().set("sink.delivery", "at-least-once").set("sink.progress", home)
}

async fn delivers(t: &mut Harness, topic: &Topic, settings: &Settings, stopped: Stopped) {
    let mut relay = settings.clone().start().await;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    t.count(topic, 1).await.assert_at_least_once();
    match stopped {
        Stopped::Orderly => assert!(relay.sigterm().await.success()),
        Stopped::Killed => relay.kill9().await,
    }
}

async fn is_changed(t: &mut Harness, topic: &Topic, home: &str, stopped: Stopped) {
    let settings = keeping(t, home);
    let before = t.count(topic, 1).await.duplicated;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let found = checks::check(&settings).await;
    let found = found.iter().find(|it| it.remedy.contains("resume --at slot"));
    assert!(found.is_some_and(|it| it.verdict == "problem"), "{found:?}");
    let mut relay = settings.clone().spawn();
    let detail = says(&relay, "resume --at slot").await;
    if detail.contains("past the stored progress") {
        // What loses and repeats nothing comes first.
        let at = |words: &str| detail.find(words).unwrap_or_else(|| panic!("no {words}: {detail}"));
        assert!(at("sink.progress was changed") < at("resume --at slot"), "{detail}");
        assert!(at("resume --at slot") < at("pg_drop_replication_slot"), "{detail}");
    }
    let commands: Vec<&str> =
        detail.split('`').filter_map(|it| it.strip_prefix("outbox-relay ")).collect();
    let place = commands.iter().position(|it| it.contains("resume --at slot"));
    remedies::obey(&settings, &detail, place.expect("it is named")).await;
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let count = t.count(topic, 1).await;
    count.assert_at_least_once();
    let again = count.duplicated - before;
    // The last position that PostgreSQL was told of may be older than the last delivery.
    let most = if stopped == Stopped::Orderly { 0 } else { 3 };
    assert!(again <= most, "{home} {stopped:?}: {again} events came again; {detail}");
    assert!(relay.sigterm().await.success());
}

/// As docs/CONFIG.md says: nothing is left out, and after an orderly stop nothing comes again.
#[tokio::test]
async fn after_a_change_of_where_progress_is_kept_and_back_resume_at_the_slot_leaves_nothing_out() {
    let mut cases = Vec::new();
    for stopped in [Stopped::Orderly, Stopped::Killed] {
        for [first, second] in [["broker", "postgres"], ["postgres", "broker"]] {
            cases.push(async move {
                let mut t = Harness::start().await;
                let topic = t.topic("orders").create(1).await;
                for [from, to] in [[first, second], [second, first], [first, second]] {
                    let settings = keeping(&t, from);
                    delivers(&mut t, &topic, &settings, stopped).await;
                    is_changed(&mut t, &topic, to, stopped).await;
                }
            });
        }
    }
    futures_util::future::join_all(cases).await;
}

/// The key went with the first of them. Both stand in one line of what is typed.
#[tokio::test]
async fn two_dropped_columns_of_the_table_of_progress_are_added_as_the_halt_says() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let settings = keeping(&t, "postgres");
    delivers(&mut t, &topic, &settings, Stopped::Orderly).await;
    let relay = settings.clone().start().await;
    let drop = "alter table outbox.progress drop column seq, drop column relay";
    t.database().superuser().batch_execute(drop).await.expect("dropped");
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let detail = says(&relay, "outbox.progress lacks the column seq").await;
    obey(&t, typed(&detail, "add column seq")).await;
    let key = "select pg_get_constraintdef(oid) from pg_constraint where conname = 'progress_pkey'";
    let key = t.database().superuser().query_one(key, &[]).await.expect("it has its key");
    assert_eq!(key.get::<_, &str>(0), "PRIMARY KEY (relay, seq)");
    let detail = says(&relay, "outbox.progress has no row of this relay").await;
    let commands: Vec<&str> =
        detail.split('`').filter_map(|it| it.strip_prefix("outbox-relay ")).collect();
    let place = commands.iter().position(|it| it.contains("resume --at slot"));
    remedies::obey(&settings, &detail, place.expect("it is named")).await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_at_least_once();
}

/// As somebody does who wants to read it in `psql`. The halt keeps it, so nothing comes again.
#[tokio::test]
async fn progress_that_was_made_text_is_bytes_again_as_the_halt_says() {
    for made in ["convert_from(record, 'UTF8')", "record::text"] {
        let mut t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let settings = keeping(&t, "postgres");
        delivers(&mut t, &topic, &settings, Stopped::Orderly).await;
        let change =
            format!("alter table outbox.progress alter column record type text using {made}");
        t.database().superuser().batch_execute(&change).await.expect("changed");
        let mut relay = settings.clone().spawn();
        let detail = says(&relay, "the column record of outbox.progress is of type text").await;
        obey(&t, typed(&detail, "alter column record type bytea")).await;
        relay.wait_ready().await;
        t.commit([Event::to(topic.name()).key("k")]).await;
        t.count(&topic, 1).await.assert_exactly_once();
    }
}

/// Its progress goes with the column, and no more than that.
#[tokio::test]
async fn a_dropped_column_of_the_table_of_progress_is_added_as_the_halt_says_and_nothing_is_lost() {
    let cases = ["relay", "seq", "record", "stored_at"].map(|column| async move {
        let mut t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let settings = keeping(&t, "postgres");
        delivers(&mut t, &topic, &settings, Stopped::Orderly).await;
        let relay = settings.clone().start().await;
        let drop = format!("alter table outbox.progress drop column {column}");
        t.database().superuser().batch_execute(&drop).await.expect("dropped");
        t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
        if column == "stored_at" {
            // It is no part of what the relay writes or reads.
            t.count(&topic, 1).await.assert_at_least_once();
            let found = checks::check(&settings).await;
            let found = found.iter().find(|it| it.seen.contains("lacks the column stored_at"));
            return obey(&t, typed(&found.expect("check names it").remedy, "add column")).await;
        }
        let words = format!("outbox.progress lacks the column {column}");
        let detail = says(&relay, &words).await;
        obey(&t, typed(&detail, &format!("add column {column}"))).await;
        let detail = says(&relay, "outbox.progress has no row of this relay").await;
        let commands: Vec<&str> =
            detail.split('`').filter_map(|it| it.strip_prefix("outbox-relay ")).collect();
        let place = commands.iter().position(|it| it.contains("resume --at slot"));
        remedies::obey(&settings, &detail, place.expect("it is named")).await;
        t.commit([Event::to(topic.name()).key("k")]).await;
        t.count(&topic, 1).await.assert_at_least_once();
    });
    futures_util::future::join_all(cases).await;
}
