//! What is true of every kind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use outbox_harness::{
    event::{Committed, Event},
    host,
    load::{Load, Plan},
    proxy::{From, Trap},
    relay::STOP,
    wait,
};

use super::{
    scale,
    world::{Series, World},
};
use crate::{
    contract::kind::{Kind, Odd, PARTITIONS},
    dead_letters::{dead_letters, list, wait_parked},
};

pub(super) async fn many_events_of_one_key_of_some_and_of_as_many_arrive_in_order<K: Kind>() {
    let world = World::<K>::new(false).await;
    let events = 3_000 * scale();
    let series = |keys| Series {
        prefix: match keys {
            1 => "one ",
            100 => "some ",
            _ => "many ",
        },
        keys,
        payload_bytes: 100,
        numbers: 0..events,
    };
    // The first of them are there before the relay.
    world.write(series(1)).await;
    let _relay = world.relay().start().await;
    world.write(series(100)).await;
    world.write(series(events)).await;
    world.all_arrive(|_| true).await;
}

/// The line is cut in front of the first bytes of either side, then in front of the second, and so on.
pub(super) async fn a_line_that_breaks_at_each_step_of_a_delivery_loses_nothing<K: Kind>() {
    let world = World::<K>::new(true).await;
    let topic = world.kind.destination().to_owned();
    let plan = Plan { topic, partitions: PARTITIONS, writers: 2, transactions: u64::MAX };
    let _relay = world.relay().start().await;
    let load = Load::paced(world.t.database(), &plan, Duration::from_millis(10)).await;
    let line = world.kind.line().expect("a breakable one");
    let steps = if scale() == 1 { 2 } else { 20 };
    for step in 1..=steps {
        for side in [From::Client, From::Server] {
            world.more_arrives().await;
            let seen = Arc::new(AtomicU32::new(0));
            let cut =
                line.trap(side, Trap::Before, move |_| seen.fetch_add(1, Relaxed) + 1 == step);
            tokio::time::timeout(wait::PATIENCE, cut).await.expect("bytes pass").expect("cut");
        }
    }
    world.more_arrives().await;
    load.stop().await;
    world.all_arrive(|_| true).await;
}

pub(super) async fn what_is_refused_in_the_middle_parks_its_lane_and_holds_no_other<K: Kind>() {
    const LANE: &str = "refused 0";
    let mut world = World::<K>::new(false).await;
    assert!(K::CAN.refuses.iter().any(|(odd, _)| *odd == Odd::Large), "this case is for others");
    let (topic, missing) =
        (world.kind.destination().to_owned(), format!("{}.missing", world.t.database().name()));
    let half = 100 * scale();
    let settings = world.relay().set("sink.topic_grace", "1s");
    // What waits is delivered in large batches.
    assert!(settings.clone().start().await.sigterm().await.success());
    let lane = |numbers| Series { prefix: "refused ", keys: 1, payload_bytes: 0, numbers };
    let others = |numbers| Series { prefix: "other ", keys: 9, payload_bytes: 0, numbers };
    world.write(lane(0..half)).await;
    world.write(others(0..9 * half)).await;
    let too_large = Event::to(&topic).key(LANE).payload("x".repeat(150_000).into());
    world.t.commit([too_large, Event::to(&missing).key("a"), Event::to(&missing).key("a")]).await;
    world.write(lane(half..2 * half)).await;
    world.write(others(9 * half..18 * half)).await;

    let mut relay = settings.start().await;
    let behind = i64::from(half);
    wait_parked(&world.t, |parked| parked == behind + 3).await;
    let is_large = |row: &Committed| row.payload.as_ref().is_some_and(|it| it.len() > 100_000);
    let is_behind = |row: &Committed| {
        let number = row.headers.get("sequence").and_then(|text| text.parse::<u32>().ok());
        row.key.as_deref() == Some(LANE)
            && (is_large(row) || number.is_some_and(|number| number >= half))
    };
    let is_to = |row: &Committed| row.topic == topic;
    world.all_arrive(|row| is_to(row) && !is_behind(row)).await;

    let parked = list(&world.t).await;
    let to_blame = |topic: &str| {
        let of_topic = parked.iter().filter(|entry| entry["topic"] == topic);
        let refused = of_topic.filter(|entry| entry["reason"] != "lane_parked");
        refused.map(|entry| (entry["id"].to_string(), entry["reason"].clone())).collect::<Vec<_>>()
    };
    let large = to_blame(&topic);
    assert!(matches!(&*large, [(_, reason)] if reason == "too_large"), "{large:?}");
    let homeless = to_blame(&missing);
    assert!(!homeless.is_empty(), "the first of them has no destination");
    assert!(homeless.iter().all(|(_, reason)| reason == "unknown_topic"), "{homeless:?}");
    for (id, _) in large.iter().chain(&homeless) {
        dead_letters(&world.t, &["discard", id, "--yes"]).await;
    }
    dead_letters(&world.t, &["release", "--topic", &topic]).await;
    world.all_arrive(|row| is_to(row) && !is_large(row)).await;
    assert!(relay.sigterm().await.success());
}

/// Nothing of the line is lost: the broker is as one that is frozen.
pub(super) async fn a_broker_that_does_not_answer_is_told_costs_no_memory_and_takes_all_afterwards<
    K: Kind,
>() {
    /// 45 MB of them wait. A batch has 1 MiB: with what a client queues, some 16 MiB at most, and the allocator
    /// keeps more than is in use.
    const EVENTS: u32 = 2_500;
    const PAYLOAD_BYTES: i32 = 10_000;
    const MEMORY_BYTES: u64 = 32 << 20;
    let world = World::<K>::new(true).await;
    let line = world.kind.line().expect("a breakable one");
    let mut relay = world.relay().set("batch.bytes_max", "1 MiB").start().await;
    let series = |numbers| Series { prefix: "", keys: 50, payload_bytes: PAYLOAD_BYTES, numbers };
    world.write(series(0..EVENTS / 5)).await;
    world.all_arrive(|_| true).await;

    let (before, began) = (relay.peak_memory_bytes(), Instant::now());
    line.freeze();
    world.write(series(EVENTS / 5..2 * EVENTS)).await;
    relay.wait_for("/readyz", 503).await;
    let told = began.elapsed();
    tokio::time::sleep(Duration::from_secs(60).saturating_sub(told) * u32::from(scale() > 1)).await;
    // The kernel counts pages roughly: the peak it tells may be a little less than before.
    let grown = relay.peak_memory_bytes().saturating_sub(before);
    host::report(&format!("unready after {told:?}, and {} KiB more", grown >> 10));
    assert!(grown < MEMORY_BYTES, "{grown} bytes");
    assert!(scale() == 1 || told < Duration::from_secs(20), "{told:?}");

    let arrived = world.records().await.len();
    line.heal();
    world.more_arrives_than(arrived).await;
    line.freeze();
    relay.ask_to_stop();
    let ended = relay.wait_end(STOP).await;
    assert!(ended.success(), "{ended}");
    line.heal();
    relay.restart();
    world.all_arrive(|_| true).await;
    relay.wait_ready().await;
}
