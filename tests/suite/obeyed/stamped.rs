//! Rows whose column `xid` had another default for a while, so that they look moved.

use outbox_harness::{Harness, event::Event, postgres::Postgres, servers};

use super::{obey, one_published_and_stopped, published, says, typed};
use crate::{
    checks,
    repair::{drop_slot, repeated, wait_snapshot},
};

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

/// As after a repair that no event followed, and a dump into another cluster: whose transactions its snapshots don't know.
#[tokio::test]
async fn where_nothing_says_what_is_published_the_whole_table_is_as_the_halt_says() {
    let ((first, _first), (second, _second), kafka) =
        tokio::join!(Postgres::private(), Postgres::private(), servers::kafka());
    let mut t = Harness::with(first, kafka).await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = published(&mut t, &topic, Event::to(topic.name()).key("k")).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let mut relay = t.relay().set_toml("outbox.rows_kept", "true").start().await;
    assert!(relay.sigterm().await.success());
    t.commit([Event::to(topic.name()).key("k")]).await;

    let mut other = Harness::with(second, kafka).await;
    let dump = "select jsonb_agg(to_jsonb(e))::text from outbox.events e";
    let rows: String = t.database().superuser().query_one(dump, &[]).await.expect("rows").get(0);
    let restore = "insert into outbox.events \
                   select * from jsonb_populate_recordset(null::outbox.events, $1::text::jsonb)";
    other.database().superuser().execute(restore, &[&rows]).await.expect("they are restored");
    other.commit([Event::to(topic.name()).key("k")]).await;
    let name = t.database().name();
    let settings = other.relay().set("name", name).set("postgres.slot", &format!("outbox_{name}"));
    let mut relay = settings.clone().set_toml("outbox.rows_kept", "true").spawn();
    let detail = says(&relay, "publish every event that the table has").await;
    let command = typed(&detail, "resume --at table").strip_prefix("outbox-relay ");
    let command: Vec<&str> = command.expect("a command").split(' ').collect();
    let asked = settings.command(&command).await;
    let asked = String::from_utf8_lossy(&asked.stderr).into_owned();
    let question = "Stored progress does not say which events are published. This publishes 3 rows";
    assert!(asked.contains(question), "{asked}");
    obey(&other, typed(&asked, "update outbox.events")).await;
    let resumed = settings.command(&[command, vec!["--yes"]].concat()).await;
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    relay.wait_ready().await;
    let ids = "select array_agg(id::text) from outbox.events";
    let ids: Vec<String> =
        other.database().superuser().query_one(ids, &[]).await.expect("ids").get(0);
    assert_eq!(ids.len(), 3);
    topic.records_with(ids).await;
    repeated(&topic.records().await);
}

/// A relay works with a wrong default of `xid`, and a repair could not tell what is published. The default was wrong before
/// its first start, or somebody has obeyed the halt and left the default as it was.
#[tokio::test]
async fn a_slot_that_is_lost_while_xid_has_another_default_is_repaired_as_the_halt_says() {
    const ODD: &str = "alter table outbox.events alter column xid set default '9'::xid8";
    for at_first in [true, false] {
        let mut t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let event = || Event::to(topic.name()).key("k");
        let settings = t.relay().set_toml("outbox.rows_kept", "true");
        if at_first {
            obey(&t, ODD).await;
        }
        let mut relay = settings.clone().start().await;
        t.commit([event()]).await;
        t.count(&topic, 1).await.assert_exactly_once();
        if !at_first {
            // A position inside a transaction would have `resume` send that again.
            wait_snapshot(&t).await;
            obey(&t, ODD).await;
            let words = "the default of the column xid of outbox.events was changed";
            let detail = says(&relay, words).await;
            obey(&t, &format!("{} --yes", typed(&detail, "resume --at progress"))).await;
            relay.wait_ready().await;
        }
        t.commit([event()]).await;
        t.count(&topic, 1).await.assert_at_least_once();
        wait_snapshot(&t).await;
        assert!(relay.sigterm().await.success());
        t.commit((0..4).map(|_| event())).await;
        drop_slot(&t).await;
        let said = checks::check(&settings).await;
        let is_said = |it: &checks::Finding| {
            it.verdict == "problem"
                && it.seen.contains("can't be told from those that are published")
        };
        assert!(said.iter().any(is_said), "{said:#?}");
        relay.restart();
        let detail = says(&relay, "xid of outbox.events is not pg_current_xact_id()").await;
        let table = typed(&detail, "outbox-relay resume");
        let arguments: Vec<&str> = table.split(' ').skip(1).collect();
        let refused = settings.command(&arguments).await;
        let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
        obey(&t, typed(&refused, "set default")).await;
        obey(&t, &format!("{table} --yes")).await;
        relay.wait_ready().await;
        t.count(&topic, 1).await.assert_at_least_once();
        repeated(&topic.records().await);
    }
}

/// Without stored progress a decision leaves no snapshot; and the slot can't pass a place where its publication was missing.
#[tokio::test]
async fn where_progress_and_publication_were_lost_the_first_command_of_each_halt_loses_nothing() {
    let (mut t, topic, mut relay) = one_published_and_stopped().await;
    let event = || Event::to(topic.name()).key("k");
    t.topic_named(&format!("outbox-relay-progress-{}", t.database().name())).delete().await;
    t.commit([event(), event()]).await;
    obey(&t, "drop publication outbox").await;
    t.commit((0..3).map(|_| event())).await;
    obey(
        &t,
        "create publication outbox for table outbox.events \
         with (publish = 'insert', publish_via_partition_root = true)",
    )
    .await;
    t.commit([event()]).await;
    relay.restart();
    let detail = says(&relay, "exists, confirmed up to").await;
    obey(&t, &format!("{} --yes", typed(&detail, "outbox-relay resume"))).await;
    let detail = says(&relay, "the publication was missing when they were written").await;
    let first = typed(&detail, "outbox-relay");
    assert!(first.contains("--at table") && !detail.contains("--at progress"), "{detail}");
    obey(&t, &format!("{first} --yes")).await;
    relay.wait_ready().await;
    t.commit([event()]).await;
    t.count(&topic, 1).await.assert_at_least_once();
    repeated(&topic.records().await);
}

/// Whoever only follows the halt is told of the cause, which is still there.
#[tokio::test]
async fn a_default_that_is_still_wrong_is_put_right_first_as_the_halt_says() {
    for default in ["5", "0"] {
        let (mut t, topic, mut relay) = one_published_and_stopped().await;
        let wrong =
            format!("alter table outbox.events alter column xid set default '{default}'::xid8");
        obey(&t, &wrong).await;
        t.commit((0..2).map(|_| Event::to(topic.name()).key("k"))).await;
        drop_slot(&t).await;
        relay.restart();
        let detail = says(&relay, "still has another default").await;
        obey(&t, typed(&detail, "alter table")).await;
        let table = format!("{} --yes", typed(&detail, "resume --at table"));
        if default == "0" {
            // No snapshot tells such rows from published ones.
            let refused = t.relay().command(&["resume", "--at", "table", "--yes"]).await;
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && said.contains("transaction id 0"), "{said}");
            obey(&t, typed(&said, "update outbox.events")).await;
        }
        obey(&t, &table).await;
        relay.wait_ready().await;
        t.commit([Event::to(topic.name()).key("k")]).await;
        t.count(&topic, 1).await.assert_at_least_once();
        repeated(&topic.records().await);
    }
}
