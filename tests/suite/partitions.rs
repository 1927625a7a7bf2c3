//! Partitions that are attached with rows in them, and partitions that go: what was inserted before the
//! one, or is gone with the other, is published or named, and never passed over in silence.

mod compared;
mod kept;
mod returned;

use outbox_harness::{Harness, relay::Relay, topic::Topic, wait};

use crate::{
    remedies::halted,
    repair::{drop_slot, wait_snapshot},
    rows::{check_says, each_once, insert, run},
};

/// A table that is to become a partition, for what is of 2001.
pub(crate) const TABLE: &str = "create table outbox.events_old (like outbox.events including all)";
pub(crate) const ATTACH: &str = "alter table outbox.events attach partition outbox.events_old \
                      for values from ('2001-01-01') to ('2002-01-01')";
const PARTITION: &str = "create table outbox.events_old partition of outbox.events \
                         for values from ('2001-01-01') to ('2002-01-01')";

/// Inserts an event into that table itself.
pub(crate) fn insert_old(topic: &Topic, id: &str) -> String {
    format!(
        "insert into outbox.events_old (id, topic, key, created_at) \
         values ('{id}', '{}', 'k', '2001-05-05')",
        topic.name()
    )
}

pub(crate) const ID: &str = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b";

/// The line of the log that names rows which are taken for published.
async fn told(relay: &Relay) -> String {
    let said = "rows of a partition that was attached are not published";
    wait::until("it is told", wait::PATIENCE, || async {
        let log = relay.log_text();
        log.lines().find(|line| line.contains(said)).map(str::to_owned).ok_or("not yet")
    })
    .await
    .expect("in the log")
}

/// One in which `attached` is done while the relay streams, and while it is away.
async fn what_was_inserted_before_arrives(attached: impl Fn(&Topic) -> String) {
    for away in [false, true] {
        let t = Harness::start().await;
        let topic = t.topic("orders").create(1).await;
        let mut relay = t.relay().start().await;
        let first = insert(&t, &topic, "now()").await;
        each_once(&topic, &[&first]).await;
        wait_snapshot(&t).await;
        if away {
            assert!(relay.sigterm().await.success());
        }
        run(&t, &attached(&topic)).await;
        if away {
            relay.restart();
        }
        let second = insert(&t, &topic, "now()").await;
        let old = ID.to_owned();
        topic.records_with([old.clone(), second.clone()]).await;
        if away {
            each_once(&topic, &[&first, &old, &second]).await;
        }
        assert!(relay.logs_contain("was attached with rows in it"), "{}", relay.log_text());
    }
}

#[tokio::test]
async fn rows_inserted_into_a_table_before_it_is_attached_arrive() {
    what_was_inserted_before_arrives(|topic| {
        format!("{TABLE}; {}; {ATTACH}", insert_old(topic, ID))
    })
    .await;
}

#[tokio::test]
async fn rows_inserted_in_the_transaction_that_attaches_their_table_arrive() {
    what_was_inserted_before_arrives(|topic| {
        format!("begin; {TABLE}; {}; {ATTACH}; commit", insert_old(topic, ID))
    })
    .await;
}

#[tokio::test]
async fn rows_inserted_into_a_partition_while_it_is_detached_arrive() {
    what_was_inserted_before_arrives(|topic| {
        format!(
            "{PARTITION}; alter table outbox.events detach partition outbox.events_old; {}; {ATTACH}",
            insert_old(topic, ID)
        )
    })
    .await;
}

/// Its rows are in the partitions below it, which are attached to it all the time.
#[tokio::test]
async fn rows_inserted_into_a_partition_that_is_partitioned_itself_before_it_is_attached_arrive() {
    const LEVELS: &str = "create table outbox.events_old (like outbox.events including all) \
            partition by range (created_at); \
        create table outbox.events_may partition of outbox.events_old \
            for values from ('2001-05-01') to ('2001-06-01')";
    what_was_inserted_before_arrives(|topic| {
        format!("{LEVELS}; {}; {ATTACH}", insert_old(topic, ID))
    })
    .await;
    what_was_inserted_before_arrives(|topic| {
        let detach = "alter table outbox.events detach partition outbox.events_old";
        format!("{LEVELS}; {ATTACH}; begin; {detach}; {}; {ATTACH}; commit", insert_old(topic, ID))
    })
    .await;
}

/// A snapshot shows them by the time that they are attached.
#[tokio::test]
async fn older_rows_of_an_attached_table_halt_the_relay_and_arrive_as_the_halt_says() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    run(&t, TABLE).await;
    run(&t, &insert_old(&topic, ID)).await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    run(&t, ATTACH).await;
    let words = ["outbox.events_old", "1 row", "older", "resume --at progress"];
    check_says(&t.relay(), &words).await;
    relay.restart();
    let detail = halted(&relay).await;
    words.iter().for_each(|word| assert!(detail.contains(word), "{word:?} is not in: {detail}"));
    let statement = detail.split('`').nth(1).expect("a statement");
    run(&t, statement).await;
    relay.wait_ready().await;
    let second = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first, &ID.to_owned(), &second]).await;
}

#[tokio::test]
async fn older_rows_of_an_attached_table_can_be_left_out() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    run(&t, TABLE).await;
    run(&t, &insert_old(&topic, ID)).await;
    let another = format!(
        "create table outbox.events_older (like outbox.events including all); \
         insert into outbox.events_older (topic, key, created_at) \
             select '{}', 'k', '1991-05-05' from generate_series(1, 2)",
        topic.name()
    );
    run(&t, &another).await;
    let first = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    run(&t, ATTACH).await;
    relay.restart();
    halted(&relay).await;
    // The halt names the first table, and the command leaves out what another has as well: so it asks.
    let attach = "alter table outbox.events attach partition outbox.events_older \
        for values from ('1991-01-01') to ('1992-01-01')";
    run(&t, attach).await;
    let output = t.relay().command(&["resume", "--at", "progress"]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("2 rows in outbox.events_older"), "{said}");
    let output = t.relay().command(&["resume", "--at", "progress", "--yes"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    let second = insert(&t, &topic, "now()").await;
    each_once(&topic, &[&first, &second]).await;
    // It is not asked again.
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    relay.restart();
    relay.wait_ready().await;
}

/// Partitions as they are made every day, and those that are filled with what was moved.
#[tokio::test]
async fn partitions_that_hide_nothing_cost_no_repair() {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().start().await;
    let first = insert(&t, &topic, "'2001-05-05'").await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    run(
        &t,
        &format!(
            "{TABLE}; insert into outbox.events_old select * from outbox.events; \
                      delete from outbox.events; {ATTACH}"
        ),
    )
    .await;
    run(
        &t,
        "create table outbox.events_new partition of outbox.events \
             for values from ('2020-01-01') to ('2100-01-01')",
    )
    .await;
    let second = insert(&t, &topic, "now()").await;
    wait_snapshot(&t).await;
    each_once(&topic, &[&first, &second]).await;
    assert!(!relay.logs_contain("making a new slot"), "{}", relay.log_text());
}

/// The slot is lost, and with it what the WAL had of them.
async fn halts(gone: &str, words: &[&str]) -> (Harness, Topic, String) {
    let t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    run(&t, PARTITION).await;
    let mut relay = t.relay().start().await;
    let first = insert(&t, &topic, "'2001-05-05'").await;
    each_once(&topic, &[&first]).await;
    wait_snapshot(&t).await;
    assert!(relay.sigterm().await.success());
    drop_slot(&t).await;
    insert(&t, &topic, "'2001-06-06'").await;
    run(&t, gone).await;
    let left = insert(&t, &topic, "now()").await;
    relay.restart();
    let detail = halted(&relay).await;
    for word in
        words.iter().chain(&["resume --at now", "outbox.rows_kept = true", "committed between"])
    {
        assert!(detail.contains(word), "{word:?} is not in: {detail}");
    }
    assert_eq!(topic.records().await.len(), 1, "nothing is guessed");
    assert!(relay.sigterm().await.success());
    (t, topic, left)
}

#[tokio::test]
async fn a_partition_dropped_with_rows_that_are_not_published_halts_a_repair() {
    let gone = "drop table outbox.events_old";
    let (t, topic, left) = halts(gone, &["was dropped since"]).await;
    let _kept = t.relay().set_toml("outbox.rows_kept", "true").start().await;
    topic.records_with([left]).await;
    assert_eq!(topic.records().await.len(), 2);
}

#[tokio::test]
async fn a_partition_detached_with_rows_that_are_not_published_halts_a_repair_until_it_is_back() {
    let gone = "alter table outbox.events detach partition outbox.events_old";
    let (t, topic, left) = halts(gone, &["outbox.events_old was detached since"]).await;
    run(&t, ATTACH).await;
    let mut relay = t.relay().spawn();
    let detail = halted(&relay).await;
    assert!(detail.contains("outbox.events_old was detached for a while since"), "{detail}");
    assert!(relay.sigterm().await.success());
    let _relay = t.relay().set_toml("outbox.rows_kept", "true").start().await;
    topic.records_with([left]).await;
    wait::until("all of them are there", wait::PATIENCE, || async {
        match topic.records().await.len() {
            3 => Ok(()),
            found => Err(found),
        }
    })
    .await
    .expect("each once");
}
