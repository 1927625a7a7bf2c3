//! Types that are not like others: in columns that no one maps, in ids, in keys.

use outbox_harness::{
    Harness,
    database::{Database, Role},
    topic::{Record, Topic},
    wait,
};
use outbox_migrations::Set;

use crate::{
    remedies::halted,
    repair::{drop_slot, wait_snapshot},
    rows::{check_says, each_once, insert, run},
};

/// A type that has no binary form, as contrib's isn has them.
const ODD: &str = "create type odd; \
    create function odd_in(cstring) returns odd language internal as 'textin' strict immutable; \
    create function odd_out(odd) returns cstring language internal as 'textout' strict immutable; \
    create type odd (input = odd_in, output = odd_out, like = text)";

#[tokio::test]
async fn a_column_without_a_binary_form_that_nobody_maps_is_streamed_past() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, ODD).await;
    run(&t, "alter table outbox.events add column first odd[] default '{a,b}'").await;
    let mut relay = t.relay().start().await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first]).await;
    assert!(!relay.logs_contain("will try again"), "known from the catalog");
    // While it streams in the binary format: nothing says so in advance.
    assert!(relay.sigterm().await.success());
    run(&t, "alter table outbox.events drop column first").await;
    relay.restart();
    relay.wait_ready().await;
    run(&t, "alter table outbox.events add column second odd[] default '{a,b}'").await;
    let second = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first, &second]).await;
}

#[tokio::test]
async fn a_column_without_a_binary_form_in_anybodys_table_is_streamed_past() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, ODD).await;
    run(&t, "create table public.library (books odd[])").await;
    run(
        &t,
        "create publication everything for all tables \
         with (publish = 'insert', publish_via_partition_root = true)",
    )
    .await;
    let relay = t.relay().set("postgres.publication", "everything").start().await;
    let first = insert(&t, &topic, "now()").await;
    run(&t, "insert into public.library values ('{a,b}')").await;
    let second = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first, &second]).await;
    assert!(relay.logs_contain("streaming in the text format from now on"));
}

#[tokio::test]
async fn a_generated_column_can_be_no_key_and_check_says_what_can() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let settings = t.relay();
    run(
        &t,
        "alter table outbox.events drop column key; alter table outbox.events \
         add column key text generated always as (topic || '!') stored",
    )
    .await;
    let words = ["column key of outbox.events is generated", "drop expression"];
    check_says(&settings, &words).await;
    let relay = settings.spawn();
    let detail = halted(&relay).await;
    words.iter().for_each(|word| assert!(detail.contains(word), "{word:?} is not in: {detail}"));
    run(&t, "alter table outbox.events alter column key drop expression").await;
    let id = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&id]).await;
}

/// A repair that is cut short after each row leaves out none of those whose ids are equal to their
/// type, and keeps numbers in their order.
async fn ids_of_one_moment_are_all_repaired(id_type: &str, ids: &[&str]) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let table = format!(
        "create extension citext; create domain number as bigint; \
         create table public.mine (like outbox.events including defaults); \
         alter table public.mine drop column id; alter table public.mine add column id {id_type} not null; \
         create publication mine for table public.mine with (publish = 'insert'); \
         grant select on public.mine to public"
    );
    run(&t, &table).await;
    let settings = t
        .relay()
        .set("postgres.publication", "mine")
        .set_toml("outbox.tables", "[\"public.mine\"]")
        .set_toml("outbox.rows_kept", "true")
        .set_toml("batch.records_max", "1");
    let mut relay = settings.clone().start().await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let rows: Vec<_> =
        ids.iter().map(|id| format!("('{}', '{id}', '2026-01-01')", topic.name())).collect();
    let insert =
        format!("insert into public.mine (topic, id, created_at) values {}", rows.join(", "));
    run(&t, &insert).await;
    for _ in 1..ids.len() {
        let mut dying = settings.clone().fault("repair-page-stored:1").spawn();
        dying.wait_end(wait::PATIENCE).await;
    }
    relay.restart();
    let all: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    topic.records_with(all.clone()).await;
    let ids_of = |records: Vec<Record>| -> Vec<String> {
        records.iter().map(|record| record.id().expect("an id").to_owned()).collect()
    };
    assert_eq!(ids_of(topic.records().await), all);
    // The stream says the same of the same rows.
    run(&t, &insert).await;
    let twice = wait::until("they are streamed", wait::PATIENCE, || async {
        let found = ids_of(topic.records().await);
        if found.len() == 2 * all.len() { Ok(found) } else { Err(format!("{found:?}")) }
    });
    assert_eq!(twice.await.expect("each once more"), [all.clone(), all].concat());
}

#[tokio::test]
async fn ids_that_differ_in_case_alone_are_all_repaired() {
    ids_of_one_moment_are_all_repaired("public.citext", &["A", "B", "a", "b"]).await;
}

/// Blanks at their ends count for nothing to the type, and are sent by the stream and by a repair.
#[tokio::test]
async fn ids_of_a_fixed_length_are_all_repaired_and_are_what_the_stream_makes_of_them() {
    let padded = ["a   ", "ab  ", "abc ", "b   ", "bbbb"];
    ids_of_one_moment_are_all_repaired("character(4)", &padded).await;
}

#[tokio::test]
async fn numbers_below_a_domain_are_repaired_in_their_order() {
    ids_of_one_moment_are_all_repaired("public.number", &["2", "9", "10", "11"]).await;
}

/// What the server, the role or the writer takes for its zone says nothing of a time without one.
async fn a_time_without_a_zone_is_utc(key_type: &str) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let (database, role) = (t.database().name(), t.database().name_of(Role::Relay));
    // Fourteen hours ahead of UTC, and eleven behind it.
    let make = format!(
        "create domain word as text; \
         create table public.mine (like outbox.events including defaults); \
         alter table public.mine alter column created_at type timestamp, \
             alter column key type {key_type}; \
         create publication mine for table public.mine with (publish = 'insert'); \
         grant select on public.mine to public; grant usage on type word to public; \
         alter database {database} set timezone = 'Pacific/Kiritimati'; \
         alter role {role} in database {database} set timezone = 'Pacific/Pago_Pago'"
    );
    run(&t, &make).await;
    let settings = t
        .relay()
        .set("postgres.publication", "mine")
        .set_toml("outbox.tables", "[\"public.mine\"]")
        .set_toml("outbox.rows_kept", "true");
    let output = settings.command(&["check"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    for words in ["public.mine.created_at is a timestamp without time zone", "taken as UTC"] {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }

    let mut relay = settings.start().await;
    assert!(relay.logs_contain("created_at is a timestamp without time zone, and is taken as UTC"));
    let streamed = insert_at(&t, &topic, "now() at time zone 'utc'").await;
    is_dated(&topic, &streamed, None).await;
    // As a default makes it where the writer's zone is another: it is taken as it is.
    let local = insert_at(&t, &topic, "now() at time zone 'America/New_York'").await;
    is_dated(&topic, &local, None).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let repaired = insert_at(&t, &topic, "now() at time zone 'utc'").await;
    relay.restart();
    is_dated(&topic, &repaired, Some("1")).await;
}

/// Returns the event's id, and its time in milliseconds if that is UTC.
async fn insert_at(t: &Harness, topic: &Topic, created_at: &str) -> (String, i64) {
    let sql = format!(
        "insert into public.mine (topic, key, created_at) values ('{}', 'k', {created_at}) \
         returning id::text, floor(extract(epoch from created_at) * 1000)::bigint",
        topic.name()
    );
    let row = t.database().superuser().query_one(&sql, &[]).await.expect("inserted");
    (row.get(0), row.get(1))
}

async fn is_dated(topic: &Topic, (id, created_ms): &(String, i64), repaired: Option<&str>) {
    let record = wait::until("it arrives", wait::PATIENCE, || async {
        let mut records = topic.records().await.into_iter();
        records.find(|record| record.id() == Some(id.as_str())).ok_or("not yet")
    });
    let record = record.await.expect("a record");
    assert_eq!(record.timestamp_ms, Some(*created_ms), "{record:?}");
    assert_eq!(record.header("outbox-repaired"), repaired, "{record:?}");
}

#[tokio::test]
async fn a_time_without_a_zone_is_taken_as_utc_whatever_anybodys_zone_is() {
    a_time_without_a_zone_is_utc("text").await;
}

#[tokio::test]
async fn a_time_without_a_zone_is_taken_as_utc_in_the_text_format_too() {
    a_time_without_a_zone_is_utc("word").await;
}

/// A database whose server does not know what its texts' bytes are, with all migrations and grants.
pub(crate) async fn without_encoding() -> Database {
    let database = Database::create_empty_with("encoding 'SQL_ASCII' locale 'C'").await;
    let mut owner = database.connect(Role::Owner).await;
    for set in [Set::Outbox, Set::Inbox] {
        outbox_migrations::apply(&mut owner, set).await.expect("migrated");
    }
    database.grant().await;
    database
}

/// Its texts are bytes: one of them may not hold up all others.
#[tokio::test]
async fn bytes_of_a_database_without_an_encoding_are_published_as_they_are() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let database = without_encoding().await;
    let insert = |key: &'static str| {
        let (database, topic) = (&database, topic.name());
        async move {
            let sql = format!("insert into outbox.events (topic, key) values ('{topic}', {key})");
            database.superuser().batch_execute(&sql).await.expect("inserted");
        }
    };
    let keys = |count: usize| {
        let topic = topic.clone();
        async move {
            wait::until("they arrive", wait::PATIENCE, || async {
                let keys: Vec<_> =
                    topic.records().await.into_iter().filter_map(|r| r.key).collect();
                if keys.len() >= count {
                    Ok(keys)
                } else {
                    Err(format!("{} of {count}", keys.len()))
                }
            })
            .await
            .expect("nothing is held up")
        }
    };
    let settings = t.relay_of(&database);
    let mut relay = settings.start().await;
    insert(r"E'caf\xe9'").await;
    insert("'plain'").await;
    assert_eq!(keys(2).await, [b"caf\xe9".to_vec(), b"plain".to_vec()]);
    // And in a repair.
    assert!(relay.sigterm().await.success());
    let drop = format!("select pg_drop_replication_slot('outbox_{}')", database.name());
    wait::until("the slot is dropped", wait::PATIENCE, || async {
        database.superuser().batch_execute(&drop).await
    })
    .await
    .expect("it was there, and not active");
    insert(r"E'th\xe9'").await;
    relay.restart();
    let found = wait::until("it is repaired", wait::PATIENCE, || async {
        let found = keys(3).await;
        if found.contains(&b"th\xe9".to_vec()) { Ok(found) } else { Err(format!("{found:?}")) }
    });
    assert!(found.await.expect("repaired").contains(&b"plain".to_vec()));
}
