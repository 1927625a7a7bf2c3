//! What a run would meet at the broker is named by `check` in advance, with the command that helps.

use outbox_harness::{Harness, event::Event, kafka::Kafka, servers, wait};
use serde_json::json;

use crate::{
    checks::{Finding, check},
    dead_letters::{dead_letters, wait_parked, wait_records},
    obeyed::one_published,
};

/// The finding that speaks of all of these.
#[track_caller]
fn about<'a>(findings: &'a [Finding], words: &[&str]) -> &'a Finding {
    let speaks = |finding: &&Finding| words.iter().all(|word| finding.seen.contains(word));
    let found = findings.iter().find(speaks);
    found.unwrap_or_else(|| panic!("nothing about {words:?} in {findings:#?}"))
}

#[track_caller]
fn silent(findings: &[Finding], word: &str) {
    let found: Vec<_> = findings.iter().filter(|finding| finding.seen.contains(word)).collect();
    assert!(found.is_empty(), "{word}: {found:#?}");
}

#[tokio::test]
async fn check_names_what_a_run_would_meet_at_the_topics_of_the_events() {
    let mut t = Harness::start().await;
    let make = async |name: &str, settings: &[(&str, &str)]| {
        t.topic(name).create_with(1, settings).await.name().to_owned()
    };
    let good = make("good", &[]).await;
    let small = make("small", &[("max.message.bytes", "2000")]).await;
    let compacted = make("compacted", &[("cleanup.policy", "compact")]).await;
    let hour = make("hour", &[("retention.ms", "3600000")]).await;
    let little = make("little", &[("retention.bytes", "100")]).await;
    let alone = make("alone", &[("min.insync.replicas", "2")]).await;
    let missing = t.topic("missing").name().to_owned();
    let large = json!({ "text": "x".repeat(5_000) });
    t.commit([
        Event::to(&good).key("k"),
        Event::to(&small).key("k").payload(large),
        Event::to(&compacted),
        Event::to(&little).key("k"),
        Event::to(&alone).key("k"),
        Event::to(&missing).key("k"),
    ])
    .await;
    let old = format!(
        "insert into outbox.events (topic, key, payload, created_at) \
         values ('{hour}', 'k', '1', now() - interval '40 minutes')"
    );
    t.database().superuser().batch_execute(&old).await.expect("an old event");

    let findings = check(&t.relay()).await;
    for (words, remedy) in [
        (&[&*small, "too_large"][..], "max.message.bytes"),
        (&[&small, "2000 bytes", "1000000 bytes"], "--add-config max.message.bytes="),
        (&[&compacted, "invalid_record"], "without a key"),
        (&[&hour, "retention.ms=3600000", "outbox-created-at"], "--add-config retention.ms"),
        (&[&little, "retention.bytes"], "--add-config retention.bytes=-1"),
        (&[&missing, "unknown_topic"], "kafka-topics"),
    ] {
        let found = about(&findings, words);
        assert_eq!((found.name.as_str(), found.verdict.as_str()), ("topics", "warning"));
        assert!(found.remedy.contains(remedy), "{found:?}");
    }
    silent(&findings, &good);
    // This broker asks for no more replicas than there are.
    silent(&findings, "min.insync.replicas");

    // A relay that makes topics can make this one, or says why not.
    let making = |replicas: &str| {
        let settings = t.relay().set_toml("sink.create_topics.partitions", "1");
        settings.set_toml("sink.create_topics.replication_factor", replicas)
    };
    let findings = check(&making("1")).await;
    silent(&findings, &missing);
    silent(&findings, &alone);
    let findings = check(&making("3")).await;
    let found = about(&findings, &[&missing, "unknown_topic"]);
    assert!(found.remedy.contains("correct sink.create_topics"), "{found:?}");
    assert!(!t.topic("missing").exists().await, "check makes nothing");
}

/// What was discarded, and what was delivered long ago to a topic that is gone since, concerns no one any
/// more; what waits does.
#[tokio::test]
async fn check_accuses_no_event_that_was_dealt_with() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let former = t.topic("former").create(1).await;
    let (missing, waits) =
        (t.topic("missing").name().to_owned(), t.topic("waits").name().to_owned());
    let mut relay = t.relay().start().await;
    let old = format!(
        "insert into outbox.events (topic, created_at) values ('{}', now() - interval '2 days')",
        former.name()
    );
    t.database().superuser().batch_execute(&old).await.expect("an old event");
    t.commit([Event::to(&missing).key("k"), Event::to(topic.name()).key("k")]).await;
    wait_parked(&t, |parked| parked == 1).await;
    wait_records(&topic, 1).await;
    wait_records(&former, 1).await;
    former.delete().await;
    about(&check(&t.relay()).await, &["parked events can't be released", &missing]);
    dead_letters(&t, &["discard", "--all", "--yes"]).await;
    // The slot's own horizon follows what is confirmed, sooner or later.
    wait::until("the slot has passed the events", wait::PATIENCE, || async {
        t.database().superuser().batch_execute("checkpoint").await.map_err(|e| e.to_string())?;
        let findings = check(&t.relay()).await;
        let names = |name: &str| findings.iter().any(|finding| finding.seen.contains(name));
        match names(former.name()) {
            true => Err(format!("{findings:#?}")),
            false => Ok(()),
        }
    })
    .await
    .expect("nothing is said of a topic that is gone");
    silent(&check(&t.relay()).await, &missing);

    assert!(relay.sigterm().await.success());
    t.commit([Event::to(&waits).key("k")]).await;
    let findings = check(&t.relay()).await;
    about(&findings, &[&waits, "unknown_topic", "events that may wait"]);
    silent(&findings, &missing);
}

#[tokio::test]
async fn check_sees_the_progress_topics_settings_while_a_relay_streams() {
    let (mut t, topic, relay) = one_published().await;
    let progress = t.topic_named(&format!("outbox-relay-progress-{}", t.database().name()));
    progress.set("cleanup.policy", "delete").await;
    let findings = check(&t.relay()).await;
    let found = about(&findings, &[progress.name(), "cleanup.policy=delete"]);
    assert_eq!(found.verdict, "problem", "{found:?}");
    assert!(found.remedy.contains("--add-config cleanup.policy=compact"), "{found:?}");
    // The relay that streams says it as well, and continues.
    relay.wait_log("--add-config cleanup.policy=compact").await;
    let page = relay.page("/readyz").await;
    assert!(page.starts_with("ok\nbut") && page.contains("cleanup.policy=delete"), "{page}");
    progress.set("cleanup.policy", "compact").await;
    silent(&check(&t.relay()).await, "cleanup.policy");
    // More replicas than there are: this broker asks for as many as there are.
    progress.set_beside(&[("cleanup.policy", "compact")], "min.insync.replicas", "2").await;
    silent(&check(&t.relay()).await, "min.insync.replicas");
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    progress.set("cleanup.policy", "compact").await;
    wait::until("nothing is of concern", wait::PATIENCE, || async {
        let page = relay.page("/readyz").await;
        if page == "ok\n" { Ok(()) } else { Err(page) }
    })
    .await
    .expect("it is as it was");
}

/// A topic whose name differs in `.` and `_` alone is in the way, and the command that would create the missing one
/// fails.
#[tokio::test]
async fn a_topic_that_no_broker_creates_beside_another_is_named_with_what_helps() {
    let mut t = Harness::start().await;
    let there = t.topic("shop.orders").create(1).await;
    let missing = t.topic("shop_orders").name().to_owned();
    t.commit([Event::to(&missing).key("k")]).await;
    let beside = format!("beside {}", there.name());
    let findings = check(&t.relay()).await;
    let found = about(&findings, &[&missing, "unknown_topic"]);
    assert!(found.remedy.contains(&beside), "{found:?}");
    let _relay = t.relay().start().await;
    wait_parked(&t, |parked| parked == 1).await;
    let parked = dead_letters(&t, &["list"]).await;
    let first = parked.get(0).expect("one is parked");
    let text = |name| first.get(name).map(ToString::to_string).unwrap_or_default();
    let error = text("error");
    let edit = "`outbox-relay dead-letters edit ID --topic TOPIC`";
    assert!(error.contains(&beside) && error.contains(edit), "{error}");
    dead_letters(&t, &["edit", &text("id"), "--topic", there.name()]).await;
    dead_letters(&t, &["release", "--all"]).await;
    wait_records(&there, 1).await;
}

/// The broker allows less time than a transaction has by default, and one of its listeners leads
/// clients to an address at which no one listens.
#[tokio::test]
async fn check_names_a_broker_that_leads_astray_and_one_that_allows_too_little_time() {
    let limit = [("transaction.max.timeout.ms", "9000")];
    let (postgres, (kafka, _broker)) =
        tokio::join!(servers::postgres(), Kafka::start_private(&limit));
    let mut t = Harness::with(postgres, kafka).await;
    let astray = kafka.leads_astray();
    let findings = check(&t.relay().set("sink.properties.\"bootstrap.servers\"", &astray)).await;
    let found = about(&findings, &[&astray, "can't be reached", "broker 1 as 127.0.0.1:"]);
    assert_eq!(found.verdict, "problem", "{found:?}");
    assert!(found.remedy.contains("advertised.listeners"), "{found:?}");

    let findings = check(&t.relay()).await;
    let found = about(&findings, &["transaction.timeout.ms is 15000", "9000 at most"]);
    assert_eq!(found.verdict, "problem", "{found:?}");
    let obeyed = t.relay().set("sink.properties.\"transaction.timeout.ms\"", "9000");
    assert!(found.remedy.contains("sink.properties.\"transaction.timeout.ms\" to 9000"));
    silent(&check(&obeyed).await, "transaction.timeout.ms");
    let topic = t.topic("orders").create(1).await;
    let _relay = obeyed.start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// `outbox.publish` adds to `outbox.events`, whatever the settings map.
#[tokio::test]
async fn check_says_that_events_of_our_own_table_are_published_by_nobody() {
    let t = Harness::start().await;
    let make = "create table public.mine (like outbox.events including defaults); \
                alter publication outbox add table public.mine; \
                grant select on public.mine to public; \
                select outbox.publish('orders', '1', 'k') from generate_series(1, 3)";
    t.database().superuser().batch_execute(make).await.expect("a table of somebody's");
    let findings = check(&t.relay().set_toml("outbox.tables", "[\"public.mine\"]")).await;
    let found = about(&findings, &["outbox.events has 3 rows", "not in outbox.tables"]);
    assert_eq!(found.verdict, "warning", "{found:?}");
    silent(&check(&t.relay()).await, "not in outbox.tables");
}
