//! Progress that is gone, or somebody else's.

use outbox_harness::{
    Harness, check,
    check::Count,
    event::{Committed, Event},
    postgres::Postgres,
    relay::Relay,
    servers,
    topic::Topic,
};

use super::{obey, says, typed};
use crate::{
    file::{all_written, to_file},
    remedies,
    repair::{drop_slot, limit_wal, lose_wal, wait_snapshot},
};

/// A relay that has delivered two events and is stopped.
async fn delivered(t: &mut Harness, topic: &Topic) -> Relay {
    let mut relay = t.relay().start().await;
    t.commit((0..2).map(|_| Event::to(topic.name()).key("k"))).await;
    t.count(topic, 1).await.assert_exactly_once();
    wait_snapshot(t).await;
    assert!(relay.sigterm().await.success());
    relay
}

/// Counts once all that is committed has arrived but `left_out`.
async fn count_without(t: &Harness, topic: &Topic, left_out: &[Committed]) -> Count {
    let is_left_out = |row: &&Committed| left_out.iter().any(|out| out.id == row.id);
    let truth = t.committed().await;
    let expected = truth.iter().filter(|row| !is_left_out(row)).map(|row| row.id.clone());
    let records = topic.records_with(expected).await;
    check::compare(&truth, &records, 1)
}

/// Three more, which wait.
async fn waiting(t: &mut Harness, topic: &Topic) -> Vec<Committed> {
    let before = t.committed().await;
    t.commit((0..3).map(|_| Event::to(topic.name()).key("k"))).await;
    let new = t.committed().await.into_iter();
    new.filter(|row| before.iter().all(|known| known.id != row.id)).collect()
}

#[tokio::test]
async fn a_record_of_another_and_no_slot_leaves_out_what_the_halt_says_and_no_more() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = delivered(&mut t, &topic).await;
    let left_out = waiting(&mut t, &topic).await;
    obey(&t, "update outbox.relay_keys set key = sha256('another')").await;
    drop_slot(&t).await;
    relay.restart();
    let detail = says(&relay, "that this relay did not store").await;
    remedies::obey(&t.relay(), &detail, 0).await;
    relay.wait_ready().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    let count = count_without(&t, &topic, &left_out).await;
    assert_eq!((count.lost, count.duplicated), (3, 0), "{count}");
}

/// Whoever moves there means to leave out what lies between: the command says how much that is.
#[tokio::test]
async fn a_slot_of_another_name_continues_where_it_is_once_somebody_says_so() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let _stopped = delivered(&mut t, &topic).await;
    let left_out = waiting(&mut t, &topic).await;
    let other = format!("outbox_{}_b", t.database().name());
    obey(&t, &format!("select pg_create_logical_replication_slot('{other}', 'pgoutput')")).await;
    let mut relay = t.relay().set("postgres.slot", &other).spawn();
    t.commit([Event::to(topic.name()).key("k")]).await;
    let detail = says(&relay, "belongs to slot").await;
    let settings = t.relay().set("postgres.slot", &other);
    let asked = settings.command(&["resume", "--at", "slot"]).await;
    let asked = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(asked.contains("at most 4 rows") && asked.contains("give --yes"), "{asked}");
    remedies::obey(&settings, &detail, 0).await;
    relay.wait_ready().await;
    let count = count_without(&t, &topic, &left_out).await;
    assert_eq!((count.lost, count.duplicated), (3, 0), "{count}");
}

/// That one was moved there, or so its operator said.
#[tokio::test]
async fn a_name_that_another_clusters_relay_has_taken_is_taken_back_and_nothing_is_lost() {
    let ((private, _server), mut t) = tokio::join!(Postgres::private(), Harness::start());
    let topic = t.topic("orders").create(1).await;
    let mut relay = delivered(&mut t, &topic).await;
    let elsewhere = Harness::with(private, t.kafka()).await;
    let (name, slot) = (t.database().name(), format!("outbox_{}", t.database().name()));
    let taking = elsewhere.relay().set("name", name).set("postgres.slot", &slot);
    let mut other = taking.clone().spawn();
    let detail = says(&other, "belongs to the cluster").await;
    remedies::obey(&taking, &detail, 1).await;
    other.wait_ready().await;
    waiting(&mut t, &topic).await;
    relay.restart();
    let detail = says(&relay, "Nothing of this relay's is lost").await;
    // "Give the other relay another name and stop it".
    assert!(other.sigterm().await.success());
    remedies::obey(&t.relay(), &detail, 0).await;
    relay.wait_ready().await;
    t.count(&topic, 1).await.assert_exactly_once();
}

#[tokio::test]
async fn without_progress_a_slot_that_lost_its_wal_is_replaced_by_every_row_as_the_halt_says() {
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = delivered(&mut t, &topic).await;
    let progress = format!("outbox-relay-progress-{}", t.database().name());
    t.topic_named(&progress).delete().await;
    waiting(&mut t, &topic).await;
    limit_wal(&t).await;
    lose_wal(&t).await;
    relay.restart();
    let detail = says(&relay, "has lost its WAL, and the broker has no progress record").await;
    obey(&t, typed(&detail, "delete from outbox.relay_keys")).await;
    obey(&t, typed(&detail, "pg_drop_replication_slot")).await;
    relay.wait_ready().await;
    let count = t.count(&topic, 1).await;
    assert_eq!((count.lost, count.duplicated), (0, 2), "those that were published: {count}");
}

/// A colleague has made the slot anew, and progress is gone: what lies before the slot's place is not known to be published.
#[tokio::test]
async fn a_slot_that_was_made_anew_without_progress_is_asked_about_and_the_table_has_what_it_lacks()
{
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let mut relay = settings.clone().start().await;
    let began = "select now()::text";
    let began: String =
        t.database().superuser().query_one(began, &[]).await.expect("a time").get(0);
    t.commit((0..3).map(|_| Event::to("orders").key("k"))).await;
    all_written(&t, &path).await;
    assert!(relay.sigterm().await.success());
    t.commit((0..5).map(|_| Event::to("orders").key("k"))).await;
    let slot = format!("outbox_{}", t.database().name());
    obey(&t, &format!("select pg_drop_replication_slot('{slot}')")).await;
    obey(&t, &format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    obey(&t, "delete from outbox.progress").await;
    t.commit((0..2).map(|_| Event::to("orders").key("k"))).await;
    relay.restart();
    let detail = says(&relay, "nothing is left out unless somebody has moved the slot").await;
    assert!(!detail.contains("what is before it was published"), "{detail}");
    let output = settings.command(&["resume", "--at", "slot"]).await;
    let asked = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && asked.contains("the tables have 10 rows"), "{asked}");
    assert!(detail.contains("`outbox-relay resume --at table --since TIME`"), "{detail}");
    let since = ["resume", "--at", "table", "--since", &began, "--yes"];
    let output = settings.command(&since).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    relay.wait_ready().await;
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, 8).assert_at_least_once();
}
