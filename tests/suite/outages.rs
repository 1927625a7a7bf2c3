//! What a bad day brings to either end of the road: away, frozen, slow, restarted. The probes tell
//! the truth, the relay comes back without a hand, and nothing is lost, doubled or misplaced.

mod day;
mod moves;

use std::time::Duration;

use outbox_harness::{
    Harness, check,
    database::Role,
    event::Event,
    host::report,
    kafka::Kafka,
    postgres::Postgres,
    proxy::{Cut, Proxy},
    relay::Settings,
    servers, wait,
};
use outbox_relay::throwaway::Shutdown;
use tokio::time::{Instant, sleep};

use self::day::{Day, OVER, PARTITIONS, SEEN};

/// A broker's transactions, and so deliveries, get this long where a test would else take too long.
const SHORT_TRANSACTION: &str = "3000";

/// A relay whose broker is behind `line`.
fn behind(t: &Harness, line: &Proxy) -> Settings {
    t.relay().set("sink.properties.\"bootstrap.servers\"", &line.address())
}

/// A relay whose PostgreSQL is behind `line`.
fn database_behind(t: &Harness, line: &Proxy) -> Settings {
    let (host, port) = t.database().postgres().address();
    let url = t.database().url(Role::Relay).replace(&format!("{host}:{port}"), &line.address());
    t.relay().set("postgres.url", &url)
}

async fn line_to_postgres(t: &Harness) -> Proxy {
    let (host, port) = t.database().postgres().address();
    Proxy::to(&format!("{host}:{port}")).await
}

/// Frozen first, so that what is under way is neither refused nor lost; then refused.
async fn broker_out_of_reach(day: &Day, line: &Proxy, lasts: Duration) {
    for fault in [Proxy::freeze, Proxy::refuse] {
        day.through(|| fault(line), &["no answer", "not answered"], lasts, || line.heal()).await;
    }
    line.cut(Cut::Reset);
    day.flows().await;
}

#[tokio::test]
async fn a_broker_out_of_reach_for_longer_than_a_transaction_may_last() {
    let t = Harness::start().await;
    let line = t.kafka().line().await;
    let settings = behind(&t, &line);
    let day = Day::begin(t, settings).await;
    // Transactions end after 15 s by default, deliveries after 10.
    broker_out_of_reach(&day, &line, Duration::from_secs(17)).await;
    day.ends_exactly_once().await;
}

#[tokio::test]
async fn at_least_once_and_a_broker_out_of_reach() {
    let t = Harness::start().await;
    let line = t.kafka().line().await;
    let settings = behind(&t, &line)
        .set("sink.delivery", "at-least-once")
        .set("sink.properties.\"transaction.timeout.ms\"", SHORT_TRANSACTION);
    let day = Day::begin(t, settings).await;
    no_more_than_one_attempt_has(&day).await;
    broker_out_of_reach(&day, &line, Duration::from_secs(6)).await;
    no_more_than_one_attempt_has(&day).await;
    day.ends_at_least_once().await;
}

/// Nothing stays of attempts that failed: the relay has the threads and clients of one attempt.
///
/// They are counted by their names, because others come and go by themselves. librdkafka keeps a thread
/// for the address that it started with until it asks for metadata again, in an outage and for minutes
/// after it. tokio keeps a thread that blocked for 10 s. Each look at the progress topic's settings has
/// a client of its own, for a moment.
async fn no_more_than_one_attempt_has(day: &Day) {
    // Each client has one `rdk:main`: the producer, and what looks topics up.
    const OF_AN_ATTEMPT: [(&str, usize); 3] =
        [("kafka", 1), ("producer pollin", 1), ("rdk:main", 2)];
    wait::until("there is one attempt", OVER, || async {
        let threads = day.relay.threads();
        let count = |name| threads.iter().filter(|thread| *thread == name).count();
        match OF_AN_ATTEMPT.iter().all(|(name, usual)| count(*name) == *usual) {
            true => Ok(()),
            false => Err(format!("{threads:?}")),
        }
    })
    .await
    .expect("clients of the broker come to their end");
}

#[tokio::test]
async fn a_broker_that_crashes_and_comes_back() {
    let (postgres, (kafka, mut broker)) =
        tokio::join!(servers::postgres(), Kafka::start_private(&[]));
    let t = Harness::with(postgres, kafka).await;
    let settings = t.relay();
    let day = Day::begin(t, settings).await;
    broker.kill9();
    let killed = Instant::now();
    day.probes.not_ready_within(SEEN, killed).await;
    broker.restart();
    Kafka::private(kafka.brokers()).await;
    day.recovers(Instant::now()).await;
    day.ends_exactly_once().await;
}

/// Each of three brokers in turn: whichever leads partitions, coordinates transactions or controls
/// the others. First while everything has other replicas, then with a topic that has none.
#[tokio::test]
async fn a_coordinator_that_moves_and_a_partition_without_a_leader() {
    let (postgres, (kafka, mut brokers)) =
        tokio::join!(servers::postgres(), Kafka::start_cluster());
    let t = Harness::with(postgres, kafka).await;
    let topic = t.topic("orders").create_replicated(PARTITIONS, 3, &[]).await;
    let single = t.topic("single").create(PARTITIONS).await;
    let settings = t.relay();
    let day = Day::begin_with(t, topic, settings).await;
    for (n, broker) in brokers.iter_mut().enumerate() {
        broker.kill9();
        let killed = Instant::now();
        day.flows().await;
        report(&format!("without broker {n}: events flow after {:.1?}", killed.elapsed()));
        broker.restart();
        kafka.wait_in_sync().await;
    }
    // One of its partitions at least is without a leader until the broker is back.
    let broker = brokers.first_mut().expect("three");
    broker.kill9();
    let mut writer = day.t.database().connect(Role::Writer).await;
    let transaction = writer.transaction().await.expect("a transaction begins");
    for n in 0..40 {
        let event = Event::to(single.name()).key(&format!("customer-{n}"));
        event.insert(transaction.client()).await.expect("inserted");
    }
    transaction.commit().await.expect("committed");
    day.stops_and_says_so().await;
    broker.restart();
    kafka.wait_in_sync().await;
    day.recovers(Instant::now()).await;
    let Day { mut relay, load, probes, t, topic } = day;
    load.stop().await;
    probes.assert_always_live();
    let truth = t.committed().await;
    let mut records = Vec::new();
    for topic in [topic, single] {
        let ids = truth.iter().filter(|row| row.topic == topic.name()).map(|row| row.id.clone());
        records.extend(topic.records_with(ids).await);
    }
    check::compare(&truth, &records, PARTITIONS).assert_exactly_once();
    assert!(relay.sigterm().await.success());
}

/// No room for another record: a broker gives its only disk up, and itself.
#[tokio::test]
async fn a_broker_whose_disk_is_full() {
    let (postgres, (kafka, mut broker)) =
        tokio::join!(servers::postgres(), Kafka::start_private(&[]));
    let t = Harness::with(postgres, kafka).await;
    let settings = t.relay();
    let day = Day::begin(t, settings).await;
    broker.limit_files(100_000);
    let full = Instant::now();
    day.probes.not_ready_within(wait::PATIENCE, full).await;
    wait::until("the broker ends", wait::PATIENCE, || {
        let ended = broker.has_ended();
        async move { if ended { Ok(()) } else { Err("it runs") } }
    })
    .await
    .expect("it does not go on without a disk");
    broker.restart();
    Kafka::private(kafka.brokers()).await;
    day.recovers(Instant::now()).await;
    day.ends_exactly_once().await;
}

#[tokio::test]
async fn a_database_out_of_reach() {
    let t = Harness::start().await;
    let line = line_to_postgres(&t).await;
    let settings = database_behind(&t, &line);
    let day = Day::begin(t, settings).await;
    for how in [Cut::Reset, Cut::Close] {
        let streams = day.streams();
        line.cut(how);
        wait::until("it streams again", OVER, || async {
            if day.streams() > streams { Ok(()) } else { Err("not yet") }
        })
        .await
        .expect("it comes back");
        day.recovers(Instant::now()).await;
    }
    for fault in [Proxy::refuse, Proxy::freeze] {
        let words = &["PostgreSQL", "replication"];
        day.through(|| fault(&line), words, Duration::from_secs(4), || line.heal()).await;
    }
    // The server never learns that the sessions of before are gone: one holds the leader's lock,
    // one reads from the slot.
    let stranded = Instant::now();
    line.strand();
    day.probes.not_ready_within(SEEN, stranded).await;
    day.recovers(stranded + SEEN).await;
    day.ends_exactly_once().await;
}

#[tokio::test]
async fn a_database_that_is_restarted() {
    let ((postgres, mut server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let t = Harness::with(postgres, kafka).await;
    let settings = t.relay();
    let mut day = Day::begin(t, settings).await;
    for (how, away) in [
        (Shutdown::Immediate, Duration::ZERO),
        (Shutdown::Fast, Duration::ZERO),
        (Shutdown::Immediate, Duration::from_secs(6)),
    ] {
        let began = Instant::now();
        server.stop(how).expect("it ends");
        let took = began.elapsed();
        assert!(took < OVER, "{how:?} waited {took:?} for the relay");
        if !away.is_zero() {
            day.probes.not_ready_within(SEEN, began).await;
            sleep(away).await;
        }
        server.restart().expect("it starts");
        day.t.reconnect().await;
        day.recovers(Instant::now()).await;
    }
    day.ends_exactly_once().await;
}

/// More than a broker takes of one transaction in its time, from behind a narrow line.
#[tokio::test]
async fn a_slow_broker_gets_what_it_takes_in_time() {
    const EVENTS: usize = 3_000;
    const BYTES_PER_SECOND: u64 = 300_000;
    let t = Harness::start().await;
    let line = t.kafka().line().await;
    let settings =
        behind(&t, &line).set("sink.properties.\"transaction.timeout.ms\"", SHORT_TRANSACTION);
    let day = Day::begin(t, settings).await;
    let began = Instant::now();
    line.throttle(BYTES_PER_SECOND);
    day.backlog(EVENTS).await;
    let least = day.delivered().await + EVENTS as u64;
    wait::until("the backlog is delivered", wait::PATIENCE, || async {
        match day.delivered().await {
            now if now >= least => Ok(()),
            now => Err(format!("{now} of {least} are delivered")),
        }
    })
    .await
    .expect("it gets through");
    report(&format!("{EVENTS} KB at {BYTES_PER_SECOND} bytes a second: {:.1?}", began.elapsed()));
    line.heal();
    day.recovers(Instant::now()).await;
    day.ends_exactly_once().await;
}

/// What is written while the broker is frozen waits in PostgreSQL.
#[tokio::test]
async fn memory_is_bounded_by_settings_while_events_pile_up() {
    const MIB: u64 = 1 << 20;
    const EVENTS: usize = 60_000;
    /// What it takes with nothing to do, unoptimised.
    const IDLE: u64 = 32 * MIB;
    let t = Harness::start().await;
    let line = t.kafka().line().await;
    let settings = behind(&t, &line)
        .set("batch.bytes_max", "1 MiB")
        .set("batch.record_bytes_max", "1 MiB")
        .set("sink.properties.\"transaction.timeout.ms\"", SHORT_TRANSACTION);
    let day = Day::begin(t, settings).await;
    let idle = day.relay.peak_memory_bytes();
    let began = Instant::now();
    line.freeze();
    day.backlog(EVENTS).await;
    day.probes.not_ready_within(SEEN, began).await;
    line.heal();
    day.recovers(Instant::now()).await;
    // Two batches, the producer's queue (twice a batch and the largest record), and the largest
    // row as it is read.
    let limit = IDLE + 2 * MIB + 2 * (MIB + MIB) + MIB + 2 * MIB;
    let relay = day.relay.peak_memory_bytes();
    report(&format!("memory: {} KiB at first, {} KiB at most", idle >> 10, relay >> 10));
    assert!(relay <= limit, "{relay} bytes, {limit} are allowed; {idle} at the beginning");
    day.ends_exactly_once().await;
}
