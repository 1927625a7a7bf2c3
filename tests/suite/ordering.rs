//! Commit order per key, under writers that meet.

use outbox_harness::{Harness, load::Plan};

#[tokio::test]
async fn concurrent_writers_keep_the_order_of_each_key_on_javas_partitions() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    let mut relay = t.relay().start().await;
    let plan =
        Plan { topic: topic.name().to_owned(), partitions: 8, writers: 12, transactions: 100 };
    let written = t.load(&plan).await.finish().await;
    let count = t.count(&topic, 8).await;
    count.assert_exactly_once();
    assert_eq!(count.committed as u64, written);
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn small_batches_keep_the_order_too() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(3).await;
    let _relay = t.relay().set_toml("batch.records_max", "3").start().await;
    let plan = Plan { topic: topic.name().to_owned(), partitions: 3, writers: 6, transactions: 30 };
    t.load(&plan).await.finish().await;
    t.count(&topic, 3).await.assert_exactly_once();
}
