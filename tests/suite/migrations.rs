//! Applying the sets: by the program, by hand, twice, by two at once, in any encoding, and over what
//! former versions made.

use std::process::{Command, Stdio};

use outbox_harness::{
    Harness,
    database::{Database, Role},
    postgres, wait,
};
use outbox_migrations::{Applied, MigrateError, Set, apply};
use refinery_core::Runner;

fn everything() -> Vec<Applied> {
    everything_of(Set::Outbox)
}

fn everything_of(set: Set) -> Vec<Applied> {
    let applied =
        |m: &outbox_migrations::Migration| Applied { version: m.version, name: m.name.to_owned() };
    set.migrations().iter().map(applied).collect()
}

async fn history_rows(database: &Database) -> i64 {
    let count = "select count(*) from outbox.migrations";
    database.superuser().query_one(count, &[]).await.expect("a count").get(0)
}

#[tokio::test]
async fn a_second_migrate_has_nothing_to_do() {
    let database = Database::create_empty().await;
    let mut owner = database.connect(Role::Owner).await;
    for &set in Set::ALL {
        assert_eq!(apply(&mut owner, set).await.expect("applied"), everything_of(set));
        assert_eq!(apply(&mut owner, set).await.expect("up to date"), []);
    }
}

#[tokio::test]
async fn an_inbox_that_was_made_by_hand_is_adopted_with_its_rows() {
    let database = Database::create_empty().await;
    let mut owner = database.connect(Role::Owner).await;
    owner.batch_execute(&Set::Inbox.print()).await.expect("the printed script runs");
    let row = "insert into inbox.messages values (current_date, 1, gen_random_uuid())";
    owner.batch_execute(row).await.expect("there is a partition for today");
    outbox_idempotency::migrate(&mut owner).await.expect("adopted");
    let rows = owner.query_one("select count(*) from inbox.messages", &[]).await.expect("a count");
    assert_eq!(rows.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn of_several_that_migrate_at_once_one_does_it_and_the_others_wait() {
    let database = Database::create_empty().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut owner = database.connect(Role::Owner).await;
        tasks.spawn(async move { apply(&mut owner, Set::Outbox).await });
    }
    let mut applied = Vec::new();
    for outcome in tasks.join_all().await {
        applied.extend(outcome.expect("none of them fails"));
    }
    assert_eq!(applied, everything());
    assert_eq!(history_rows(&database).await, everything().len() as i64);
}

#[tokio::test]
async fn the_lock_is_free_after_a_migration_that_failed() {
    let database = Database::create_empty().await;
    let mut first = database.connect(Role::Owner).await;
    let foreign = "create schema outbox; create table outbox.events (id int)";
    first.batch_execute(foreign).await.expect("a foreign table");
    apply(&mut first, Set::Outbox).await.expect_err("a foreign table is in the way");
    database.superuser().batch_execute("drop table outbox.events").await.expect("dropped");
    // `first` is still connected: a lock that it held would be waited for until the deadline.
    let mut second = database.connect(Role::Owner).await;
    let second = apply(&mut second, Set::Outbox);
    let applied = tokio::time::timeout(outbox_harness::wait::PATIENCE, second).await;
    assert_eq!(applied.expect("not blocked").expect("applied"), everything());
}

#[tokio::test]
async fn a_table_of_another_shape_is_refused_with_what_it_lacks() {
    let database = Database::create_empty().await;
    let foreign = "create schema outbox; \
                   create table outbox.events (id uuid, created_at timestamptz, topic text) \
                       partition by range (created_at)";
    database.superuser().batch_execute(foreign).await.expect("a foreign table");
    let superuser = database.superuser();
    let script = Set::Outbox.print();
    let error = superuser.batch_execute(&script).await.expect_err("refused");
    let error = error.as_db_error().expect("by the database");
    assert!(
        error.message().contains("column \"key\"") || error.message().contains("lacks key text"),
        "{error:?}"
    );
}

#[tokio::test]
async fn what_was_applied_by_hand_is_adopted() {
    let database = Database::create_empty().await;
    let mut owner = database.connect(Role::Owner).await;
    owner.batch_execute(&Set::Outbox.print()).await.expect("the printed script runs");
    let insert = "select outbox.publish('orders', '{}')";
    owner.batch_execute(insert).await.expect("the owner may publish");
    assert_eq!(apply(&mut owner, Set::Outbox).await.expect("adopted"), everything());
    let rows: i64 =
        owner.query_one("select count(*) from outbox.events", &[]).await.expect("a count").get(0);
    assert_eq!(rows, 1, "the rows are still there");
}

#[tokio::test]
async fn an_applied_migration_with_another_text_is_refused() {
    let database = Database::create().await;
    let tamper = "update outbox.migrations set checksum = '1'";
    database.superuser().batch_execute(tamper).await.expect("updated");
    let mut owner = database.connect(Role::Owner).await;
    let error = apply(&mut owner, Set::Outbox).await.expect_err("refused");
    assert!(matches!(error, MigrateError::History { .. }), "{error:?}");
    assert!(error.to_string().contains("outbox.migrations has V1__events"), "{error}");
}

#[tokio::test]
async fn a_history_with_a_newer_migration_is_refused() {
    let database = Database::create().await;
    let newer = "insert into outbox.migrations select 99, 'later', applied_on, '1' \
                 from outbox.migrations limit 1";
    database.superuser().batch_execute(newer).await.expect("inserted");
    let mut owner = database.connect(Role::Owner).await;
    let error = apply(&mut owner, Set::Outbox).await.expect_err("refused");
    assert!(error.to_string().contains("V99__later"), "{error}");
}

#[tokio::test]
async fn a_role_that_may_not_create_is_told_so_once() {
    let database = Database::create_empty().await;
    let mut writer = database.connect(Role::Writer).await;
    let error = apply(&mut writer, Set::Outbox).await.expect_err("refused");
    assert_eq!(error.to_string(), "creating the schema outbox failed");
    let cause = std::error::Error::source(&error).expect("the database's answer");
    assert!(format!("{cause:?}").contains("permission denied"), "{cause:?}");
}

#[tokio::test]
async fn the_publication_carries_inserts_of_the_partition_root_alone() {
    let database = Database::create().await;
    let row = database
        .superuser()
        .query_one(
            "select pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, \
             (select string_agg(schemaname || '.' || tablename, ',') from pg_publication_tables \
              where pubname = 'outbox') \
             from pg_publication where pubname = 'outbox'",
            &[],
        )
        .await
        .expect("the publication is there");
    let flags: Vec<bool> = (0..5).map(|column| row.get(column)).collect();
    assert_eq!(flags, [true, false, false, false, true]);
    assert_eq!(row.get::<_, &str>(5), "outbox.events");
}

#[tokio::test]
async fn a_publication_of_that_name_without_the_table_is_refused() {
    let database = Database::create_empty().await;
    let foreign = "create publication outbox";
    database.superuser().batch_execute(foreign).await.expect("a foreign publication");
    let mut owner = database.connect(Role::Owner).await;
    let error = apply(&mut owner, Set::Outbox).await.expect_err("refused");
    assert_eq!(error.to_string(), "applying migration V1__events failed");
    let cause = std::error::Error::source(&error).expect("the database's answer");
    let text = format!("{cause:?}");
    assert!(text.contains("does not publish outbox.events"), "{text}");
    let missing = "select to_regclass('outbox.events') is null";
    let row = database.superuser().query_one(missing, &[]).await.expect("an answer");
    assert!(row.get::<_, bool>(0), "the migration is applied whole or not at all");
}

/// Encodings of servers: one byte a character, several, and none at all.
const ENCODINGS: [&str; 9] =
    ["LATIN1", "LATIN9", "KOI8R", "WIN1252", "WIN1251", "EUC_JP", "EUC_KR", "SQL_ASCII", "UTF8"];

#[tokio::test]
async fn both_sets_are_applied_in_databases_of_any_encoding() {
    for encoding in ENCODINGS {
        let options = format!("encoding '{encoding}' locale 'C'");
        let database = Database::create_empty_with(&options).await;
        let mut owner = database.connect(Role::Owner).await;
        for &set in Set::ALL {
            let applied = apply(&mut owner, set).await;
            assert_eq!(applied.expect(encoding), everything_of(set), "{encoding}");
        }
    }
}

#[tokio::test]
async fn the_printed_sets_are_applied_by_psql_in_databases_of_any_encoding() {
    for (encoding, options) in ENCODINGS.iter().zip([&["-1"][..], &[]].into_iter().cycle()) {
        let create = format!("encoding '{encoding}' locale 'C'");
        let database = Database::create_empty_with(&create).await;
        for set in Set::ALL {
            psql(&database, options, &set.print());
        }
        let mut owner = database.connect(Role::Owner).await;
        for &set in Set::ALL {
            assert_eq!(apply(&mut owner, set).await.expect("adopted"), everything_of(set));
        }
    }
}

/// Pipes a script to `psql`, as the owner; nothing may fail.
fn psql(database: &Database, options: &[&str], script: &str) {
    let program = postgres::program("psql").expect("psql");
    let mut psql = Command::new(program)
        .args(options)
        .args(["--quiet", "--no-psqlrc", "-v", "ON_ERROR_STOP=1"])
        .arg(database.url(Role::Owner))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql starts");
    let mut stdin = psql.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut stdin, script.as_bytes()).expect("it reads");
    drop(stdin);
    let output = psql.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing is shown");
}

/// What versions before 2026-11 had, as they had it.
fn former(set: Set) -> Vec<refinery_core::Migration> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("former").join(set.name());
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("former texts").flatten().collect();
    files.sort_by_key(std::fs::DirEntry::file_name);
    let migration = |file: std::fs::DirEntry| {
        let sql = std::fs::read_to_string(file.path()).expect("a text");
        let name = file.file_name().into_string().expect("a name");
        refinery_core::Migration::unapplied(&name, &sql).expect("a migration")
    };
    files.into_iter().map(migration).collect()
}

#[tokio::test]
async fn a_database_that_former_texts_migrated_is_adopted_and_gets_what_is_new() {
    let database = Database::create_empty().await;
    let mut owner = database.connect(Role::Owner).await;
    for &set in Set::ALL {
        let former = former(set);
        let schema = format!("create schema {set}");
        owner.batch_execute(&schema).await.expect("created");
        let mut runner = Runner::new(&former);
        runner.set_migration_table_name(format!("{set}.migrations"));
        runner.run_async(&mut *owner).await.expect("the former texts run");
        if set == Set::Outbox {
            // Above the limits of today, which look at nothing that is there.
            let row = "insert into outbox.events (topic, key) values ('t', repeat('k', 2000000))";
            owner.batch_execute(row).await.expect("there was no limit");
        }

        let new = everything_of(set).split_off(former.len());
        assert_eq!(apply(&mut owner, set).await.expect("adopted"), new, "{set}");
        assert_eq!(apply(&mut owner, set).await.expect("up to date"), [], "{set}");
    }
}

#[tokio::test]
async fn a_migration_that_waits_for_a_writer_lets_other_writers_pass() {
    let database = Database::create_empty().await;
    let mut owner = database.connect(Role::Owner).await;
    let former = former(Set::Outbox);
    owner.batch_execute("create schema outbox").await.expect("created");
    let mut runner = Runner::new(&former);
    runner.set_migration_table_name("outbox.migrations");
    runner.run_async(&mut *owner).await.expect("the former texts run");
    let insert = "insert into outbox.events (topic) values ('t')";
    let mut slow = database.connect(Role::Owner).await;
    let transaction = slow.transaction().await.expect("begun");
    transaction.batch_execute(insert).await.expect("inserted");

    let migrating = tokio::spawn(async move { apply(&mut owner, Set::Outbox).await });
    let waits = "select exists (select from pg_locks l join pg_database d on d.oid = l.database \
                 where d.datname = current_database() and not l.granted)";
    let superuser = database.superuser();
    wait::until("the migration waits", wait::PATIENCE, || async {
        let row = superuser.query_one(waits, &[]).await.map_err(|e| e.to_string())?;
        if row.get(0) { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await
    .expect("the table is in use");
    let quick = database.connect(Role::Owner).await;
    for _ in 0..20 {
        quick.batch_execute(insert).await.expect("it passes");
    }
    assert!(!migrating.is_finished(), "it still waits for the slow one");
    transaction.commit().await.expect("committed");
    migrating.await.expect("no panic").expect("applied");
}

#[tokio::test]
async fn the_callers_search_path_is_what_it_was_before_a_migration_that_works_or_fails() {
    let database = Database::create_empty().await;
    let mut owner = database.connect(Role::Owner).await;
    owner.batch_execute("set search_path = pg_temp, public").await.expect("set");
    for set in [Set::Outbox, Set::Outbox, Set::Inbox] {
        apply(&mut owner, set).await.expect("applied");
        assert_eq!(search_path(&owner).await, "pg_temp, public");
        owner.batch_execute(&set.print()).await.expect("by hand");
        assert_eq!(search_path(&owner).await, "pg_temp, public");
    }
    owner.batch_execute("update outbox.migrations set checksum = '1'").await.expect("updated");
    apply(&mut owner, Set::Outbox).await.expect_err("refused");
    assert_eq!(search_path(&owner).await, "pg_temp, public");
}

async fn search_path(client: &tokio_postgres::Client) -> String {
    client.query_one("show search_path", &[]).await.expect("a setting").get(0)
}

/// What is left of its publication is of nothing, and would be taken for somebody else's.
#[tokio::test]
async fn a_table_of_events_that_was_dropped_is_made_again_with_its_publication() {
    let t = outbox_harness::Harness::start().await;
    t.database().superuser().batch_execute("drop table outbox.events").await.expect("dropped");
    let owner = t.relay().set("postgres.url", &t.database().url(Role::Owner));
    let output = owner.command(&["migrate"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let published = "select count(*) from pg_publication_tables where pubname = 'outbox'";
    let row = t.database().superuser().query_one(published, &[]).await.expect("a count");
    assert_eq!(row.get::<_, i64>(0), 1);
}

#[tokio::test]
async fn a_limit_of_the_server_that_keeps_migrate_out_is_told_with_what_raises_it() {
    let t = Harness::start().await;
    let (owner, name) = (t.database().name_of(Role::Owner), t.database().name().to_owned());
    for setting in ["temp_file_limit = 0", "work_mem = '64kB'"] {
        let alter = format!("alter role {owner} in database {name} set {setting}");
        t.database().superuser().batch_execute(&alter).await.expect("it is set");
    }
    let migrate = t.relay().set("postgres.url", &t.database().url(Role::Owner));
    let output = migrate.command(&["migrate"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    let remedy = format!("`alter role {owner} set temp_file_limit = -1`");
    assert!(said.contains("temporary file size exceeds") && said.contains(&remedy), "{said}");
}
