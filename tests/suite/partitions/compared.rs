//! The rows of a partition that is attached are compared with what the stream sends: those that it does not send arrive
//! all the same, whatever the order of transaction ids, and those that it sends don't come again.

use outbox_harness::{Harness, database::Role, relay::Relay, topic::Topic};

use super::{ATTACH, ID, PARTITION, TABLE, insert_old, told};
use crate::{
    obeyed::{obey, typed},
    remedies::halted,
    repair::wait_snapshot,
    rows::{each_once, insert, run},
};

const DETACH: &str = "alter table outbox.events detach partition outbox.events_old";

/// A relay that has delivered an event, and a snapshot of it counts.
async fn delivered() -> (Harness, Topic, Relay, String) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().start().await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    (t, topic, relay, first)
}

/// Rows that were not in the stream arrive once, and so does what comes after them.
async fn arrives(attach: impl AsyncFn(&Harness, &Topic), away: bool) -> (Harness, Topic, Relay) {
    let (t, topic, mut relay, first) = delivered().await;
    if away {
        assert!(relay.sigterm().await.success());
    }
    attach(&t, &topic).await;
    if away {
        relay.restart();
    }
    topic.records_with([ID.to_owned()]).await;
    let second = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first, &ID.to_owned(), &second]).await;
    (t, topic, relay)
}

/// The table's owner attaches it in a transaction that had its id before the rows were inserted.
pub(super) async fn attached_by_an_older_transaction(t: &Harness, topic: &Topic) {
    run(t, TABLE).await;
    let config = t.database().config(Role::Owner);
    let owner = config.get_user().expect("a role");
    run(t, &format!("alter table outbox.events_old owner to {owner}")).await;
    let pool = t.database().pool(Role::Owner, 1);
    let mut owner = pool.get().await.expect("a session");
    let attaching = owner.transaction().await.expect("a transaction");
    attaching.batch_execute("select pg_current_xact_id()").await.expect("an id");
    run(t, &insert_old(topic, ID)).await;
    attaching.batch_execute(ATTACH).await.expect("attached");
    attaching.commit().await.expect("committed");
}

#[tokio::test]
async fn rows_of_a_table_that_an_older_transaction_attaches_arrive() {
    arrives(attached_by_an_older_transaction, false).await;
}

#[tokio::test]
async fn rows_of_a_table_that_an_older_transaction_attaches_while_the_relay_is_away_arrive() {
    arrives(attached_by_an_older_transaction, true).await;
}

/// No published event tells by its transaction id which rows are later.
#[tokio::test]
async fn rows_of_an_attached_table_arrive_though_nothing_was_published_before() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    attached_by_an_older_transaction(&t, &topic).await;
    relay.restart();
    each_once(&topic, &[&ID.to_owned()]).await;
}

/// As a dump from another cluster has them: they are taken for copies.
#[tokio::test]
async fn rows_of_a_later_transaction_of_another_cluster_are_told_and_end_no_stream() {
    let (t, topic, relay, first) = delivered().await;
    run(&t, &format!("{TABLE}; {}", insert_old(&topic, ID))).await;
    run(&t, "update outbox.events_old set xid = '99999999'").await;
    run(&t, ATTACH).await;
    let line = told(&relay).await;
    let second = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first, &second]).await;
    obey(&t, typed(&line, "with rows as")).await;
    each_once(&topic, &[&first, &second, &ID.to_owned()]).await;
}

#[tokio::test]
async fn rows_that_are_updated_before_the_relay_looks_arrive() {
    for away in [false, true] {
        let updated = async |t: &Harness, topic: &Topic| {
            let update = "update outbox.events set headers = '{\"a\": \"b\"}' where key = 'k' \
                          and created_at < '2002-01-01'";
            let insert = insert_old(topic, ID);
            run(t, &format!("{TABLE}; {insert}")).await;
            run(t, &format!("begin; {ATTACH}; {update}; commit")).await;
        };
        arrives(updated, away).await;
    }
}

/// Another transaction than the one that inserted them writes the rows anew, as where a load begins UNLOGGED.
#[tokio::test]
async fn rows_that_are_rewritten_before_the_table_is_attached_arrive() {
    let rewritten = async |t: &Harness, topic: &Topic| {
        let table = TABLE.replace("create table", "create unlogged table");
        let insert = insert_old(topic, ID);
        run(t, &format!("{table}; {insert}")).await;
        run(t, "alter table outbox.events_old set logged").await;
        run(t, ATTACH).await;
    };
    arrives(rewritten, true).await;
}

/// The catalog's row of the attachment has another command's number then.
#[tokio::test]
async fn rows_of_a_table_of_which_a_detach_was_rolled_back_arrive() {
    let combined = async |t: &Harness, topic: &Topic| {
        let insert = insert_old(topic, ID);
        let undone = format!("savepoint a; {DETACH}; rollback to a");
        run(t, &format!("begin; {TABLE}; {insert}; {ATTACH}; {undone}; commit")).await;
    };
    arrives(combined, false).await;
}

/// Three rows come while the partition is detached; it had others, which are published.
#[tokio::test]
async fn of_a_partition_that_was_detached_for_a_while_only_what_the_stream_lacks_comes() {
    let (t, topic, relay, first) = delivered().await;
    run(&t, PARTITION).await;
    let mut ids = vec![first];
    for _ in 0..5 {
        ids.push(insert(&t, &topic, "'2001-03-03'").await);
    }
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
    let by_hand = insert_old(&topic, ID);
    run(&t, &format!("begin; {DETACH}; {by_hand}; {ATTACH}; commit")).await;
    ids.push(ID.to_owned());
    // While it was detached, rows may have been deleted without a record: so a new slot would not do.
    let detail = halted(&relay).await;
    assert!(detail.contains("outbox.events_old was attached with rows"), "{detail}");
    assert!(detail.contains("(1 row)"), "{detail}");
    obey(&t, typed(&detail, "with rows as")).await;
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
    assert!(!relay.logs_contain("making a new slot"), "{}", relay.log_text());
}

/// More than are looked at while the relay streams.
#[tokio::test]
async fn all_rows_of_a_table_that_was_filled_before_it_was_attached_arrive() {
    let (t, topic, relay, first) = delivered().await;
    let fill = format!(
        "{TABLE}; insert into outbox.events_old (topic, key, created_at) \
             select '{}', 'k', '2001-05-05' from generate_series(1, 12000)",
        topic.name()
    );
    run(&t, &format!("{fill}; {ATTACH}")).await;
    let ids = "select id::text from outbox.events";
    let rows = t.database().superuser().query(ids, &[]).await.expect("they are there");
    let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(ids.len(), 12_001);
    assert!(ids.contains(&first));
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
    assert!(relay.logs_contain("was attached with rows in it"), "{}", relay.log_text());
}

/// The default partition is taken off, and put back, while events come: all of them are in the stream.
#[tokio::test]
async fn a_partition_that_is_put_back_with_what_the_stream_has_costs_no_repair() {
    let (t, topic, mut relay, first) = delivered().await;
    let mut ids = vec![first];
    for n in 0..20 {
        for _ in 0..10 {
            ids.push(insert(&t, &topic, "now()").await);
        }
        let again = "begin; alter table outbox.events detach partition outbox.events_default; \
                     alter table outbox.events attach partition outbox.events_default default; commit";
        run(&t, again).await;
        if n % 5 == 4 {
            wait_snapshot(&t).await;
            assert!(relay.sigterm().await.success());
            relay.restart();
        }
    }
    relay.wait_ready().await;
    wait_snapshot(&t).await;
    each_once(&topic, &ids.iter().collect::<Vec<_>>()).await;
    assert!(!relay.logs_contain("making a new slot"), "{}", relay.log_text());
}

/// A relay that was restarted takes them for rows that were moved there: that can't be told by now, so it is said.
#[tokio::test]
async fn older_rows_that_were_updated_before_are_told_and_arrive_as_the_log_says() {
    let (t, topic, mut relay, first) = delivered().await;
    run(&t, &format!("{TABLE}; {}", insert_old(&topic, ID))).await;
    run(&t, "update outbox.events_old set headers = '{\"a\": \"b\"}'").await;
    let second = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first, &second]).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    relay.restart();
    relay.wait_ready().await;
    run(&t, ATTACH).await;
    let line = told(&relay).await;
    assert!(line.contains("1 row") && line.contains("outbox.events_old"), "{line}");
    obey(&t, typed(&line, "with rows as")).await;
    each_once(&topic, &[&first, &second, &ID.to_owned()]).await;
    assert!(relay.sigterm().await.success());
}
