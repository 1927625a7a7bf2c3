//! Other tables and other header names: Debezium's outbox layout, mapped columns, CloudEvents.

use outbox_harness::{Harness, event::Event, relay::Settings, topic::Topic};

use crate::dead_letters::{wait_parked, wait_records};

#[tokio::test]
async fn debeziums_outbox_layout_is_published_as_debezium_does() {
    let t = Harness::start().await;
    let aggregate = format!("Order_{}", t.database().name());
    let topic = t.topic_named(&format!("outbox.event.{aggregate}")).create(4).await;
    let table = "create table public.outboxevent (id uuid primary key, \
                 aggregatetype varchar(255) not null, aggregateid varchar(255) not null, \
                 type varchar(255) not null, payload jsonb); \
                 create publication debezium for table public.outboxevent with (publish = 'insert')";
    t.database().superuser().batch_execute(table).await.expect("Debezium's table");
    let _relay = t
        .relay()
        .set("postgres.publication", "debezium")
        .set_toml("outbox.tables", "[\"public.outboxevent\"]")
        .set("outbox.preset", "debezium")
        .start()
        .await;
    let id = "406c07f3-26f0-4eea-a50c-109940064b8f";
    let insert = format!(
        "insert into public.outboxevent values ('{id}', '{aggregate}', '21', 'placed', '{{\"a\": 1}}')"
    );
    t.database().superuser().batch_execute(&insert).await.expect("inserted");
    let records = topic.records_with([id.to_owned()]).await;
    let record = records.first().expect("one record");
    assert_eq!(record.header("id"), Some(id));
    assert_eq!(record.key.as_deref(), Some(&b"21"[..]));
    assert_eq!(record.payload.as_deref(), Some(&b"{\"a\": 1}"[..]));
    assert_eq!(record.partition, outbox_harness::murmur2::partition(b"21", 4));
}

#[tokio::test]
async fn the_cloudevents_style_follows_the_kafka_binding() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _relay = t.relay().set("outbox.headers", "cloudevents").start().await;
    t.commit([Event::to(topic.name()).key("k").kind("placed").header("traceparent", "x")]).await;
    let row = t.committed().await.remove(0);
    let record = topic.records_with([row.id.clone()]).await.remove(0);
    assert_eq!(record.header("ce_specversion"), Some("1.0"));
    assert_eq!(record.header("ce_id"), Some(row.id.as_str()));
    assert_eq!(record.header("ce_type"), Some("placed"));
    assert_eq!(record.header("ce_outboxrelay"), Some(t.database().name()));
    assert!(record.header("ce_source").is_some() && record.header("ce_time").is_some());
    assert!(record.header("ce_outboxposition").is_some());
    assert_eq!(record.header("content-type"), Some("application/json"));
    assert_eq!(record.header("outbox-id"), None, "one style at a time");
    assert_eq!(record.payload, row.payload.map(String::into_bytes));
}

/// Makes the table `public.mail` of these `columns`, and settings of a relay of it; events have no more parts than
/// are `mapped`.
async fn of_ones_own(
    t: &Harness,
    topic: &Topic,
    columns: &str,
    mapped: &[(&str, &str)],
) -> Settings {
    let table = format!(
        "create table public.mail ({columns}); \
         create publication mail for table public.mail with (publish = 'insert')"
    );
    t.database().superuser().batch_execute(&table).await.expect("a table");
    let settings = t
        .relay()
        .set("postgres.publication", "mail")
        .set_toml("outbox.tables", "[\"public.mail\"]")
        .set("outbox.topic", topic.name());
    let parts = ["id", "topic", "key", "type", "payload", "headers", "partition", "created_at"];
    parts.into_iter().fold(settings, |settings, part| {
        let setting = format!("outbox.columns.{part}");
        match mapped.iter().find(|(mapped, _)| *mapped == part) {
            Some((_, column)) => settings.set(&setting, column),
            None => settings.set_toml(&setting, "false"),
        }
    })
}

#[tokio::test]
async fn a_table_of_ones_own_is_published_by_its_columns_names() {
    let t = Harness::start().await;
    let topic = t.topic("invoices").create(2).await;
    let table = "no bigint primary key, body text, customer int";
    let settings =
        of_ones_own(&t, &topic, table, &[("id", "no"), ("key", "customer"), ("payload", "body")]);
    let _relay = settings.await.start().await;
    let insert = "insert into public.mail values (42, 'plain text, not JSON', 7)";
    t.database().superuser().batch_execute(insert).await.expect("inserted");
    let record = topic.records_with(["42".to_owned()]).await.remove(0);
    assert_eq!(record.payload.as_deref(), Some(&b"plain text, not JSON"[..]));
    assert_eq!(record.key.as_deref(), Some(&b"7"[..]));
}

/// A text may be longer than an index takes.
#[tokio::test]
async fn an_event_with_a_very_long_id_is_parked_and_released() {
    let t = Harness::start().await;
    let topic = t.topic("invoices");
    let table = "no text not null, body text";
    let settings = of_ones_own(&t, &topic, table, &[("id", "no"), ("payload", "body")]);
    let settings = settings.await.set("sink.topic_grace", "100ms");
    let _relay = settings.clone().start().await;
    let insert = "insert into public.mail select string_agg(gen_random_uuid()::text, ''), 'x' \
                  from generate_series(1, 300)";
    t.database().superuser().batch_execute(insert).await.expect("inserted");
    wait_parked(&t, |parked| parked == 1).await;
    let topic = topic.create(1).await;
    let released = settings.command(&["dead-letters", "release", "--all", "--yes"]).await;
    assert!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    wait_records(&topic, 1).await;
    let id = topic.records().await[0].id().map(str::len);
    assert_eq!(id, Some(300 * 36));
}
