//! Types that are not like others: in columns that no one maps, in ids, in keys.

use outbox_harness::{
    Harness,
    database::{Database, Role},
    wait,
};
use outbox_migrations::Set;

use crate::{
    remedies::halted,
    repair::drop_slot,
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
    let found: Vec<_> =
        topic.records().await.iter().map(|r| r.id().expect("an id").trim().to_owned()).collect();
    assert_eq!(found, all);
}

#[tokio::test]
async fn ids_that_differ_in_case_alone_are_all_repaired() {
    ids_of_one_moment_are_all_repaired("public.citext", &["A", "B", "a", "b"]).await;
}

#[tokio::test]
async fn numbers_below_a_domain_are_repaired_in_their_order() {
    ids_of_one_moment_are_all_repaired("public.number", &["2", "9", "10", "11"]).await;
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
