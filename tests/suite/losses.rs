//! Rows that are deleted: a repair publishes what is there only where it knows that nothing is gone.

mod account;

use outbox_harness::{
    Harness,
    database::Role,
    postgres::{Postgres, Session},
    relay::Relay,
    servers,
    topic::Topic,
};
use uuid::Uuid;

use crate::{
    checks::{Finding, check},
    remedies::halted,
    repair::{drop_slot, wait_quiet_snapshot, wait_snapshot},
    rows::{each_once, insert, run},
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
    halts_on(Harness::start().await, before, gone, words).await;
}

async fn halts_on(t: Harness, before: &str, gone: &str, words: &[&str]) {
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
    // On a shared server it halted once, for a snapshot older than one that had been seen: not explained.
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
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

/// The note is rounded up by 1/64 of the transactions since, and so may stand for newer rows.
#[tokio::test]
async fn a_cleanup_of_the_newest_event_after_many_transactions_halts_a_repair() {
    // Some tens are between the event and the snapshot that shows it: none of other tests.
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let others = "begin; select pg_current_xact_id(); commit; ".repeat(8_000);
    let gone = [&others, "delete from outbox.events"].concat();
    let t = Harness::with(postgres, kafka).await;
    halts_on(t, "select 1", &gone, &["rows of outbox.events were deleted"]).await;
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
    assert!(
        detail.contains("no trigger records") && detail.contains("committed between "),
        "{detail}"
    );
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
