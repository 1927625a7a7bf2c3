//! A consumer with a watermark, after whatever has happened to the producer's database and after what
//! the relay's halt then asks for, obeyed to the letter: it takes each event, or stops with a reason.

mod put_back;

use outbox_harness::{
    Harness,
    cluster::Pair,
    consumer::{self, Consumer, Effects},
    database::{Database, Role},
    event::{Committed, Event},
    member::Plan,
    postgres::Postgres,
    relay::{Relay, Settings},
    servers,
    topic::Topic,
    wait,
};
use outbox_relay::throwaway::LocalPostgres;
use uuid::Uuid;

use crate::{
    remedies::{halted, obey},
    repair::{drop_slot, wait_snapshot},
};

const PARTITIONS: i32 = 1;
const WAL_END: &str = "pg_current_wal_flush_lsn()";
/// Of each kind of event.
const EVENTS: usize = 6;

/// A producer, its relay, and a consumer with a database elsewhere.
struct Story {
    relay: Relay,
    settings: Settings,
    consumer: Consumer,
    consumers: Database,
    topic: Topic,
    t: Harness,
    _dir: tempfile::TempDir,
}

impl Story {
    /// The first events have taken effect, and a snapshot that shows them is stored.
    async fn begin(t: Harness, settings: Settings) -> Self {
        let topic = t.topic("orders").create(PARTITIONS).await;
        let relay = settings.clone().start().await;
        let consumers = Database::create_inbox().await;
        consumer::make_effects(&consumers).await;
        let dir = tempfile::tempdir().expect("a directory");
        let watermark = Some(t.database().name().to_owned());
        let plan = Plan { batch: 16, watermark, ..Plan::default() };
        let kafka = t.kafka();
        let consumer = Consumer::start(dir.path(), "consumer", &consumers, kafka, &topic, &plan);
        let mut story = Story { relay, settings, consumer, consumers, topic, t, _dir: dir };
        story.commit("first").await;
        story.take_effect().await;
        wait_snapshot(&story.t).await;
        story
    }

    async fn on(postgres: &'static Postgres, delivery: &str) -> Self {
        let t = Harness::with(postgres, servers::kafka().await).await;
        let settings = t.relay().set("sink.delivery", delivery);
        Self::begin(t, settings).await
    }

    /// A transaction for each of some events.
    async fn commit(&mut self, key: &str) {
        for _ in 0..EVENTS {
            self.t.commit([Event::to(self.topic.name()).key(key)]).await;
        }
    }

    /// What is committed, but for the events of a key.
    async fn committed_but(&self, key: &str) -> Vec<Committed> {
        let all = self.t.committed().await;
        all.into_iter().filter(|row| row.key.as_deref() != Some(key)).collect()
    }

    /// All that is committed takes effect, once and in order; of other events, `others` have.
    async fn take_effect(&self) {
        self.these_take_effect(&self.t.committed().await, 0).await;
    }

    async fn these_take_effect(&self, truth: &[Committed], others: usize) {
        let ids: Vec<Uuid> = truth.iter().map(|row| row.id.parse().expect("a uuid")).collect();
        let sql = "select count(distinct message) from effects where message = any($1)";
        let done = || async {
            let row = self.consumers.superuser().query_one(sql, &[&ids]).await;
            match row.map_err(|error| error.to_string())?.get::<_, i64>(0) {
                found if usize::try_from(found) == Ok(ids.len()) => Ok(()),
                found => Err(format!("{found} of {}", ids.len())),
            }
        };
        let waited = wait::until("all take effect", wait::PATIENCE, done).await;
        let count = consumer::compare(&self.consumers, truth, &self.topic).await;
        assert!(waited.is_ok(), "{waited:?}: {count:?}");
        assert_eq!(
            Effects { invented: 0, ..count.clone() },
            Effects { applied: truth.len(), ..Effects::default() }
        );
        assert_eq!(count.invented, others, "{count:?}");
    }

    /// The relay has halted: the `n`-th command that it names is run.
    async fn obey(&mut self, n: usize) {
        let detail = halted(&self.relay).await;
        obey(&self.settings, &detail, n).await;
        self.relay.wait_ready().await;
    }
}

/// The volume is put back to where it was before events that were delivered and have taken effect;
/// after some others are committed, the relay is started again.
async fn rolled_back(server: &mut LocalPostgres, story: &mut Story) {
    server.back_up().expect("a backup");
    story.t.reconnect().await;
    story.relay.wait_ready().await;
    // More than is written afterwards.
    let fill = "select pg_logical_emit_message(true, 'fill', repeat('x', 4000000))";
    story.t.database().superuser().batch_execute(fill).await.expect("WAL");
    story.commit("lost").await;
    story.take_effect().await;
    assert!(story.relay.sigterm().await.success());
    server.put_back().expect("the backup is put back");
    story.t.reconnect().await;
    story.commit("between").await;
    story.relay.restart();
}

async fn takes_all_from_the_slot_of_a_volume_that_was_rolled_back(delivery: &str) {
    let (postgres, mut server) = Postgres::private().await;
    let mut story = Story::on(postgres, delivery).await;
    rolled_back(&mut server, &mut story).await;
    // It is remembered when the new WAL has grown past the old one's end.
    halted(&story.relay).await;
    let fill = "select pg_logical_emit_message(true, 'fill', repeat('x', 8000000))";
    story.t.database().superuser().batch_execute(fill).await.expect("WAL");
    story.commit("grown").await;
    story.relay.kill9().await;
    story.relay.restart();
    story.obey(0).await;
    story.commit("after").await;
    story.these_take_effect(&story.t.committed().await, EVENTS).await;
    let steps = story.topic.records().await;
    assert!(steps.iter().any(|record| record.header("outbox-era").is_some()));
    // Past the highest place of before, positions tell again.
    let fill = "select pg_logical_emit_message(true, 'fill', repeat('x', 8000000))";
    story.t.database().superuser().batch_execute(fill).await.expect("WAL");
    story.commit("later").await;
    story.these_take_effect(&story.t.committed().await, EVENTS).await;
    assert!(story.relay.sigterm().await.success());
}

#[tokio::test]
async fn a_watermark_takes_all_from_the_slot_of_a_volume_that_was_rolled_back() {
    takes_all_from_the_slot_of_a_volume_that_was_rolled_back("exactly-once").await;
}

#[tokio::test]
async fn a_watermark_takes_all_from_the_slot_of_a_volume_that_was_rolled_back_at_least_once() {
    takes_all_from_the_slot_of_a_volume_that_was_rolled_back("at-least-once").await;
}

#[tokio::test]
async fn a_watermark_takes_what_comes_from_now_on_after_a_volume_was_rolled_back() {
    let (postgres, mut server) = Postgres::private().await;
    let mut story = Story::on(postgres, "exactly-once").await;
    rolled_back(&mut server, &mut story).await;
    story.obey(1).await;
    story.commit("after").await;
    story.these_take_effect(&story.committed_but("between").await, EVENTS).await;
    assert!(story.relay.sigterm().await.success());
}

#[tokio::test]
async fn a_watermark_goes_on_by_itself_after_pg_upgrade() {
    let (postgres, mut server) = Postgres::private().await;
    let mut story = Story::on(postgres, "exactly-once").await;
    assert!(story.relay.sigterm().await.success());
    story.commit("meanwhile").await;
    // Before 17 it is not brought along; from then on it is refused with what it has left.
    drop_slot(&story.t).await;
    let (upgraded, _server) = Postgres::upgrade(&mut server).await;
    story.t.fail_over(upgraded).await;
    story.settings = story.t.relay();
    story.relay = story.settings.clone().spawn();
    story.obey(0).await;
    story.commit("after").await;
    story.take_effect().await;
    assert!(story.relay.sigterm().await.success());
}

/// What a dump brings there was published before, or is left out, as the halt says.
#[tokio::test]
async fn a_watermark_takes_what_another_cluster_commits_once_somebody_has_said_so() {
    let ((first, _first), (second, _second)) =
        tokio::join!(Postgres::private(), Postgres::private());
    let mut story = Story::on(first, "exactly-once").await;
    assert!(story.relay.sigterm().await.success());
    let name = story.t.database().name().to_owned();
    let mut other = Harness::with(second, story.t.kafka()).await;
    let slot = format!("outbox_{name}");
    story.settings = other.relay().set("name", &name).set("postgres.slot", &slot);
    story.relay = story.settings.clone().spawn();
    story.obey(2).await;
    for _ in 0..EVENTS {
        other.commit([Event::to(story.topic.name()).key("other")]).await;
    }
    let mut truth = story.t.committed().await;
    truth.extend(other.committed().await);
    story.these_take_effect(&truth, 0).await;
    assert!(story.relay.sigterm().await.success());

    // The other remedy: another name, which the consumer does not know.
    story.settings = other.relay().set("postgres.start", "now");
    story.relay = story.settings.clone().start().await;
    other.commit([Event::to(story.topic.name()).key("other")]).await;
    story.consumer.wait_log("it comes from the relay").await;
    story.these_take_effect(&truth, 0).await;
}

/// An old primary answers again, on the line that was left: what it publishes has lower positions.
#[tokio::test]
async fn a_watermark_takes_what_an_old_primary_publishes_once_somebody_has_said_so() {
    let mut pair = Pair::start().await;
    let t = Harness::with(pair.primary(), servers::kafka().await).await;
    let settings = t.relay().set("postgres.url", &pair.url(t.database(), Role::Relay));
    let mut story = Story::begin(t, settings).await;
    pair.catch_up().await;
    pair.fail_over().await;
    story.t.fail_over(pair.standby()).await;
    story.relay.wait_ready().await;
    story.commit("promoted").await;
    story.take_effect().await;
    assert!(story.relay.sigterm().await.success());

    pair.revive().await;
    story.t.fail_over(pair.primary()).await;
    story.settings = story.t.relay();
    story.relay = story.settings.clone().spawn();
    story.obey(0).await;
    story.commit("old").await;
    story.these_take_effect(&story.t.committed().await, EVENTS).await;
    assert!(story.relay.sigterm().await.success());
}

/// On one line of history positions hold, whatever is done to slot and publication.
#[tokio::test]
async fn a_watermark_takes_what_a_repair_publishes_after_a_slot_or_a_publication_was_lost() {
    let mut story = Story::on(servers::postgres().await, "exactly-once").await;
    assert!(story.relay.sigterm().await.success());
    drop_slot(&story.t).await;
    story.commit("slot").await;
    story.relay.restart();
    story.relay.wait_ready().await;
    story.take_effect().await;
    wait_snapshot(&story.t).await;
    let anew = "drop publication outbox; \
                create publication outbox for table outbox.events \
                    with (publish = 'insert', publish_via_partition_root)";
    story.t.database().superuser().batch_execute(anew).await.expect("recreated");
    story.commit("publication").await;
    story.take_effect().await;
    assert!(story.relay.sigterm().await.success());
}
