//! Parking and releasing through `kill -9`.

use super::*;

/// More transactions than the writers get to: they end when told.
const ENDLESS: u64 = 1_000_000;

/// Kills while lanes are parked under load, then while they are released under load.
async fn park_and_release_through_kills(t: &Harness, settings: Settings) -> Topic {
    let topic = t.topic("late");
    let mut relay = settings.start().await;
    let plan =
        Plan { topic: topic.name().to_owned(), partitions: 4, writers: 4, transactions: ENDLESS };
    let load = t.load(&plan).await;
    let mut parked = 0;
    for _ in 0..3 {
        parked = wait_parked(t, |found| found > parked).await;
        relay.kill9().await;
        relay.restart();
    }
    wait_parked(t, |found| found > parked).await;
    let topic = topic.create(4).await;
    let mut seen = 0;
    for _ in 0..4 {
        dead_letters(t, &["release", "--all"]).await;
        seen = wait_for_more(&topic, seen).await;
        relay.kill9().await;
        relay.restart();
    }
    load.stop().await;
    relay.wait_for("/readyz", 200).await;
    let truth: BTreeSet<String> = t.committed().await.into_iter().map(|row| row.id).collect();
    wait::until("all is released", wait::PATIENCE, || async {
        dead_letters(t, &["release", "--all"]).await;
        let records = topic.records().await;
        let there: BTreeSet<&str> = records.iter().filter_map(|record| record.id()).collect();
        match (truth.len() - there.len(), count_parked(t).await) {
            (0, 0) => Ok(()),
            (missing, parked) => Err(format!("{missing} are missing, {parked} are parked")),
        }
    })
    .await
    .expect("all is released");
    assert!(relay.sigterm().await.success());
    topic
}

async fn wait_for_more(topic: &Topic, before: usize) -> usize {
    wait::until("more records arrive", wait::PATIENCE, || async {
        match topic.records().await.len() {
            found if found > before => Ok(found),
            found => Err(format!("{found} records")),
        }
    })
    .await
    .expect("the relay delivers")
}

#[tokio::test]
async fn parked_and_released_through_kills_each_event_arrives_once_and_in_order() {
    let t = Harness::start().await;
    let topic = park_and_release_through_kills(&t, impatient(&t)).await;
    t.count(&topic, 4).await.assert_exactly_once();
}

#[tokio::test]
async fn with_at_least_once_parking_and_releasing_through_kills_lose_nothing() {
    let t = Harness::start().await;
    let settings = impatient(&t).set("sink.delivery", "at-least-once");
    let topic = park_and_release_through_kills(&t, settings).await;
    let truth = t.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    check::compare(&truth, &records, 4).assert_at_least_once();
}

/// The simulation found it, as seed 2053 of its time.
#[tokio::test]
async fn what_a_release_puts_back_is_not_lost_when_the_relay_ends_before_it_is_complete() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create_with(1, &[(LIMIT, "4000")]).await;
    let mut relay = t.relay().start().await;
    let event = |bytes| Event::to(topic.name()).key("a").payload(payload(bytes));
    t.commit([event(8_000), event(30_000), event(100)]).await;
    wait_parked(&t, |parked| parked == 3).await;
    relay.kill9().await;
    relay.restart_with(Some("release-delivered"));
    relay.wait_for("/readyz", 200).await;
    topic.set(LIMIT, "16000").await;
    dead_letters(&t, &["release", "--all"]).await;
    ended_at(&mut relay, "release-delivered").await;
    // The broker has answered the commit, and may show it a moment later.
    wait_records(&topic, 1).await;
    // Progress counts three places; the two that were put back are free.
    assert_eq!(sequences(&topic, "a").await, [1]);
    topic.set(LIMIT, "100000").await;
    relay.restart_with(None);
    wait_parked(&t, |parked| parked == 0).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// The simulation found it, as seeds 838 and 119 of its time.
#[tokio::test]
async fn an_event_alone_that_was_parked_just_before_a_crash_comes_from_the_table_or_not_at_all() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create_with(1, &[(LIMIT, "4000")]).await;
    let mut relay = t.relay().start().await;
    let alone = || Event::to(topic.name()).payload(payload(8_000));
    for (keyed, discard) in [(1, false), (2, true)] {
        topic.set(LIMIT, "4000").await;
        relay.kill9().await;
        relay.restart_with(Some("parked"));
        relay.wait_for("/readyz", 200).await;
        t.commit([alone()]).await;
        // It is in the table, progress does not cover it, and the server will send it again.
        ended_at(&mut relay, "parked").await;
        topic.set(LIMIT, "100000").await;
        if discard {
            let id = list(&t).await[0]["id"].to_string();
            dead_letters(&t, &["discard", &id]).await;
            // History may be deleted at any time; what the relay has not come to stays.
            let history =
                "delete from outbox.dead_letters where state in ('released', 'discarded')";
            t.database().superuser().batch_execute(history).await.expect("deleted");
        }
        relay.restart_with(None);
        t.commit([Event::to(topic.name()).key("later")]).await;
        wait::until("what comes later arrives", wait::PATIENCE, || async {
            let found = sequences(&topic, "later").await.len();
            if found == keyed { Ok(()) } else { Err(found) }
        })
        .await
        .expect("it arrives");
        dead_letters(&t, &["release", "--all"]).await;
        wait_parked(&t, |parked| parked == 0).await;
    }
    wait_records(&topic, 3).await;
    let truth = t.committed().await;
    let count = check::compare(&truth, &topic.records().await, 1);
    // All but the one that was discarded.
    let expected = check::Count { committed: 4, delivered: 3, lost: 1, ..Default::default() };
    assert_eq!(count, expected);
}

#[tokio::test]
async fn a_poisoned_lane_keeps_its_order_through_kills_while_the_others_flow() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(4).await;
    let mut relay = t.relay().start().await;
    for round in 0..30 {
        let poison = round % 10 == 4;
        let key = format!("k{}", round / 10);
        t.commit((0..8).map(|n| Event::to(topic.name()).key(&format!("k{n}")))).await;
        if poison {
            t.commit([Event::to(topic.name()).key(&key).partition(99)]).await;
        }
        if round % 7 == 6 {
            relay.kill9().await;
            relay.restart();
        }
    }
    wait_parked(&t, |parked| parked == 3 * 26 - 30).await;
    wait_records(&topic, 8 * 30 - (3 * 25 - 30)).await;
    let parked = list(&t).await;
    for lane in 0..8 {
        let key = format!("k{lane}");
        let delivered = sequences(&topic, &key).await;
        let poisoned = parked.iter().filter(|entry| entry["key"].as_str() == Some(&key)).count();
        let expected: Vec<u64> = (1..=delivered.len() as u64).collect();
        assert_eq!(delivered, expected, "{key} in order and from its first on");
        assert_eq!(delivered.len() + poisoned, if lane < 3 { 31 } else { 30 }, "{key}");
    }
    assert!(relay.sigterm().await.success());
}
