//! Statements that wait for a lock, and keep others out meanwhile.

use outbox_harness::{Harness, database::Role, wait};
use tokio::task::JoinHandle;
use tokio_postgres::Error;

use super::{DEADLINE, each_once, insert};
use crate::{dead_letters::wait_parked, obeyed::typed, rows::run};

/// A statement that waits for the table alone keeps everyone out who comes later.
#[tokio::test]
async fn a_change_of_the_table_that_waits_for_a_writer_is_named_to_a_start() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let writer = t.database().connect(Role::Writer).await;
    writer.batch_execute("begin; select outbox.publish('orders', '1')").await.expect("written");
    let owner = t.database().connect(Role::Owner).await;
    let change = tokio::spawn(async move {
        owner.batch_execute("alter table outbox.events add column later int").await
    });
    let waits =
        "select count(*) from pg_locks where not granted and relation = 'outbox.events'::regclass";
    wait::until("the change waits for the writer", DEADLINE, || async {
        let row = writer.query_one(waits, &[]).await.expect("a count");
        (row.get::<_, i64>(0) == 1).then_some(()).ok_or("not yet")
    })
    .await
    .expect("in line");
    relay.kill9().await;
    relay.restart();
    relay.wait_log("waits to lock outbox.events").await;
    let pid = "select pg_backend_pid()";
    let pid: i32 = writer.query_one(pid, &[]).await.expect("a number").get(0);
    assert!(relay.logs_contain(&format!("it waits for process {pid}")), "{}", relay.log_text());
    writer.batch_execute("rollback").await.expect("rolled back");
    change.await.expect("no panic").expect("it is changed");
    relay.wait_ready().await;
    let later = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&later]).await;
}

/// A writer's session that runs a statement which waits for a lock on `relation`.
async fn waiting(t: &Harness, statement: &str, relation: &str) -> JoinHandle<Result<(), Error>> {
    let session = t.database().connect(Role::Writer).await;
    let pid = "select pg_backend_pid()";
    let pid: i32 = session.query_one(pid, &[]).await.expect("a number").get(0);
    let statement = statement.to_owned();
    let waiting = tokio::spawn(async move { session.batch_execute(&statement).await });
    let waits = format!(
        "select count(*) from pg_locks where not granted and pid = {pid} and relation = '{relation}'::regclass"
    );
    wait::until("it waits", DEADLINE, || async {
        let row = t.database().superuser().query_one(&waits, &[]).await.expect("a count");
        (row.get::<_, i64>(0) == 1).then_some(()).ok_or("not yet")
    })
    .await
    .expect("in line");
    waiting
}

/// PostgreSQL takes the lock before it sees that a writer may not make a trigger.
#[tokio::test]
async fn a_trigger_that_a_writer_may_not_make_holds_up_other_writers_and_check_says_who_it_is() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let open = t.database().connect(Role::Writer).await;
    open.batch_execute("begin; select outbox.publish('orders', '1')").await.expect("written");
    let trigger = "create trigger t before insert on outbox.events for each row \
                   execute function suppress_redundant_updates_trigger()";
    let stranger = waiting(&t, trigger, "outbox.events").await;
    let said = wait::until("check says it", DEADLINE, || async {
        let output = t.relay().command(&["check"]).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.contains("waits to lock outbox.events") { Ok(said) } else { Err(said) }
    });
    run(&t, typed(&said.await.expect("named"), "select pg_terminate_backend")).await;
    assert!(stranger.await.expect("no panic").is_err(), "it was ended");
    let id = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&id]).await;
    relay.wait_for("/readyz", 200).await;
}

/// As above, with a lock on the relay's table for as long as another is waited for.
#[tokio::test]
async fn a_lock_that_a_writer_has_no_right_to_keeps_events_from_being_parked_and_is_named() {
    const OF_NO_ONE: &str = "information_schema.sql_features";
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let open = t.database().connect(Role::Writer).await;
    let read = format!("begin; select from {OF_NO_ONE} limit 1");
    open.batch_execute(&read).await.expect("anyone may read it");
    let alter = format!("alter materialized view {OF_NO_ONE} depends on extension plpgsql");
    let first = waiting(&t, &alter, OF_NO_ONE).await;
    let trigger = format!(
        "create constraint trigger t after insert on outbox.dead_letters from {OF_NO_ONE} deferrable \
         for each row execute function suppress_redundant_updates_trigger()"
    );
    let second = waiting(&t, &trigger, OF_NO_ONE).await;
    let refused = "insert into outbox.events (topic, payload) values ('a b', '1')";
    run(&t, refused).await;
    relay.wait_for("/readyz", 503).await;
    relay.wait_log("holds outbox.dead_letters").await;
    let check = t.relay().command(&["check"]).await;
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.contains("holds outbox.dead_letters"), "{check}");
    run(&t, typed(&check, "select pg_terminate_backend")).await;
    assert!(second.await.expect("no panic").is_err(), "it was ended");
    wait_parked(&t, |parked| parked == 1).await;
    let id = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&id]).await;
    open.batch_execute("commit").await.expect("it ends");
    assert!(first.await.expect("no panic").is_err(), "the right is missing");
}

/// A catalog is anyone's to read, and to wait for a lock on.
#[tokio::test]
async fn a_catalog_that_somebody_waits_to_lock_is_named_by_relays_and_check_with_what_ends_it() {
    const CATALOG: &str = "pg_catalog.pg_publication_rel";
    const NAMED: &str = "waits to lock pg_publication_rel";
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let mut ids = vec![insert(&t, &topic, "now()").await];
    let open = t.database().connect(Role::Writer).await;
    open.batch_execute(&format!("begin; select from {CATALOG} limit 1")).await.expect("read");
    let alter = format!("alter materialized view {CATALOG} depends on extension plpgsql");
    let waits = waiting(&t, &alter, CATALOG).await;
    // A look that can't be taken ends no stream.
    relay.wait_log(NAMED).await;
    ids.push(insert(&t, &topic, "now()").await);
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
    relay.kill9().await;
    relay.restart();
    let page = wait::until("the start names it", DEADLINE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?.to_string();
        if status.contains(NAMED) { Ok(status) } else { Err(status) }
    });
    let page = page.await.expect("it waits");
    let check = t.relay().command(&["check"]).await;
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.contains(NAMED), "{check}");
    run(&t, typed(&page, "select pg_terminate_backend")).await;
    assert!(waits.await.expect("no panic").is_err(), "it was ended");
    relay.wait_ready().await;
    ids.push(insert(&t, &topic, "now()").await);
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
}
