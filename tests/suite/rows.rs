//! Rows that come again, and rows that don't come: what is moved within the database is published
//! once, and what the stream can't have halts the relay before it is passed over.

mod moved;

use std::collections::BTreeMap;

use outbox_harness::{Harness, database::Role, relay::Settings, topic::Topic, wait};

use crate::{
    obeyed::{obey, typed},
    remedies::halted,
    repair::{drop_slot, wait_snapshot},
};

pub(crate) async fn run(t: &Harness, sql: &str) {
    t.database()
        .superuser()
        .batch_execute(sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Inserts an event by itself, and returns its id. `created_at` is an expression.
pub(crate) async fn insert(t: &Harness, topic: &Topic, created_at: &str) -> String {
    let sql = format!(
        "insert into outbox.events (topic, key, created_at) values ('{}', 'k', {created_at}) \
         returning id::text",
        topic.name()
    );
    t.database().superuser().query_one(&sql, &[]).await.expect("inserted").get(0)
}

/// Waits until all of `ids` have arrived, and finds each of them once and nothing else.
pub(crate) async fn each_once(topic: &Topic, ids: &[&String]) {
    let records = topic.records_with(ids.iter().map(|id| (*id).clone())).await;
    let mut times: BTreeMap<&str, usize> = ids.iter().map(|id| (id.as_str(), 0)).collect();
    for record in &records {
        *times.entry(record.id().expect("an id")).or_default() += 1;
    }
    assert!(times.values().all(|times| *times == 1), "{times:?}");
}

/// `check` has a problem that has these words.
pub(crate) async fn check_says(settings: &Settings, words: &[&str]) {
    let output = settings.command(&["check"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in: {text}"));
}

/// What `change` hides is found by `check`, by a start, and by a relay that streams; what the halt
/// says, obeyed, makes it continue.
async fn hidden_rows_halt(change: &str, words: &[&str], remedy: &str) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let settings = t.relay();
    let mut relay = settings.clone().start().await;
    run(&t, change).await;
    let says = |detail: String| {
        let all = words.iter().chain([&remedy]);
        all.for_each(|word| assert!(detail.contains(word), "{word:?} is not in: {detail}"));
    };
    says(halted(&relay).await);
    check_says(&settings, words).await;
    assert!(relay.sigterm().await.success());
    relay.restart();
    says(halted(&relay).await);
    run(&t, remedy).await;
    relay.wait_ready().await;
    let id = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&id]).await;
    assert!(settings.command(&["check"]).await.status.success());
}

#[tokio::test]
async fn an_unlogged_partition_halts_the_relay() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let partition = "create table outbox.events_fast partition of outbox.events \
                     for values from ('2001-01-01') to ('2002-01-01')";
    run(&t, partition).await;
    let settings = t.relay();
    let mut relay = settings.clone().start().await;
    run(&t, "alter table outbox.events_fast set unlogged").await;
    let remedy = "alter table outbox.events_fast set logged";
    let words = ["outbox.events_fast is unlogged", "outbox.events has rows that are never", remedy];
    let detail = halted(&relay).await;
    words.iter().for_each(|word| assert!(detail.contains(word), "{word:?} is not in: {detail}"));
    check_says(&settings, &words).await;
    run(&t, remedy).await;
    // It is empty and has another file: no one knows any more whether it was truncated.
    let asked = wait::until("it asks", wait::PATIENCE, || async {
        let detail = halted(&relay).await;
        let asks = detail.contains("events_fast was truncated since, or was rewritten")
            && detail.contains("outbox.rows_kept = true");
        if asks { Ok(()) } else { Err(detail) }
    });
    asked.await.expect("a person knows");
    assert!(relay.sigterm().await.success());
    let kept = settings.set_toml("outbox.rows_kept", "true");
    let _relay = kept.clone().start().await;
    let id = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&id]).await;
    assert!(kept.command(&["check"]).await.status.success());
}

#[tokio::test]
async fn a_row_filter_of_the_publication_halts_the_relay() {
    let change = "alter publication outbox set table outbox.events where (topic <> 'internal')";
    let remedy = "begin; alter publication outbox drop table outbox.events; \
                  alter publication outbox add table outbox.events; commit";
    hidden_rows_halt(change, &["publishes only those rows", "internal"], remedy).await;
}

#[tokio::test]
async fn a_foreign_partition_halts_the_relay() {
    let change = "create extension postgres_fdw; \
         create server elsewhere foreign data wrapper postgres_fdw; \
         create foreign table outbox.events_far partition of outbox.events \
             for values from ('2001-01-01') to ('2002-01-01') server elsewhere";
    let remedy = "alter table outbox.events detach partition outbox.events_far";
    hidden_rows_halt(change, &["outbox.events_far is a foreign table"], remedy).await;
}

/// A table with a child by INHERITS, beside the outbox.
const FAMILY: &str = "create table public.parent (like outbox.events including defaults); \
     create table public.child () inherits (public.parent); \
     create publication family for table public.parent with (publish = 'insert'); \
     grant select on public.parent, public.child to public";

#[tokio::test]
async fn a_child_by_inherits_halts_the_relay_unless_it_is_published_itself() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, FAMILY).await;
    let settings = t.relay().set("postgres.publication", "family");
    let settings = settings.set_toml("outbox.rows_kept", "true");
    let alone = settings.clone().set_toml("outbox.tables", "[\"public.parent\"]");
    check_says(&alone, &["child inherits from public.parent"]).await;
    let mut relay = alone.spawn();
    assert!(halted(&relay).await.contains("child inherits from public.parent"));
    assert!(relay.sigterm().await.success());

    // Both are published, each under its own name; a repair reads each once, too.
    let both = settings.set_toml("outbox.tables", "[\"public.parent\", \"public.child\"]");
    let mut relay = both.start().await;
    let insert = |table: &'static str| {
        let (t, topic) = (&t, topic.name());
        async move {
            let sql = format!(
                "insert into {table} (topic, key) values ('{topic}', 'k') returning id::text"
            );
            t.database().superuser().query_one(&sql, &[]).await.expect("inserted").get(0)
        }
    };
    let (a, b): (String, String) = (insert("public.parent").await, insert("public.child").await);
    each_once(&topic, &[&a, &b]).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let (c, d): (String, String) = (insert("public.parent").await, insert("public.child").await);
    relay.restart();
    each_once(&topic, &[&a, &b, &c, &d]).await;
}

#[tokio::test]
async fn a_repair_that_row_level_security_would_cut_halts_and_check_says_so_beforehand() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let settings = t.relay();
    let mut relay = settings.clone().start().await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    let role = t.database().config(outbox_harness::database::Role::Relay);
    let role = role.get_user().expect("a role").to_owned();
    run(
        &t,
        &format!(
            "alter table outbox.events enable row level security; \
             create policy own on outbox.events for select to {role} using (topic = 'x')"
        ),
    )
    .await;
    let output = settings.command(&["check"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("bypassrls"), "the stream has all: {text}");
    let streamed = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first, &streamed]).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let lost = insert(&t, &topic, "now()").await;
    relay.restart();
    let detail = halted(&relay).await;
    for word in ["policies", "bypassrls", "committed between "] {
        assert!(detail.contains(word), "{word:?} is not in: {detail}");
    }
    run(&t, "alter table outbox.events disable row level security").await;
    each_once(&topic, &[&first, &streamed, &lost]).await;
}

/// What is inserted under another default looks moved, to the stream and to a repair.
#[tokio::test]
async fn another_default_of_xid_halts_the_relay_with_the_interval() {
    for back in
        ["select 1", "alter table outbox.events alter column xid set default pg_current_xact_id()"]
    {
        let t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let mut relay = t.relay().start().await;
        let first = insert(&t, &topic, "now()").await;
        each_once(&topic, &[&first]).await;
        wait_snapshot(&t).await;
        run(&t, "alter table outbox.events alter column xid set default '3'::xid8").await;
        insert(&t, &topic, "now()").await;
        run(&t, back).await;
        let detail = halted(&relay).await;
        for word in ["default", "xid", "outbox.events", "committed between", "resume --at progress"]
        {
            assert!(detail.contains(word), "{word:?} is not in: {detail}");
        }
        run(&t, "alter table outbox.events alter column xid set default pg_current_xact_id()")
            .await;
        let output = t.relay().command(&["resume", "--at", "progress"]).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("1 row more that were created later"),
            "{said}"
        );
        let output = t.relay().command(&["resume", "--at", "progress", "--yes"]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        relay.wait_ready().await;
        let later = insert(&t, &topic, "now()").await;
        topic.records_with([first, later]).await;
    }
}

/// It sets the default of `xid` once more, to what it is.
#[tokio::test]
async fn the_printed_script_while_the_relay_streams_loses_and_repeats_nothing_as_the_halt_says() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let mut ids = vec![insert(&t, &topic, "now()").await];
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
    wait_snapshot(&t).await;
    let owner = t.database().connect(Role::Owner).await;
    owner.batch_execute(&outbox_migrations::Set::Outbox.print()).await.expect("it may be repeated");
    ids.push(insert(&t, &topic, "now()").await);
    let detail = halted(&relay).await;
    // What comes first is what loses nothing.
    assert!(detail.contains("; if the default was only set to what it was"), "{detail}");
    let command = typed(&detail, "resume --at progress");
    ids.push(insert(&t, &topic, "now()").await);
    obey(&t, &format!("{command} --yes")).await;
    relay.wait_ready().await;
    ids.push(insert(&t, &topic, "now()").await);
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
}

/// One row may not make the statement fail that reads all.
#[tokio::test]
async fn a_date_that_no_number_of_microseconds_holds_is_parked_by_a_repair() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    insert(&t, &topic, "'294276-12-31'").await;
    insert(&t, &topic, "'4713-01-01 BC'").await;
    let sql =
        format!("insert into outbox.events (topic, key) values ('{}', 'other')", topic.name());
    run(&t, &sql).await;
    let _relay = t.relay().start().await;
    wait::until("it arrives", wait::PATIENCE, || async {
        match topic.records().await.len() {
            1 => Ok(()),
            found => Err(found),
        }
    })
    .await
    .expect("nothing holds it up");
    let parked = "select count(*) from outbox.dead_letters where state = 'parked'";
    let row = t.database().superuser().query_one(parked, &[]).await.expect("a count");
    assert_eq!(row.get::<_, i64>(0), 2);
}
