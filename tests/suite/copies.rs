//! A copy of the database brings `outbox.progress` along: a relay of the copy neither passes over its rows
//! nor disturbs the one of the original.

use outbox_harness::{Harness, check, database::Role, event::Event};

use crate::{
    file::{all_written, to_file},
    obeyed::typed,
    remedies::halted,
    repair::{drop_slot, wait_snapshot},
    rows::{each_once, insert, run},
};

const PARTITIONS: i32 = 8;

#[tokio::test]
async fn a_relay_of_a_copy_in_the_same_cluster_halts_until_it_has_a_name_of_its_own() {
    let mut t = Harness::start().await;
    let (original, path) = to_file(&t);
    let mut relay = original.start().await;
    t.commit([Event::to("orders").key("a"), Event::to("orders").key("b")]).await;
    all_written(&t, &path).await;
    assert!(relay.sigterm().await.success());
    let mut copy = Harness::over(t.database().copied().await, t.kafka()).await;
    t.reconnect().await;

    let (own, copied_path) = to_file(&copy);
    let copied = own.clone().set("name", t.database().name());
    let halt = halted(&copied.clone().spawn()).await;
    assert!(halt.contains("give it a name and a postgres.slot of its own"), "{halt}");
    let halt = halted(&copied.set("postgres.slot", "outbox_of_a_copy").spawn()).await;
    assert!(halt.contains("give this relay another name"), "{halt}");
    // The copy knows that another relay has delivered its rows: to publish them here is a decision.
    let halt = halted(&own.clone().spawn()).await;
    assert!(halt.contains("has published events of this database"), "{halt}");
    let _relay = own.set("postgres.start", "all").start().await;
    copy.commit([Event::to("orders").key("a")]).await;
    let records = all_written(&copy, &copied_path).await;
    check::compare(&copy.committed().await, &records, PARTITIONS).assert_exactly_once();

    relay.restart();
    t.commit([Event::to("orders").key("a")]).await;
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_exactly_once();
}

/// The database is renamed, and a copy of it gets its name: what was committed since the relay stopped is in the slot of
/// the one, and in the tables of the other.
#[tokio::test]
async fn a_copy_that_takes_the_place_of_its_database_continues_as_the_halt_says() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let mut ids = vec![insert(&t, &topic, "now()").await];
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    for _ in 0..3 {
        ids.push(insert(&t, &topic, "now()").await);
    }
    let copy = Harness::over(t.database().copied().await, t.kafka()).await;
    t.reconnect().await;
    let slot = format!("outbox_{}", t.database().name());
    let settings = copy.relay().set("name", t.database().name());
    // "Set postgres.slot back": no step leads round in a circle.
    let other = settings.clone().set("postgres.slot", "outbox_of_a_copy").spawn();
    let halt = halted(&other).await;
    assert!(halt.contains(&format!("belongs to slot {slot}")), "{halt}");
    assert!(!halt.contains("resume --at slot"), "{halt}");
    drop(other);
    let mut relay = settings.set("postgres.slot", &slot).spawn();
    let halt = halted(&relay).await;
    run(&t, typed(&halt, "pg_drop_replication_slot")).await;
    relay.wait_ready().await;
    ids.push(insert(&copy, &topic, "now()").await);
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn progress_that_a_copy_brought_from_another_cluster_halts_and_can_be_deleted() {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let mut relay = settings.start().await;
    t.commit([Event::to("orders").key("a"), Event::to("orders").key("b")]).await;
    all_written(&t, &path).await;
    assert!(relay.sigterm().await.success());
    // As a dump brings it: without the slot, and what was delivered is elsewhere.
    let elsewhere = "update outbox.progress set record = convert_to(regexp_replace( \
                         convert_from(record, 'UTF8'), '\"system_id\":\"[0-9]+\"', \
                         '\"system_id\":\"7\"'), 'UTF8')";
    t.database().superuser().batch_execute(elsewhere).await.expect("changed");
    drop_slot(&t).await;
    std::fs::remove_file(&path).expect("it was there");
    relay.restart();
    let halt = halted(&relay).await;
    assert!(halt.contains("cluster with system identifier 7"), "{halt}");
    // "Stop it, and as the tables' owner …"
    assert!(relay.sigterm().await.success());
    let owner = t.database().connect(Role::Owner).await;
    for words in ["delete from outbox.progress", "delete from outbox.relay_keys"] {
        owner.batch_execute(typed(&halt, words)).await.expect("the owner may");
    }
    relay.restart();
    t.commit([Event::to("orders").key("a")]).await;
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_exactly_once();
}
