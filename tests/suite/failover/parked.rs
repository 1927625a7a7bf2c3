//! Events that were parked before the failover, and that the new primary does not have as parked.

use outbox_harness::{event::Event, relay::Relay, wait};

use super::Failover;
use crate::{
    dead_letters::ended_at,
    obeyed::{obey, typed},
};

/// Progress is at the broker and knows of it; the new primary has neither the row nor anything to say.
#[tokio::test]
async fn a_parked_event_that_the_new_primary_does_not_have_is_named_and_comes_by_what_is_typed() {
    let mut f = Failover::begin().await;
    let missing = f.t.topic("missing");
    f.relay.freeze();
    f.t.commit((0..25).map(|_| Event::to(missing.name()).key("k"))).await;
    let mut truth = f.t.committed().await;
    truth.retain(|row| row.topic == missing.name());
    f.pair.catch_up().await;
    f.pair.cut().await;
    f.relay.thaw();
    let progress = f.t.topic_named(&format!("outbox-relay-progress-{}", f.t.database().name()));
    wait::until("progress names the parked event", wait::PATIENCE, || async {
        let payload = progress.records().await.pop().and_then(|record| record.payload);
        let text = String::from_utf8(payload.unwrap_or_default()).expect("JSON");
        if text.contains("\"events\":25") { Ok(()) } else { Err(text) }
    })
    .await
    .expect("it is counted");
    f.fail_over().await;
    f.relay.thaw();
    f.relay.wait_log("parked events are lost to the relay").await;
    f.relay.wait_ready().await;
    let said = f.relay.log_text();
    let said = said.lines().find(|line| line.contains("became the primary")).expect("said");
    assert!(said.contains("without about 25 events ") && said.contains(" 5 more "), "{said}");
    // The page says the same as the log.
    let page = f.relay.page("/readyz").await;
    let again = typed(said, "insert into outbox.events");
    assert!(page.contains(again), "{page}");
    let (_, named) = again.split_once(" in (").expect("ids");
    let named = named.split(")").next().expect("ids");
    assert_eq!(named.split(", ").count(), 20, "{named}");
    // A repair has read them again, and they are parked again, so that what is typed doubles none; or, where a
    // snapshot that shows them was stored before, none is, and those that are not named come first.
    let rows =
        f.t.database()
            .superuser()
            .query(typed(said, "select id, topic, key, created_at"), &[])
            .await;
    let rows = rows.expect("the statement is SQL");
    let rows = rows.iter().filter(|row| row.get::<_, &str>("topic") == missing.name());
    let quoted = rows.map(|row| format!("'{}'", row.get::<_, uuid::Uuid>("id")));
    let others: Vec<String> = quoted.filter(|id| !named.contains(id)).collect();
    if !others.is_empty() {
        obey(&f.t, &again.replace(named, &others.join(", "))).await;
    }
    obey(&f.t, again).await;
    let missing = missing.create(1).await;
    obey(&f.t, &format!("outbox-relay dead-letters release --all --name {}", f.name())).await;
    let records = missing.records_with(truth.iter().map(|row| row.id.clone())).await;
    assert_eq!(records.len(), 25, "each once");

    // Not all of their ids were known: the next process says so as well, until somebody has dealt with it.
    assert!(f.relay.sigterm().await.success());
    f.relay.restart();
    f.relay.wait_log("parked events are lost to the relay").await;
    f.relay.wait_ready().await;
    let page = f.relay.page("/readyz").await;
    assert!(page.starts_with("ok\nbut this server became the primary"), "{page}");
    let metrics = f.relay.page("/metrics").await;
    assert!(metrics.contains("outbox_relay_lost_parked_events 25\n"), "{metrics}");
    obey(&f.t, typed(&page, "dead-letters discard")).await;
    nothing_is_said(&f.relay).await;
    assert!(f.relay.sigterm().await.success());
}

async fn nothing_is_said(relay: &Relay) {
    wait::until("it is said no more", wait::PATIENCE, || relay.nothing_of_concern())
        .await
        .expect("it is dealt with");
}

/// The relay ends at the first record that covers them, before it has counted what is parked.
#[tokio::test]
async fn events_that_were_parked_a_moment_before_the_failover_are_named() {
    let mut f = Failover::begin().await;
    assert!(f.relay.sigterm().await.success());
    let missing = f.t.topic("missing");
    f.t.commit((0..3).map(|_| Event::to(missing.name()).key("k"))).await;
    f.pair.catch_up().await;
    f.pair.cut().await;
    f.relay.restart_with(Some("delivered"));
    ended_at(&mut f.relay, "delivered").await;
    f.pair.fail_over().await;
    f.t.fail_over(f.pair.standby()).await;
    f.relay.restart_with(None);
    f.relay.wait_log("parked events are lost to the relay").await;
    let said = f.relay.log_text();
    let said = said.lines().find(|line| line.contains("became the primary")).expect("said");
    // As many as the first batch had: on a busy machine it may be cut inside their transaction.
    let rows = f.t.committed().await;
    let rows = rows.iter().filter(|row| row.topic == missing.name());
    let named = rows.filter(|row| said.contains(&row.id)).count();
    let count = |n: usize| format!("without {n} event{} ", if n == 1 { "" } else { "s" });
    assert!((1..=3).contains(&named) && said.contains(&count(named)), "{named} are named: {said}");
    f.relay.wait_ready().await;
    // A repair has read them again and they are parked again: nothing is left to be done.
    nothing_is_said(&f.relay).await;
    assert!(f.relay.sigterm().await.success());
}
