//! The table of parked events is dropped, and with it the only place where they were parked.

use outbox_harness::{Harness, database::Role, event::Event, relay::Relay, wait};

use crate::{
    dead_letters::wait_parked,
    obeyed::{obey, typed},
    remedies::halted,
};

/// Whoever obeys the halt and then what the relay says of the parked events has each of them once.
#[tokio::test]
async fn events_that_were_parked_in_a_table_that_is_dropped_are_named_and_can_be_sent_again() {
    let mut t = Harness::start().await;
    let orders = t.topic("orders").create(1).await;
    let missing = t.topic("missing");
    let settings = t.relay().set("sink.topic_grace", "100ms");
    let mut relay = settings.start().await;
    t.commit((0..3).map(|n| Event::to(missing.name()).key(if n < 2 { "a" } else { "b" }))).await;
    wait_parked(&t, |parked| parked == 3).await;
    let told = wait::until("they are counted", wait::PATIENCE, || async {
        let status = relay.try_status().await?;
        let count = |name: &str| status.get(name).and_then(serde_json::Value::as_u64);
        anyhow::ensure!(count("parked_events") == Some(3), "{status}");
        Ok::<_, anyhow::Error>(count("parked_lanes"))
    });
    assert_eq!(told.await.expect("soon"), Some(2));
    let drop = "drop table outbox.dead_letters";
    t.database().superuser().batch_execute(drop).await.expect("dropped");
    let halt = halted(&relay).await;
    assert!(halt.contains("3 events of 2 lanes were parked in it"), "{halt}");
    for row in t.committed().await {
        assert!(halt.contains(&row.id), "{} is named in: {halt}", row.id);
    }
    obey(&t, typed(&halt, "outbox-relay migrate")).await;
    relay.wait_ready().await;

    relay.wait_log("parked events are lost to the relay").await;
    let page = relay.page("/readyz").await;
    assert!(page.starts_with("ok\nbut outbox.dead_letters was dropped"), "{page}");
    let again = typed(&page, "insert into outbox.events").to_owned();
    let writer = t.database().connect(Role::Writer).await;
    let select = format!(
        "grant select on outbox.events, outbox.dead_letters to {}",
        t.database().name_of(Role::Writer)
    );
    t.database().superuser().batch_execute(&select).await.expect("granted");
    assert_eq!(writer.execute(again.as_str(), &[]).await.expect("it can be typed"), 3);
    // Still refused, they are parked once more. Others of the same ids would look alike, so a person says that it is
    // dealt with.
    wait_parked(&t, |parked| parked == 4).await;
    let page = relay.page("/readyz").await;
    obey(&t, typed(&page, "outbox-relay dead-letters discard")).await;
    wait_parked(&t, |parked| parked == 3).await;
    wait::until("it is said no more", wait::PATIENCE, || relay.nothing_of_concern())
        .await
        .expect("it is dealt with");
    let missing = missing.create(1).await;
    let release = t.relay().command(&["dead-letters", "release", "--all"]).await;
    assert!(release.status.success(), "{}", String::from_utf8_lossy(&release.stderr));
    let ids: Vec<String> = t.committed().await.iter().map(|row| row.id.clone()).collect();
    let records = missing.records_with(ids).await;
    assert_eq!(records.len(), 3, "each once");

    // It is said once, also by the next process.
    t.commit([Event::to(orders.name())]).await;
    let last = t.committed().await.last().expect("one").id.clone();
    orders.records_with([last]).await;
    assert!(relay.sigterm().await.success());
    relay.restart();
    relay.wait_ready().await;
    assert_eq!(relay.page("/readyz").await, "ok\n");
}

/// Any writer may give an event the id of another's.
#[tokio::test]
async fn an_event_under_the_id_of_a_lost_one_does_not_hide_the_loss() {
    let mut t = Harness::start().await;
    let missing = t.topic("missing");
    let mut relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    t.commit((0..3).map(|_| Event::to(missing.name()).key("a"))).await;
    wait_counted(&relay, 3).await;
    relay.freeze();
    let superuser = t.database().superuser();
    let lost = "delete from outbox.dead_letters where id = (select max(id) from outbox.dead_letters) \
                returning event_id";
    let lost: String = superuser.query_one(lost, &[]).await.expect("a row").get(0);
    let writer = t.database().connect(Role::Writer).await;
    let again = format!(
        "insert into outbox.events (id, topic, key) values ('{lost}', '{}', 'b')",
        missing.name()
    );
    writer.batch_execute(&again).await.expect("no one forbids it");
    relay.thaw();
    relay.wait_log("parked events are lost to the relay").await;
    wait_counted(&relay, 3).await;
    // Nor does a further one take back what was said.
    writer.batch_execute(&again).await.expect("inserted");
    wait_counted(&relay, 4).await;
    let page = relay.page("/readyz").await;
    assert!(page.contains(&lost), "{page}");
    assert!(relay.sigterm().await.success());
}

/// Waits until the relay says how many events are parked.
async fn wait_counted(relay: &Relay, wanted: u64) {
    wait::until("they are counted", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        let parked = status.get("parked_events").and_then(serde_json::Value::as_u64);
        if parked == Some(wanted) { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .expect("soon");
}

/// What is back is not named, wherever it is in the table: to publish it again would double it.
#[tokio::test]
async fn of_a_table_that_is_put_back_in_part_only_what_it_lacks_is_named() {
    let mut t = Harness::start().await;
    let missing = t.topic("missing");
    let mut relay = t.relay().set("sink.topic_grace", "100ms").start().await;
    t.commit((0..30).map(|_| Event::to(missing.name()).key("a"))).await;
    wait_parked(&t, |parked| parked == 30).await;
    assert!(relay.sigterm().await.success());
    let superuser = t.database().superuser();
    let lost = "select event_id from outbox.dead_letters order by id desc limit 1";
    let lost: String = superuser.query_one(lost, &[]).await.expect("a row").get(0);
    // As from a dump: rows in another order, and without the last.
    let columns = "relay, system_id, commit_lsn, ordinal, event_id, lane, topic, key, partition, \
                   timestamp_ms, payload, headers, fit, reason, error, state, parked_at, changed_at";
    let taken = format!(
        "create table public.kept as select * from outbox.dead_letters where event_id <> '{lost}'; \
         drop table outbox.dead_letters"
    );
    superuser.batch_execute(&taken).await.expect("taken");
    obey(&t, "outbox-relay migrate").await;
    let put_back = format!(
        "insert into outbox.dead_letters ({columns}) select {columns} from public.kept order by id desc"
    );
    superuser.batch_execute(&put_back).await.expect("put back");
    relay.restart();
    relay.wait_log("parked events are lost to the relay").await;
    relay.wait_ready().await;
    let page = relay.page("/readyz").await;
    assert!(page.contains("again without 1 event of 1 lane"), "{page}");
    let again = typed(&page, "insert into outbox.events");
    let (_, named) = again.split_once(" in (").expect("ids");
    assert_eq!(named.split(')').next(), Some(format!("'{lost}'").as_str()), "{page}");
    // The next process says it too.
    assert!(relay.sigterm().await.success());
    relay.restart();
    relay.wait_log("parked events are lost to the relay").await;
    relay.wait_ready().await;
    let page = relay.page("/readyz").await;
    obey(&t, typed(&page, "insert into outbox.events")).await;
    wait_parked(&t, |parked| parked == 31).await;
    let page = relay.page("/readyz").await;
    obey(&t, typed(&page, "outbox-relay dead-letters discard")).await;
    wait_parked(&t, |parked| parked == 30).await;
    let missing = missing.create(1).await;
    // What was put back may have been released since the copy was made.
    let release = t.relay().command(&["dead-letters", "release", "--all", "--yes"]).await;
    assert!(release.status.success(), "{}", String::from_utf8_lossy(&release.stderr));
    let ids: Vec<String> = t.committed().await.iter().map(|row| row.id.clone()).collect();
    assert_eq!(missing.records_with(ids).await.len(), 30, "each once");
}
