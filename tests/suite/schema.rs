//! The table changes while the relay streams: what fits is followed, what does not is named, and
//! what was written meanwhile is not lost.

use std::collections::BTreeSet;

use outbox_harness::{Harness, check, relay::Relay, topic::Topic, wait};

use crate::repair::{drop_slot, repeated};

/// Inserts events of one lane, each statement a transaction. `key` is the column's name by now.
async fn insert(t: &Harness, topic: &Topic, key: &str, first: usize, last: usize) {
    for n in first..=last {
        let insert = format!(
            "insert into outbox.events (topic, {key}, headers) values ('{}', 'customer-1', \
             jsonb_build_object('sequence', '{n}'))",
            topic.name()
        );
        t.database().superuser().batch_execute(&insert).await.expect("inserted");
    }
}

async fn alter(t: &Harness, change: &str) {
    let alter = format!("alter table outbox.events {change}");
    t.database().superuser().batch_execute(&alter).await.expect(change);
}

/// Waits until a consumer has seen so many events.
async fn arrive(topic: &Topic, count: usize) {
    wait::until("they arrive", wait::PATIENCE, || async {
        match topic.records().await.len() {
            found if found >= count => Ok(()),
            found => Err(format!("{found} of {count}")),
        }
    })
    .await
    .expect("they arrive");
}

fn streams(relay: &Relay) -> usize {
    relay.log_text().matches("streaming from=").count()
}

#[tokio::test]
async fn an_added_column_and_other_known_types_are_followed_without_a_reconnect() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let relay = t.relay().start().await;
    insert(&t, &topic, "key", 1, 3).await;
    alter(&t, "add column tenant text not null default 'none'").await;
    insert(&t, &topic, "key", 4, 6).await;
    alter(&t, "alter column key type varchar(100), alter column payload type json").await;
    insert(&t, &topic, "key", 7, 9).await;
    alter(&t, "drop column tenant").await;
    insert(&t, &topic, "key", 10, 12).await;
    let count = t.count(&topic, 2).await;
    count.assert_exactly_once();
    assert_eq!((count.delivered, streams(&relay)), (12, 1));
}

/// A type that only the text format can carry, while the relay streams and while it does not.
#[tokio::test]
async fn a_type_that_needs_the_text_format_is_followed_and_so_is_the_way_back() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    t.database().superuser().batch_execute("create domain word as text").await.expect("a type");
    t.database()
        .superuser()
        .batch_execute("grant usage on type word to public")
        .await
        .expect("granted");
    insert(&t, &topic, "key", 1, 3).await;
    alter(&t, "alter column key type word").await;
    insert(&t, &topic, "key", 4, 6).await;
    arrive(&topic, 6).await;
    relay.kill9().await;
    insert(&t, &topic, "key", 7, 9).await;
    // Now the catalogue says that the binary format will do, and the stream does not.
    alter(&t, "alter column key type text").await;
    insert(&t, &topic, "key", 10, 12).await;
    relay.restart();
    let count = t.count(&topic, 2).await;
    count.assert_exactly_once();
    assert_eq!(count.delivered, 12);
    assert_eq!(relay.log_text().matches("halted").count(), 0);
}

#[tokio::test]
async fn a_renamed_column_halts_at_the_first_row_that_has_it_and_loses_none() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    insert(&t, &topic, "key", 1, 3).await;
    alter(&t, "rename column key to customer").await;
    insert(&t, &topic, "customer", 4, 6).await;
    relay.wait_log("halted").await;
    relay.wait_for("/readyz", 503).await;
    relay.wait_for("/livez", 200).await;
    let both =
        r#"where it was renamed, as to customer, set outbox.former_columns.key = "customer" too"#;
    assert!(relay.logs_contain(both), "{}", relay.log_text());
    assert!(
        relay.logs_contain("had the columns id, topic, customer, type"),
        "{}",
        relay.log_text()
    );
    arrive(&topic, 3).await;
    assert_eq!(topic.records().await.len(), 3);
    // Corrected, with rows of both names in the stream.
    alter(&t, "rename column customer to key").await;
    insert(&t, &topic, "key", 7, 9).await;
    relay
        .wait_log(r#"where customer held it then, set outbox.former_columns.customer = "key""#)
        .await;
    assert!(relay.sigterm().await.success());
    let _relay = t.relay().set("outbox.former_columns.customer", "key").start().await;
    let count = t.count(&topic, 2).await;
    count.assert_exactly_once();
    assert_eq!(count.delivered, 9);
}

/// Writers are helped first, with a new column: rows have the one, the other and both.
#[tokio::test]
async fn a_renamed_column_whose_name_came_back_beside_it_publishes_every_payload() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    let insert = async |column: &str, first: usize, last: usize| {
        for n in first..=last {
            let insert = format!(
                r#"insert into outbox.events (topic, key, {column}, headers) values ('{}', 'customer-1',
                 '{{"n": {n}}}', jsonb_build_object('sequence', '{n}'))"#,
                topic.name()
            );
            t.database().superuser().batch_execute(&insert).await.expect("inserted");
        }
    };
    insert("payload", 1, 2).await;
    alter(&t, "rename column payload to body").await;
    insert("body", 3, 5).await;
    relay.wait_log("halted").await;
    alter(&t, "add column payload jsonb").await;
    insert("payload", 6, 8).await;
    insert("body", 9, 10).await; // A writer that does not know yet.
    assert!(relay.sigterm().await.success());
    let mut relay = t.relay().set("outbox.former_columns.body", "payload").start().await;
    arrive(&topic, 10).await;
    // And from the table, where all of them have both columns by now.
    assert!(relay.sigterm().await.success());
    insert("body", 11, 12).await;
    insert("payload", 13, 13).await;
    drop_slot(&t).await;
    relay.restart();
    wait::until("the newest arrives", wait::PATIENCE, || async {
        let records = topic.records().await;
        let newest = br#"{"n": 13}"#;
        match records.iter().any(|record| record.payload.as_deref() == Some(newest)) {
            true => Ok(()),
            false => Err(records.len()),
        }
    })
    .await
    .expect("it arrives");
    let found: BTreeSet<String> = topic
        .records()
        .await
        .into_iter()
        .map(|record| String::from_utf8(record.payload.expect("a payload")).expect("JSON"))
        .collect();
    let wanted: BTreeSet<String> = (1..=13).map(|n| format!(r#"{{"n": {n}}}"#)).collect();
    assert_eq!(found, wanted);
    relay.wait_for("/readyz", 200).await;
}

#[tokio::test]
async fn a_column_dropped_while_rows_with_it_wait_halts_only_behind_them() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    insert(&t, &topic, "key", 1, 1).await;
    arrive(&topic, 1).await;
    relay.kill9().await;
    insert(&t, &topic, "key", 2, 4).await;
    alter(&t, "drop column type").await;
    insert(&t, &topic, "key", 5, 6).await;
    relay.restart();
    arrive(&topic, 4).await;
    relay.wait_log("halted").await;
    relay.wait_for("/readyz", 503).await;
    assert!(relay.logs_contain("outbox.columns.type"), "{}", relay.log_text());
    assert!(relay.sigterm().await.success());
    let _without = t.relay().set_toml("outbox.columns.type", "false").start().await;
    arrive(&topic, 6).await;
    alter(&t, "add column type text").await; // For the count.
    let count = t.count(&topic, 2).await;
    count.assert_exactly_once();
    assert_eq!(count.delivered, 6);
}

#[tokio::test]
async fn partitions_detached_and_attached_again_lose_no_row_of_the_outbox() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let relay = t.relay().start().await;
    let superuser = t.database().superuser();
    superuser
        .batch_execute(
            "create table outbox.events_old partition of outbox.events \
             for values from ('2001-01-01') to ('2002-01-01')",
        )
        .await
        .expect("a partition");
    let old = |n: usize| {
        let insert = format!(
            "insert into outbox.events (topic, key, created_at, headers) values ('{}', \
             'customer-1', '2001-05-05', jsonb_build_object('sequence', '{n}'))",
            topic.name()
        );
        async move { superuser.batch_execute(&insert).await.expect("inserted") }
    };
    old(1).await;
    insert(&t, &topic, "key", 2, 2).await;
    alter(&t, "detach partition outbox.events_old").await;
    insert(&t, &topic, "key", 3, 3).await;
    alter(
        &t,
        "attach partition outbox.events_old for values from ('2001-01-01') to ('2002-01-01')",
    )
    .await;
    old(4).await;
    insert(&t, &topic, "key", 5, 5).await;
    // Retention as an operator would do it by hand.
    superuser
        .batch_execute(
            "create table outbox.events_new partition of outbox.events \
                        for values from ('2003-01-01') to ('2004-01-01')",
        )
        .await
        .expect("another partition");
    insert(&t, &topic, "key", 6, 6).await;
    let count = t.count(&topic, 2).await;
    assert_eq!((count.delivered, count.lost, count.uncommitted, count.altered), (6, 0, 0, 0));
    // Where one of the relay's looks, of one a second, falls between both statements, it takes the
    // partition for one with rows that it has not seen: a repair repeats them, and says so.
    if relay.log_text().contains("was attached with rows in it") {
        repeated(&topic.records().await);
    } else {
        count.assert_exactly_once();
        assert_eq!(streams(&relay), 1);
    }
}

/// The server skips its rows without a word.
#[tokio::test]
async fn a_table_that_is_published_no_more_is_noticed_while_the_relay_streams() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(2).await;
    let mut relay = t.relay().start().await;
    insert(&t, &topic, "key", 1, 3).await;
    arrive(&topic, 3).await;
    let superuser = t.database().superuser();
    let publication = "alter publication outbox";
    let drop = format!("{publication} drop table outbox.events");
    superuser.batch_execute(&drop).await.expect("dropped");
    relay.wait_log("halted").await;
    relay.wait_for("/readyz", 503).await;
    assert!(relay.logs_contain("add table outbox.events"), "{}", relay.log_text());
    insert(&t, &topic, "key", 4, 6).await;
    let add = format!("{publication} add table outbox.events");
    superuser.batch_execute(&add).await.expect("added");
    relay.wait_ready().await;
    insert(&t, &topic, "key", 7, 9).await;
    let truth = t.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    check::compare(&truth, &records, 2).assert_at_least_once();
    repeated(&records);
}
