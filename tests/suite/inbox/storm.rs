//! A rebalance storm, short; `outbox-bench storm` is the long one.

use std::time::Duration;

use outbox_harness::{
    Harness, host,
    storm::{self, Plan},
};

#[tokio::test]
async fn members_that_come_and_go_all_the_time_lose_double_and_reorder_nothing() {
    let seed = match std::env::var("OUTBOX_STORM_SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => rand::random(),
    };
    host::report(&format!("OUTBOX_STORM_SEED={seed}"));
    let t = Harness::start().await;
    let _relay = t.relay().start().await;
    let plan = Plan { seed, duration: Duration::from_secs(20), program: None };
    for outcome in storm::run(&t, &plan).await {
        host::report(&format!("{outcome:?}"));
        outcome.effects.assert_effectively_once();
        // Each change is one rebalance at least, but for those that come too soon after another.
        assert!(outcome.assignments >= 5, "hardly a storm: {outcome:?}");
    }
}
