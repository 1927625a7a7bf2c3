//! A limit on the WAL that the server keeps: it invalidates a slot, also without a failover.

use outbox_harness::{Harness, postgres::Postgres, servers};

use super::plan;
use crate::repair::{limit_wal, lose_wal, wait_snapshot};

#[tokio::test]
async fn a_slot_that_a_limit_on_wal_has_invalidated_is_repaired() {
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(4).await;
    let mut relay = t.relay().start().await;
    t.load(&plan(&topic)).await.finish().await;
    t.count(&topic, 4).await.assert_exactly_once();
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    limit_wal(&t).await;
    t.load(&plan(&topic)).await.finish().await;
    lose_wal(&t).await;
    relay.restart();
    relay.wait_ready().await;
    t.load(&plan(&topic)).await.finish().await;
    t.count(&topic, 4).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
}
