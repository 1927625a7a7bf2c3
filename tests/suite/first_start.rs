//! A first start: the rows that are there already are published, or left out with their number.

use std::collections::BTreeSet;

use outbox_harness::{Harness, event::Event, relay::Settings, topic::Topic, wait};

use crate::{
    remedies::halted,
    repair::{plan, run_into, wait_more},
    rows::{insert, run},
};

#[tokio::test]
async fn a_first_start_with_all_publishes_what_is_there_and_what_comes() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(8).await;
    t.load(&plan(&topic, 30)).await.finish().await;
    let settings = t.relay().set("postgres.start", "all").set_toml("batch.records_max", "50");
    let load = t.load(&plan(&topic, 30)).await;
    run_into(&settings, "repair-page-stored:2").await;
    let mut relay = settings.clone().start().await;
    load.finish().await;
    t.count(&topic, 8).await.assert_exactly_once();
    // Only the first start does so.
    assert!(relay.sigterm().await.success());
    relay.restart();
    t.count(&topic, 8).await.assert_exactly_once();
}

/// Nothing makes the two unique, and writers may set both.
#[tokio::test]
async fn rows_that_share_their_id_and_time_are_all_published_by_a_repair_that_is_cut_short_among_them()
 {
    const ROWS: usize = 400;
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let insert = format!(
        "insert into outbox.events (id, topic, key, payload, created_at) select \
             '00000000-0000-4000-8000-000000000abc', '{}', 'k' || n, '{{}}', '2026-11-01' \
             from generate_series(1, {ROWS}) n",
        topic.name()
    );
    t.database().superuser().batch_execute(&insert).await.expect("inserted");
    let settings = t.relay().set_toml("batch.records_max", "50");
    run_into(&settings, "repair-page-stored:3").await;
    let _relay = settings.start().await;
    wait::until("all keys arrive", wait::PATIENCE, || async {
        let records = topic.records().await;
        let keys: BTreeSet<_> = records.into_iter().map(|record| record.key).collect();
        if keys.len() == ROWS { Ok(()) } else { Err(keys.len()) }
    })
    .await
    .expect("none is passed over");
}

/// Were its progress lost by then, the next start would take itself for the first, and repeat all of it.
#[tokio::test]
async fn a_first_start_that_publishes_rows_has_delivered_by_its_first_page() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let mut relay = t.relay().fault("repair-page-stored").spawn();
    relay.wait_end(wait::PATIENCE).await;
    let noted = "select delivered_at is not null from outbox.relay_keys";
    assert!(t.database().superuser().query_one(noted, &[]).await.expect("a key").get::<_, bool>(0));
}

#[tokio::test]
async fn a_first_start_publishes_what_was_committed_since_the_migration() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    t.commit([Event::to(topic.name()).key("before")]).await;
    let output = t.relay().command(&["check"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("it publishes what is there: 1 row"), "{text}");
    let _relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("after")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// To the brokers and the database a relay whose name was changed is a new one.
#[tokio::test]
async fn a_relay_whose_name_was_changed_halts_and_repeats_nothing() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    t.count(&topic, 1).await.assert_exactly_once();
    assert!(relay.sigterm().await.success());

    t.commit([Event::to(topic.name()).key("k")]).await;
    let other = format!("{}_renamed", t.database().name());
    let renamed = t.relay().set("name", &other).set("postgres.slot", &other);
    let output = renamed.command(&["check"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let what = format!("the relay {} has published events of this database", t.database().name());
    assert!(text.contains(&what), "{text}");
    let mut halted = renamed.clone().spawn();
    halted.wait_log(&what).await;
    halted.wait_for("/readyz", 503).await;
    assert!(halted.logs_contain("set `name` back to that"), "{}", halted.log_text());
    assert!(halted.sigterm().await.success());

    relay.restart();
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    // Another one says what it takes.
    let second = renamed.set("postgres.start", "now").start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    wait::until("both deliver the newest", wait::PATIENCE, || async {
        match topic.records().await.len() {
            7 => Ok(()),
            found => Err(format!("{found}: {}", second.log_text())),
        }
    })
    .await
    .expect("five of the first, one of them of both");
}

/// A mapped table may be as old as its business.
#[tokio::test]
async fn a_first_start_on_a_table_of_ones_own_leaves_out_what_is_there() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let table = "create table public.mine (like outbox.events including defaults); \
         create publication mine for table public.mine with (publish = 'insert'); \
         grant select on public.mine to public";
    t.database().superuser().batch_execute(table).await.expect("a table");
    let insert = format!("insert into public.mine (topic) values ('{}')", topic.name());
    t.database().superuser().batch_execute(&insert).await.expect("inserted");
    let settings = t.relay().set("postgres.publication", "mine");
    let relay = settings.set_toml("outbox.tables", "[\"public.mine\"]").start().await;
    assert!(relay.logs_contain("1 row") && relay.logs_contain("are not published"));
    t.database().superuser().batch_execute(&insert).await.expect("inserted");
    wait_more(&topic, 0).await;
    assert_eq!(topic.records().await.len(), 1);
}

#[tokio::test]
async fn a_first_start_with_now_leaves_out_what_is_there_and_says_how_much() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    t.commit([Event::to(topic.name()).key("before")]).await;
    let settings = t.relay().set("postgres.start", "now");
    let output = settings.command(&["check"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("it leaves out what is there already: 1 row"), "{text}");
    let relay = settings.start().await;
    assert!(relay.logs_contain("1 row") && relay.logs_contain("are not published"));
    t.commit([Event::to(topic.name()).key("after")]).await;
    wait_more(&topic, 0).await;
    let keys: Vec<_> = topic.records().await.into_iter().map(|record| record.key).collect();
    assert_eq!(keys, [Some(b"after".to_vec())]);
}

/// What it has still to read is not in its slot.
#[tokio::test]
async fn going_on_at_the_slot_asks_while_a_first_start_has_rows_to_publish() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    t.commit((0..200).map(|_| Event::to(topic.name()).key("k"))).await;
    let settings = t.relay().set_toml("batch.records_max", "50");
    run_into(&settings, "repair-page-stored:1").await;
    let output = settings.command(&["resume", "--at", "slot"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("This leaves out"), "{said}");
    let _relay = settings.start().await;
    t.count(&topic, 1).await.assert_exactly_once();
}

/// A first start with rows to publish, that is killed while it does.
async fn cut_short(t: &Harness, topic: &Topic, settings: &Settings) {
    let insert = format!(
        "insert into outbox.events (topic, key, payload, created_at) \
         select '{}', 'k' || n % 7, '{{}}', '2001-05-05'::timestamptz + n * interval '1 ms' \
             from generate_series(1, 300) n",
        topic.name()
    );
    run(t, &insert).await;
    run_into(settings, "repair-page-stored:2").await;
}

async fn counted(topic: &Topic, expected: usize) {
    wait::until("all that is there arrives", wait::PATIENCE, || async {
        let ids: BTreeSet<_> =
            topic.records().await.iter().filter_map(|it| it.id().map(str::to_owned)).collect();
        if ids.len() == expected { Ok(()) } else { Err(ids.len()) }
    })
    .await
    .expect("no more and no less");
}

/// The slot is made by then: nothing that it was to come with is left out in silence.
#[tokio::test]
async fn rows_deleted_before_a_first_start_that_was_cut_short_continues_are_named() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let settings = t.relay().set_toml("batch.records_max", "50");
    cut_short(&t, &topic, &settings).await;
    let last = "delete from outbox.events where id in ( \
        select id from outbox.events order by created_at desc limit 11)";
    run(&t, last).await;
    let output = settings.command(&["check"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("rows of outbox.events were deleted"), "{text}");
    let mut relay = settings.clone().spawn();
    let detail = halted(&relay).await;
    for words in
        ["the first start was cut short", "rows of outbox.events were deleted", "rows_kept"]
    {
        assert!(detail.contains(words), "{words:?} is not in: {detail}");
    }
    assert!(relay.sigterm().await.success());
    let _relay = settings.set_toml("outbox.rows_kept", "true").start().await;
    counted(&topic, 289).await;
}

/// A partition takes its rows with it.
#[tokio::test]
async fn a_partition_that_goes_before_a_first_start_that_was_cut_short_continues_is_named() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let settings = t.relay().set_toml("batch.records_max", "50");
    let partition = "create table outbox.events_late partition of outbox.events \
                     for values from ('2002-01-01') to ('2002-02-01')";
    run(&t, partition).await;
    let late = insert(&t, &topic, "'2002-01-05'").await;
    cut_short(&t, &topic, &settings).await;
    run(&t, "alter table outbox.events detach partition outbox.events_late").await;
    let mut relay = settings.clone().spawn();
    let detail = halted(&relay).await;
    assert!(detail.contains("partition outbox.events_late was detached since"), "{detail}");
    let attach = "alter table outbox.events attach partition outbox.events_late \
                  for values from ('2002-01-01') to ('2002-02-01')";
    run(&t, attach).await;
    assert!(relay.sigterm().await.success());
    let _relay = settings.set_toml("outbox.rows_kept", "true").start().await;
    counted(&topic, 301).await;
    topic.records_with([late]).await;
}

/// If no row was deleted and no partition went, it continues without a question.
#[tokio::test]
async fn a_first_start_of_a_table_without_an_account_of_deletions_continues_and_says_what_is_not_known()
 {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let table = "create table public.mine (like outbox.events including all); \
         create publication mine for table public.mine with (publish = 'insert'); \
         grant select on public.mine to public";
    run(&t, table).await;
    let settings = t.relay().set("postgres.publication", "mine").set("postgres.start", "all");
    let settings =
        settings.set_toml("outbox.tables", "[\"public.mine\"]").set_toml("batch.records_max", "50");
    let insert = format!(
        "insert into public.mine (topic, created_at) \
         select '{}', now() + n * interval '1 ms' from generate_series(1, 300) n",
        topic.name()
    );
    run(&t, &insert).await;
    run_into(&settings, "repair-page-stored:2").await;
    let relay = settings.start().await;
    assert!(
        relay.logs_contain("no trigger records each deletion from public.mine"),
        "{}",
        relay.log_text()
    );
    counted(&topic, 300).await;
}
