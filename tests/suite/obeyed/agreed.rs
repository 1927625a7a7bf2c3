//! What a person has agreed to is what is left out.

use outbox_harness::{event::Event, wait};

use super::{obey, one_published, says, typed};
use crate::repair::wait_snapshot;

const ADVANCE: &str = "select pg_replication_slot_advance('{slot}', pg_current_wal_lsn())";

/// The number is said, somebody agrees, and before that is written down the slot is moved once more.
#[tokio::test]
async fn a_slot_that_moves_after_a_person_has_agreed_leaves_out_nothing_more() {
    let (mut t, topic, mut relay) = one_published().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    let advance = ADVANCE.replace("{slot}", &format!("outbox_{}", t.database().name()));
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    obey(&t, &advance).await;

    let holds = t.database().connect(outbox_harness::database::Role::Owner).await;
    holds
        .batch_execute("begin; lock table outbox.leaders in share row exclusive mode")
        .await
        .expect("held");
    let settings = t.relay();
    let resumed =
        tokio::spawn(async move { settings.command(&["resume", "--at", "slot", "--yes"]).await });
    wait::until("it has asked, and waits", wait::PATIENCE, || async {
        let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' \
                     and datname = current_database() and application_name like '%resume%'";
        let row = t.database().superuser().query_one(waits, &[]).await?;
        anyhow::ensure!(row.get::<_, i64>(0) == 1, "it does not wait yet");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .expect("it waits for the lock");
    t.commit((0..2).map(|_| Event::to(topic.name()).key("k"))).await;
    obey(&t, &advance).await;
    holds.batch_execute("rollback").await.expect("free");
    let resumed = resumed.await.expect("no panic");
    let said = String::from_utf8_lossy(&resumed.stderr).into_owned();
    assert!(!resumed.status.success(), "{said}");
    for words in ["at most 3 rows", "has moved the slot meanwhile", "Nothing was changed"] {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }

    relay.restart();
    let detail = says(&relay, "somebody moved the slot").await;
    obey(&t, typed(&detail, "pg_drop_replication_slot")).await;
    relay.wait_ready().await;
    let count = t.count(&topic, 1).await;
    assert_eq!((count.committed, count.lost, count.duplicated), (6, 0, 0), "{count}");
}
