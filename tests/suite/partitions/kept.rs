//! Partitions that come and go: a repair does not leave out what only the slot has, and does not trust a partition
//! that is detached, or was detached for a while.

use outbox_harness::{Harness, database::Role, relay::Relay, topic::Topic};

use super::{ATTACH, ID, PARTITION, TABLE};
use crate::{
    obeyed::{obey, typed},
    remedies::halted,
    repair::{drop_slot, wait_snapshot},
    rows::{each_once, insert, run},
};

const DETACH: &str = "alter table outbox.events detach partition outbox.events_old";
const OLD: &str = "'2001-05-05'";

/// A relay that has delivered an event of the partition, and knows that it is there.
async fn with_partition() -> (Harness, Topic, Relay, String) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    // A default partition forbids DETACH CONCURRENTLY.
    let regular = "drop table outbox.events_default; \
        create table outbox.events_now partition of outbox.events \
            for values from ('2020-01-01') to ('2100-01-01')";
    run(&t, regular).await;
    run(&t, PARTITION).await;
    let relay = t.relay().start().await;
    let first = insert(&t, &topic, OLD).await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    (t, topic, relay, first)
}

/// As [`with_partition`], and the relay is away while events come.
async fn away() -> (Harness, Topic, Relay, Vec<String>) {
    let (t, topic, mut relay, first) = with_partition().await;
    assert!(relay.sigterm().await.success());
    let mut ids = vec![first];
    for created_at in [OLD, OLD, OLD, "now()"] {
        ids.push(insert(&t, &topic, created_at).await);
    }
    (t, topic, relay, ids)
}

/// A DETACH CONCURRENTLY is ended between its two transactions: the table shows none of the partition's rows.
async fn half_detached(t: &Harness) {
    let pool = t.database().pool(Role::Owner, 1);
    let mut reader = pool.get().await.expect("a session");
    let reading = reader.transaction().await.expect("a transaction");
    reading.batch_execute("select from outbox.events limit 1").await.expect("it holds a lock");
    run(t, "set statement_timeout = '300ms'").await;
    let cut = t.database().superuser().batch_execute(&format!("{DETACH} concurrently")).await;
    assert!(cut.is_err(), "it waits for the reader");
    run(t, "reset statement_timeout").await;
    reading.rollback().await.expect("it ends");
    let pending = "select inhdetachpending from pg_inherits \
        where inhrelid = 'outbox.events_old'::regclass";
    let row = t.database().superuser().query_one(pending, &[]).await.expect("its row");
    assert!(row.get::<_, bool>(0));
}

fn all(ids: &[String]) -> Vec<&String> {
    ids.iter().collect()
}

#[tokio::test]
async fn what_the_slot_has_of_a_partition_that_is_half_detached_arrives() {
    let (t, topic, mut relay, ids) = away().await;
    half_detached(&t).await;
    relay.restart();
    each_once(&topic, &all(&ids)).await;
    wait_snapshot(&t).await;
    assert!(!relay.logs_contain("making a new slot"), "{}", relay.log_text());
}

/// What it lost can't be read from a table that is not a part of this one.
#[tokio::test]
async fn a_lost_slot_and_a_partition_that_is_half_detached_or_another_tables_halt_the_relay() {
    for of_another in [false, true] {
        let (t, topic, mut relay, ids) = away().await;
        if of_another {
            let archive = "create table public.archive (like outbox.events) \
                    partition by range (created_at); \
                alter table public.archive attach partition outbox.events_old \
                    for values from ('2001-01-01') to ('2002-01-01')";
            run(&t, &format!("{DETACH}; {archive}")).await;
        } else {
            half_detached(&t).await;
        }
        drop_slot(&t).await;
        relay.restart();
        let detail = halted(&relay).await;
        assert!(detail.contains("outbox.events_old was detached since"), "{detail}");
        let back = match of_another {
            true => "alter table public.archive detach partition outbox.events_old".to_owned(),
            false => format!("{DETACH} finalize"),
        };
        run(&t, &back).await;
        run(&t, ATTACH).await;
        assert!(relay.sigterm().await.success());
        let mut relay = t.relay().set_toml("outbox.rows_kept", "true").start().await;
        each_once(&topic, &all(&ids)).await;
        assert!(relay.sigterm().await.success());
    }
}

/// No trigger records what is deleted meanwhile.
#[tokio::test]
async fn a_lost_slot_and_a_partition_that_was_detached_for_a_while_halt_the_relay() {
    let (t, topic, mut relay, mut ids) = away().await;
    let deleted = ids.remove(1);
    run(&t, DETACH).await;
    run(&t, &format!("delete from outbox.events_old where id = '{deleted}'")).await;
    run(&t, ATTACH).await;
    drop_slot(&t).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("outbox.events_old was detached for a while since"), "{detail}");
    assert_eq!(topic.records().await.len(), 1, "nothing is guessed");
}

/// The slot that is there has the deleted row as well.
#[tokio::test]
async fn what_the_slot_has_of_a_partition_that_was_detached_for_a_while_arrives() {
    let (t, topic, mut relay, ids) = away().await;
    run(&t, DETACH).await;
    run(&t, &format!("delete from outbox.events_old where id = '{}'", ids[1])).await;
    run(&t, ATTACH).await;
    relay.restart();
    each_once(&topic, &all(&ids)).await;
    relay.wait_ready().await;
    wait_snapshot(&t).await;
    assert!(!relay.logs_contain("making a new slot"), "{}", relay.log_text());
}

/// Events that only the slot has, for their partition was made, filled and detached since the newest snapshot; and then
/// one that it lacks, for its table was attached with it. Tells what the halt says of that.
async fn only_in_the_slot_and_not_in_it() -> (Harness, Topic, Relay, Vec<String>, String) {
    let (t, topic, mut relay, mut ids) = away().await;
    run(&t, &format!("create table outbox.events_gone partition of outbox.events {GONE}")).await;
    ids.push(insert(&t, &topic, "'2003-05-05'").await);
    run(&t, "alter table outbox.events detach partition outbox.events_gone").await;
    let filled = format!(
        "create table outbox.events_new (like outbox.events including all); \
         insert into outbox.events_new (topic, key, created_at) \
             values ('{}', 'k', '2005-05-05') returning id::text",
        topic.name()
    );
    let (make, fill) = filled.split_once("; ").expect("two statements");
    run(&t, make).await;
    let row = t.database().superuser().query_one(fill, &[]).await.expect("inserted");
    ids.push(row.get(0));
    let attach = "alter table outbox.events attach partition outbox.events_new \
        for values from ('2005-01-01') to ('2006-01-01')";
    run(&t, attach).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("outbox.events_new was attached with rows"), "{detail}");
    assert!(detail.contains("1 row"), "{detail}");
    (t, topic, relay, ids, detail)
}

const GONE: &str = "for values from ('2003-01-01') to ('2004-01-01')";

#[tokio::test]
async fn what_the_slot_has_of_a_partition_that_is_gone_arrives_though_another_was_attached_with_rows()
 {
    let (t, topic, relay, ids, detail) = only_in_the_slot_and_not_in_it().await;
    obey(&t, typed(&detail, "with rows as")).await;
    // The relay looks again by itself, and sees that none is left.
    each_once(&topic, &all(&ids)).await;
    assert!(!relay.logs_contain("making a new slot"), "{}", relay.log_text());
}

/// With the partition back the tables have all, so the relay publishes from them, and whoever types what the halt said
/// is too late.
#[tokio::test]
async fn the_statement_of_a_halt_that_has_ended_by_itself_moves_nothing() {
    let (t, topic, relay, mut ids, detail) = only_in_the_slot_and_not_in_it().await;
    run(&t, &format!("alter table outbox.events attach partition outbox.events_gone {GONE}")).await;
    each_once(&topic, &all(&ids)).await;
    assert!(relay.logs_contain("making a new slot"), "{}", relay.log_text());
    obey(&t, typed(&detail, "with rows as")).await;
    ids.push(insert(&t, &topic, "now()").await);
    each_once(&topic, &all(&ids)).await;
}

#[tokio::test]
async fn what_only_the_slot_has_is_not_given_up_for_a_changed_publication() {
    let (t, topic, mut relay, mut ids) = away().await;
    let gone = "create table outbox.events_gone partition of outbox.events \
        for values from ('2003-01-01') to ('2004-01-01')";
    run(&t, gone).await;
    ids.push(insert(&t, &topic, "'2003-05-05'").await);
    run(&t, "drop table outbox.events_gone").await;
    let changed = "alter publication outbox drop table outbox.events; \
        alter publication outbox add table outbox.events";
    run(&t, changed).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("rows that are no longer in the tables"), "{detail}");
    typed(&detail, "resume --at progress");
    let output = t.relay().command(&["resume", "--at", "progress", "--yes"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    each_once(&topic, &all(&ids)).await;
}

/// The snapshot that a repair ends with has them, though the relay is killed before it stores another.
#[tokio::test]
async fn a_partition_that_is_dropped_after_a_repair_is_missed() {
    let (t, topic, mut relay, first) = with_partition().await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    let second = insert(&t, &topic, "now()").await;
    relay.restart();
    each_once(&topic, &[&first, &second]).await;
    relay.wait_ready().await;
    relay.kill9().await;
    insert(&t, &topic, OLD).await;
    run(&t, "drop table outbox.events_old").await;
    drop_slot(&t).await;
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("was dropped since"), "{detail}");
}

/// One partition below has many rows that came afterwards, and another the few that came before.
#[tokio::test]
async fn rows_below_a_partition_that_is_attached_are_found_whatever_its_other_partitions_have() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().start().await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    let many = format!(
        "begin; create table outbox.events_old (like outbox.events including all) \
             partition by range (created_at); \
         create table outbox.events_a partition of outbox.events_old \
             for values from ('2001-01-01') to ('2001-06-01'); \
         create table outbox.events_b partition of outbox.events_old \
             for values from ('2001-06-01') to ('2002-01-01'); \
         insert into outbox.events_b (topic, key, created_at) \
             values ('{0}', 'before', '2001-07-07'); \
         {ATTACH}; \
         insert into outbox.events (topic, key, created_at) \
             select '{0}', 'after', '2001-05-05' from generate_series(1, 1200); \
         commit",
        topic.name()
    );
    run(&t, &many).await;
    let before = "select id::text from outbox.events_b";
    let row = t.database().superuser().query_one(before, &[]).await.expect("it is there");
    let before: String = row.get(0);
    let arrives = topic.records_with([before.clone()]);
    let asked = async {
        let detail = halted(&relay).await;
        // Where the 1,200 were still to be delivered.
        obey(&t, typed(&detail, "with rows as")).await;
        std::future::pending::<()>().await;
    };
    let records = tokio::select! {
        records = arrives => records,
        () = asked => unreachable!("it is pending"),
    };
    let times = records.iter().filter(|record| record.id() == Some(&before)).count();
    assert_eq!(times, 1);
}

/// A snapshot that is taken while the transaction is open shows the subtransaction, which attaches it, as ended.
#[tokio::test]
async fn a_partition_that_is_attached_below_a_savepoint_is_looked_into() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first]).await;
    run(&t, TABLE).await;
    let before = "insert into outbox.events_old (id, topic, key, created_at)";
    run(&t, &format!("{before} values ('{ID}', '{}', 'k', {OLD})", topic.name())).await;
    let config = t.database().config(Role::Owner);
    let owner = config.get_user().expect("a role");
    run(&t, &format!("alter table outbox.events_old owner to {owner}")).await;
    let pool = t.database().pool(Role::Owner, 1);
    let mut owner = pool.get().await.expect("a session");
    let attaching = owner.transaction().await.expect("a transaction");
    attaching.batch_execute("select pg_current_xact_id(); savepoint a").await.expect("an id");
    attaching.batch_execute(&format!("{ATTACH}; release a")).await.expect("attached");
    // What is committed meanwhile makes snapshots count. To write waits for a lock on the table.
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    attaching.commit().await.expect("committed");
    relay.restart();
    let detail = halted(&relay).await;
    assert!(detail.contains("outbox.events_old was attached with rows"), "{detail}");
    obey(&t, typed(&detail, "with rows as")).await;
    each_once(&topic, &[&first, &ID.to_owned()]).await;
}
