//! Functions, triggers and defaults of the schema outbox that someone drops, mostly with `cascade`: `check` names each,
//! and `migrate` puts it back as the migrations made it, while relays run and writers write.

use outbox_harness::{
    Harness,
    database::{Database, Role},
    wait,
};
use outbox_migrations::{Set, missing_outbox};
use tokio_postgres::Client;

use crate::{
    checks::check,
    obeyed::{obey, typed},
    rows::{each_once, insert, run},
};

/// Everything of the kinds that can be put back, with its text.
const CATALOG: &str = "\
    select pg_get_functiondef(p.oid) || coalesce(obj_description(p.oid, 'pg_proc'), '') \
        || (has_function_privilege('public', p.oid, 'execute'))::text \
    from pg_proc p where p.pronamespace = 'outbox'::regnamespace \
    union all select pg_get_triggerdef(g.oid) || g.tgenabled::text from pg_trigger g \
        join pg_class c on c.oid = g.tgrelid and c.relnamespace = 'outbox'::regnamespace and not c.relispartition \
    where not g.tgisinternal \
    union all select c.relname || '.' || a.attname || ' ' || pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d \
        join pg_class c on c.oid = d.adrelid and c.relnamespace = 'outbox'::regnamespace \
        join pg_attribute a on a.attrelid = c.oid and a.attnum = d.adnum \
    order by 1";

async fn catalog(client: &Client) -> Vec<String> {
    let rows = client.query(CATALOG, &[]).await.expect("the catalog");
    rows.iter().map(|row| row.get(0)).collect()
}

/// What drops each function, trigger and default that is there, with what its drop takes along.
const DROPS: &str = "\
    select format('drop function %s cascade', p.oid::regprocedure) \
    from pg_proc p where p.pronamespace = 'outbox'::regnamespace \
    union all select format('drop trigger %I on %s', g.tgname, g.tgrelid::regclass) from pg_trigger g \
        join pg_class c on c.oid = g.tgrelid and c.relnamespace = 'outbox'::regnamespace and not c.relispartition \
    where not g.tgisinternal \
    union all select format('alter table %s disable trigger %I', g.tgrelid::regclass, g.tgname) from pg_trigger g \
        join pg_class c on c.oid = g.tgrelid and c.relnamespace = 'outbox'::regnamespace and not c.relispartition \
    where not g.tgisinternal \
    union all select format('alter table %s alter column %I drop default', c.oid::regclass, a.attname) \
    from pg_attrdef d join pg_class c on c.oid = d.adrelid and c.relnamespace = 'outbox'::regnamespace \
            and not c.relispartition \
        join pg_attribute a on a.attrelid = c.oid and a.attnum = d.adnum";

/// A migration that makes one more of them, and forgets the list, fails here.
#[tokio::test]
async fn each_function_trigger_and_default_of_the_migrations_is_missed_and_made_again_as_it_was() {
    let database = Database::create_empty().await;
    let mut owner = database.connect(Role::Owner).await;
    outbox_migrations::apply(&mut owner, Set::Outbox).await.expect("migrated");
    let made = catalog(&owner).await;
    assert_eq!(
        missing_outbox(&owner).await.expect("asked"),
        Vec::<&outbox_migrations::Made>::new()
    );
    let drops = owner.query(DROPS, &[]).await.expect("the catalog");
    let drops: Vec<String> = drops.iter().map(|row| row.get(0)).collect();
    assert!(drops.len() > 20, "{drops:?}");
    for drop in &drops {
        owner.batch_execute(drop).await.unwrap_or_else(|error| panic!("{drop}: {error:?}"));
        assert_ne!(catalog(&owner).await, made, "{drop}");
        let missing = missing_outbox(&owner).await.expect("asked");
        assert!(!missing.is_empty(), "{drop}: not missed");
        let restored = outbox_migrations::restore_outbox(&mut owner).await;
        assert_eq!(restored.unwrap_or_else(|error| panic!("{drop}: {error:?}")), missing);
        assert_eq!(catalog(&owner).await, made, "{drop}");
    }
    // All at the same time.
    for drop in &drops {
        let _gone_with_another = owner.batch_execute(drop).await;
    }
    outbox_migrations::restore_outbox(&mut owner).await.expect("restored");
    assert_eq!(catalog(&owner).await, made);
}

/// Functions, and what is said of each.
const FUNCTIONS: [(&str, &[&str]); 6] = [
    ("uuid_v7()", &["the function outbox.uuid_v7()", "the default of outbox.events.id"]),
    ("publish", &["the function outbox.publish(text, jsonb"]),
    ("note_deletion()", &["the function outbox.note_deletion()"]),
    ("note_deletions(regclass)", &["the function outbox.note_deletions(regclass)"]),
    (
        "keep_until_settled()",
        &["the function outbox.keep_until_settled()", "the trigger keep_until_settled of"],
    ),
    ("note_restored()", &["the function outbox.note_restored()", "the trigger note_restored of"]),
];

#[tokio::test]
async fn each_function_that_is_dropped_with_cascade_is_named_by_check_and_migrate_puts_it_back() {
    for cases in FUNCTIONS.chunks(3) {
        futures_util::future::join_all(cases.iter().map(is_put_back)).await;
    }
}

async fn is_put_back((function, named): &(&str, &[&str])) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let settings = t.relay();
    let mut relay = settings.clone().start().await;
    let mut ids = vec![insert(&t, &topic, "now()").await];
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
    run(&t, &format!("drop function outbox.{function} cascade")).await;
    let found = check(&settings).await;
    let of_it: Vec<_> = found.iter().filter(|it| it.seen.contains("is missing")).collect();
    assert_eq!(of_it.len(), named.len(), "{function}: {found:#?}");
    for words in *named {
        let found = of_it.iter().find(|it| it.seen.contains(words)).expect(words);
        assert!(found.verdict == "problem" && found.name == "migrations", "{found:?}");
    }
    let first = of_it.first().expect("it is named");
    obey(&t, typed(&first.remedy, "migrate")).await;
    let found = check(&settings).await;
    let left: Vec<_> = found.iter().filter(|it| it.verdict == "problem").collect();
    assert!(left.is_empty(), "{function}: {left:#?}");
    assert!(!found.iter().any(|it| it.name == "rows" && it.verdict != "ok"), "{found:#?}");

    let publish = format!("select outbox.publish('{}', '1')::text", topic.name());
    let writer = t.database().connect(Role::Writer).await;
    ids.push(writer.query_one(&publish, &[]).await.expect("the grants are there").get(0));
    ids.push(insert(&t, &topic, "now()").await);
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
    assert!(!relay.logs_contain("halted"), "{function}: {}", relay.log_text());
    assert!(relay.sigterm().await.success());
}

/// As one who holds the table for long, and whom writers wait behind for a moment only.
#[tokio::test]
async fn what_is_put_back_waits_for_whoever_uses_the_table_and_no_one_waits_behind_it() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, "drop function outbox.uuid_v7 cascade").await;
    let other = t.database().connect(Role::Owner).await;
    other.batch_execute("begin; select count(*) from outbox.events").await.expect("it reads");
    let mut owner = t.database().connect(Role::Owner).await;
    let restored = tokio::spawn(async move { outbox_migrations::restore_outbox(&mut owner).await });
    let sql = format!(
        "insert into outbox.events (id, topic) values (gen_random_uuid(), '{}')",
        topic.name()
    );
    let writer = t.database().superuser();
    writer.batch_execute("set lock_timeout = '20s'").await.expect("set");
    // Each time while it waits for the reader, which has the table until all are written.
    for _ in 0..3 {
        wait::until("it waits for the table", wait::PATIENCE, || async {
            // Tables of other tests' databases have the same number.
            let sql = "select exists (select from pg_locks where not granted \
                       and relation = 'outbox.events'::regclass \
                       and database = (select oid from pg_database where datname = current_database()))";
            let waits = writer.query_one(sql, &[]).await.map_err(|error| error.to_string())?;
            waits.get::<_, bool>(0).then_some(()).ok_or("not now".to_owned())
        })
        .await
        .expect("it does");
        writer.batch_execute(&sql).await.expect("written");
    }
    assert!(!restored.is_finished(), "the table is read, still");
    other.batch_execute("commit").await.expect("read");
    let restored = restored.await.expect("no panic").expect("put back");
    assert_eq!(restored.len(), 2, "{restored:?}");
}

/// Whoever may not put triggers on a table is told whose it is, and what hands it over.
#[tokio::test]
async fn a_table_that_a_superuser_made_anew_is_handed_over_as_migrate_says() {
    let t = Harness::start().await;
    for statement in [
        "create table outbox.anew (like outbox.events including all)",
        "drop table outbox.events",
        "alter table outbox.anew rename to events",
    ] {
        run(&t, statement).await;
    }
    let migrate = t.relay().set("postgres.url", &t.database().url(Role::Owner));
    let refused = migrate.command(&["migrate"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    for words in ["outbox.events belongs to the role postgres", "none of them was put back"] {
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }
    obey(&t, typed(&said, "owner to")).await;
    obey(&t, "outbox-relay migrate").await;
    let owner = t.database().connect(Role::Owner).await;
    let missing = missing_outbox(&owner).await.expect("asked");
    assert_eq!(missing, Vec::<&outbox_migrations::Made>::new());
}
