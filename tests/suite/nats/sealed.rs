//! A stream that nothing can be stored in any more; one whose progress somebody has deleted; and one whose progress has
//! another key.

use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    nats::Stream,
    relay::{Relay, Settings},
    servers, wait,
};
use serde_json::json;

use super::{PARTITIONS, progress, stream, to, topic};
use crate::{checks::check, remedies::halted};

async fn publishes(t: &mut Harness, stream: &Stream) -> (Settings, Relay) {
    let settings = to(stream, t.relay());
    let relay = settings.clone().start().await;
    t.commit((0..5).map(|n| Event::to(&topic(t)).key(&format!("{n}"))).collect::<Vec<_>>()).await;
    super::all_arrive(t, stream).await;
    (settings, relay)
}

/// All that is committed is there; what was there before may be there once more, with its id.
async fn none_is_lost(t: &Harness, stream: &Stream, before: &[outbox_harness::topic::Record]) {
    let committed = t.committed().await;
    let filter = format!("{}.>", t.database().name());
    let arrived = wait::until("all arrive", wait::PATIENCE, || async {
        let mut records = before.to_vec();
        records.extend(stream.records(&filter).await);
        match outbox_harness::check::compare(&committed, &records, PARTITIONS) {
            count if count.lost == 0 => Ok(count),
            count => Err(count.to_string()),
        }
    });
    arrived.await.expect("they do").assert_at_least_once();
}

async fn resumed(settings: &Settings, at: &str) {
    let resumed = settings.command(&["resume", "--at", at, "--yes"]).await;
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
}

#[tokio::test]
async fn a_sealed_stream_is_made_anew_as_the_halts_say_and_nothing_is_lost() {
    let mut t = Harness::start().await;
    let first = stream(&t, servers::nats().await, &json!({})).await;
    let (settings, mut relay) = publishes(&mut t, &first).await;
    first.change(&json!({ "sealed": true })).await;
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    let said = halted(&relay).await;
    assert!(said.contains("it is sealed"), "{said}");
    assert!(said.contains(&format!("`nats stream rm {}`", first.name())), "{said}");
    let findings = check(&settings).await;
    assert!(findings.iter().any(|it| it.remedy.contains("nats stream rm")), "{findings:#?}");
    // As consumers have read it.
    let read = first.records(&format!("{}.>", t.database().name())).await;
    first.remove().await;
    let second = stream(&t, servers::nats().await, &json!({})).await;
    relay.wait_log("resume --at slot").await;
    resumed(&settings, "slot").await;
    relay.wait_ready().await;
    none_is_lost(&t, &second, &read).await;
}

#[tokio::test]
async fn progress_that_somebody_has_deleted_is_missed_and_what_the_halt_says_loses_nothing() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({})).await;
    let (settings, mut relay) = publishes(&mut t, &stream).await;
    let read = stream.records(&format!("{}.>", t.database().name())).await;
    stream.delete_newest(&progress(&t)).await;
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    relay.wait_log("resume --at slot").await;
    resumed(&settings, "slot").await;
    relay.wait_ready().await;
    none_is_lost(&t, &stream, &read).await;
}

/// A start claims the subject before it decides what becomes of what it found there; and it may halt in between.
#[tokio::test]
async fn progress_under_another_key_is_there_after_starts_that_halted() {
    let mut t = Harness::start().await;
    let stream = stream(&t, servers::nats().await, &json!({})).await;
    let (settings, mut relay) = publishes(&mut t, &stream).await;
    let read = stream.records(&format!("{}.>", t.database().name())).await;
    assert!(relay.sigterm().await.success());
    let odd = "alter table outbox.events alter column xid set default '5'::xid8";
    let owner = t.database().connect(Role::Owner).await;
    owner.batch_execute(odd).await.expect("changed");
    t.commit((0..4).map(|n| Event::to(&topic(&t)).key(&format!("{n}"))).collect::<Vec<_>>()).await;
    let put_back = "alter table outbox.events alter column xid set default pg_current_xact_id(); \
                    truncate outbox.relay_keys";
    owner.batch_execute(put_back).await.expect("put back");
    t.commit([Event::to(&topic(&t)).key("a")]).await;
    for _ in 0..3 {
        relay.restart();
        let said = halted(&relay).await;
        assert!(said.contains("may lack rows"), "{said}");
        relay.kill9().await;
    }
    relay.restart();
    let said = halted(&relay).await;
    assert!(said.contains("may lack rows") && said.contains("resume --at table"), "{said}");
    resumed(&settings, "table").await;
    relay.wait_ready().await;
    none_is_lost(&t, &stream, &read).await;
}
