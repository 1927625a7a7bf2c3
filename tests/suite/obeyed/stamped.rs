//! Rows whose column `xid` had another default for a while, so that they look moved.

use outbox_harness::event::Event;

use super::{obey, one_published_and_stopped, says, typed};
use crate::repair::{drop_slot, repeated};

/// What came before went through a repair, so no event of the stream says how far publishing has come.
#[tokio::test]
async fn after_a_repair_rows_that_look_moved_get_out_through_the_table_as_the_halt_says() {
    for rows_kept in ["true", "false"] {
        let (mut t, topic, _) = one_published_and_stopped().await;
        drop_slot(&t).await;
        t.commit([Event::to(topic.name()).key("k")]).await;
        let settings = t.relay().set_toml("outbox.rows_kept", rows_kept);
        let mut relay = settings.clone().start().await;
        t.count(&topic, 1).await.assert_exactly_once();
        assert!(relay.sigterm().await.success());
        obey(&t, "alter table outbox.events alter column xid set default '5'::xid8").await;
        t.commit((0..2).map(|_| Event::to(topic.name()).key("k"))).await;
        let back = "alter table outbox.events alter column xid set default pg_current_xact_id()";
        obey(&t, back).await;
        relay.restart();
        let detail = says(&relay, "can't be told from moved ones").await;

        // What leaves them out says so, and what publishes them.
        for at in ["progress", "now"] {
            let refused = settings.command(&["resume", "--at", at]).await;
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success(), "{said}");
            for words in ["2 rows more that were created later", "resume --at table"] {
                assert!(said.contains(words), "{rows_kept}: {words:?} is not in: {said}");
            }
        }
        let table = format!("{} --yes", typed(&detail, "resume --at table"));
        obey(&t, &table).await;
        relay.wait_ready().await;
        t.commit([Event::to(topic.name()).key("k")]).await;
        t.count(&topic, 1).await.assert_at_least_once();
        repeated(&topic.records().await);
    }
}

/// Where the first row that it publishes was committed is not known, and the place of the command is not it.
#[tokio::test]
async fn a_halt_after_a_decision_for_the_table_names_no_place_and_the_decision_may_be_typed_again()
{
    let (mut t, topic, mut relay) = one_published_and_stopped().await;
    obey(&t, "alter table outbox.events alter column xid set default '5'::xid8").await;
    t.commit((0..2).map(|_| Event::to(topic.name()).key("k"))).await;
    let back = "alter table outbox.events alter column xid set default pg_current_xact_id(); \
                drop trigger outbox_gone on outbox.events";
    obey(&t, back).await;
    relay.restart();
    let detail = says(&relay, "can't be told from moved ones").await;
    let table = format!("{} --yes", typed(&detail, "resume --at table"));
    obey(&t, &table).await;
    let detail = says(&relay, "are to come from the tables").await;
    let interval = "committed between the first event that `resume --at table` named and now";
    assert!(detail.contains(interval), "{detail}");
    obey(&t, &table).await;
    let detail = says(&relay, interval).await;
    assert!(detail.contains("set outbox.rows_kept = true"), "{detail}");
    assert!(relay.sigterm().await.success());
    let _relay = t.relay().set_toml("outbox.rows_kept", "true").start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_at_least_once();
    repeated(&topic.records().await);
}
