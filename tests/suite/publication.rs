//! The publication is changed and put back, dropped or recreated: what was written meanwhile is not in
//! the stream, and arrives all the same; or the relay halts with the interval and the command.

mod ends;
mod tables;

use crate::{
    remedies::halted,
    repair::{drop_slot, repeated, wait_snapshot},
    rows::run,
};
use outbox_harness::{
    Harness, check as count,
    event::Event,
    postgres::Postgres,
    postgres_version::Version,
    relay::Relay,
    servers,
    topic::{Record, Topic},
    wait,
};

/// What hides rows, and what takes it back.
const CHANGES: &[(&str, &str)] = &[
    (
        "alter publication outbox drop table outbox.events",
        "alter publication outbox add table outbox.events",
    ),
    (
        "drop publication outbox",
        "create publication outbox for table outbox.events \
         with (publish = 'insert', publish_via_partition_root = true)",
    ),
    (
        "alter publication outbox set (publish = 'update')",
        "alter publication outbox set (publish = 'insert')",
    ),
    (
        "alter publication outbox set (publish_via_partition_root = false)",
        "alter publication outbox set (publish_via_partition_root = true)",
    ),
    ("alter publication outbox rename to other", "alter publication other rename to outbox"),
];

async fn write(t: &mut Harness, topic: &Topic, count: usize) {
    for n in 0..count {
        t.commit([Event::to(topic.name()).key(&format!("customer-{}", n % 2))]).await;
    }
}

/// All that is committed arrives, in order; what comes twice says that a repair sent it.
async fn arrives(t: &Harness, topic: &Topic) -> usize {
    let truth = t.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    count::compare(&truth, &records, 2).assert_at_least_once();
    repeated(&records)
}

/// A relay that has delivered three events, all of which lie behind it.
async fn after_three() -> (Harness, Topic, Relay) {
    after_three_on(Harness::start().await).await
}

async fn after_three_on(mut t: Harness) -> (Harness, Topic, Relay) {
    let topic = t.topic("orders").create(2).await;
    let relay = t.relay().start().await;
    write(&mut t, &topic, 3).await;
    arrives(&t, &topic).await;
    wait_snapshot(&t).await;
    (t, topic, relay)
}

async fn stopped_after_three() -> (Harness, Topic, Relay) {
    let (t, topic, mut relay) = after_three().await;
    assert!(relay.sigterm().await.success());
    (t, topic, relay)
}

fn streams(relay: &Relay) -> usize {
    relay.log_text().matches("streaming from=").count()
}

/// What `check` prints.
async fn check(t: &Harness) -> String {
    let output = t.relay().command(&["check"]).await;
    String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn changed_while_away(mut t: Harness) {
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    for (change, back) in CHANGES {
        write(&mut t, &topic, 3).await;
        arrives(&t, &topic).await;
        wait_snapshot(&t).await;
        assert!(relay.sigterm().await.success());
        write(&mut t, &topic, 3).await;
        run(&t, change).await;
        write(&mut t, &topic, 3).await;
        run(&t, back).await;
        write(&mut t, &topic, 3).await;
        relay.restart();
        assert_eq!(arrives(&t, &topic).await, 0, "{change}: what was in the snapshot came again");
    }
    relay.wait_ready().await;
    t.count(&topic, 2).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn a_publication_changed_and_put_back_while_the_relay_is_away_hides_nothing() {
    changed_while_away(Harness::start().await).await;
}

/// That version warns of a missing publication, and streams on without its rows.
#[tokio::test]
async fn a_publication_changed_and_put_back_while_the_relay_is_away_hides_nothing_on_18() {
    let (kafka, (postgres, _server)) =
        tokio::join!(servers::kafka(), Postgres::private_version(Version::V18));
    changed_while_away(Harness::with(postgres, kafka).await).await;
}

/// It has no catalogue of published schemas.
#[tokio::test]
async fn a_publication_changed_and_put_back_while_the_relay_is_away_hides_nothing_on_14() {
    let (kafka, (postgres, _server)) =
        tokio::join!(servers::kafka(), Postgres::private_version(Version::V14));
    changed_while_away(Harness::with(postgres, kafka).await).await;
}

#[tokio::test]
async fn a_publication_changed_and_put_back_between_two_looks_hides_nothing() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    for (change, back) in CHANGES {
        write(&mut t, &topic, 3).await;
        run(&t, change).await;
        write(&mut t, &topic, 3).await;
        run(&t, back).await;
        write(&mut t, &topic, 3).await;
        let truth = t.committed().await;
        let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
        // What was hidden comes behind what the stream had meanwhile, before anybody could know.
        let count = count::compare(&truth, &records, 2);
        assert_eq!((count.lost, count.altered, count.uncommitted), (0, 0, 0), "{change}: {count}");
        repeated(&records);
    }
    relay.wait_ready().await;
    assert!(relay.logs_contain("rows may be missing from the stream"), "{}", relay.log_text());
}

#[tokio::test]
async fn a_schema_that_is_published_hides_nothing_when_it_is_dropped_and_added_again() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    run(&t, "drop publication outbox").await;
    let make = "create publication outbox for tables in schema outbox \
                with (publish = 'insert', publish_via_partition_root = true)";
    run(&t, make).await;
    let mut relay = t.relay().start().await;
    write(&mut t, &topic, 3).await;
    arrives(&t, &topic).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    run(&t, "alter publication outbox drop tables in schema outbox").await;
    write(&mut t, &topic, 3).await;
    run(&t, "alter publication outbox add tables in schema outbox").await;
    relay.restart();
    t.count(&topic, 2).await.assert_exactly_once();
    // All tables, and back: another publication each time.
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    run(&t, "drop publication outbox").await;
    write(&mut t, &topic, 3).await;
    let make = "create publication outbox for all tables \
                with (publish = 'insert', publish_via_partition_root = true)";
    run(&t, make).await;
    relay.restart();
    t.count(&topic, 2).await.assert_exactly_once();
}

#[tokio::test]
async fn further_tables_and_schemas_cost_neither_a_repair_nor_a_reconnect() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let relay = t.relay().start().await;
    write(&mut t, &topic, 3).await;
    run(&t, "create table public.other (n int)").await;
    run(&t, "alter publication outbox add table public.other").await;
    run(&t, "insert into public.other values (1)").await;
    write(&mut t, &topic, 3).await;
    run(&t, "create schema further").await;
    run(&t, "alter publication outbox add tables in schema further").await;
    run(&t, "alter publication outbox drop table public.other").await;
    run(&t, "vacuum (full, analyze) outbox.events_default").await;
    write(&mut t, &topic, 3).await;
    wait_snapshot(&t).await;
    write(&mut t, &topic, 3).await;
    t.count(&topic, 2).await.assert_exactly_once();
    assert_eq!(streams(&relay), 1, "{}", relay.log_text());
}

/// What the relay asks for is done, and nothing else.
#[tokio::test]
async fn whoever_mends_the_publication_as_the_halt_says_loses_nothing() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    for (change, _) in CHANGES {
        write(&mut t, &topic, 3).await;
        run(&t, change).await;
        write(&mut t, &topic, 3).await;
        let detail = halted(&relay).await;
        relay.wait_for("/readyz", 503).await;
        write(&mut t, &topic, 3).await;
        assert!(detail.contains("publishes it from the table by itself"), "{detail}");
        let remedy = detail.split("; ").find_map(statement);
        run(&t, remedy.unwrap_or_else(|| panic!("no statement in: {detail}"))).await;
        relay.wait_ready().await;
        write(&mut t, &topic, 3).await;
        arrives(&t, &topic).await;
    }
}

/// As with the publication: what the halt asks for takes away what it could be seen by.
#[tokio::test]
async fn whoever_makes_a_partition_logged_again_as_the_halt_says_loses_nothing() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let relay = t.relay().start().await;
    write(&mut t, &topic, 3).await;
    arrives(&t, &topic).await;
    // A table that is rewritten and has no older row may have been truncated.
    wait_snapshot(&t).await;
    run(&t, "alter table outbox.events_default set unlogged").await;
    // Before the relay notices, which may store a snapshot that shows them.
    write(&mut t, &topic, 3).await;
    let detail = halted(&relay).await;
    write(&mut t, &topic, 3).await;
    assert!(detail.contains("alter table outbox.events_default set logged"), "{detail}");
    run(&t, "alter table outbox.events_default set logged").await;
    write(&mut t, &topic, 3).await;
    arrives(&t, &topic).await;
}

/// The SQL in a part of a remedy.
fn statement(part: &str) -> Option<&str> {
    let begin = ["alter publication", "create publication"].iter().find_map(|b| part.find(b))?;
    part.get(begin..)?.split('`').next()
}

/// On 15 the server can't decode what was written without it, whatever there is now; a person has
/// said that the rest may be left out, and nothing needs to be.
#[tokio::test]
async fn a_publication_that_was_missing_where_the_stream_goes_on_is_repaired() {
    let (mut t, topic, mut relay) = stopped_after_three().await;
    assert!(!check(&t).await.contains("was changed after"), "{}", check(&t).await);
    let (drop, make) = CHANGES[1];
    run(&t, drop).await;
    write(&mut t, &topic, 3).await;
    run(&t, make).await;
    assert!(
        check(&t).await.contains("publication outbox was changed after"),
        "{}",
        check(&t).await
    );
    let output = t.relay().command(&["resume", "--at", "progress", "--yes"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.restart();
    t.count(&topic, 2).await.assert_exactly_once();
    assert!(relay.logs_contain("the publication was missing"), "{}", relay.log_text());
}

#[tokio::test]
async fn a_table_that_cannot_be_repaired_halts_with_the_interval_and_the_command_goes_on() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    // Before the relay knows the table: that a column of it was dropped is another halt's.
    run(&t, "alter table outbox.events drop column xid cascade").await;
    let mut relay = t.relay().set("postgres.start", "now").start().await;
    write(&mut t, &topic, 3).await;
    arrives(&t, &topic).await;
    assert!(relay.sigterm().await.success());
    let (change, back) = CHANGES[0];
    write(&mut t, &topic, 2).await;
    run(&t, change).await;
    write(&mut t, &topic, 3).await;
    run(&t, back).await;
    write(&mut t, &topic, 2).await;
    relay.restart();
    let detail = halted(&relay).await;
    for word in ["may lack rows", "outbox.events", "committed between", "no column xid"] {
        assert!(detail.contains(word), "{word:?} is not in: {detail}");
    }
    assert!(detail.contains("resume --at progress"), "{detail}");
    let output = t.relay().command(&["resume", "--at", "progress", "--yes"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    write(&mut t, &topic, 2).await;
    // What the halt says is left out, and nothing else is, or comes twice.
    wait::until("what the slot has arrives", wait::PATIENCE, || async {
        let records = topic.records().await;
        if records.len() == 9 {
            return Ok(());
        }
        // Whether one came twice, or one that the publication left out.
        let place = |record: &Record| {
            format!("{:?} at {:?}", record.id(), record.header("outbox-position"))
        };
        Err(format!("{}: {:#?}", records.len(), records.iter().map(place).collect::<Vec<_>>()))
    })
    .await
    .expect("9 of 12");
    assert_eq!(repeated(&topic.records().await), 0);
}

/// Places in a transaction count what was sent of it.
#[tokio::test]
async fn another_publication_in_the_settings_loses_nothing_of_a_transaction_delivered_in_part() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    for statement in [
        "create table public.other (n int)",
        "create publication wider for table outbox.events, public.other \
         with (publish = 'insert', publish_via_partition_root = true)",
    ] {
        run(&t, statement).await;
    }
    let settings = t.relay().set_toml("batch.records_max", "10");
    let mut relay = settings.clone().start().await;
    write(&mut t, &topic, 3).await;
    arrives(&t, &topic).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    // Half of it would be of the other table.
    let both = format!(
        "begin; insert into public.other select n from generate_series(1, 50) n; \
         insert into outbox.events (topic, key, headers) select '{}', 'customer-9', \
         jsonb_build_object('sequence', n::text) from generate_series(1, 100) n; commit",
        topic.name()
    );
    run(&t, &both).await;
    let mut cut = settings.clone().fault("committed:4").spawn();
    cut.wait_end(wait::PATIENCE).await;
    let _wider = settings.set("postgres.publication", "wider").start().await;
    arrives(&t, &topic).await;
}

/// As somebody makes it for a copy of the whole database. It publishes updates and deletes, which PostgreSQL
/// refuses where a row has no identity.
#[tokio::test]
async fn a_publication_of_all_tables_keeps_none_of_the_relays_tables_from_being_changed() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, "create publication everything for all tables").await;
    let unidentified = "select string_agg(c.oid::regclass::text, ', ') from pg_class c \
         join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = 'outbox' and c.relkind = 'r' and c.relreplident <> 'f' and not exists ( \
             select from pg_index i where i.indrelid = c.oid and i.indisprimary)";
    let row = t.database().superuser().query_one(unidentified, &[]).await.expect("names");
    assert_eq!(row.get::<_, Option<&str>>(0), Some("outbox.events_default"));
    // That one is the writers' own: who deletes events is told.
    let findings = crate::checks::check(&t.relay()).await;
    let found = findings.iter().find(|finding| finding.name == "publications");
    let found = found.unwrap_or_else(|| panic!("{findings:?}"));
    assert!(found.seen.contains("rows of outbox.events_default, "), "{found:?}");
    assert_eq!(found.verdict, "warning");
    run(&t, found.remedy.split('`').nth(1).expect("a statement")).await;
    let findings = crate::checks::check(&t.relay()).await;
    assert!(!findings.iter().any(|finding| finding.name == "publications"), "{findings:?}");

    let mut relay = t.relay().start().await;
    t.commit([Event::to(topic.name()), Event::to(topic.name()).key("k").partition(9)]).await;
    crate::dead_letters::wait_parked(&t, |parked| parked == 1).await;
    let number = crate::dead_letters::list(&t).await[0]["id"].to_string();
    crate::dead_letters::dead_letters(&t, &["discard", &number, "--yes"]).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    // Moved, so that its note is taken back; then merged, which changes and deletes others' notes.
    run(
        &t,
        "with gone as (delete from outbox.events returning *) \
         insert into outbox.events select * from gone",
    )
    .await;
    for _ in 0..100 {
        run(&t, "begin; insert into outbox.events (topic, xid) values ('x', '3'); commit").await;
        run(&t, "delete from outbox.events where xid = '3'").await;
    }
    drop_slot(&t).await;
    t.commit([Event::to(topic.name())]).await;
    relay.restart();
    t.commit([Event::to(topic.name())]).await;
    crate::dead_letters::wait_records(&topic, 3).await;
    assert!(relay.sigterm().await.success());
}
