//! Rows that are deleted: a repair publishes what is there only where it knows that nothing is gone.

use outbox_harness::{
    Harness,
    database::Role,
    postgres::{self, Session},
    relay::Relay,
    topic::Topic,
};
use uuid::Uuid;

use crate::{
    checks::{Finding, check},
    repair::{drop_slot, wait_quiet_snapshot, wait_snapshot},
    rows::{each_once, halted, insert, run},
};

/// A relay that has published an event, is stopped, and has lost its slot.
async fn lost(t: &Harness, topic: &Topic) -> (Relay, String) {
    let mut relay = t.relay().start().await;
    let first = insert(t, topic, "now()").await;
    each_once(topic, &[&first]).await;
    // What another test has open would make a deletion of a newer row doubtful.
    wait_quiet_snapshot(t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(t).await;
    (relay, first)
}

/// Halts for what `gone` does to the table; a person who knows better has the rest published.
async fn halts_after(before: &str, gone: &str, words: &[&str]) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, before).await;
    let (mut relay, first) = lost(&t, &topic).await;
    run(&t, gone).await;
    let left = insert(&t, &topic, "now()").await;
    // No counter that a crash or anybody empties matters.
    run(&t, "select pg_stat_reset()").await;
    let findings = check(&t.relay()).await;
    relay.restart();
    let detail = halted(&relay).await;
    let start = findings.iter().find(|finding| finding.name == "start").expect("it is rehearsed");
    assert_eq!(start.verdict, "problem", "what halts a run is a problem: {start:?}");
    assert!(as_halted(start, &detail), "{start:?} says what the halt says: {detail}");
    for word in
        words.iter().chain(&["resume --at now", "outbox.rows_kept = true", "committed between"])
    {
        assert!(detail.contains(word), "{word:?} is not in: {detail}");
    }
    assert_eq!(topic.records().await.len(), 1, "nothing is guessed");
    assert!(relay.sigterm().await.success());
    let _kept = t.relay().set_toml("outbox.rows_kept", "true").start().await;
    each_once(&topic, &[&first, &left]).await;
}

/// In the same words, whatever the end of the interval was by then.
fn as_halted(start: &Finding, detail: &str) -> bool {
    let why = start.seen.rsplit("some may be missing: ").next().unwrap_or_default();
    detail.contains(why) && detail.contains(&start.remedy)
}

/// A cleanup that works by time or in pieces.
#[tokio::test]
async fn a_transaction_of_which_the_first_row_was_deleted_is_not_taken_for_another() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let ids = [(); 2].map(|()| Uuid::now_v7().to_string());
    let [first, second] = ids.each_ref().map(|id| {
        format!("insert into outbox.events (id, topic) values ('{id}', '{}')", topic.name())
    });
    run(&t, &format!("begin; {first}; select pg_sleep(0.01); {second}; commit")).await;
    each_once(&topic, &[&ids[0], &ids[1]]).await;
    wait_quiet_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    run(&t, &format!("delete from outbox.events where id = '{}'", ids[0])).await;
    drop_slot(&t).await;
    let meanwhile = insert(&t, &topic, "now()").await;
    relay.restart();
    relay.wait_ready().await;
    each_once(&topic, &[&ids[0], &ids[1], &meanwhile]).await;
    assert!(!relay.logs_contain("rolled back"), "{}", relay.log_text());
}

#[tokio::test]
async fn rows_that_were_inserted_and_deleted_meanwhile_halt_a_repair() {
    // As Debezium's recipe has it: never to be seen in the table.
    let gone = "insert into outbox.events (topic) values ('x'); \
                begin; insert into outbox.events (topic) values ('y'); \
                delete from outbox.events where topic = 'y'; commit; \
                delete from outbox.events where topic = 'x'";
    halts_after("select 1", gone, &["rows of outbox.events were deleted"]).await;
}

#[tokio::test]
async fn rows_deleted_from_a_partition_made_later_halt_a_repair() {
    let partition = "create table outbox.events_new partition of outbox.events \
                     for values from ('2020-01-01') to ('2100-01-01')";
    let gone = "insert into outbox.events (topic) values ('x'); \
                set session_replication_role = replica; \
                delete from only outbox.events_new where topic = 'x'; \
                reset session_replication_role";
    halts_after(partition, gone, &["rows of outbox.events were deleted"]).await;
}

#[tokio::test]
async fn a_truncated_partition_halts_a_repair() {
    let gone = "insert into outbox.events (topic) values ('x'); truncate outbox.events_default";
    halts_after("select 1", gone, &["outbox.events_default was truncated"]).await;
}

/// A tidy administrator leaves nothing by which it could be seen what was deleted.
#[tokio::test]
async fn an_account_of_deleted_rows_that_was_emptied_halts_a_repair() {
    let deleted = "insert into outbox.events (topic) values ('x'); \
                   delete from outbox.events where topic = 'x'; ";
    let words = ["outbox.deletions, was emptied or recreated"];
    let emptied = [deleted, "truncate outbox.deletions"].concat();
    halts_after("select 1", &emptied, &words).await;
    let anew = "create table outbox.anew (like outbox.deletions including defaults); \
                grant select on outbox.anew to public; \
                drop table outbox.deletions; alter table outbox.anew rename to deletions";
    halts_after("select 1", &[deleted, anew].concat(), &words).await;
}

#[tokio::test]
async fn a_delete_that_was_rolled_back_or_of_old_rows_does_not_halt_a_repair() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    // Of a table without any row of before no one could tell a rewrite from a TRUNCATE.
    let kept = insert(&t, &topic, "now()").await;
    let (mut relay, first) = lost(&t, &topic).await;
    let left = insert(&t, &topic, "now()").await;
    run(&t, "begin; delete from outbox.events; rollback").await;
    run(&t, "begin; savepoint a; delete from outbox.events; rollback to a; commit").await;
    // Retention: it was published.
    run(&t, &format!("delete from outbox.events where id = '{first}'")).await;
    run(&t, "vacuum full outbox.deletions").await;
    // Nor what gives the rows another file.
    run(&t, "vacuum full outbox.events_default").await;
    run(&t, "alter table outbox.events alter column key type varchar(99)").await;
    relay.restart();
    each_once(&topic, &[&kept, &first, &left]).await;
}

/// By itself: what comes after may hide it.
#[tokio::test]
async fn a_table_that_is_compacted_does_not_halt_a_repair() {
    for compacted in
        ["vacuum full outbox.events_default", "alter table outbox.events_default set unlogged"]
    {
        let t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let (mut relay, first) = lost(&t, &topic).await;
        let left = insert(&t, &topic, "now()").await;
        run(&t, compacted).await;
        run(&t, "alter table outbox.events_default set logged").await;
        relay.restart();
        each_once(&topic, &[&first, &left]).await;
    }
}

#[tokio::test]
async fn a_partition_that_is_truncated_and_rewritten_halts_a_repair() {
    for rewritten in [
        "alter table outbox.events add column note text default md5(random()::text)",
        "alter table outbox.events_default set unlogged; \
         alter table outbox.events_default set logged",
    ] {
        let gone = format!(
            "insert into outbox.events (topic) values ('x'); truncate outbox.events_default; {rewritten}"
        );
        halts_after("select 1", &gone, &["outbox.events_default was truncated"]).await;
    }
}

#[tokio::test]
async fn triggers_that_were_off_for_a_while_halt_a_repair() {
    let gone = "insert into outbox.events (topic) values ('x'); \
                alter table outbox.events disable trigger outbox_gone; \
                delete from outbox.events where topic = 'x'; \
                alter table outbox.events enable always trigger outbox_gone";
    halts_after("select 1", gone, &["triggers that keep account"]).await;
}

/// `enable trigger all` takes their firing under `session_replication_role = replica` away.
#[tokio::test]
async fn triggers_that_do_not_always_fire_keep_no_account() {
    let gone = "insert into outbox.events (topic) values ('x'); \
                set session_replication_role = replica; \
                delete from outbox.events where topic = 'x'; reset session_replication_role";
    let all = "alter table outbox.events enable trigger all";
    halts_after(all, gone, &["no account is kept"]).await;
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
        include_str!("../../docs/ROLES.md").split_whitespace().collect::<Vec<_>>().join(" ");
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

/// A transaction of somebody's that is open for long, and has written.
async fn stranger(t: &Harness) -> Session {
    let stranger = t.database().connect(Role::Owner).await;
    stranger.batch_execute("begin; select pg_current_xact_id()").await.expect("it is open");
    stranger
}

#[tokio::test]
async fn a_strangers_open_transaction_or_another_clusters_note_does_not_halt_a_repair() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let kept = insert(&t, &topic, "now()").await;
    let stranger = stranger(&t).await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&kept, &first]).await;
    // Retention, and the newest snapshot shows it; only the stranger is not in it.
    run(&t, &format!("delete from outbox.events where id = '{first}'")).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let left = insert(&t, &topic, "now()").await;
    stranger.batch_execute("commit").await.expect("it ends");
    // As a dump of another cluster brings it.
    let note = "insert into outbox.deletions (newest, writer) values ('9000000000', '9000000000')";
    run(&t, note).await;
    relay.restart();
    each_once(&topic, &[&kept, &first, &left]).await;
}

/// A note goes when a higher one stands for it; that one may be older than the snapshot.
#[tokio::test]
async fn a_deletion_whose_note_went_into_an_older_one_halts_a_repair() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let kept = insert(&t, &topic, "now()").await;
    let stranger = stranger(&t).await;
    let sql = format!("insert into outbox.events (topic) values ('{}')", topic.name());
    stranger.batch_execute(&sql).await.expect("the row that goes");
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&kept, &first]).await;
    run(&t, &format!("delete from outbox.events where id = '{first}'")).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    stranger.batch_execute("commit").await.expect("it ends");
    run(&t, &format!("delete from outbox.events where id <> '{kept}'")).await;
    // By and by the lower one goes; what is written meanwhile stays.
    let lower = "select count(*) from outbox.deletions d \
                 where d.newest < (select max(newest) from outbox.deletions)";
    for round in 0.. {
        let old = "begin; insert into outbox.events (topic, xid) values ('x', '3'); commit; \
                   delete from outbox.events where xid = '3'";
        run(&t, old).await;
        let noise = "delete from outbox.deletions \
                     where newest::text::bigint < pg_current_xact_id()::text::bigint / 4";
        run(&t, noise).await;
        let row = t.database().superuser().query_one(lower, &[]).await.expect("a count");
        if row.get::<_, i64>(0) == 0 {
            break;
        }
        assert!(round < 1000, "the lower one stays");
    }
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("rows of outbox.events were deleted"), "{detail}");
    assert_eq!(topic.records().await.len(), 2, "nothing is guessed");
}

#[tokio::test]
async fn a_table_without_an_account_halts_a_repair_until_somebody_says_that_rows_are_kept() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(
        &t,
        "create table public.mine (like outbox.events including defaults); \
         create publication mine for table public.mine with (publish = 'insert'); \
         grant select on public.mine to public",
    )
    .await;
    let insert = || async {
        let sql = format!(
            "insert into public.mine (topic) values ('{}') returning id::text",
            topic.name()
        );
        let row = t.database().superuser().query_one(&sql, &[]).await.expect("inserted");
        row.get::<_, String>(0)
    };
    let settings = t.relay().set("postgres.publication", "mine");
    let settings = settings.set_toml("outbox.tables", "[\"public.mine\"]");
    let mut relay = settings.clone().start().await;
    let first = insert().await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    let check = settings.command(&["check"]).await;
    let found = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(found.contains("outbox.note_deletions('public.mine')"), "{found}");
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let second = insert().await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("no account is kept") && detail.contains("between up to "), "{detail}");
    assert!(relay.sigterm().await.success());
    // With an account from now on, and the word that nothing is gone until now.
    run(&t, "select outbox.note_deletions('public.mine')").await;
    let mut kept = settings.clone().set_toml("outbox.rows_kept", "true").start().await;
    each_once(&topic, &[&first, &second]).await;
    wait_snapshot(&t).await;
    assert!(kept.sigterm().await.success());
    drop_slot(&t).await;
    let third = insert().await;
    relay.restart();
    each_once(&topic, &[&first, &second, &third]).await;
}
