//! A standby takes over on a new timeline, and a slot is lost to a limit on WAL: servers of their own.

mod astray;
mod limit;
mod parked;

use outbox_harness::{
    Harness, check,
    cluster::Pair,
    database::Role,
    event::Event,
    load::Plan,
    postgres::Postgres,
    postgres_version::Version,
    relay::{Relay, Settings},
    servers,
    topic::{Record, Topic},
    wait,
};

use crate::{
    file::{all_written, to_file},
    obeyed::{obey, typed},
    repair::{drop_slot, repeated, wait_snapshot},
};

const TAIL: usize = 5;
const ENDLESS: u64 = 1_000_000;

fn plan(topic: &Topic) -> Plan {
    Plan { topic: topic.name().to_owned(), partitions: 4, writers: 4, transactions: 20 }
}

/// In order of drop: the servers last.
struct Failover {
    relay: Relay,
    topic: Topic,
    t: Harness,
    pair: Pair,
}

impl Failover {
    /// Events are delivered, and a snapshot that shows them is stored; the standby has all of it.
    async fn begin() -> Self {
        Self::begin_on(Pair::start().await).await
    }

    async fn begin_on(pair: Pair) -> Self {
        let kafka = servers::kafka().await;
        let t = Harness::with(pair.primary(), kafka).await;
        let topic = t.topic("orders").create(4).await;
        let settings: Settings =
            t.relay().set("postgres.url", &pair.url(t.database(), Role::Relay));
        let relay = settings.start().await;
        t.load(&plan(&topic)).await.finish().await;
        t.count(&topic, 4).await.assert_exactly_once();
        wait_snapshot(&t).await;
        pair.catch_up().await;
        Failover { relay, topic, t, pair }
    }

    /// The relay sees nothing of it but its end.
    async fn fail_over(&mut self) {
        self.relay.freeze();
        self.pair.fail_over().await;
        self.t.fail_over(self.pair.standby()).await;
    }

    async fn goes_on(&mut self) {
        self.relay.thaw();
        self.relay.wait_log("publishing what was committed meanwhile").await;
        self.relay.wait_ready().await;
        self.t.load(&plan(&self.topic)).await.finish().await;
    }

    fn name(&self) -> String {
        self.t.relay().value("name")
    }

    async fn records_of_all(&self) -> Vec<Record> {
        let truth = self.t.committed().await;
        self.topic.records_with(truth.into_iter().map(|row| row.id)).await
    }
}

#[tokio::test]
async fn a_promoted_standby_that_has_everything_loses_and_repeats_nothing() {
    let mut f = astray::is_told(Failover::begin().await).await;
    // Not delivered, but replicated.
    f.relay.freeze();
    f.t.load(&plan(&f.topic)).await.finish().await;
    f.pair.catch_up().await;
    f.fail_over().await;
    f.goes_on().await;
    let records = f.records_of_all().await;
    let steps = check::positions_that_step_back(&records);
    assert!(steps.is_empty(), "{steps:?}");
    let truth = f.t.committed().await;
    check::compare(&truth, &records, 4).assert_at_least_once();
    repeated(&records);
    let timelines = |timeline| {
        let of = |record: &&Record| {
            let position = record.header("outbox-position").unwrap_or_default();
            position.split(':').nth(1) == Some(timeline)
        };
        records.iter().filter(of).count()
    };
    assert!(timelines("1") > 0 && timelines("2") > 0);
    assert!(f.relay.sigterm().await.success());
}

/// The slot was made with `failover`, and the standby has it.
#[tokio::test]
async fn on_postgres_17_the_slot_is_on_the_promoted_standby_and_nothing_is_repaired() {
    let mut f = Failover::begin_on(Pair::start_17().await).await;
    f.pair.wait_slot(&format!("outbox_{}", f.t.database().name())).await;
    f.relay.freeze();
    f.t.load(&plan(&f.topic)).await.finish().await;
    f.pair.catch_up().await;
    f.fail_over().await;
    f.relay.thaw();
    f.t.load(&plan(&f.topic)).await.finish().await;
    f.t.count(&f.topic, 4).await.assert_exactly_once();
    let records = f.records_of_all().await;
    let of_timeline_2 = |record: &&Record| {
        record.header("outbox-position").is_some_and(|position| position.contains(":2:"))
    };
    assert!(records.iter().filter(of_timeline_2).count() > 0);
    assert!(!records.iter().any(|record| record.header("outbox-repaired").is_some()));
    assert!(!f.relay.logs_contain("the slot is gone"));
    assert!(f.relay.sigterm().await.success());
}

#[tokio::test]
async fn a_promoted_standby_without_the_tail_loses_nothing_of_its_own_history() {
    let mut f = Failover::begin().await;
    f.pair.cut().await;
    // Delivered, and in a snapshot; the standby gives the same transaction ids and LSNs out again.
    let before = f.topic.records().await.len();
    let events = || (0..TAIL).map(|_| Event::to(f.topic.name()).key("tail"));
    for event in events().collect::<Vec<_>>() {
        f.t.commit([event]).await;
    }
    wait::until("the tail is delivered", wait::PATIENCE, || async {
        match f.topic.records().await.len() {
            found if found == before + TAIL => Ok(()),
            found => Err(found.to_string()),
        }
    })
    .await
    .expect("the relay streams from the primary");
    wait_snapshot(&f.t).await;
    f.fail_over().await;
    for _ in 0..2 * TAIL {
        f.t.commit([Event::to(f.topic.name()).key("anew")]).await;
    }
    f.goes_on().await;
    let records = f.records_of_all().await;
    let truth = f.t.committed().await;
    let count = check::compare(&truth, &records, 4);
    assert_eq!((count.lost, count.out_of_order, count.altered), (0, 0, 0), "{count}");
    assert_eq!(count.uncommitted, TAIL, "consumers have what the database lost: {count}");
    repeated(&records);
    assert!(f.relay.logs_contain("events were published past the point"));
    assert!(f.relay.sigterm().await.success());
}

/// Progress is a table there, and is promoted with the events: it knows no more than they do.
#[tokio::test]
async fn progress_in_the_database_fails_over_with_and_without_the_tail() {
    for tail_is_lost in [false, true] {
        progress_fails_over(Pair::start().await, false, tail_is_lost).await;
    }
}

/// The standby has the slot, which says more than its `outbox.progress` may.
#[tokio::test]
async fn on_postgres_17_progress_in_the_database_fails_over_with_the_slot() {
    progress_fails_over(Pair::start_17().await, true, false).await;
}

async fn progress_fails_over(mut pair: Pair, slot_follows: bool, tail_is_lost: bool) {
    let kafka = servers::kafka().await;
    let mut t = Harness::with(pair.primary(), kafka).await;
    let (settings, path) = to_file(&t);
    let mut relay =
        settings.set("postgres.url", &pair.url(t.database(), Role::Relay)).start().await;
    let plan = || Plan { topic: "orders".into(), partitions: 8, writers: 4, transactions: 20 };
    if slot_follows {
        // The slot moves on with stored progress: once a minute where nothing is written.
        let load = t.load(&Plan { transactions: ENDLESS, ..plan() }).await;
        pair.wait_slot(&format!("outbox_{}", t.database().name())).await;
        load.stop().await;
    }
    t.load(&plan()).await.finish().await;
    all_written(&t, &path).await;
    pair.catch_up().await;
    if tail_is_lost {
        pair.cut().await;
        for _ in 0..TAIL {
            t.commit([Event::to("orders").key("tail")]).await;
        }
        all_written(&t, &path).await;
        relay.freeze();
    } else {
        relay.freeze();
        t.load(&plan()).await.finish().await;
        pair.catch_up().await;
    }
    pair.fail_over().await;
    t.fail_over(pair.standby()).await;
    for _ in 0..2 * TAIL {
        t.commit([Event::to("orders").key("anew")]).await;
    }
    relay.thaw();
    relay.wait_ready().await;
    t.load(&plan()).await.finish().await;
    let records = all_written(&t, &path).await;
    let count = check::compare(&t.committed().await, &records, 8);
    assert_eq!((count.lost, count.out_of_order, count.altered), (0, 0, 0), "{count}");
    assert_eq!(count.uncommitted, if tail_is_lost { TAIL } else { 0 }, "{count}");
    assert!(relay.sigterm().await.success());
}

/// Nothing but the server's log says so; what the relay and `check` say to type is typed.
#[tokio::test]
async fn a_standby_that_is_away_and_that_postgresql_waits_for_is_said_to_hold_events_back() {
    let (kafka, (postgres, _server)) =
        tokio::join!(servers::kafka(), Postgres::private_version(Version::V18));
    let mut t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create(1).await;
    let mut relay = t.relay().start().await;
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    for statement in [
        "select pg_create_physical_replication_slot('standby_1')",
        "alter system set synchronized_standby_slots = 'standby_1'",
        "select pg_reload_conf()",
    ] {
        obey(&t, statement).await;
    }
    t.commit([Event::to(topic.name()).key("k")]).await;
    let why = wait::until("it is said why", wait::PATIENCE, || async {
        let status = relay.try_status().await.map_err(|error| error.to_string())?;
        let why = status["not_ready_because"].as_str().unwrap_or_default();
        let is_said = why.contains("standby_1 (nothing reads from it)");
        is_said.then(|| why.to_owned()).ok_or(why.to_owned())
    });
    let why = why.await.expect("it does not stay silent");
    relay.wait_for("/readyz", 503).await;
    relay.wait_log("PostgreSQL sends no events").await;
    let checked = async || {
        let output = t.relay().command(&["check"]).await;
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let seen = checked().await;
    assert!(seen.contains("standby_1 (nothing reads from it)"), "{seen}");
    obey(&t, "select pg_drop_replication_slot('standby_1')").await;
    let seen = checked().await;
    assert!(seen.contains("standby_1 (there is no slot of that name)"), "{seen}");
    obey(&t, typed(&why, "alter system")).await;
    obey(&t, typed(&why, "pg_reload_conf")).await;
    t.count(&topic, 1).await.assert_exactly_once();
    relay.wait_ready().await;
    relay.wait_log("the server sends events again").await;
    assert!(relay.sigterm().await.success());
}

/// It waits for a transaction that the standby never gets to see the end of.
#[tokio::test]
async fn a_standby_that_is_promoted_while_a_slot_is_made_loses_nothing_and_no_slot_is_left_over() {
    for repairs in [false, true] {
        let mut pair = Pair::start().await;
        let mut t = Harness::with(pair.primary(), servers::kafka().await).await;
        let topic = t.topic("orders").create(4).await;
        let settings = t.relay().set("postgres.url", &pair.url(t.database(), Role::Relay));
        if repairs {
            let mut relay = settings.clone().start().await;
            t.commit([Event::to(topic.name()).key("first")]).await;
            t.count(&topic, 4).await.assert_exactly_once();
            wait_snapshot(&t).await;
            assert!(relay.sigterm().await.success());
            drop_slot(&t).await;
        }
        let mut writer = t.database().connect(Role::Writer).await;
        let open = writer.transaction().await.expect("it begins");
        Event::to(topic.name()).key("open").insert(open.client()).await.expect("inserted");
        t.commit([Event::to(topic.name()).key("k")]).await;
        let mut relay = settings.spawn();
        relay.wait_log("the slot waits for open transactions").await;
        t.commit([Event::to(topic.name()).key("k")]).await;
        pair.catch_up().await;
        pair.fail_over().await;
        t.fail_over(pair.standby()).await;
        drop(open);
        t.commit([Event::to(topic.name()).key("k")]).await;
        relay.wait_ready().await;
        t.commit([Event::to(topic.name()).key("k")]).await;
        let truth = t.committed().await;
        let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
        check::compare(&truth, &records, 4).assert_at_least_once();
        repeated(&records);
        let slots = "select count(*) from pg_replication_slots";
        let row = t.database().superuser().query_one(slots, &[]).await.expect("a count");
        assert_eq!(row.get::<_, i64>(0), 1, "the relay's own");
        assert!(relay.sigterm().await.success());
    }
}
