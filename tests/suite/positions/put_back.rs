//! A volume that is put back while no relay looks: the new WAL, or the newest published event, tells it.

use outbox_harness::{
    Harness, database::Role, event::Event, postgres::Postgres, servers, topic::Topic, wait,
};
use outbox_relay::throwaway::LocalPostgres;

use super::{PARTITIONS, WAL_END};
use crate::{
    idle::{lsn, passes},
    remedies::{halted, obey},
    repair::wait_snapshot,
};

/// WAL that no event is in.
async fn write_foreign(t: &Harness) {
    let sql = "create table if not exists foreign_rows (text text); \
               insert into foreign_rows select repeat('x', 1000) from generate_series(1, 4000); \
               checkpoint";
    t.database().superuser().batch_execute(sql).await.expect("rows of others");
}

async fn is_past(t: &Harness, lsn: &str) -> bool {
    let sql = format!("select pg_current_wal_flush_lsn() > '{lsn}'");
    t.database().superuser().query_one(&sql, &[]).await.expect("compared").get(0)
}

/// All events that the database has are in the topic.
async fn wait_published(t: &Harness, topic: &Topic) {
    let truth = t.committed().await;
    wait::until("each committed event is published", wait::PATIENCE, || async {
        let records = topic.records().await;
        let ids: Vec<&str> =
            records.iter().filter_map(|record| record.header("outbox-id")).collect();
        let missing = truth.iter().filter(|row| !ids.contains(&row.id.as_str())).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) }
    })
    .await
    .expect("nothing is lost");
}

/// The volume is put back, and its new WAL passes the old one's end before a relay looks.
async fn put_back_unseen(server: &mut LocalPostgres, t: &mut Harness, topic: &Topic) {
    let old_end = put_back(server, t).await;
    write_past(t, topic, &old_end).await;
}

/// Where the WAL ended that is gone.
async fn put_back(server: &mut LocalPostgres, t: &mut Harness) -> String {
    let old_end = lsn(t, WAL_END).await;
    server.put_back().expect("the backup is put back");
    t.reconnect().await;
    old_end
}

async fn write_past(t: &mut Harness, topic: &Topic, old_end: &str) {
    for _ in 0..3 {
        t.commit([Event::to(topic.name()).key("between")]).await;
    }
    while !is_past(t, old_end).await {
        write_foreign(t).await;
    }
}

#[tokio::test]
async fn a_rollback_that_nobody_saw_is_known_by_the_commits_of_the_new_wal() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(PARTITIONS).await;
    let settings = t.relay();
    let mut relay = settings.clone().start().await;
    t.commit([Event::to(topic.name()).key("first")]).await;
    wait_published(&t, &topic).await;

    // Its newest delivered commit is not in the volume that is put back; or there is none since.
    for (n, lost) in [3, 0].into_iter().enumerate() {
        server.back_up().expect("a backup");
        t.reconnect().await;
        relay.wait_ready().await;
        write_foreign(&t).await;
        for _ in 0..lost {
            t.commit([Event::to(topic.name()).key("lost")]).await;
        }
        let end = lsn(&t, WAL_END).await;
        passes(&t, "confirmed_flush_lsn", &end).await;
        assert!(relay.sigterm().await.success());
        put_back_unseen(&mut server, &mut t, &topic).await;
        relay.restart();
        let detail = halted(&relay).await;
        assert!(detail.contains("volume was put back to an older state"), "{n}: {detail}");
        // It is remembered.
        relay.kill9().await;
        relay.restart();
        let detail = halted(&relay).await;
        let other = settings.command(&["resume", "--at", "progress", "--yes"]).await;
        let said = String::from_utf8_lossy(&other.stderr).into_owned();
        assert!(!other.status.success() && said.contains("rolled back"), "{said}");
        obey(&settings, &detail, 0).await;
        relay.wait_ready().await;
        wait_published(&t, &topic).await;
    }
    assert!(relay.sigterm().await.success());
}

/// For a changed publication the slot is replaced, and could tell no more.
#[tokio::test]
async fn a_rollback_is_seen_before_a_changed_publication_has_the_slot_replaced() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(PARTITIONS).await;
    let settings = t.relay();
    let mut relay = settings.clone().start().await;
    t.commit([Event::to(topic.name()).key("first")]).await;
    wait_published(&t, &topic).await;
    server.back_up().expect("a backup");
    t.reconnect().await;
    relay.wait_ready().await;
    let changed = "alter publication outbox set (publish = 'insert')";
    t.database().superuser().batch_execute(changed).await.expect("another row");
    for _ in 0..4 {
        t.commit([Event::to(topic.name()).key("lost")]).await;
        wait_published(&t, &topic).await;
    }
    commit_foreign(&t).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    put_back_unseen(&mut server, &mut t, &topic).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("volume was put back to an older state"), "{detail}");
    obey(&settings, &detail, 0).await;
    relay.wait_ready().await;
    wait_published(&t, &topic).await;
    assert!(relay.sigterm().await.success());
}

/// Transactions without events.
async fn commit_foreign(t: &Harness) {
    for _ in 0..20 {
        let sql = "select pg_current_xact_id()";
        t.database().superuser().query_one(sql, &[]).await.expect("a transaction");
    }
}

#[tokio::test]
async fn a_copy_without_slots_that_was_put_back_unseen_is_known_by_the_newest_published_event() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(PARTITIONS).await;
    let settings = t.relay();
    let mut relay = settings.clone().start().await;
    t.commit([Event::to(topic.name()).key("first")]).await;
    wait_published(&t, &topic).await;

    // Only other transactions are lost: whatever comes under their ids is published.
    server.back_up_without_slots().expect("a backup");
    commit_foreign(&t).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    let before = topic.records().await.len();
    put_back_unseen(&mut server, &mut t, &topic).await;
    relay.restart();
    relay.wait_ready().await;
    wait_published(&t, &topic).await;
    let repeated = topic.records().await.len() - before - 3;
    assert_eq!(repeated, 0, "what was published before the copy is known");

    // Its newest published event is lost.
    t.commit([Event::to(topic.name()).key("second")]).await;
    wait_published(&t, &topic).await;
    server.back_up_without_slots().expect("a backup");
    for _ in 0..3 {
        t.commit([Event::to(topic.name()).key("lost")]).await;
    }
    commit_foreign(&t).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    let old_end = put_back(&mut server, &mut t).await;
    // Open when somebody decides, and begun before all that can be seen by then.
    let open = t.database().connect(Role::Writer).await;
    let sql = format!("begin; select outbox.publish('{}', '{{}}', 'open')", topic.name());
    open.batch_execute(&sql).await.expect("an event");
    write_past(&mut t, &topic, &old_end).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("volume was put back to an older state"), "{detail}");
    // And once more, where the relay does not know it from before.
    relay.kill9().await;
    relay.restart();
    let detail = halted(&relay).await;
    obey(&settings, &detail, 0).await;
    open.batch_execute("commit").await.expect("a commit");
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("after")]).await;
    wait_published(&t, &topic).await;
    assert!(relay.sigterm().await.success());
}
