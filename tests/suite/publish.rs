//! `outbox.publish`, `outbox.uuid_v7`, and what each role may do.

use outbox_harness::database::{Database, Role};
use serde_json::json;
use tokio_postgres::{Client, error::SqlState};
use uuid::{Uuid, Variant};

/// Runs a statement that must be refused, and returns SQLSTATE and message.
async fn refused(client: &Client, sql: &str) -> (SqlState, String) {
    let error = client.batch_execute(sql).await.expect_err(sql);
    let error = error.as_db_error().expect("refused by the database");
    (error.code().clone(), error.message().to_owned())
}

#[tokio::test]
async fn publish_writes_what_it_was_given_and_returns_the_id() {
    let database = Database::create().await;
    let writer = database.connect(Role::Writer).await;
    let given = Uuid::from_u128(7);
    let id: Uuid = writer
        .query_one(
            "select outbox.publish('orders', '{\"a\": 1}', 'k', 'placed', '{\"h\": \"v\"}', 3, $1)",
            &[&given],
        )
        .await
        .expect("published")
        .get(0);
    assert_eq!(id, given);
    let row = database
        .superuser()
        .query_one("select to_jsonb(e) - 'created_at' - 'xid' from outbox.events e", &[])
        .await
        .expect("one row");
    assert_eq!(
        row.get::<_, serde_json::Value>(0),
        json!({ "id": given, "topic": "orders", "key": "k", "type": "placed",
                "payload": { "a": 1 }, "headers": { "h": "v" }, "partition": 3 })
    );
}

#[tokio::test]
async fn publish_needs_no_more_than_a_topic_and_takes_nulls_for_the_rest() {
    let database = Database::create().await;
    let writer = database.connect(Role::Writer).await;
    let both = "select outbox.publish('orders', null), \
                outbox.publish('orders', null, null, null, null, null, null)";
    let row = writer.query_one(both, &[]).await.expect("published");
    assert_ne!(row.get::<_, Uuid>(0), row.get::<_, Uuid>(1));
    let plain = "select count(*) from outbox.events where payload is null and key is null \
                 and type is null and partition is null and headers = '{}'";
    let count: i64 = database.superuser().query_one(plain, &[]).await.expect("a count").get(0);
    assert_eq!(count, 2);
}

#[tokio::test]
async fn publish_refuses_bad_input_with_a_message_that_names_it() {
    let database = Database::create().await;
    let writer = database.connect(Role::Writer).await;
    let long = "x".repeat(250);
    for (arguments, expected) in [
        ("''", "the topic is empty"),
        ("null", "the topic is empty"),
        ("'or ders'", "the topic 'or ders' is not a name that Kafka takes"),
        ("E'orders\\n'", "is not a name that Kafka takes"),
        ("'..'", "the topic '..' is not a name"),
        (&format!("'{long}'"), "at most 249 letters"),
        ("'t', headers => '[]'", "headers is a JSON array; it must be a flat object of strings"),
        ("'t', headers => 'null'", "headers is a JSON null"),
        ("'t', headers => '{\"a\": 1}'", "the header 'a' is a JSON number; it must be a string"),
        ("'t', headers => '{\"a\": {\"b\": \"c\"}}'", "the header 'a' is a JSON object"),
        ("'t', headers => '{\"a\": \"b\", \"c\": null}'", "the header 'c' is a JSON null"),
        ("'t', headers => '{\"outbox-id\": \"1\"}'", "the header 'outbox-id' begins with outbox-"),
        ("'t', headers => '{\"\": \"x\"}'", "a header has no name"),
        ("'t', partition => -1", "the partition -1 is negative"),
    ] {
        let (topic, rest) = arguments.split_once(", ").unwrap_or((arguments, "key => 'k'"));
        let sql = format!("select outbox.publish({topic}, '{{}}', {rest})");
        let (state, message) = refused(&writer, &sql).await;
        assert_eq!(state, SqlState::INVALID_PARAMETER_VALUE, "{sql}: {message}");
        assert!(message.contains(expected), "{sql}: {message}");
    }
    let count = "select count(*) from outbox.events";
    let rows: i64 = database.superuser().query_one(count, &[]).await.expect("a count").get(0);
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn publish_refuses_the_topics_in_which_others_keep_state() {
    let database = Database::create().await;
    let writer = database.connect(Role::Writer).await;
    for pattern in outbox_relay::core::destination::RESERVED {
        let topic = pattern.replace('*', "x");
        let sql = format!("select outbox.publish('{topic}', '{{}}')");
        let (state, message) = refused(&writer, &sql).await;
        assert_eq!(state, SqlState::INVALID_PARAMETER_VALUE, "{sql}: {message}");
        assert!(message.contains("keep state"), "{sql}: {message}");
    }
}

#[tokio::test]
async fn publish_refuses_a_record_above_the_setting_and_no_smaller_one() {
    let database = Database::create().await;
    let writer = database.connect(Role::Writer).await;
    // Two quotes, the key's one byte and the empty headers' two are part of a record.
    let publish =
        |bytes: usize| format!("select outbox.publish('t', to_jsonb(repeat('x', {bytes})), 'k')");
    writer.batch_execute(&publish(1_000_000 - 5)).await.expect("the default's last byte");
    let (state, message) = refused(&writer, &publish(1_000_000 - 4)).await;
    assert_eq!(state, SqlState::INVALID_PARAMETER_VALUE);
    assert_eq!(
        message,
        "the record has 1000001 bytes, more than the 1000000 of the setting \
         outbox.record_bytes_max"
    );
    let raise = format!("alter database {} set outbox.record_bytes_max = '2 MB'", database.name());
    database.superuser().batch_execute(&raise).await.expect("the setting is taken");
    let writer = database.connect(Role::Writer).await;
    writer.batch_execute(&publish(1_900_000)).await.expect("below the new limit");
}

#[tokio::test]
async fn publish_means_the_same_under_any_search_path() {
    let database = Database::create().await;
    let trap = "create schema trap; grant usage on schema trap to public; \
                create function trap.octet_length(text) returns int language sql return 1 / 0; \
                create function trap.gen_random_uuid() returns uuid language sql return null::uuid";
    database.superuser().batch_execute(trap).await.expect("a trap");
    let writer = database.connect(Role::Writer).await;
    writer
        .batch_execute(
            "set search_path = trap, pg_catalog; \
             select outbox.publish('t', '{}'); insert into outbox.events (topic) values ('t')",
        )
        .await
        .expect("the functions mean PostgreSQL's own");
}

#[tokio::test]
async fn ids_are_version_7_unique_and_in_the_order_of_time() {
    let database = Database::create().await;
    let rows = database
        .superuser()
        .query(
            "select outbox.uuid_v7(), (extract(epoch from clock_timestamp()) * 1000)::float8 \
             from generate_series(1, 20000)",
            &[],
        )
        .await
        .expect("ids");
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    for (id, row) in ids.iter().zip(&rows) {
        assert_eq!((id.get_version_num(), id.get_variant()), (7, Variant::RFC4122), "{id}");
        let (seconds, nanos) = id.get_timestamp().expect("a version 7 has a time").to_unix();
        let millis = seconds as f64 * 1000.0 + f64::from(nanos) / 1e6;
        let clock: f64 = row.get(1);
        assert!((clock - millis).abs() < 1000.0, "{id} is of {millis}, made at {clock}");
    }
    let unique: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
    // Two of one microsecond may stand in either order; all others sort as they were made.
    let microsecond = |id: &Uuid| id.as_u128() >> 64;
    assert!(ids.is_sorted_by_key(microsecond));
}

#[tokio::test]
async fn a_writer_adds_events_and_can_do_nothing_else() {
    let database = Database::create().await;
    let writer = database.connect(Role::Writer).await;
    writer
        .batch_execute("insert into outbox.events (topic, payload) values ('t', '{}')")
        .await
        .expect("a plain insert");
    for sql in [
        "select * from outbox.events",
        "update outbox.events set topic = 'u'",
        "delete from outbox.events",
        "truncate outbox.events",
        "insert into outbox.events_default (topic) values ('t')",
        // It would pass for another transaction's row, or another cluster's.
        "insert into outbox.events (topic, xid) values ('t', '7')",
        "select * from outbox.migrations",
        "create table outbox.mine ()",
        "drop publication outbox",
    ] {
        let (state, message) = refused(&writer, sql).await;
        assert_eq!(state, SqlState::INSUFFICIENT_PRIVILEGE, "{sql}: {message}");
    }
}

#[tokio::test]
async fn the_relays_role_reads_events_and_streams_and_can_write_nothing() {
    let database = Database::create().await;
    let relay = database.connect(Role::Relay).await;
    relay.batch_execute("select * from outbox.events").await.expect("it reads");
    relay.batch_execute("select version from outbox.migrations").await.expect("it reads");
    let slot = format!("slot_{}", database.name());
    relay
        .execute("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot])
        .await
        .expect("it makes a slot");
    for sql in [
        "insert into outbox.events (topic) values ('t')",
        "select outbox.publish('t', '{}')",
        "update outbox.events set topic = 'u'",
        "delete from outbox.events",
        "create table outbox.mine ()",
    ] {
        let (state, message) = refused(&relay, sql).await;
        assert_eq!(state, SqlState::INSUFFICIENT_PRIVILEGE, "{sql}: {message}");
    }
}

#[tokio::test]
async fn a_role_without_grants_reaches_nothing_in_the_schema() {
    let database = Database::create().await;
    let anyone = format!("anyone_{}", database.name());
    let superuser = database.superuser();
    superuser
        .batch_execute(&format!("create role {anyone}; set role {anyone}"))
        .await
        .expect("set");
    for sql in ["select outbox.publish('t', '{}')", "select outbox.uuid_v7()"] {
        let (state, message) = refused(superuser, sql).await;
        assert_eq!(state, SqlState::INSUFFICIENT_PRIVILEGE, "{sql}: {message}");
    }
    superuser.batch_execute(&format!("reset role; drop role {anyone}")).await.expect("dropped");
}
