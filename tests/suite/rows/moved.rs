//! Rows that are moved within the database: they are published once.

use outbox_harness::{Harness, topic::Record, wait};
use serde_json::Value;

use super::{each_once, insert, run};
use crate::repair::{drop_slot, wait_snapshot};

/// A partition that takes what is of 2001.
const OLD: &str = "create table outbox.events_old partition of outbox.events \
                   for values from ('2001-01-01') to ('2002-01-01')";

/// As tools that look after partitions do.
fn delete_and_insert(id: &str) -> String {
    format!(
        "with gone as (delete from outbox.events where id = '{id}' returning *) \
         insert into outbox.events select * from gone"
    )
}

/// Rows come out of the default partition into one of their own.
const SPLIT: &str = "begin; alter table outbox.events detach partition outbox.events_default; \
     create table outbox.events_new partition of outbox.events \
         for values from ('2020-01-01') to ('2100-01-01'); \
     insert into outbox.events select * from outbox.events_default; \
     truncate outbox.events_default; \
     alter table outbox.events attach partition outbox.events_default default; commit";

async fn moved_rows_are_published_once(before: &str) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, OLD).await;
    run(&t, before).await;
    let relay = t.relay().start().await;
    let first = insert(&t, &topic, "now()").await;
    let old = insert(&t, &topic, "'2001-05-05'").await;
    each_once(&topic, &[&first, &old]).await;

    run(&t, &format!("update outbox.events set created_at = '2001-06-06' where id = '{first}'"))
        .await;
    run(&t, &delete_and_insert(&old)).await;
    let second = insert(&t, &topic, "now()").await;
    run(&t, SPLIT).await;
    // What is written below a savepoint has the transaction's id.
    run(&t, "begin; savepoint a").await;
    let nested = insert(&t, &topic, "now()").await;
    run(&t, "savepoint b").await;
    let deeper = insert(&t, &topic, "now()").await;
    run(&t, "release b; commit").await;
    each_once(&topic, &[&first, &old, &second, &nested, &deeper]).await;
    assert!(
        relay.logs_contain("rows whose column xid names another transaction are not published")
    );
    let metrics = relay.page("/metrics").await;
    assert!(metrics.contains("outbox_relay_rows_moved_total 3\n"), "{metrics}");
    assert_eq!(relay.status().await.get("rows_moved"), Some(&Value::from(3)));
}

#[tokio::test]
async fn rows_that_are_moved_between_partitions_are_published_once() {
    moved_rows_are_published_once("select 1").await;
}

#[tokio::test]
async fn rows_that_are_moved_are_published_once_in_the_text_format_too() {
    let word = "create domain word as text; grant usage on type word to public; \
                alter table outbox.events alter column key type word";
    moved_rows_are_published_once(word).await;
}

/// Nothing tells such a row from a new one: it comes again with its id, in the stream, and `check` says so.
#[tokio::test]
async fn rows_that_are_moved_in_a_table_without_xid_are_published_again_with_their_ids() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let make = "create table public.mine (id uuid not null default gen_random_uuid(), topic text not null, \
             key text, payload jsonb, created_at timestamptz not null) partition by range (created_at); \
         create table public.old partition of public.mine for values from (minvalue) to ('2020-01-01'); \
         create table public.new partition of public.mine for values from ('2020-01-01') to (maxvalue); \
         create publication mine for table public.mine \
             with (publish = 'insert', publish_via_partition_root = true); \
         grant select on public.mine, public.old, public.new to public";
    run(&t, make).await;
    let settings = ["type", "headers", "partition"].into_iter().fold(
        t.relay()
            .set("postgres.publication", "mine")
            .set_toml("outbox.tables", "[\"public.mine\"]")
            .set_toml("outbox.rows_kept", "true"),
        |settings, column| settings.set_toml(&format!("outbox.columns.{column}"), "false"),
    );
    let output = settings.command(&["check"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("rows that are moved between its partitions are published again"),
        "{said}"
    );

    let relay = settings.start().await;
    let insert = format!(
        "insert into public.mine (topic, key, created_at) values ('{}', 'k', now()) returning id::text",
        topic.name()
    );
    let insert = || async {
        let row = t.database().superuser().query_one(&insert, &[]).await;
        row.expect("inserted").get::<_, String>(0)
    };
    let (moved, stays) = (insert().await, insert().await);
    each_once(&topic, &[&moved, &stays]).await;
    run(&t, &format!("update public.mine set created_at = '2001-06-06' where id = '{moved}'"))
        .await;
    let last = insert().await;
    let records = topic.records_with([last.clone()]).await;
    let ids: Vec<_> = records.iter().filter_map(Record::id).collect();
    assert_eq!(ids, [&moved, &stays, &moved, &last], "{records:?}");
    let again = &records[2];
    assert_eq!(again.header("outbox-repaired"), None, "{again:?}");
    assert_eq!(relay.status().await.get("rows_moved"), Some(&Value::from(0)));
}

#[tokio::test]
async fn rows_that_are_moved_around_a_repair_come_once() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, OLD).await;
    let settings = t.relay();
    let mut relay = settings.clone().start().await;
    let before = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&before]).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let updated = insert(&t, &topic, "now()").await;
    let inserted = insert(&t, &topic, "now()").await;
    let later = insert(&t, &topic, "now()").await;
    // Before the new slot begins: read by the repair, wherever they are.
    let age =
        |id: &str| format!("update outbox.events set created_at = '2001-06-06' where id = '{id}'");
    run(&t, &age(&updated)).await;
    run(&t, &delete_and_insert(&inserted)).await;
    run(&t, &age(&before)).await;
    let mut dying = settings.clone().fault("repair-begun").spawn();
    dying.wait_end(wait::PATIENCE).await;
    // After it has begun: in the stream, as rows of others' transactions.
    let streamed = insert(&t, &topic, "now()").await;
    run(&t, &age(&later)).await;
    run(&t, &age(&streamed)).await;
    run(&t, &delete_and_insert(&updated)).await;
    relay.restart();
    each_once(&topic, &[&before, &updated, &inserted, &later, &streamed]).await;
    let last = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&before, &updated, &inserted, &later, &streamed, &last]).await;
}

/// A repair that is cut short goes on after what it has published; what was moved across that place
/// meanwhile is not passed over, and what comes twice says so.
#[tokio::test]
async fn rows_that_are_moved_while_a_repair_is_cut_short_are_not_passed_over() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, OLD).await;
    let settings = t.relay().set_toml("batch.records_max", "1");
    let mut relay = settings.clone().start().await;
    let before = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&before]).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let mut lost = Vec::new();
    for _ in 0..5 {
        lost.push(insert(&t, &topic, "now()").await);
    }
    let mut dying = settings.clone().fault("repair-page-stored:2").spawn();
    dying.wait_end(wait::PATIENCE).await;
    let moved =
        format!("update outbox.events set created_at = '2001-06-06' where id = '{}'", lost[3]);
    run(&t, &moved).await;
    // Among them the cursor does not step back, however often it is cut short.
    for _ in 0..2 {
        let mut dying = settings.clone().fault("repair-page-stored:1").spawn();
        dying.wait_end(wait::PATIENCE).await;
    }
    relay.restart();
    let records = topic.records_with(lost.iter().cloned()).await;
    for id in lost.iter().filter(|id| **id != lost[3]).chain([&before]) {
        assert_eq!(records.iter().filter(|r| r.id() == Some(id)).count(), 1, "{id}: {records:?}");
    }
    let again = records.iter().filter(|r| r.id() == Some(&lost[3]));
    assert!(again.clone().all(|r| r.header("outbox-repaired") == Some("1")) && again.count() >= 1);
}
