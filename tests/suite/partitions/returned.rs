//! Partitions that are detached for a while: what they had is published, and no one is asked about it; what was inserted
//! meanwhile was not in the stream.

use outbox_harness::{Harness, database::Role, relay::Relay, topic::Topic};

use super::{ATTACH, ID, TABLE, compared::attached_by_an_older_transaction, insert_old, told};
use crate::{
    obeyed::{obey, typed},
    remedies::halted,
    repair::{drop_slot, run_into, wait_snapshot},
    rows::{each_once, insert, run},
    types::without_encoding,
};

const DETACH: &str = "alter table outbox.events detach partition outbox.events_default";
const BACK: &str = "alter table outbox.events attach partition outbox.events_default default";

/// A relay that has delivered ten events of the default partition.
async fn delivered() -> (Harness, Topic, Relay, Vec<String>) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().start().await;
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(insert(&t, &topic, "now()").await);
    }
    each_once(&topic, &all(&ids)).await;
    wait_snapshot(&t).await;
    (t, topic, relay, ids)
}

fn all(ids: &[String]) -> Vec<&String> {
    ids.iter().collect()
}

/// Inserts an event into the default partition itself.
fn insert_there(topic: &Topic, id: &str) -> String {
    format!(
        "insert into outbox.events_default (id, topic, key) values ('{id}', '{}', 'k')",
        topic.name()
    )
}

/// How the relay is while the partition is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum While {
    Runs,
    IsRestarted,
    IsAway,
    IsKilled,
}

/// Detaches and attaches it again, with `meanwhile` in between.
async fn goes_and_comes(t: &Harness, relay: &mut Relay, what: While, meanwhile: &str) {
    if what == While::IsAway {
        wait_snapshot(t).await;
        assert!(relay.sigterm().await.success());
    }
    run(t, DETACH).await;
    if what != While::IsAway {
        wait_snapshot(t).await;
    }
    if !meanwhile.is_empty() {
        run(t, meanwhile).await;
    }
    match what {
        While::Runs => {
            wait_snapshot(t).await;
            run(t, BACK).await;
        }
        While::IsRestarted => {
            wait_snapshot(t).await;
            assert!(relay.sigterm().await.success());
            relay.restart();
            relay.wait_ready().await;
            run(t, BACK).await;
        }
        While::IsAway => {
            run(t, BACK).await;
            relay.restart();
        }
        While::IsKilled => {
            wait_snapshot(t).await;
            relay.kill9().await;
            run(t, BACK).await;
            relay.restart();
        }
    }
}

/// As where somebody splits it, or takes it away by mistake.
#[tokio::test]
async fn a_partition_that_is_attached_again_costs_nothing() {
    for what in [While::Runs, While::IsRestarted, While::IsAway, While::IsKilled] {
        let (t, topic, mut relay, mut ids) = delivered().await;
        for _ in 0..2 {
            goes_and_comes(&t, &mut relay, what, "").await;
            ids.push(insert(&t, &topic, "now()").await);
            topic.records_with([ids[ids.len() - 1].clone()]).await;
            // A relay that restarts knows of what came and went since it last stored a snapshot only how it ended.
            if !matches!(what, While::Runs) {
                wait_snapshot(&t).await;
            }
        }
        wait_snapshot(&t).await;
        each_once(&topic, &all(&ids)).await;
        for trouble in ["halted", "making a new slot", "are not published"] {
            assert!(!relay.logs_contain(trouble), "{what:?}: {}", relay.log_text());
        }
    }
}

/// A relay that has streamed all the time knows which they are.
#[tokio::test]
async fn what_was_inserted_meanwhile_arrives() {
    let (t, topic, mut relay, mut ids) = delivered().await;
    goes_and_comes(&t, &mut relay, While::Runs, &insert_there(&topic, ID)).await;
    ids.push(ID.to_owned());
    each_once(&topic, &all(&ids)).await;
    assert!(!relay.logs_contain("halted"), "{}", relay.log_text());
}

/// One that was restarted asks about these alone.
#[tokio::test]
async fn what_was_inserted_while_the_relay_was_restarted_is_asked_about() {
    for what in [While::IsRestarted, While::IsKilled] {
        let (t, topic, mut relay, mut ids) = delivered().await;
        goes_and_comes(&t, &mut relay, what, &insert_there(&topic, ID)).await;
        ids.push(ID.to_owned());
        let detail = halted(&relay).await;
        assert!(detail.contains("(1 row)"), "{what:?}: {detail}");
        obey(&t, typed(&detail, "with rows as")).await;
        each_once(&topic, &all(&ids)).await;
        ids.push(insert(&t, &topic, "now()").await);
        each_once(&topic, &all(&ids)).await;
    }
}

/// It remembers of the last eight partitions that left what they had published.
#[tokio::test]
async fn older_rows_of_which_some_are_published_all_arrive_as_the_halt_says() {
    let (t, topic, mut relay, ids) = delivered().await;
    run(&t, DETACH).await;
    wait_snapshot(&t).await;
    run(&t, &insert_there(&topic, ID)).await;
    let of_each = |make: fn(i32) -> String| (0..8).map(make).collect::<Vec<_>>().join("; ");
    let others = of_each(|n| {
        let bounds = format!("from ('199{n}-01-01') to ('199{n}-02-01')");
        format!("create table outbox.y{n} partition of outbox.events for values {bounds}")
    });
    run(&t, &others).await;
    wait_snapshot(&t).await;
    run(&t, &of_each(|n| format!("alter table outbox.events detach partition outbox.y{n}"))).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    run(&t, BACK).await;
    relay.restart();
    let detail = halted(&relay).await;
    for words in
        ["that are older (11 rows)", "to lose none", "what is published already comes again"]
    {
        assert!(detail.contains(words), "{words:?} is not in: {detail}");
    }
    obey(&t, typed(&detail, "with rows as")).await;
    let records = topic.records_with([ID.to_owned()]).await;
    // Their transaction is one: who has the one has all.
    let times = |id: &str| records.iter().filter(|record| record.id() == Some(id)).count();
    assert_eq!((times(ID), records.len()), (1, 21));
    assert!(ids.iter().all(|id| times(id) == 2), "each comes again, with its id");
}

/// No look has seen it away.
#[tokio::test]
async fn what_is_inserted_into_a_partition_between_two_looks_arrives() {
    let (t, topic, relay, mut ids) = delivered().await;
    run(&t, &format!("begin; {DETACH}; {}; {BACK}; commit", insert_there(&topic, ID))).await;
    ids.push(ID.to_owned());
    let detail = halted(&relay).await;
    assert!(detail.contains("(1 row)"), "{detail}");
    obey(&t, typed(&detail, "with rows as")).await;
    each_once(&topic, &all(&ids)).await;
}

/// A table is filled, and attached some looks later: the relay that streamed all the time knows that it never had the rows.
#[tokio::test]
async fn what_was_inserted_while_the_relay_streamed_is_told_however_much_later_it_is_attached() {
    let (t, topic, relay, mut ids) = delivered().await;
    run(&t, &format!("{TABLE}; {}", insert_old(&topic, ID))).await;
    for _ in 0..2 {
        ids.push(insert(&t, &topic, "now()").await);
        wait_snapshot(&t).await;
    }
    run(&t, ATTACH).await;
    ids.push(ID.to_owned());
    each_once(&topic, &all(&ids)).await;
    assert!(!relay.logs_contain("halted"), "{}", relay.log_text());
}

/// A relay that was killed before it stored a snapshot again does not know whether it has published them.
#[tokio::test]
async fn rows_that_are_taken_for_published_after_a_kill_are_told_and_arrive_as_the_log_says() {
    let (t, topic, mut relay, mut ids) = delivered().await;
    run(&t, TABLE).await;
    let mut open = t.database().connect(Role::Writer).await;
    let grant = "grant insert on outbox.events_old to public";
    run(&t, grant).await;
    let open = open.transaction().await.expect("a transaction");
    open.batch_execute(&insert_old(&topic, ID)).await.expect("inserted");
    wait_snapshot(&t).await;
    // The looks wait from here on, and events flow.
    let pool = t.database().pool(Role::Writer, 1);
    let writer = pool.get().await.expect("a session");
    let write = |id: &str| {
        let topic = topic.name();
        format!("insert into outbox.events (id, topic, key) values ('{id}', '{topic}', 'k')")
    };
    let late = ["0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a01", "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a02"];
    writer.batch_execute(&write(late[0])).await.expect("written");
    let locked = "begin; lock table pg_catalog.pg_publication in access exclusive mode";
    t.database().superuser().batch_execute(locked).await.expect("locked");
    writer.batch_execute(&write(late[1])).await.expect("written");
    ids.extend(late.map(str::to_owned));
    topic.records_with(late.map(str::to_owned)).await;
    relay.kill9().await;
    t.database().superuser().batch_execute("commit").await.expect("unlocked");
    open.commit().await.expect("committed");
    run(&t, "update outbox.events_old set headers = '{\"a\": \"b\"}'").await;
    run(&t, ATTACH).await;
    relay.restart();
    let line = told(&relay).await;
    assert!(line.contains("1 row") && line.contains("taken for published"), "{line}");
    each_once(&topic, &all(&ids)).await;
    obey(&t, typed(&line, "with rows as")).await;
    ids.push(ID.to_owned());
    each_once(&topic, &all(&ids)).await;
}

/// A repair reads the partitions that there were when it began; of one that came meanwhile the stream's start decides.
#[tokio::test]
async fn rows_of_a_partition_that_is_attached_while_a_repair_runs_come_once() {
    let (t, topic, mut relay, mut ids) = delivered().await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    ids.push(insert(&t, &topic, "now()").await);
    run(&t, &format!("{TABLE}; {}", insert_old(&topic, ID))).await;
    run_into(&t.relay(), "repair-begun").await;
    run(&t, ATTACH).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("(1 row)") && detail.contains("outbox.events_old"), "{detail}");
    each_once(&topic, &all(&ids)).await;
    obey(&t, typed(&detail, "with rows as")).await;
    ids.push(ID.to_owned());
    each_once(&topic, &all(&ids)).await;
}

/// A relay that has delivered an event of a table whose rows don't say which transaction inserted them.
async fn without_xid() -> (Harness, Topic, Relay, String) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, "alter table outbox.events drop column xid cascade").await;
    let relay = t.relay().set("postgres.start", "now").start().await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    (t, topic, relay, first)
}

/// Nothing but the stream tells what of them is published.
#[tokio::test]
async fn rows_without_a_transaction_are_compared_with_the_stream_whoever_attached_their_table() {
    for updated in [false, true] {
        let (t, topic, relay, first) = without_xid().await;
        let update =
            "update outbox.events set headers = '{\"a\": \"b\"}' where created_at < '2002-01-01'";
        match updated {
            true => {
                let insert = insert_old(&topic, ID);
                run(&t, &format!("begin; {TABLE}; {insert}; {ATTACH}; {update}; commit")).await;
            }
            false => attached_by_an_older_transaction(&t, &topic).await,
        }
        let detail = halted(&relay).await;
        assert!(detail.contains("outbox.events_old") && detail.contains("(1 row)"), "{detail}");
        obey(&t, typed(&detail, "with rows as")).await;
        let second = insert(&t, &topic, "now()").await;
        each_once(&topic, &[&first, &ID.to_owned(), &second]).await;
    }
}

/// A relay that was restarted meanwhile does not know which of them are published, and says so.
#[tokio::test]
async fn rows_without_a_transaction_that_came_meanwhile_are_asked_about_after_a_restart() {
    let (t, topic, mut relay, first) = without_xid().await;
    goes_and_comes(&t, &mut relay, While::IsRestarted, &insert_there(&topic, ID)).await;
    let detail = halted(&relay).await;
    assert!(detail.contains("(1 row)") && detail.contains("as far as is known"), "{detail}");
    obey(&t, typed(&detail, "with rows as")).await;
    let second = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first, &ID.to_owned(), &second]).await;
}

/// They have more transactions than are named each, and other rows, which are published, have the ids of some.
#[tokio::test]
async fn the_statement_for_rows_of_many_transactions_leaves_out_what_is_published() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    // No account is kept of what is deleted from it, so a repair would ask.
    let tables = "create table public.mine (like outbox.events including defaults) \
            partition by range (created_at); \
        create table public.mine_default partition of public.mine default; \
        create table public.mine_old (like public.mine including all); \
        create publication mine for table public.mine \
            with (publish = 'insert', publish_via_partition_root = true); \
        grant select on public.mine to public";
    run(&t, tables).await;
    let settings = t.relay().set("postgres.publication", "mine");
    let relay = settings.set_toml("outbox.tables", "[\"public.mine\"]").start().await;
    let into = |table: &str, id: &str, created_at: &str| {
        format!(
            "insert into public.{table} (id, topic, key, created_at) \
             values ('{id}', '{}', 'k', '{created_at}')",
            topic.name()
        )
    };
    let id = |n: usize| format!("0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4{n:03}");
    run(&t, &into("mine", &id(0), "2020-01-01")).await;
    each_once(&topic, &[&id(0)]).await;
    wait_snapshot(&t).await;
    relay.freeze();
    for n in 1..=150 {
        run(&t, &into("mine_old", &id(n), "2001-05-05")).await;
    }
    run(&t, &ATTACH.replace("outbox.events", "public.mine")).await;
    // What the stream has: others, and one of the same id.
    for n in 151..=157 {
        run(&t, &into("mine", &id(n), "2001-05-05")).await;
    }
    run(&t, &into("mine", &id(1), "2001-06-06")).await;
    relay.thaw();
    let detail = halted(&relay).await;
    assert!(detail.contains("(150 rows)"), "{detail}");
    obey(&t, typed(&detail, "with rows as")).await;
    let records = topic.records_with((0..=157).map(id)).await;
    let of = |n: usize| records.iter().filter(|record| record.id() == Some(&id(n))).count();
    assert_eq!(of(1), 2, "both of these");
    assert_eq!(records.len(), 159);
}

/// Its name has no form in UTF-8, in which the relay speaks with the server.
#[tokio::test]
async fn a_partition_whose_name_can_not_be_sent_holds_nothing_up_and_its_rows_arrive() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let database = without_encoding().await;
    let run = async |sql: &str| {
        let done = database.superuser().batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    };
    let odd = |sql: &str| {
        let sql = sql.replace('\'', "''");
        format!(
            "do $$ begin execute replace('{sql}', 'ODD', quote_ident(convert_from('\\x65e9', 'SQL_ASCII'))); end $$"
        )
    };
    let topic_name = topic.name();
    let insert = |id: &str| {
        format!(
            "insert into outbox.ODD (id, topic, key, created_at) \
             values ('{id}', '{topic_name}', 'k', '2001-05-05')"
        )
    };
    run(&odd("create table outbox.ODD (like outbox.events including all)")).await;
    let late = ["0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a01", "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a02"];
    run(&odd(&insert(late[0]))).await;
    let mut relay = t.relay_of(&database).start().await;
    let attach = "alter table outbox.events attach partition outbox.ODD \
                  for values from ('2001-01-01') to ('2002-01-01')";
    run(&odd(attach)).await;
    let detail = halted(&relay).await;
    assert!(detail.contains("e?") && detail.contains("(1 row)"), "{detail}");
    run(typed(&detail, "do $$")).await;
    run(typed(&detail, "with rows as")).await;
    topic.records_with([late[0].to_owned()]).await;
    // Later ones need no one.
    assert!(relay.sigterm().await.success());
    run(&format!(
        "insert into outbox.events (id, topic, key) values ('{}', '{topic_name}', 'k')",
        late[1]
    ))
    .await;
    relay.restart();
    let records = topic.records_with(late.map(str::to_owned)).await;
    assert_eq!(records.len(), 2);
    assert!(relay.sigterm().await.success());
}
