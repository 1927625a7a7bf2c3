//! Several who recreate an inbox at the same time: one does it, and no one waits without an end or a word.

use outbox_harness::{
    database::{Database, Role},
    wait,
};
use outbox_migrations::{MigrateError, recreate_inbox};

use super::effects::{database, number};

/// The lock of the upkeep, until the session ends.
pub(super) const HOLD: &str = "set application_name = 'a nightly job'; begin; \
    select pg_advisory_xact_lock(8031453476610927988)";

pub(super) const WAITING: &str = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
    and database = (select oid from pg_database where datname = current_database())";

async fn drop_table(database: &Database, table: &str) {
    let drop = format!("drop table inbox.{table} cascade");
    database.superuser().batch_execute(&drop).await.expect("dropped");
}

#[tokio::test]
async fn of_two_who_start_at_the_same_time_one_recreates_what_was_dropped() {
    let database = database().await;
    let holder = database.connect(Role::Consumer).await;
    holder.batch_execute(HOLD).await.expect("held");
    drop_table(&database, "messages").await;
    let start = async || {
        let mut owner = database.connect(Role::Owner).await;
        loop {
            // On a busy machine the other one takes longer than this one waits.
            match recreate_inbox(&mut owner).await {
                Err(MigrateError::Busy { .. }) => {}
                done => break done.expect("it is there again"),
            }
        }
    };
    let release = async {
        wait::until("both wait", wait::PATIENCE, || async {
            match number(&database, WAITING).await {
                2 => Ok(()),
                some => Err(format!("{some} wait")),
            }
        })
        .await
        .expect("both have seen that it is missing");
        holder.batch_execute("rollback").await.expect("released");
    };
    let (first, second, ()) = tokio::join!(start(), start(), release);
    let mut done = [first, second];
    done.sort();
    assert_eq!(done[0], Vec::<&str>::new(), "the other one finds all of it there");
    assert!(done[1].contains(&"inbox.messages"), "{done:?}");
    let today = "select count(*) from inbox.window() as w \
        where (now() at time zone 'utc')::date between w.oldest and w.newest";
    assert_eq!(number(&database, today).await, 1, "with its days");
    let watched = "select count(*) from pg_trigger where tgenabled = 'A' and (tgrelid = 'inbox.messages'::regclass \
        or tgrelid in (select inhrelid from pg_inherits where inhparent = 'inbox.messages'::regclass))";
    let days =
        "select 1 + 2 * count(*) from pg_inherits where inhparent = 'inbox.messages'::regclass";
    assert_eq!(number(&database, watched).await, number(&database, days).await);
}

#[tokio::test]
async fn who_holds_the_upkeeps_lock_is_named_and_nothing_is_changed() {
    let database = database().await;
    let holder = database.connect(Role::Consumer).await;
    holder.batch_execute(HOLD).await.expect("held");
    drop_table(&database, "parked").await;
    let mut owner = database.connect(Role::Owner).await;
    let tries = tokio::time::timeout(wait::PATIENCE, recreate_inbox(&mut owner)).await;
    let error = tries.expect("it does not wait for ever").expect_err("it is held");
    assert!(matches!(error, MigrateError::Busy { .. }), "{error:?}");
    let (text, role) = (error.to_string(), database.name_of(Role::Consumer));
    let pid = "select pid::bigint from pg_stat_activity where application_name = 'a nightly job' \
        and datname = current_database()";
    let pid = number(&database, pid).await;
    let remedy = format!("select pg_terminate_backend({pid})");
    for part in ["nothing was changed", "a nightly job", &role, &remedy] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let there = "select count(*) from pg_class where oid = to_regclass('inbox.parked')";
    assert_eq!(number(&database, there).await, 0);
    database.superuser().batch_execute(&remedy).await.expect("ended");
    assert_eq!(recreate_inbox(&mut owner).await.expect("recreated"), ["inbox.parked"]);
}
