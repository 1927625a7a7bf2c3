//! A table of one's own, corrected halt by halt until its rows are published.

use outbox_harness::{
    Harness, check, database::Role, event::Event, postgres::Postgres, postgres_version::Version,
    relay::Settings, servers, topic::Topic,
};

use super::{obey, one_published_and_stopped, says, typed};
use crate::{
    checks,
    repair::{drop_slot, wait_snapshot},
};

/// As somebody writes it who knows of no relay.
const TABLE: &str = "
    create table public.\"order\" (id uuid default gen_random_uuid(), topic text, \"end\" text, body text, part text);
    create publication shop for table public.\"order\" with (publish = 'insert');
    create view public.orders as select * from public.\"order\"";

async fn insert(t: &Harness, topic: &Topic) {
    let name = topic.name();
    let insert =
        format!("insert into public.\"order\" (topic, \"end\", part) values ('{name}', 'k', '0')");
    t.database().superuser().batch_execute(&insert).await.expect("inserted");
}

fn settings(t: &Harness, table: &str, created_at: &str) -> Settings {
    let mut settings = t
        .relay()
        .set("postgres.publication", "shop")
        .set("postgres.start", "all")
        .set_toml("outbox.tables", &serde_json::json!([table]).to_string())
        .set_toml("outbox.rows_kept", "true")
        .set("outbox.columns.key", "end")
        .set("outbox.columns.payload", "body")
        .set("outbox.columns.partition", "part")
        .set_toml("outbox.columns.created_at", created_at);
    for column in ["type", "headers"] {
        settings = settings.set_toml(&format!("outbox.columns.{column}"), "false");
    }
    settings
}

/// Version 18 takes a column for NOT NULL before anybody has looked at the rows that are there.
#[tokio::test]
async fn rows_without_xid_are_published_once_they_are_stamped_as_the_halt_says() {
    let (kafka, (postgres, _server)) =
        tokio::join!(servers::kafka(), Postgres::private_version(Version::V18));
    let t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    obey(&t, TABLE).await;
    obey(&t, "drop view public.orders; grant select on public.\"order\" to public").await;
    insert(&t, &topic).await;
    let of_18 = "alter table public.\"order\" add column xid xid8; \
        alter table public.\"order\" alter column xid set default pg_current_xact_id(), \
            add constraint stamped not null xid not valid, alter column id set not null, \
            add column created_at timestamptz not null default clock_timestamp()";
    obey(&t, of_18).await;
    insert(&t, &topic).await;
    let mut relay = settings(&t, "public.order", "\"created_at\"").spawn();
    let detail = says(&relay, "no column xid of type xid8 that is never null").await;
    assert_eq!(topic.records().await.len(), 0);
    obey(&t, typed(&detail, "set xid = pg_current_xact_id() where xid is null")).await;
    obey(&t, "alter table public.\"order\" alter column part type int using part::int").await;
    relay.wait_ready().await;
    each_once(&t, &topic).await;
}

/// Every row is there, and once.
async fn each_once(t: &Harness, topic: &Topic) {
    let rows = t.database().superuser().query("select id::text from public.\"order\"", &[]).await;
    let mut ids: Vec<String> = rows.expect("rows").iter().map(|row| row.get(0)).collect();
    let records = topic.records_with(ids.clone()).await;
    let mut found: Vec<_> = records.iter().filter_map(|r| r.id().map(str::to_owned)).collect();
    ids.sort();
    found.sort();
    assert_eq!(found, ids);
}

#[tokio::test]
async fn a_table_that_lacks_what_a_repair_needs_is_fixed_as_the_halts_say_and_loses_no_row() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    t.database().superuser().batch_execute(TABLE).await.expect("a table");
    for _ in 0..3 {
        insert(&t, &topic).await;
    }
    let relay = settings(&t, "public.orders", "false").spawn();
    says(&relay, "is a view").await;
    drop(relay);
    obey(&t, "drop view public.orders").await;
    let relay = settings(&t, "public.order", "false").spawn();
    for (words, command) in [
        ("may not read", "grant select"),
        ("no column xid", "add column xid"),
        ("no timestamp that is never null", "add column created_at"),
    ] {
        let detail = says(&relay, words).await;
        obey(&t, typed(&detail, command)).await;
    }
    drop(relay);
    // "Name one in outbox.columns.created_at".
    obey(&t, "alter table public.\"order\" alter created_at drop not null").await;
    let mut relay = settings(&t, "public.order", "\"created_at\"").spawn();
    for (words, command) in [
        ("no timestamp that is never null", "alter column created_at set not null"),
        ("may be null", "alter column id set not null"),
        ("can't serve as outbox.columns.partition", "alter column part type"),
    ] {
        let detail = says(&relay, words).await;
        obey(&t, typed(&detail, command)).await;
    }
    relay.wait_ready().await;
    each_once(&t, &topic).await;
    insert(&t, &topic).await;
    each_once(&t, &topic).await;

    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    // PostgreSQL refuses that of a table that is published.
    obey(&t, "alter publication shop drop table public.\"order\"").await;
    obey(&t, "alter table public.\"order\" set unlogged").await;
    insert(&t, &topic).await;
    relay.restart();
    for (words, command) in [("is unlogged", "set logged"), ("does not publish", "add table")] {
        let detail = says(&relay, words).await;
        insert(&t, &topic).await;
        obey(&t, typed(&detail, command)).await;
    }
    relay.wait_ready().await;
    insert(&t, &topic).await;
    each_once(&t, &topic).await;
}

/// It comes back empty, and without its default.
#[tokio::test]
async fn ids_of_a_column_that_was_dropped_and_added_again_are_given_as_the_halt_says() {
    let (t, topic, mut relay) = one_published_and_stopped().await;
    let sql = "alter table outbox.events drop column id cascade; alter table outbox.events add column id uuid";
    obey(&t, sql).await;
    obey(&t, &format!("insert into outbox.events (topic, key) values ('{}', 'k')", topic.name()))
        .await;
    drop_slot(&t).await;
    relay.restart();
    let detail = says(&relay, "may be null, and gives no order").await;
    obey(&t, typed(&detail, "set not null")).await;
    relay.wait_ready().await;
    obey(&t, &format!("insert into outbox.events (topic, key) values ('{}', 'k')", topic.name()))
        .await;
    let ids = "select id::text from outbox.events where created_at > now() - interval '1 hour'";
    let rows = t.database().superuser().query(ids, &[]).await.expect("rows");
    assert_eq!(rows.len(), 3);
    topic.records_with(rows.iter().skip(1).map(|row| row.get(0))).await;
}

/// The events of before are in the WAL, and their table is nowhere.
#[tokio::test]
async fn the_events_of_a_table_that_was_dropped_arrive_once_it_is_made_again() {
    let (mut t, topic, mut relay) = one_published_and_stopped().await;
    let event = || Event::to(topic.name()).key("k");
    t.commit([event(), event()]).await;
    let mut truth = t.committed().await;
    obey(&t, "drop table outbox.events").await;
    relay.restart();
    let detail = says(&relay, "there is no table outbox.events").await;
    obey(&t, typed(&detail, "outbox-relay migrate")).await;
    let detail = says(&relay, "is another table").await;
    let words: Vec<_> = typed(&detail, "resume --at progress").split(' ').skip(1).collect();
    let output = t.relay().command(&[&words[..], &["--yes"]].concat()).await;
    assert!(output.status.success(), "{output:?}");
    relay.wait_ready().await;
    t.commit([event()]).await;
    truth.extend(t.committed().await);
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    check::compare(&truth, &records, 1).assert_exactly_once();
}

/// Its publication still has it, under its new name.
#[tokio::test]
async fn a_table_that_was_renamed_is_named_back_and_loses_no_row_of_either_name() {
    for (done, other, back) in [
        ("alter table outbox.events rename to past", "outbox.past", "rename to events"),
        (
            "create schema aside; alter table outbox.events set schema aside",
            "aside.events",
            "schema outbox",
        ),
    ] {
        let (mut t, topic, mut relay) = one_published_and_stopped().await;
        let event = || Event::to(topic.name()).key("k");
        t.commit([event(), event()]).await;
        obey(&t, done).await;
        let insert = format!("insert into {other} (topic, key) values ('{}', 'k')", topic.name());
        let insert = insert.as_str();
        obey(&t, insert).await;
        let findings = checks::check(&t.relay()).await;
        let found = findings.iter().find(|found| found.seen.contains("there is no table"));
        let found = found.expect("check says it too");
        assert!(found.remedy.contains(back), "{found:?}");
        relay.restart();
        let detail = says(&relay, "there is no table outbox.events").await;
        obey(&t, insert).await;
        let first = detail.split('`').nth(1).expect("something to type");
        assert!(first.contains(back), "first of all it is named back: {detail}");
        obey(&t, first).await;
        relay.wait_ready().await;
        t.commit([event()]).await;
        let count = t.count(&topic, 1).await;
        count.assert_at_least_once();
        assert_eq!((count.committed, count.lost), (6, 0), "{count:?}");
    }
}

/// Its rows are all in the stream, so nothing is to be repaired once it is spelt right.
#[tokio::test]
async fn a_table_whose_name_was_misspelt_in_the_settings_costs_no_repair() {
    let (mut t, topic, mut relay) = one_published_and_stopped().await;
    let event = || Event::to(topic.name()).key("k");
    t.commit([event()]).await;
    let misspelt = t.relay().set_toml("outbox.tables", "[\"outbox.event\"]").spawn();
    let detail = says(&misspelt, "there is no table outbox.event").await;
    assert!(detail.contains("if outbox.tables is wrong, correct it"), "{detail}");
    t.commit([event()]).await;
    drop(misspelt);
    relay.restart();
    relay.wait_ready().await;
    t.commit([event()]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(!relay.logs_contain("making a new slot"), "{}", relay.log_text());
}

/// The settings name it first; what is written between its creation and its publication is not in the stream.
#[tokio::test]
async fn the_rows_of_a_further_table_that_is_made_while_the_relay_waits_for_it_arrive() {
    let (t, topic, _stopped) = one_published_and_stopped().await;
    let tables = "[\"outbox.events\", \"outbox.further\"]";
    let mut relay = t.relay().set_toml("outbox.tables", tables).spawn();
    says(&relay, "there is no table outbox.further").await;
    obey(&t, "create table outbox.further (like outbox.events including all)").await;
    obey(&t, &format!("grant select on outbox.further to {}", t.database().name_of(Role::Relay)))
        .await;
    let insert = "insert into outbox.further (id, topic, key)";
    let id = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b";
    obey(&t, &format!("{insert} values ('{id}', '{}', 'k')", topic.name())).await;
    obey(&t, "alter publication outbox add table outbox.further").await;
    // The first halt is ended, and what becomes of the row is told or done.
    let arrives = topic.records_with([id.to_owned()]);
    let asked = async {
        relay.wait_log("no trigger records each deletion").await;
        obey(&t, "select outbox.note_deletions('outbox.further')").await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = arrives => {}
        () = asked => unreachable!("it is pending"),
    }
    relay.wait_ready().await;
}

/// The stream needs no right on a table; whoever reads the table does.
#[tokio::test]
async fn a_schema_that_the_relay_may_not_use_is_granted_as_check_and_the_halt_say() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let role = t.database().name_of(Role::Relay);
    let id = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b";
    for statement in [
        "create schema shop",
        "create table shop.events (like outbox.events including all)",
        &format!("grant select on shop.events to {role}"),
        "select outbox.note_deletions('shop.events')",
        "alter publication outbox add table shop.events",
        &format!("insert into shop.events (id, topic) values ('{id}', '{}')", topic.name()),
    ] {
        obey(&t, statement).await;
    }
    let settings = t.relay().set_toml("outbox.tables", "[\"shop.events\"]");
    let settings = settings.set("postgres.start", "all");
    let findings = checks::check(&settings).await;
    let found = findings.iter().find(|found| found.remedy.contains("grant usage on schema shop"));
    assert_eq!(found.expect("check says it").verdict, "problem", "{findings:#?}");
    let mut relay = settings.spawn();
    let detail = says(&relay, "may not use the schema of shop.events").await;
    obey(&t, typed(&detail, "grant usage on schema")).await;
    relay.wait_ready().await;
    assert_eq!(topic.records_with([id.to_owned()]).await.len(), 1);
}

/// A column that is added again is empty, and what the writers fill is not in it.
#[tokio::test]
async fn a_column_that_was_renamed_is_named_before_any_that_could_be_added() {
    let (mut t, topic, mut relay) = one_published_and_stopped().await;
    let event = || Event::to(topic.name()).key("k");
    t.commit([event()]).await;
    obey(&t, "alter table outbox.events rename payload to body").await;
    let insert = format!(
        "insert into outbox.events (topic, key, body) values ('{}', 'k', '{{\"n\": 7}}')",
        topic.name()
    );
    obey(&t, &insert).await;
    let findings = checks::check(&t.relay()).await;
    let found = findings.iter().find(|found| found.seen.contains("no column payload"));
    let remedy = &found.expect("the column is missing").remedy;
    let [named, former, added] = [
        "set outbox.columns.payload to the column that holds it (body?)",
        "where it was renamed, as to body, set outbox.former_columns.payload = \"body\" too",
        "or, where no column holds it, `alter table outbox.events add column payload jsonb`",
    ]
    .map(|words| remedy.find(words).unwrap_or_else(|| panic!("{words} is not in: {remedy}")));
    assert!(named < former && former < added, "{remedy}");
    relay.restart();
    let detail = says(&relay, "a change of the table does not reach these rows").await;
    assert!(detail.contains(remedy.as_str()), "the halt and check say the same: {detail}");
    assert!(relay.sigterm().await.success());
    let settings = t
        .relay()
        .set("outbox.columns.payload", "body")
        .set("outbox.former_columns.payload", "body");
    let bad = |found: &checks::Finding| found.verdict == "problem";
    let again = checks::check(&settings).await;
    assert!(!again.iter().any(bad), "{again:#?}");
    let _relay = settings.start().await;
    obey(&t, "alter table outbox.events rename body to payload").await; // For the count.
    t.count(&topic, 1).await.assert_exactly_once();
}

/// Their transactions are of another cluster, and not there yet.
#[tokio::test]
async fn rows_that_a_dump_brought_are_published_once_they_are_stamped_as_the_halt_says() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    obey(&t, "update outbox.events set xid = '900000000000'").await;
    let mut relay = t.relay().spawn();
    let detail = says(&relay, "of another cluster, from a dump").await;
    obey(&t, typed(&detail, "update outbox.events")).await;
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// Somebody's session has it; the table that the settings named before is a permanent one.
#[tokio::test]
async fn a_temporary_table_is_refused_and_with_a_permanent_one_nothing_is_lost_or_repeated() {
    let (mut t, topic, mut relay) = one_published_and_stopped().await;
    let event = || Event::to(topic.name()).key("k");
    t.commit([event()]).await;
    obey(&t, "create temp table mine (like outbox.events including all)").await;
    let schema = "select pg_my_temp_schema()::regnamespace::text";
    let schema: String = t.database().superuser().query_one(schema, &[]).await.expect("it").get(0);
    let tables = serde_json::json!([format!("{schema}.mine")]).to_string();
    let temporary = t.relay().set_toml("outbox.tables", &tables).spawn();
    let detail = says(&temporary, "is temporary: its rows are not in the WAL").await;
    assert!(detail.contains("set outbox.tables to a permanent table"), "{detail}");
    assert!(!detail.contains("grant"), "no right on that table helps: {detail}");
    t.commit([event()]).await;
    drop(temporary);
    relay.restart();
    relay.wait_ready().await;
    t.commit([event()]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}
