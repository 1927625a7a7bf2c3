//! Statements that wait for a lock, and keep others out meanwhile.

use outbox_harness::{Harness, database::Role, wait};

use super::{DEADLINE, each_once, insert};

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
