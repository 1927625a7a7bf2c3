//! Slots that are lost, or recreated, while writers commit and roll back.

use super::{ENDLESS, PACE, drop_slot, plan, repaired, repeated, wait_more};
use outbox_harness::{Harness, check, database::Role, event::Event, load::Load};
use tokio::task::JoinSet;

async fn lose_the_slot_under_load(delivery: &str) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let mut relay = t.relay().set("sink.delivery", delivery).start().await;
    let load = Load::paced(t.database(), &plan(&topic, ENDLESS), PACE).await;
    for _ in 0..2 {
        let seen = topic.records().await.len();
        wait_more(&topic, seen).await;
        relay.kill9().await;
        drop_slot(&t).await;
        relay.restart();
        relay.wait_ready().await;
    }
    wait_more(&topic, topic.records().await.len()).await;
    load.stop().await;
    let truth = t.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    check::compare(&truth, &records, 8).assert_at_least_once();
    let steps = check::positions_that_step_back(&records);
    assert!(steps.is_empty() || delivery == "at-least-once", "{steps:?}");
    if delivery == "exactly-once" {
        let again = repeated(&records);
        let marked = records.iter().filter(|record| repaired(record)).count();
        assert!(marked > again, "{again} of {marked} repaired records are repetitions");
    }
    assert!(relay.sigterm().await.success());
}

/// Of such writers the server knows in the end what runs, and not what was committed last: most
/// snapshots that it exports then have their xmax below their xmin.
#[tokio::test]
async fn slots_are_made_anew_while_all_others_roll_back() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let mut writers = JoinSet::new();
    for _ in 0..6 {
        let mut writer = t.database().connect(Role::Writer).await;
        let event = Event::to(topic.name()).key("never");
        writers.spawn(async move {
            loop {
                let open = writer.transaction().await.expect("a transaction begins");
                event.insert(open.client()).await.expect("inserted");
                open.rollback().await.expect("rolled back");
            }
        });
    }
    for _ in 0..6 {
        relay.kill9().await;
        drop_slot(&t).await;
        t.commit([Event::to(topic.name()).key("between")]).await;
        relay.restart();
        relay.wait_ready().await;
    }
    writers.shutdown().await;
    let truth = t.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    check::compare(&truth, &records, 1).assert_at_least_once();
    repeated(&records);
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn slots_lost_under_load_lose_nothing_and_repeat_only_what_says_so() {
    lose_the_slot_under_load("exactly-once").await;
}

#[tokio::test]
async fn slots_lost_under_load_lose_nothing_with_at_least_once() {
    lose_the_slot_under_load("at-least-once").await;
}
