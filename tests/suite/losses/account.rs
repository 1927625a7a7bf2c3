//! The account of deleted rows: every deletion is noted in it, whoever deletes and whatever that session sets, and it
//! stays small.

use outbox_harness::{
    Harness,
    database::Role,
    postgres::{self},
};

use super::{halts_after, lost};
use crate::{
    remedies::halted,
    rows::{insert, run},
};

/// `enable trigger all` takes their firing under `session_replication_role = replica` away.
#[tokio::test]
async fn triggers_that_do_not_always_fire_keep_no_account() {
    let gone = "insert into outbox.events (topic) values ('x'); \
                set session_replication_role = replica; \
                delete from outbox.events where topic = 'x'; reset session_replication_role";
    let all = "alter table outbox.events enable trigger all";
    halts_after(all, gone, &["no trigger records"]).await;
}

#[tokio::test]
async fn what_is_moved_is_taken_back_from_the_account_of_deleted_rows() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(
        &t,
        "create table outbox.events_old partition of outbox.events \
         for values from ('2001-01-01') to ('2002-01-01')",
    )
    .await;
    let notes = || async {
        let sql = "select count(*) from outbox.deletions";
        t.database().superuser().query_one(sql, &[]).await.expect("a count").get::<_, i64>(0)
    };
    for _ in 0..3 {
        insert(&t, &topic, "now()").await;
    }
    run(&t, "update outbox.events set created_at = '2001-06-06'").await;
    run(
        &t,
        "with gone as (delete from outbox.events returning *) \
         insert into outbox.events select * from gone",
    )
    .await;
    run(
        &t,
        "begin; create temporary table aside as select * from outbox.events; \
         delete from outbox.events; savepoint a; delete from aside; rollback to a; \
         insert into outbox.events select * from aside; commit",
    )
    .await;
    // The copy before the original goes.
    run(
        &t,
        "begin; create temporary table kept as select ctid as place from outbox.events; \
         insert into outbox.events select * from outbox.events; \
         delete from outbox.events where ctid = any (array(select place from kept)); commit",
    )
    .await;
    assert_eq!(notes().await, 0);
    // One of three does not come back.
    run(
        &t,
        "with gone as (delete from outbox.events returning *) \
         insert into outbox.events select * from gone limit 2",
    )
    .await;
    assert!(notes().await > 0);
}

/// What a transaction has deleted stands in a setting, which any role can set.
#[tokio::test]
async fn nobody_takes_back_the_account_of_another_transaction() {
    let t = Harness::start().await;
    run(&t, "insert into outbox.events (topic) values ('x')").await;
    run(&t, "delete from outbox.events").await;
    // As a table-wide grant to insert would let a writer do it.
    run(
        &t,
        "begin; \
         select set_config('outbox.gone', '1 7 0 ' || (select array_agg(ctid)::text from outbox.deletions), \
             true); \
         insert into outbox.events (topic, xid) values ('x', '7'); commit",
    )
    .await;
    // What the second one leaves for itself stands for no row.
    let sql = "select count(*) from outbox.deletions where newest <> '0'";
    let notes: i64 = t.database().superuser().query_one(sql, &[]).await.expect("a count").get(0);
    assert_eq!(notes, 1);
}

/// A role that may delete events as docs/ROLES.md says, and no more.
async fn deleter(t: &Harness) -> String {
    let deleter = format!("deleter_{}", t.database().name());
    let grants = "grant usage on schema outbox to outbox_deleter; \
                  grant select, delete on outbox.events to outbox_deleter";
    let roles =
        include_str!("../../../docs/ROLES.md").split_whitespace().collect::<Vec<_>>().join(" ");
    for grant in grants.split("; ") {
        assert!(roles.contains(&grant.split_whitespace().collect::<Vec<_>>().join(" ")), "{grant}");
    }
    run(t, &format!("create role {deleter}; {}", grants.replace("outbox_deleter", &deleter))).await;
    deleter
}

/// Has `statements` run by the deleter, then removes it from the cluster.
async fn as_deleter(t: &Harness, statements: &[&str]) {
    let deleter = deleter(t).await;
    run(t, &format!("set role {deleter}")).await;
    for statement in statements {
        run(t, statement).await;
    }
    run(t, &format!("reset role; drop owned by {deleter}; drop role {deleter}")).await;
}

/// Any role may set what a transaction has deleted so far, also for its whole session.
#[tokio::test]
async fn whoever_deletes_and_says_that_it_is_noted_already_halts_a_repair_all_the_same() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let (mut relay, _) = lost(&t, &topic).await;
    run(&t, "insert into outbox.events (topic) values ('x')").await;
    let statements = [
        "set outbox.gone = '0 0 9000000000000000000 {}'",
        "delete from outbox.events where topic = 'x'",
        "reset outbox.gone",
    ];
    as_deleter(&t, &statements).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("rows of outbox.events were deleted"), "{detail}");
    assert_eq!(topic.records().await.len(), 1, "nothing is guessed");
}

/// What the setting says is true here of an earlier moment, or of another row, or begins so.
#[tokio::test]
async fn no_setting_hides_a_deletion_from_the_account() {
    let t = Harness::start().await;
    let own = "set_config('outbox.gone', pg_current_xact_id()::text";
    let of_next = "(select ' -1 -' || xid::text || ' ' from outbox.events where topic = 'b')";
    let parts = "from string_to_array(current_setting('outbox.gone'), ' ') s";
    for forge in [
        // A newest note that is not there, with and without the numbers that have all taken back.
        format!("select {own} || ' 5 500 (0,9999) - {{}}', true)"),
        format!("select {own} || {of_next} || '(0,9999) (0,9999) {{}}', true)"),
        // The true one, with these numbers, and as the one that rows which come leave.
        format!("select {own} || {of_next} || s[4] || ' - ' || s[6], true) {parts}"),
        format!("select {own} || {of_next} || s[4] || ' ' || s[4] || ' ' || s[6], true) {parts}"),
    ] {
        run(&t, "insert into outbox.events (topic) values ('a')").await;
        run(&t, "insert into outbox.events (topic) values ('b')").await;
        run(
            &t,
            "select set_config('a.xid', xid::text, false) from outbox.events where topic = 'b'",
        )
        .await;
        let statements = [
            "begin; delete from outbox.events where topic = 'a'",
            &forge,
            "delete from outbox.events where topic = 'b'; commit",
        ];
        as_deleter(&t, &statements).await;
        let noted = "select exists (select from outbox.deletions \
                     where newest >= current_setting('a.xid')::xid8)";
        let row = t.database().superuser().query_one(noted, &[]).await.expect("an answer");
        assert!(row.get::<_, bool>(0), "{forge}");
        run(&t, "delete from outbox.events; truncate outbox.deletions").await;
    }
}

#[tokio::test]
async fn what_was_noted_before_a_rollback_to_a_savepoint_is_noted_once_more() {
    let t = Harness::start().await;
    run(&t, "insert into outbox.events (topic) values ('a')").await;
    let superuser = t.database().superuser();
    run(&t, "begin; savepoint start; delete from outbox.events").await;
    let state = "select current_setting('outbox.gone')";
    let kept: String = superuser.query_one(state, &[]).await.expect("a setting").get(0);
    run(&t, "rollback to start").await;
    run(&t, &format!("set local outbox.gone = '{kept}'")).await;
    run(&t, "delete from outbox.events; commit").await;
    let notes = "select count(*) from outbox.deletions";
    let row = superuser.query_one(notes, &[]).await.expect("a count");
    assert_eq!(row.get::<_, i64>(0), 1, "{kept}");
}

/// Ten thousand transactions' rows: a note for each would make retention expensive.
#[tokio::test]
async fn deleting_a_long_history_takes_few_notes_and_they_go_by_themselves() {
    let t = Harness::start().await;
    run(
        &t,
        "insert into outbox.events (topic, xid) \
         select 'x', (pg_current_xact_id()::text::bigint + n)::text::xid8 \
         from generate_series(1, 10000) n",
    )
    .await;
    let burn = "do $$ begin for n in 1..10100 loop perform pg_current_xact_id(); commit; \
                end loop; end $$";
    run(&t, burn).await;
    run(&t, "delete from outbox.events").await;
    let sql = "select count(*), max(newest::text::bigint) < pg_current_xact_id()::text::bigint \
               from outbox.deletions";
    let row = t.database().superuser().query_one(sql, &[]).await.expect("a count");
    let (notes, past): (i64, bool) = (row.get(0), row.get(1));
    assert!((1..1000).contains(&notes) && past, "{notes} notes");
    for _ in 0..300 {
        let both = "insert into outbox.events (topic) values ('x'); delete from outbox.events";
        run(&t, both).await;
    }
    let row = t.database().superuser().query_one(sql, &[]).await.expect("a count");
    assert!(row.get::<_, i64>(0) < 250, "{} notes", row.get::<_, i64>(0));
}

/// Deletes events of its own until the account has surely tried to merge notes: one time in twenty.
const OFTEN: &str = "do $$ begin for n in 1..300 loop \
         begin \
             insert into outbox.events (topic) values ('x'); \
             delete from outbox.events where topic = 'x' and xid = pg_current_xact_id(); \
             raise exception using errcode = 'P0001'; \
         exception when raise_exception then null; \
         end; \
     end loop; end $$";

#[tokio::test]
async fn a_strict_transaction_does_not_fail_for_the_account_of_what_it_deletes() {
    let t = Harness::start().await;
    // Two notes, so that there is something to merge.
    for _ in 0..2 {
        run(&t, "insert into outbox.deletions (newest) values (pg_current_xact_id())").await;
    }
    let levels = ["repeatable read", "serializable"];
    for level in levels {
        let strict = t.database().connect(Role::Owner).await;
        let begin = format!("begin isolation level {level}; select pg_current_xact_id()");
        strict.batch_execute(&begin).await.expect("it has its snapshot");
        // As another transaction merges.
        run(&t, "update outbox.deletions set merged = pg_current_xact_id()").await;
        strict.batch_execute(OFTEN).await.unwrap_or_else(|error| panic!("{level}: {error:?}"));
        strict.batch_execute("commit").await.unwrap_or_else(|error| panic!("{level}: {error:?}"));
    }
}

/// Where statistics are missing, a join looks so dear that the server compiles it, each time.
#[tokio::test]
async fn merging_notes_needs_no_statistics_and_takes_a_thousand_at_a_time() {
    let t = Harness::start().await;
    let notes = "insert into outbox.deletions (newest) \
                 select n::text::xid8 from generate_series(1, 2500) n";
    run(&t, notes).await;
    let plans = format!(
        "load 'auto_explain'; set auto_explain.log_min_duration = 0; \
         set auto_explain.log_nested_statements = on; set jit = on; set jit_above_cost = 0; \
         set client_min_messages = log; {OFTEN}"
    );
    let psql = std::process::Command::new(postgres::program("psql").expect("psql"))
        .args(["--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-c", &plans])
        .arg(t.database().superuser_url())
        .output()
        .expect("psql runs");
    let told = String::from_utf8_lossy(&psql.stderr);
    assert!(psql.status.success(), "{told}");
    // Statements of the merging name it by a letter.
    let plans = told.split("Query Text:").filter(|plan| plan.contains("outbox.deletions d"));
    let plans: Vec<&str> = plans.collect();
    assert!(!plans.is_empty(), "notes were merged: {told}");
    for plan in plans {
        assert!(!plan.contains("Join") && !plan.contains("JIT"), "{plan}");
    }

    let sql = "select count(*) from outbox.deletions";
    for round in 0.. {
        assert!(round < 1000, "notes are merged by who deletes");
        run(&t, "insert into outbox.events (topic) values ('x')").await;
        run(&t, "delete from outbox.events").await;
        let row = t.database().superuser().query_one(sql, &[]).await.expect("a count");
        let left: i64 = row.get(0);
        if left < 2500 {
            assert!(left >= 1500, "{left} of 2500 and {round} are left");
            break;
        }
    }
}
