//! The table of parked events is put back to an older state: what was released or discarded meanwhile is parked
//! again, and is not taken for what never was delivered.

use outbox_harness::{
    Harness,
    event::Event,
    relay::Relay,
    topic::{Record, Topic},
    wait,
};

use crate::{
    checks::{Finding, check},
    dead_letters::{count_parked, dead_letters, list, try_dead_letters, wait_parked},
    obeyed::{obey, typed},
    rows::run,
};

const COLUMNS: &str = "relay, system_id, commit_lsn, ordinal, event_id, lane, topic, key, partition, \
    timestamp_ms, payload, headers, fit, reason, error, state, parked_at, changed_at, xid";

/// As `pg_restore --data-only` does it, into the table that is there.
async fn put_back(t: &Harness) {
    run(t, "truncate outbox.dead_letters").await;
    run(
        t,
        &format!("insert into outbox.dead_letters ({COLUMNS}) select {COLUMNS} from public.kept"),
    )
    .await;
}

async fn page_says(relay: &Relay, words: &str) -> String {
    wait::until(words, wait::PATIENCE, || async {
        match relay.page("/readyz").await {
            page if page.contains(words) => Ok(page),
            page => Err(page),
        }
    })
    .await
    .expect("it says so")
}

async fn arrived(topic: &Topic, count: usize) -> Vec<Record> {
    wait::until("they arrive", wait::PATIENCE, || async {
        match topic.records().await {
            records if records.len() == count => Ok(records),
            records => Err(records.len()),
        }
    })
    .await
    .expect("no more and no less")
}

/// Three events are parked, a copy is made of them, and then they are released and delivered.
async fn released_since_the_copy(t: &mut Harness, headers: &str) -> (Topic, Relay) {
    let missing = t.topic("missing");
    // Longer than a day: what waits for its topic is not released once more by the relay itself.
    let settings = t.relay().set("sink.topic_grace", "100ms").set("outbox.headers", headers);
    let relay = settings.start().await;
    let event = || Event::to(missing.name()).key("k").kind("t");
    // A row may have headers that look like the relay's in its other form.
    let own = [("ce_outboxposition", "x"), ("ce_outboxrepaired", "0"), ("ce_outboxera", "9")];
    let own = own.iter().filter(|_| headers == "outbox");
    let odd = own.fold(event(), |event, (name, value)| event.header(name, value));
    t.commit([event(), odd, event()]).await;
    wait_parked(t, |parked| parked == 3).await;
    run(t, "create table public.kept as select * from outbox.dead_letters").await;
    let missing = missing.create(1).await;
    dead_letters(t, &["release", "--all"]).await;
    arrived(&missing, 3).await;
    wait_parked(t, |parked| parked == 0).await;
    (missing, relay)
}

/// Events that were parked after the copy was made are in no table any more.
#[tokio::test]
async fn parked_events_that_a_copy_lacks_are_told_and_published_as_the_relay_says() {
    for away in [false, true] {
        let mut t = Harness::start().await;
        let missing = t.topic("missing");
        let settings = t.relay().set("sink.topic_grace", "100ms");
        let mut relay = settings.clone().start().await;
        let event = |key: &str| Event::to(missing.name()).key(key);
        t.commit([event("a"), event("a")]).await;
        wait_parked(&t, |parked| parked == 2).await;
        run(&t, "create table public.kept as select * from outbox.dead_letters").await;
        t.commit([event("a"), event("b"), event("b")]).await;
        wait_parked(&t, |parked| parked == 5).await;
        wait_known(&relay, 5).await;
        if away {
            // What is delivered stores what is parked by then.
            let other = t.topic("other").create(1).await;
            t.commit([Event::to(other.name()).key("k")]).await;
            arrived(&other, 1).await;
            assert!(relay.sigterm().await.success());
        }
        put_back(&t).await;
        if away {
            relay.restart();
            relay.wait_ready().await;
        }
        let page = page_says(&relay, "outbox.dead_letters was emptied").await;
        assert!(page.contains("while 3 events of 2 lanes were parked"), "{page}");
        let findings = check(&t.relay()).await;
        let lost = |it: &&Finding| it.seen.contains("parked events are lost: outbox.dead_letters");
        let found = findings.iter().find(lost).expect("check says it too");
        assert_eq!(found.verdict, "problem");
        if !away {
            // Whoever deletes rows of the table every night deletes what tells of it as well.
            run(&t, "delete from outbox.dead_letters where reason = 'lost'").await;
            written_again(&t).await;
        }
        obey(&t, typed(&page, "insert into outbox.events")).await;
        wait_parked(&t, |parked| parked == 6).await;
        let page = page_says(&relay, "outbox.dead_letters was emptied").await;
        obey(&t, typed(&page, "outbox-relay dead-letters discard")).await;
        wait_parked(&t, |parked| parked == 5).await;
        let missing = missing.create(1).await;
        dead_letters(&t, &["release", "--all", "--yes"]).await;
        let ids = "select array(select event_id from public.kept order by id)";
        let kept: Vec<String> =
            t.database().superuser().query_one(ids, &[]).await.expect("they are there").get(0);
        let records = arrived(&missing, 5).await;
        let of_a: Vec<_> = records.iter().filter(|it| it.key.as_deref() == Some(b"a")).collect();
        assert_eq!(of_a.len(), 3);
        assert_eq!([of_a[0].id(), of_a[1].id()], [Some(&*kept[0]), Some(&*kept[1])]);
        wait::until("it is said no more", wait::PATIENCE, || relay.nothing_of_concern())
            .await
            .expect("it was dealt with");
    }
}

/// While no relay looks: it is stopped, killed, or about to connect again.
#[tokio::test]
async fn parked_events_that_are_deleted_while_no_relay_looks_are_told_and_published_as_it_says() {
    const EMPTY: &str = "truncate outbox.dead_letters";
    const ONE: &str = "delete from outbox.dead_letters where reason = 'lane_parked'";
    for (away, done, lost) in [
        ("stopped", EMPTY, "while 2 events of 1 lane were parked"),
        ("killed", ONE, "while 1 event of 1 lane were parked"),
        ("reconnecting", EMPTY, "while 2 events of 1 lane were parked"),
    ] {
        let mut t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let mut relay = t.relay().start().await;
        let event = || Event::to(topic.name()).key("k");
        t.commit([event().partition(7)]).await;
        wait_parked(&t, |parked| parked == 1).await;
        t.commit([event().partition(7), Event::to(topic.name()).key("other")]).await;
        wait_parked(&t, |parked| parked == 2).await;
        wait_known(&relay, 2).await;
        // What is delivered stores what is parked by then.
        t.commit([Event::to(topic.name()).key("other")]).await;
        arrived(&topic, 2).await;
        match away {
            "stopped" => assert!(relay.sigterm().await.success()),
            "killed" => relay.kill9().await,
            _ => {}
        }
        run(&t, done).await;
        if away == "reconnecting" {
            let end = "select pg_terminate_backend(active_pid) from pg_replication_slots \
                       where database = current_database()";
            run(&t, end).await;
            relay.wait_log("will try again").await;
        } else {
            relay.restart();
        }
        relay.wait_ready().await;
        let page = page_says(&relay, "outbox.dead_letters was emptied").await;
        assert!(page.contains(lost), "{away}: {page}");
        obey(&t, typed(&page, "insert into outbox.events")).await;
        // Both, and the row that tells of the loss.
        wait_parked(&t, |parked| parked == 3).await;
        assert!(relay.sigterm().await.success());
    }
}

/// The row that tells of what is lost.
async fn written_again(t: &Harness) {
    wait::until("it is written down again", wait::PATIENCE, || async {
        let rows = "select count(*) from outbox.dead_letters where reason = 'lost'";
        let row =
            t.database().superuser().query_one(rows, &[]).await.map_err(|it| it.to_string())?;
        match row.get::<_, i64>(0) {
            1 => Ok(()),
            rows => Err(format!("{rows} rows")),
        }
    })
    .await
    .expect("the relay knows of it");
}

/// The relay has counted so many.
async fn wait_known(relay: &Relay, parked: u64) {
    wait::until("they are counted", wait::PATIENCE, || async {
        match relay.status().await.get("parked_events").and_then(|it| it.as_u64()) {
            Some(found) if found == parked => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await
    .expect("all of them");
}

#[tokio::test]
async fn parked_events_that_are_put_back_from_a_copy_are_told_asked_about_and_marked() {
    for (headers, mark) in [("outbox", "outbox-repaired"), ("cloudevents", "ce_outboxrepaired")] {
        let mut t = Harness::start().await;
        let (topic, mut relay) = released_since_the_copy(&mut t, headers).await;
        assert_eq!(relay.page("/readyz").await, "ok\n");
        if headers == "cloudevents" {
            assert!(relay.sigterm().await.success());
        }
        put_back(&t).await;
        if headers == "cloudevents" {
            relay.restart();
            relay.wait_ready().await;
        }
        let page = page_says(&relay, "put back into outbox.dead_letters from a copy").await;
        assert!(page.starts_with("ok\nbut 3 parked events were put back"), "{page}");
        assert!(
            relay.logs_contain("were put back into outbox.dead_letters"),
            "{}",
            relay.log_text()
        );
        let findings = check(&t.relay()).await;
        let found =
            findings.iter().find(|found| found.seen.contains("put back into")).expect("a warning");
        assert_eq!(
            (found.name.as_str(), found.verdict.as_str()),
            ("parking", "warning"),
            "{found:?}"
        );
        assert!(list(&t).await.iter().all(|entry| entry["restored_at"].is_string()));

        // Not unasked: what was delivered would come again.
        let (code, _, words) = try_dead_letters(&t, &["release", "--all"]).await;
        assert_eq!(code, Some(1), "{words}");
        assert!(
            words.contains("3 of these events were put back") && words.contains("--yes"),
            "{words}"
        );
        assert_eq!(count_parked(&t).await, 3);
        dead_letters(&t, &["release", "--all", "--yes"]).await;
        let records = arrived(&topic, 6).await;
        let marked = |record: &&Record| record.header(mark) == Some("1");
        assert_eq!(
            records.iter().filter(marked).count(),
            3,
            "what comes again says so: {records:?}"
        );
        let own = |record: &&Record| record.header("ce_outboxposition") == Some("x");
        let of_the_row = records.iter().filter(own).count();
        assert_eq!(of_the_row, if headers == "outbox" { 2 } else { 0 }, "{records:?}");
        wait::until("it is said no more", wait::PATIENCE, || relay.nothing_of_concern())
            .await
            .expect("nothing of the copy is parked");

        // What is parked now is no copy.
        let other = t.topic("other");
        t.commit([Event::to(other.name()).key("k").kind("t")]).await;
        wait_parked(&t, |parked| parked == 1).await;
        dead_letters(&t, &["release", "--all"]).await;
    }
}
