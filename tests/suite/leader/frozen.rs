//! A leader that freezes, is replaced, and thaws: it publishes and confirms nothing any more.

use std::time::{Duration, Instant};

use super::{delivered, load, peer, role, said, wait_confirmed, wait_delivers, wait_role};
use outbox_harness::{Harness, event::Event, host::report, proxy::Proxy, wait};

use crate::{
    remedies::halted,
    repair::{drop_slot, wait_snapshot},
};

#[tokio::test]
async fn a_frozen_leader_is_deposed_and_thawed_it_publishes_and_confirms_nothing() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let timeout = |n| peer(&t, n).set("leader.timeout", "2s");
    let (leader, standby) = (timeout(1).start().await, timeout(2).start().await);
    wait_role(&standby, "standby", wait::PATIENCE).await;
    let load = load(&t, &topic).await;
    wait_delivers(&leader).await;

    leader.freeze();
    let frozen = Instant::now();
    wait_role(&standby, "leader", TIMEOUT + Duration::from_secs(4)).await;
    let took = frozen.elapsed();
    report(&format!("deposed and replaced {took:?} after it froze"));
    assert!(took >= TIMEOUT - Duration::from_secs(1), "no sooner than the setting says: {took:?}");
    wait_delivers(&standby).await;

    leader.thaw();
    wait_role(&leader, "standby", wait::PATIENCE).await;
    // What it had asked the broker to commit before it froze may count.
    let before = delivered(&leader).await;
    // It stays so: the new leader goes on, is not fenced, and starts nothing again.
    let reached = delivered(&standby).await;
    wait::until("the new leader goes on", wait::PATIENCE, || async {
        match delivered(&standby).await {
            found if found > reached + 200 => Ok(()),
            found => Err(found),
        }
    })
    .await
    .expect("it delivers");
    load.stop().await;
    t.count(&topic, 8).await.assert_exactly_once();
    assert_eq!(delivered(&leader).await, before, "a thawed leader publishes nothing");
    assert_eq!(said(&leader, "streaming from="), 1);
    assert_eq!(said(&standby, "streaming from="), 1, "{}", standby.log_text());
    assert_eq!(said(&standby, "fenced at the broker"), 0, "{}", standby.log_text());
    assert_eq!(said(&standby, "deposed a leader"), 1);
    assert_eq!(said(&leader, "deposed a leader"), 0);
}

/// At-least-once has no transaction that the broker could refuse a replaced relay.
#[tokio::test]
async fn a_frozen_at_least_once_leader_thaws_and_stores_no_progress_that_counts() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let settings =
        |n| peer(&t, n).set("leader.timeout", "2s").set("sink.delivery", "at-least-once");
    // Its records are stored; it thaws with their progress in its hands.
    let leader = settings(1).env("OUTBOX_FAULT", "records-stored:20:freeze").start().await;
    let mut standby = settings(2).start().await;
    wait_role(&standby, "standby", wait::PATIENCE).await;
    let load = load(&t, &topic).await;
    wait_role(&standby, "leader", wait::PATIENCE).await;
    wait_delivers(&standby).await;
    load.stop().await;
    let stored = || async {
        let name = format!("outbox-relay-progress-{}", t.database().name());
        t.topic_named(&name).records().await
    };
    wait_confirmed(&t).await;
    standby.freeze(); // So that the late record is the last, and the next start's own.
    let before = stored().await.len();
    leader.thaw();
    wait::until("it stores its progress", wait::PATIENCE, || async {
        match stored().await.len() {
            now if now > before => Ok(()),
            now => Err(format!("{now} records")),
        }
    })
    .await
    .expect("nothing stops it");
    standby.thaw();
    standby.kill9().await;
    wait_role(&leader, "leader", wait::PATIENCE).await;
    assert_eq!(said(&leader, "halted"), 0, "{}", leader.log_text());
    let truth = t.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    outbox_harness::check::compare(&truth, &records, 8).assert_at_least_once();
}

/// Its transaction is open, all in it, when another takes the lock; the broker commits it before it
/// is asked to fence. What was known of progress while standing by is then too old.
#[tokio::test]
async fn what_a_deposed_leader_commits_before_it_is_fenced_counts() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    // The first is more patient: once it goes on, it must not depose the second in turn. And it must
    // not have given its delivery up, as it does after two thirds of this: on a busy machine the
    // second may take ten seconds to take over.
    let leader = peer(&t, 1).set("leader.timeout", "1min").fault("records-stored:20:freeze");
    let leader = leader.set("sink.properties.\"transaction.timeout.ms\"", "300000");
    let leader = leader.start().await;
    let heir = peer(&t, 2).set("leader.timeout", "2s").fault("leading:1:freeze").start().await;
    wait_role(&heir, "standby", wait::PATIENCE).await;
    let load = load(&t, &topic).await;
    heir.wait_log("fault: leading").await;
    let before = topic.records().await.len();
    leader.thaw();
    wait::until("it commits", wait::PATIENCE, || async {
        match topic.records().await.len() {
            now if now > before => Ok(()),
            now => Err(format!("{now} records")),
        }
    })
    .await
    .expect("nobody has fenced it");
    heir.thaw();
    wait_role(&heir, "leader", wait::PATIENCE).await;
    wait_delivers(&heir).await;
    load.stop().await;
    t.count(&topic, 8).await.assert_exactly_once();
    assert_eq!(said(&heir, "deposed a leader"), 1);
    assert_eq!(said(&heir, "halted"), 0, "{}", heir.log_text());
}

/// It has read progress, and is about to stream, when it freezes; its heir leads, delivers and is
/// gone again when it thaws. At-least-once has no transaction that the broker could refuse it.
#[tokio::test]
async fn a_relay_that_freezes_before_its_stream_begins_does_not_stream_from_what_it_knew() {
    for point in ["fenced", "lanes-read", "stream-started"] {
        let mut t = Harness::start().await;
        let topic = t.topic("orders").create(4).await;
        let settings =
            |n| peer(&t, n).set("sink.delivery", "at-least-once").set("leader.timeout", "2s");
        settings(0).start().await.sigterm().await; // The slot is there.
        let frozen = settings(1).fault(&format!("{point}:1:freeze")).spawn();
        frozen.wait_log(&format!("fault: {point}")).await;
        let mut heir = settings(2).start().await;
        wait_role(&heir, "leader", wait::PATIENCE).await;
        t.commit((0..50).map(|n| Event::to(topic.name()).key(&format!("k{}", n % 5)))).await;
        t.count(&topic, 4).await.assert_exactly_once();
        wait_confirmed(&t).await;
        heir.kill9().await;
        frozen.thaw();
        wait_role(&frozen, "leader", wait::PATIENCE).await;
        t.commit((0..50).map(|n| Event::to(topic.name()).key(&format!("k{}", n % 5)))).await;
        t.count(&topic, 4).await.assert_exactly_once();
        assert_eq!(said(&frozen, "streaming from="), 1, "{}", frozen.log_text());
    }
}

/// No one reads from its slot meanwhile.
#[tokio::test]
async fn a_relay_that_is_set_to_the_slot_of_another_that_repairs_does_not_stand_by_for_it() {
    let t = Harness::start().await;
    let name = t.database().name().to_owned();
    let slot = format!("outbox_{name}");
    let mut first = peer(&t, 1).start().await;
    wait_snapshot(&t).await;
    assert!(first.sigterm().await.success());
    drop_slot(&t).await;
    let repairing = peer(&t, 1).fault("repair-begun:1:freeze").spawn();
    repairing.wait_log("fault: repair-begun").await;
    let settings = peer(&t, 2).set("name", &format!("{name}_b")).set("postgres.slot", &slot);
    let second = settings.set("postgres.start", "now").spawn();
    assert!(halted(&second).await.contains(&format!("slot {slot} is used by relay {name}")));
}

/// Their lines are dead for longer than they wait: they begin again, and one of them leads once it can.
#[tokio::test]
async fn a_standby_that_can_not_reach_the_brokers_says_so_and_takes_over_when_it_can() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let [frozen, refused] = [t.kafka().line().await, t.kafka().line().await];
    let mut leader = peer(&t, 1).start().await;
    let behind = |n, line: &Proxy| {
        peer(&t, n).set("sink.properties.\"bootstrap.servers\"", &line.address()).start()
    };
    let mut standbys = [behind(2, &frozen).await, behind(3, &refused).await];
    for standby in &standbys {
        wait_role(standby, "standby", wait::PATIENCE).await;
    }
    let load = load(&t, &topic).await;
    wait_delivers(&leader).await;
    frozen.freeze();
    refused.refuse();
    let told =
        ["nothing could be delivered for 30s: asking the brokers", "the brokers do not answer"];
    for (standby, told) in standbys.iter_mut().zip(told) {
        standby.wait_log(&format!("doing=\"standing by\" error=\"{told}")).await;
        standby.wait_for("/readyz", 503).await;
    }
    assert_eq!(role(&leader).await, "leader");
    let before = delivered(&leader).await;
    wait::until("the leader delivers more", wait::PATIENCE, || async {
        match delivered(&leader).await {
            now if now > before => Ok(()),
            now => Err(now),
        }
    })
    .await
    .expect("it reaches them");
    for (standby, line) in standbys.iter_mut().zip([&frozen, &refused]) {
        line.heal();
        standby.wait_ready().await;
        wait_role(standby, "standby", wait::PATIENCE).await;
    }
    leader.kill9().await;
    wait::until("one leads", wait::PATIENCE, || async {
        let roles = futures_util::future::join_all(standbys.iter().map(role)).await;
        if roles.iter().any(|role| role == "leader") { Ok(()) } else { Err(roles.join(", ")) }
    })
    .await
    .expect("the lead is free");
    load.stop().await;
    t.count(&topic, 8).await.assert_exactly_once();
}
