//! Columns of the outbox that rows of the stream don't have, or have otherwise: the table was changed and
//! changed back, or the publication lists some of them only.

use std::collections::BTreeSet;

use outbox_harness::{Harness, event::Event, relay::Settings, topic::Topic, wait};

use super::{obey, one_published_and_stopped, published, says, typed};
use crate::{
    checks,
    repair::{repeated, wait_snapshot},
};

/// A row that names no column which comes and goes.
async fn insert(t: &Harness, topic: &Topic) {
    let name = topic.name();
    obey(t, &format!("insert into outbox.events (topic, key) values ('{name}', 'k')")).await;
}

/// The server has it in use for a moment after the relay has left it.
async fn drop_slot(t: &Harness, command: &str) {
    wait::until("the slot is dropped", wait::PATIENCE, || async {
        t.database().superuser().batch_execute(command).await
    })
    .await
    .expect("it is dropped");
}

/// The catalogs are as they should be, and the relay that is asked has halted; now and then it starts again.
async fn check_tells(settings: &Settings) {
    wait::until("check tells of the halt", wait::PATIENCE, || async {
        let findings = checks::check(settings).await;
        let is_it = |found: &checks::Finding| {
            found.verdict == "problem" && found.seen.contains("to publish them from the table")
        };
        if findings.iter().any(is_it) { Ok(()) } else { Err(format!("{findings:#?}")) }
    })
    .await
    .expect("it does");
}

/// No change of the table reaches the rows that were written meanwhile, and no column of theirs is another's
/// former one.
#[tokio::test]
async fn rows_written_while_a_column_was_away_get_out_through_the_table_as_the_halt_says() {
    for (change, back) in [
        ("drop column headers", "add column headers jsonb"),
        ("alter column partition type text", "alter column partition type int"),
    ] {
        let t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let mut relay = t.relay().start().await;
        insert(&t, &topic).await;
        t.count(&topic, 1).await.assert_exactly_once();
        // A rewritten table has no row that is known to be older than the rewrite before the relay has such a snapshot.
        wait_snapshot(&t).await;
        obey(&t, &format!("alter table outbox.events {change}")).await;
        for _ in 0..3 {
            insert(&t, &topic).await;
        }
        let detail = says(&relay, "a change of the table does not reach these rows").await;
        obey(&t, typed(&detail, back)).await;
        let detail = says(&relay, "to publish them from the table").await;
        assert!(!detail.contains("former_columns"), "none held it then: {detail}");
        check_tells(&t.relay().set("admin.listen", &relay.admin().to_string())).await;
        drop_slot(&t, typed(&detail, "pg_drop_replication_slot")).await;
        relay.wait_ready().await;
        insert(&t, &topic).await;
        // For the count, which takes no row without headers.
        obey(&t, "update outbox.events set headers = '{}' where headers is null").await;
        let count = t.count(&topic, 1).await;
        count.assert_at_least_once();
        assert_eq!(count.committed, 5, "{change}: {count}");
        repeated(&topic.records().await);
    }
}

/// A job that deletes what it takes for published is no reason to drop the one thing that has the rows.
#[tokio::test]
async fn where_rows_were_deleted_meanwhile_it_is_said_that_the_slot_alone_has_them() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    insert(&t, &topic).await;
    t.count(&topic, 1).await.assert_exactly_once();
    obey(&t, "alter table outbox.events drop column headers").await;
    for _ in 0..3 {
        insert(&t, &topic).await;
    }
    says(&relay, "a change of the table does not reach these rows").await;
    obey(
        &t,
        "delete from outbox.events where id = (select max(id::text)::uuid from outbox.events)",
    )
    .await;
    obey(&t, "alter table outbox.events add column headers jsonb").await;
    let detail = says(&relay, "dropping the slot leaves out what the table lacks").await;
    assert!(detail.contains("rows of outbox.events were deleted"), "{detail}");
    assert!(!detail.contains("to publish them from the table"), "{detail}");
    assert!(relay.sigterm().await.success());
    let mut relay = t.relay().set_toml("outbox.rows_kept", "true").spawn();
    let detail = says(&relay, "to publish them from the table").await;
    drop_slot(&t, typed(&detail, "pg_drop_replication_slot")).await;
    relay.wait_ready().await;
    // For the count, which takes no row without headers.
    obey(&t, "update outbox.events set headers = '{}' where headers is null").await;
    let count = t.count(&topic, 1).await;
    assert_eq!(count.committed, 3, "all but the deleted one: {count}");
}

/// The publication lists all columns but these.
fn listed_without(columns: &str) -> String {
    format!(
        "do $$ begin execute (select format('alter publication outbox set table outbox.events (%s)', \
         string_agg(quote_ident(attname), ', ')) from pg_attribute where attnum > 0 and not attisdropped \
         and attname not in ({columns}) and attrelid = 'outbox.events'::regclass); end $$"
    )
}

#[tokio::test]
async fn columns_that_the_publication_leaves_out_come_with_the_whole_table_which_is_said_first() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let event = || Event::to(topic.name()).key("k");
    let mut relay = published(&mut t, &topic, event()).await;
    obey(&t, &listed_without("'payload', 'headers', 'partition'")).await;
    t.commit([event(), event()]).await;
    let words = "alter publication outbox drop table";
    let detail = says(&relay, words).await;
    let first = detail.split('`').nth(1).expect("something to type");
    assert!(first.contains(words), "first of all the table is published whole: {detail}");
    let findings = checks::check(&t.relay()).await;
    let found = findings.iter().find(|found| found.seen.contains("no column payload"));
    let found = found.expect("check says it too");
    assert!(found.seen.contains("leaves it out") && found.remedy.contains(first), "{found:?}");
    obey(&t, first).await;
    relay.wait_ready().await;
    t.commit([event()]).await;
    t.count(&topic, 1).await.assert_at_least_once();
    repeated(&topic.records().await);
}

/// The default is right, and the stream has no xid all the same.
#[tokio::test]
async fn a_column_xid_that_a_column_list_leaves_out_is_published_again_as_check_says() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let event = || Event::to(topic.name()).key("k");
    let _relay = published(&mut t, &topic, event()).await;
    obey(&t, &listed_without("'xid'")).await;
    t.commit([event()]).await;
    let words = "leaves out the column xid";
    let findings = checks::check(&t.relay()).await;
    let found = findings.iter().find(|found| found.seen.contains(words)).expect("it is named");
    obey(&t, typed(&found.remedy, "alter publication outbox drop table")).await;
    t.commit([event()]).await;
    // The relay may take the changed publication for one that lacked rows, and read them from the table.
    t.count(&topic, 1).await.assert_at_least_once();
    repeated(&topic.records().await);
    let again = checks::check(&t.relay()).await;
    let rows = again.iter().find(|found| found.name == "rows").expect("check looks at the rows");
    assert_eq!(rows.verdict, "ok", "{rows:?}");
}

/// Some writers fill the former column, which is of another type.
#[tokio::test]
async fn a_former_column_of_another_type_is_made_alike_as_the_halt_says_and_every_payload_arrives()
{
    let (t, topic, _stopped) = one_published_and_stopped().await;
    let insert = async |column: &str, n: u32| {
        let values = format!("('{}', 'k', '{{\"n\": {n}}}')", topic.name());
        obey(&t, &format!("insert into outbox.events (topic, key, {column}) values {values}"))
            .await;
    };
    obey(&t, "alter table outbox.events add column body text").await;
    insert("body", 1).await;
    insert("payload", 2).await;
    let settings = t.relay().set("outbox.former_columns.body", "payload");
    let mut relay = settings.clone().spawn();
    says(&relay, "and their types differ").await;
    let findings = checks::check(&settings).await;
    let found = findings.iter().find(|found| found.seen.contains("and their types differ"));
    let found = found.expect("check says it too");
    assert!(
        found.remedy.contains("where no row has a value in body alone, take body out"),
        "{found:?}"
    );
    let detail = says(&relay, "a change of the table does not reach these rows").await;
    obey(&t, typed(&detail, "alter column body type jsonb")).await;
    insert("body", 3).await;
    let detail = says(&relay, "to publish them from the table").await;
    drop_slot(&t, typed(&detail, "pg_drop_replication_slot")).await;
    relay.wait_ready().await;
    insert("payload", 4).await;
    let count = t.count(&topic, 1).await;
    assert_eq!((count.committed, count.lost, count.out_of_order), (5, 0, 0), "{count}");
    let records = topic.records().await;
    repeated(&records);
    let payloads = records.iter().filter_map(|record| record.payload.as_deref());
    let payloads: BTreeSet<String> =
        payloads.map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
    for n in 1..=4 {
        assert!(payloads.contains(&format!("{{\"n\": {n}}}")), "{n}: {payloads:?}");
    }
}
