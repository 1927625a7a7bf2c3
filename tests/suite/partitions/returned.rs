//! Partitions that are detached for a while: what they had is published, and nobody is asked about it; what was inserted
//! meanwhile was not in the stream.

use outbox_harness::{Harness, database::Role, relay::Relay, topic::Topic, wait};

use super::{ATTACH, ID, TABLE, insert_old};
use crate::{
    obeyed::{obey, typed},
    remedies::halted,
    repair::wait_snapshot,
    rows::{each_once, insert, run},
};

const DETACH: &str = "alter table outbox.events detach partition outbox.events_default";
const BACK: &str = "alter table outbox.events attach partition outbox.events_default default";

/// A relay that has delivered ten events of the default partition.
async fn delivered() -> (Harness, Topic, Relay, Vec<String>) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().start().await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(insert(&t, &topic, "now()").await);
    }
    each_once(&topic, &all(&ids)).await;
    wait_snapshot(&t).await;
    (t, topic, relay, ids)
}

fn all(ids: &[String]) -> Vec<&String> {
    ids.iter().collect()
}

/// Inserts an event into the default partition itself.
fn insert_there(topic: &Topic, id: &str) -> String {
    format!(
        "insert into outbox.events_default (id, topic, key) values ('{id}', '{}', 'k')",
        topic.name()
    )
}

/// How the relay is while the partition is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum While {
    Runs,
    IsRestarted,
    IsAway,
    IsKilled,
}

/// Detaches and attaches it again, with `meanwhile` in between.
async fn goes_and_comes(t: &Harness, relay: &mut Relay, what: While, meanwhile: &str) {
    if what == While::IsAway {
        wait_snapshot(t).await;
        assert!(relay.sigterm().await.success());
    }
    run(t, DETACH).await;
    if what != While::IsAway {
        wait_snapshot(t).await;
    }
    if !meanwhile.is_empty() {
        run(t, meanwhile).await;
    }
    match what {
        While::Runs => {
            wait_snapshot(t).await;
            run(t, BACK).await;
        }
        While::IsRestarted => {
            wait_snapshot(t).await;
            assert!(relay.sigterm().await.success());
            relay.restart();
            relay.wait_ready().await;
            run(t, BACK).await;
        }
        While::IsAway => {
            run(t, BACK).await;
            relay.restart();
        }
        While::IsKilled => {
            wait_snapshot(t).await;
            relay.kill9().await;
            run(t, BACK).await;
            relay.restart();
        }
    }
}

/// As where somebody splits it, or takes it away by mistake.
#[tokio::test]
async fn a_partition_that_is_attached_again_costs_nothing() {
    for what in [While::Runs, While::IsRestarted, While::IsAway, While::IsKilled] {
        let (t, topic, mut relay, mut ids) = delivered().await;
        for _ in 0..2 {
            goes_and_comes(&t, &mut relay, what, "").await;
            ids.push(insert(&t, &topic, "now()").await);
            topic.records_with([ids[ids.len() - 1].clone()]).await;
        }
        wait_snapshot(&t).await;
        each_once(&topic, &all(&ids)).await;
        for trouble in ["halted", "making a new slot", "are not published"] {
            assert!(!relay.logs_contain(trouble), "{what:?}: {}", relay.log_text());
        }
    }
}

/// A relay that has streamed all the time knows which they are.
#[tokio::test]
async fn what_was_inserted_meanwhile_arrives() {
    let (t, topic, mut relay, mut ids) = delivered().await;
    goes_and_comes(&t, &mut relay, While::Runs, &insert_there(&topic, ID)).await;
    ids.push(ID.to_owned());
    each_once(&topic, &all(&ids)).await;
    assert!(!relay.logs_contain("halted"), "{}", relay.log_text());
}

/// One that was restarted asks about these alone.
#[tokio::test]
async fn what_was_inserted_while_the_relay_was_restarted_is_asked_about() {
    for what in [While::IsRestarted, While::IsKilled] {
        let (t, topic, mut relay, mut ids) = delivered().await;
        goes_and_comes(&t, &mut relay, what, &insert_there(&topic, ID)).await;
        ids.push(ID.to_owned());
        let detail = halted(&relay).await;
        assert!(detail.contains("(1 row)"), "{what:?}: {detail}");
        obey(&t, typed(&detail, "with rows as")).await;
        each_once(&topic, &all(&ids)).await;
        ids.push(insert(&t, &topic, "now()").await);
        each_once(&topic, &all(&ids)).await;
    }
}

/// No look has seen it away.
#[tokio::test]
async fn what_is_inserted_into_a_partition_between_two_looks_arrives() {
    let (t, topic, relay, mut ids) = delivered().await;
    run(&t, &format!("begin; {DETACH}; {}; {BACK}; commit", insert_there(&topic, ID))).await;
    ids.push(ID.to_owned());
    let detail = halted(&relay).await;
    assert!(detail.contains("(1 row)"), "{detail}");
    obey(&t, typed(&detail, "with rows as")).await;
    each_once(&topic, &all(&ids)).await;
}

/// A table is filled, and attached some looks later: the relay that streamed all the time knows that it never had the rows.
#[tokio::test]
async fn what_was_inserted_while_the_relay_streamed_is_told_however_much_later_it_is_attached() {
    let (t, topic, relay, mut ids) = delivered().await;
    run(&t, &format!("{TABLE}; {}", insert_old(&topic, ID))).await;
    for _ in 0..2 {
        ids.push(insert(&t, &topic, "now()").await);
        wait_snapshot(&t).await;
    }
    run(&t, ATTACH).await;
    ids.push(ID.to_owned());
    each_once(&topic, &all(&ids)).await;
    assert!(!relay.logs_contain("halted"), "{}", relay.log_text());
}

/// A relay that was killed before it stored a snapshot again does not know whether it has published them.
#[tokio::test]
async fn rows_that_are_taken_for_published_after_a_kill_are_told_and_arrive_as_the_log_says() {
    let (t, topic, mut relay, mut ids) = delivered().await;
    run(&t, TABLE).await;
    let mut open = t.database().connect(Role::Writer).await;
    let grant = "grant insert on outbox.events_old to public";
    run(&t, grant).await;
    let open = open.transaction().await.expect("a transaction");
    open.batch_execute(&insert_old(&topic, ID)).await.expect("inserted");
    wait_snapshot(&t).await;
    // The looks wait from here on, and events flow.
    let pool = t.database().pool(Role::Writer, 1);
    let writer = pool.get().await.expect("a session");
    let write = |id: &str| {
        let topic = topic.name();
        format!("insert into outbox.events (id, topic, key) values ('{id}', '{topic}', 'k')")
    };
    let late = ["0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a01", "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a02"];
    writer.batch_execute(&write(late[0])).await.expect("written");
    let locked = "begin; lock table pg_catalog.pg_publication in access exclusive mode";
    t.database().superuser().batch_execute(locked).await.expect("locked");
    writer.batch_execute(&write(late[1])).await.expect("written");
    ids.extend(late.map(str::to_owned));
    topic.records_with(late.map(str::to_owned)).await;
    relay.kill9().await;
    t.database().superuser().batch_execute("commit").await.expect("unlocked");
    open.commit().await.expect("committed");
    run(&t, "update outbox.events_old set headers = '{\"a\": \"b\"}'").await;
    run(&t, ATTACH).await;
    relay.restart();
    let said = "rows of a partition that was attached are not published";
    wait::until("it is told", wait::PATIENCE, || async {
        relay.logs_contain(said).then_some(()).ok_or("not yet")
    })
    .await
    .expect("in the log");
    let log = relay.log_text();
    let line = log.lines().find(|line| line.contains(said)).expect("a line").to_owned();
    assert!(line.contains("1 row") && line.contains("taken for published"), "{line}");
    each_once(&topic, &all(&ids)).await;
    obey(&t, typed(&line, "with rows as")).await;
    ids.push(ID.to_owned());
    each_once(&topic, &all(&ids)).await;
}
