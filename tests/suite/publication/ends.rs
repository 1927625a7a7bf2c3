//! The stream ends where its publication was missing.

use outbox_harness::event::Event;

use super::run;
use crate::{
    obeyed::{one_published, says},
    remedies::halted,
    repair::wait_snapshot,
};

/// The slot can't stream past where the publication was missing: a command that continues with what it has leads back here.
#[tokio::test]
async fn where_the_stream_ends_for_want_of_its_publication_no_command_leads_back_to_the_same_halt()
{
    let (mut t, topic, mut relay) = one_published().await;
    wait_snapshot(&t).await;
    relay.kill9().await;
    let event = || Event::to(topic.name()).key("k");
    t.commit((0..3).map(|_| event())).await;
    let superuser = t.database().superuser();
    superuser.batch_execute("delete from outbox.events").await.expect("deleted");
    t.commit((0..2).map(|_| event())).await;
    run(&t, "drop publication outbox").await;
    t.commit((0..2).map(|_| event())).await;
    run(
        &t,
        "create publication outbox for table outbox.events \
         with (publish = 'insert', publish_via_partition_root = true)",
    )
    .await;
    t.commit([event()]).await;
    relay.restart();
    let mut detail = halted(&relay).await;
    let mut typed_so_far = Vec::new();
    // Whoever types the command that leaves out least, again and again.
    while detail.contains("resume --at progress") {
        assert!(!typed_so_far.contains(&detail), "it leads back here: {detail}");
        let output = t.relay().command(&["resume", "--at", "progress", "--yes"]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        typed_so_far.push(detail);
        detail = says(&relay, "the publication was missing when they were written").await;
    }
    assert!(detail.contains("resume --at now"), "{detail}");
    assert!(relay.sigterm().await.success());
    let kept = t.relay().set_toml("outbox.rows_kept", "true");
    let mut relay = kept.start().await;
    t.commit([event()]).await;
    let count = t.count(&topic, 1).await;
    assert_eq!((count.lost, count.out_of_order), (0, 0), "{count}");
    assert!(relay.sigterm().await.success());
}
