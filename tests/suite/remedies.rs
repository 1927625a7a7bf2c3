//! Halts whose remedy is obeyed to the letter: the events are counted.

use outbox_harness::{
    Harness,
    event::Event,
    load::Plan,
    postgres::Postgres,
    relay::{Relay, Settings},
    servers,
    topic::Topic,
    wait,
};
use serde_json::Value;

use crate::{
    obeyed::{one_published, published},
    repair::{drop_slot, wait_snapshot},
};

pub(crate) fn plan(topic: &Topic) -> Plan {
    Plan { topic: topic.name().to_owned(), partitions: 2, writers: 3, transactions: 10 }
}

/// What a relay that needs a person says.
pub(crate) async fn halted(relay: &Relay) -> String {
    let status = wait::until("it halts", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        let text = |name| status.get(name).and_then(Value::as_str).unwrap_or_default();
        match text("phase") {
            "halted" => Ok(text("detail").to_owned()),
            _ => Err(status.to_string()),
        }
    });
    status.await.expect("a person must decide")
}

/// Runs the `n`-th command that a halt names, as it is printed.
pub(crate) async fn obey(settings: &Settings, detail: &str, n: usize) {
    let commands: Vec<&str> =
        detail.split('`').filter_map(|part| part.strip_prefix("outbox-relay ")).collect();
    let command = commands.get(n).unwrap_or_else(|| panic!("{n} of the commands: {detail}"));
    // A person says yes to what the command leaves out; where nothing is asked, it means nothing.
    let arguments: Vec<&str> = command.split(' ').chain(["--yes"]).collect();
    let output = settings.command(&arguments).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// It has another system identifier, and neither the slot nor what was not delivered of it.
#[tokio::test]
async fn a_cluster_that_pg_upgrade_made_goes_on_as_the_halt_says_and_loses_nothing() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    t.load(&plan(&topic)).await.finish().await;
    t.count(&topic, 2).await.assert_exactly_once();
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    t.load(&plan(&topic)).await.finish().await;
    // What it has left would be lost; from 17 on `pg_upgrade` refuses it.
    drop_slot(&t).await;

    let (upgraded, _server) = Postgres::upgrade(&mut server).await;
    t.fail_over(upgraded).await;
    t.load(&plan(&topic)).await.finish().await;
    let mut relay = t.relay().spawn();
    let detail = halted(&relay).await;
    assert!(detail.contains("resume --at upgrade"), "{detail}");
    let output = t.relay().command(&["resume", "--at", "upgrade"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("after")]).await;
    t.count(&topic, 2).await.assert_exactly_once();
}

/// From 17 on the new cluster has the slot, if all of it was confirmed: what is committed afterwards is streamed,
/// and the table is not read.
#[tokio::test]
#[ignore = "needs pg_upgrade of 17 or later, which OUTBOX_TEST_POSTGRES_18_BIN names: `just long` runs it"]
async fn a_cluster_that_pg_upgrade_made_with_its_slot_goes_on_where_the_slot_is() {
    let programs = Postgres::programs_that_keep_slots();
    let programs = programs.expect("OUTBOX_TEST_POSTGRES_18_BIN names a directory with pg_upgrade");
    let ((postgres, mut server), kafka) =
        tokio::join!(Postgres::private_of(&programs), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    t.load(&plan(&topic)).await.finish().await;
    t.count(&topic, 2).await.assert_exactly_once();
    wait_snapshot(&t).await;
    let end = "select pg_current_wal_lsn()::text";
    let end: String = t.database().superuser().query_one(end, &[]).await.expect("an LSN").get(0);
    let confirmed =
        "select bool_and(confirmed_flush_lsn >= $1::text::pg_lsn) from pg_replication_slots";
    wait::until("all is confirmed", wait::PATIENCE, || async {
        let row = t.database().superuser().query_one(confirmed, &[&end]).await;
        match row.map(|row| row.get::<_, Option<bool>>(0)) {
            Ok(Some(true)) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await
    .expect("no one writes");
    assert!(relay.sigterm().await.success());

    let (upgraded, _server) = Postgres::upgrade(&mut server).await;
    t.fail_over(upgraded).await;
    let slots = "select count(*) from pg_replication_slots";
    let row = t.database().superuser().query_one(slots, &[]).await.expect("a count");
    assert_eq!(row.get::<_, i64>(0), 1, "it has the slot");
    t.load(&plan(&topic)).await.finish().await;
    let mut relay = t.relay().spawn();
    let detail = halted(&relay).await;
    obey(&t.relay(), &detail, 0).await;
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("after")]).await;
    t.count(&topic, 2).await.assert_exactly_once();
    let records = topic.records().await;
    assert!(!records.iter().any(|record| record.header("outbox-repaired").is_some()));
}

/// A cluster of its own knows nothing of the other's transactions.
#[tokio::test]
async fn a_cluster_that_pg_upgrade_did_not_make_is_not_taken_for_one() {
    let ((postgres, _first), (second, _second), kafka) =
        tokio::join!(Postgres::private(), Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    t.database().superuser().batch_execute("do $$ begin for n in 1..5000 loop perform pg_current_xact_id(); commit; end loop; end $$").await.expect("ids");
    t.load(&plan(&topic)).await.finish().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    let other = Harness::with(second, kafka).await;
    let name = t.database().name();
    let settings = other.relay().set("name", name).set("postgres.slot", &format!("outbox_{name}"));
    let output = settings.command(&["resume", "--at", "upgrade"]).await;
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("was not made by pg_upgrade"), "{words}");
}

/// Of the commands that a halt names, and of those that it does not, somebody types the wrong one first.
#[tokio::test]
async fn decisions_that_do_not_fit_are_refused_and_change_nothing() {
    let (mut t, topic, mut relay) = one_published().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let slot = format!("outbox_{}", t.database().name());
    let move_it = format!("select pg_replication_slot_advance('{slot}', pg_current_wal_lsn())");
    t.database().superuser().batch_execute(&move_it).await.expect("somebody moves the slot");
    for at in ["upgrade", "progress"] {
        let words = refused(&t, &["resume", "--at", at, "--yes"]).await;
        assert!(words.contains("nothing is changed"), "{words}");
    }
    relay.restart();
    let detail = halted(&relay).await;
    let drop_it = detail.split('`').find(|it| it.contains("pg_drop_replication_slot"));
    t.database().superuser().batch_execute(drop_it.expect(&detail)).await.expect("it is dropped");
    relay.wait_ready().await;
    let count = t.count(&topic, 1).await;
    assert_eq!((count.committed, count.lost, count.duplicated), (4, 0, 0), "{count}");
}

async fn refused(t: &Harness, arguments: &[&str]) -> String {
    let output = t.relay().command(arguments).await;
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn resume_says_how_many_events_it_leaves_out_and_changes_nothing_unasked() {
    let (mut t, topic, mut relay) = one_published().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let words = refused(&t, &["resume", "--at", "now"]).await;
    for word in ["leaves out what is committed by now", "at most 3 rows", "give --yes"] {
        assert!(words.contains(word), "{word:?} is not in: {words}");
    }
    // Somebody moves the slot, and the relay halts.
    let moved = "select pg_replication_slot_advance($1, pg_current_wal_insert_lsn())";
    let slot = format!("outbox_{}", t.database().name());
    t.database().superuser().query_one(moved, &[&slot]).await.expect("it is moved");
    relay.restart();
    assert!(halted(&relay).await.contains("resume --at slot"));
    let words = refused(&t, &["resume", "--at", "slot"]).await;
    assert!(words.contains("at most 3 rows"), "{words}");
    drop_slot(&t).await;
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_exactly_once();
    // Nothing is left to leave out, and nothing is asked.
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    let output = t.relay().command(&["resume", "--at", "now"]).await;
    assert!(output.status.success(), "{output:?}");
}

/// The command is killed when its decision is stored and the slot is still there.
#[tokio::test]
async fn what_a_decision_leaves_out_stays_left_out_however_the_command_ends() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = published(&mut t, &topic, Event::to(topic.name()).key("first")).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    t.commit((0..3).map(|_| Event::to(topic.name()).key("left out"))).await;
    let command = t.relay().fault("decision-stored");
    let output = command.command(&["resume", "--at", "now", "--yes"]).await;
    assert!(!output.status.success(), "{output:?}");
    assert!(drop_is_due(&t).await, "the slot is still there");
    relay.restart();
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("last")]).await;
    wait::until("the last one arrives", wait::PATIENCE, || async {
        match topic.records().await.len() {
            2 => Ok(()),
            found => Err(found),
        }
    })
    .await
    .expect("and none of those that were left out");
}

async fn drop_is_due(t: &Harness) -> bool {
    let sql = "select exists (select from pg_replication_slots where slot_name = $1::text)";
    let slot = format!("outbox_{}", t.database().name());
    t.database().superuser().query_one(sql, &[&slot]).await.expect("an answer").get(0)
}

/// Where the transactions begin that the slot still has, as `--skip` takes it.
async fn commits(t: &Harness) -> Vec<String> {
    let sql = "select encode(substring(data from 2 for 8), 'hex') \
               from pg_logical_slot_peek_binary_changes($1::text::name, null, null, \
                   'proto_version', '1', 'publication_names', 'outbox') \
               where get_byte(data, 0) = 66";
    let slot = format!("outbox_{}", t.database().name());
    let rows = t.database().superuser().query(sql, &[&slot]).await.expect("changes");
    let lsn = |hex: String| {
        let lsn = u64::from_str_radix(&hex, 16).expect("an LSN");
        format!("{:X}/{:X}:0", lsn >> 32, lsn & 0xffff_ffff)
    };
    rows.iter().map(|row| lsn(row.get(0))).collect()
}

#[tokio::test]
async fn a_skip_leaves_out_the_event_that_it_names_and_no_other_unasked() {
    let (mut t, topic, mut relay) = one_published().await;
    assert!(relay.sigterm().await.success());
    let known = commits(&t).await;
    for _ in 0..3 {
        t.commit([Event::to(topic.name()).key("k")]).await;
    }
    let new: Vec<String> =
        commits(&t).await.into_iter().filter(|commit| !known.contains(commit)).collect();
    let [first, _, third] = new.as_slice() else { panic!("three of {new:?}") };
    let words = refused(&t, &["resume", "--skip", third]).await;
    assert!(words.contains("2 events before it") && words.contains("give --yes"), "{words}");
    let nowhere = first.replace(":0", ":7");
    let words = refused(&t, &["resume", "--skip", &nowhere, "--yes"]).await;
    assert!(words.contains("no event at"), "{words}");
    let output = t.relay().command(&["resume", "--skip", first]).await;
    assert!(output.status.success(), "{output:?}");
    relay.restart();
    wait::until("the others arrive", wait::PATIENCE, || async {
        match topic.records().await.len() {
            3 => Ok(()),
            found => Err(found),
        }
    })
    .await
    .expect("one of four is left out");
}
