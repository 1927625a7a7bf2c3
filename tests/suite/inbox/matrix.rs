//! The consumers' crash matrix: at every place where a crash matters, with rows, batches or
//! watermarks, a real consumer is ended, or frozen while another member takes over; then what was
//! committed is counted against what took effect.
//!
//! All cases read one topic, on which a relay that was killed has published some events twice; each
//! has a group and a database of its own. Which cases there are comes from `Point::ALL` and [`way`]:
//! a new point does not compile before it says how it is reached, and one that is not passed fails.

use std::{
    collections::{BTreeMap, VecDeque},
    os::unix::process::ExitStatusExt,
    panic::{self, AssertUnwindSafe},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use outbox_harness::{
    Harness,
    consumer::{self, Consumer},
    database::Database,
    event::Committed,
    host::report,
    kafka::Kafka,
    load,
    member::{Fault, Plan},
    topic::Topic,
};
use outbox_idempotency::fault::Point;

/// Within this a point is passed, or never will be.
const REACHED: Duration = Duration::from_secs(40);
/// Of each of the writers; a few events in each.
const TRANSACTIONS: u64 = 45;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    Rows,
    Batch,
    Watermark,
}

impl Strategy {
    const ALL: [Strategy; 3] = [Strategy::Rows, Strategy::Batch, Strategy::Watermark];
}

/// How a case gets to a point.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The consumer's lives end at these passings, one life each.
    Running(&'static [u64]),
    /// As `Running`, with days of the inbox that must be dropped at each start.
    Forgetting(&'static [u64]),
    /// Another member comes, and gets partitions.
    Joined,
    /// It is asked to stop.
    Stopping,
    /// The consumer freezes there, another one takes over, and it thaws.
    Frozen(u64),
}

/// The passing of `Committing` that is a message's: those of a consumer's start come before, and
/// before it has a partition.
const OF_A_MESSAGE: u64 = 6;

fn way(point: Point, strategy: Strategy) -> Option<Way> {
    // A first life ends at once only with rows, which shortens the matrix by a third.
    let lives = |passings: &'static [u64]| {
        let from = if strategy == Strategy::Rows { 0 } else { 1 };
        Some(Way::Running(passings.get(from..).expect("two passings")))
    };
    match point {
        Point::Assigning => Some(Way::Running(&[1])),
        Point::Polled
        | Point::OffsetsStored
        | Point::Claimed
        | Point::Handling
        | Point::Handled
        | Point::Committed
        | Point::Failed
        | Point::Parking
        | Point::Parked
        | Point::TakenUp
        | Point::Retried => lives(&[1, 3]),
        Point::Committing => lives(&[1, OF_A_MESSAGE]),
        Point::Waiting | Point::Burying | Point::Postponing => lives(&[1, 2]),
        Point::MarkMoved => (strategy == Strategy::Watermark).then_some(Way::Running(&[1, 4])),
        Point::Revoking | Point::Drained => Some(Way::Joined),
        Point::Leaving => Some(Way::Stopping),
        // Neither knows how messages are remembered. A replay is only of what is there.
        Point::Replaying | Point::Replayed => {
            (strategy == Strategy::Rows).then_some(Way::Running(&[3, 6]))
        }
        Point::Maintaining | Point::Maintained => {
            (strategy == Strategy::Rows).then_some(Way::Forgetting(&[1, 1]))
        }
    }
}

/// What every case reads.
struct Backlog {
    kafka: &'static Kafka,
    topic: Topic,
    truth: Vec<Committed>,
    relay: String,
}

impl Backlog {
    async fn publish() -> Self {
        let t = Harness::start().await;
        let topic = t.topic("orders").create(8).await;
        // It ends when the broker has stored what no progress covers, so that comes twice.
        let relay = t.relay().set("sink.delivery", "at-least-once").set("postgres.start", "all");
        let mut relay = relay.fault("records-stored:3").spawn();
        let load = load::Plan {
            topic: topic.name().to_owned(),
            partitions: 8,
            writers: 4,
            transactions: TRANSACTIONS,
        };
        let load = load::Load::paced(t.database(), &load, Duration::from_millis(10)).await;
        assert!(relay.ended_within(REACHED).await.is_some(), "the relay passes its point");
        relay.restart_with(None);
        load.finish().await;
        let truth = t.committed().await;
        let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
        assert!(records.len() > truth.len(), "nothing was published twice");
        Backlog { kafka: t.kafka(), topic, truth, relay: t.database().name().to_owned() }
    }
}

struct Case<'a> {
    backlog: &'a Backlog,
    database: Database,
    dir: tempfile::TempDir,
    plan: Plan,
}

impl<'a> Case<'a> {
    async fn set(backlog: &'a Backlog, strategy: Strategy) -> Self {
        let database = Database::create_inbox().await;
        consumer::make_effects(&database).await;
        let kafka = [("session.timeout.ms", "1500"), ("heartbeat.interval.ms", "200")];
        let plan = Plan {
            batch: if strategy == Strategy::Rows { 0 } else { 16 },
            watermark: (strategy == Strategy::Watermark).then(|| backlog.relay.clone()),
            fail_percent: 6,
            die_percent: 4,
            replay: true,
            kafka: BTreeMap::from(kafka.map(|(key, value)| (key.to_owned(), value.to_owned()))),
            ..Plan::default()
        };
        Case { backlog, database, dir: tempfile::tempdir().expect("a directory"), plan }
    }

    fn start(&self, name: &str, fault: Option<Fault>) -> Consumer {
        let Backlog { kafka, topic, .. } = self.backlog;
        let plan = Plan { fault, ..self.plan.clone() };
        Consumer::start(self.dir.path(), name, &self.database, kafka, topic, &plan)
    }

    /// The members that are left when all has happened.
    async fn live(&self, point: Point, way: Way) -> Vec<Consumer> {
        let fault = |nth, freeze| Some(Fault { point: point.name().to_owned(), nth, freeze });
        match way {
            Way::Running(passings) | Way::Forgetting(passings) => {
                let forget = matches!(way, Way::Forgetting(_));
                let (first, later) = passings.split_first().expect("a passing");
                self.forget_a_day(forget).await;
                let mut consumer = self.start("one", fault(*first, false));
                ended_at(&mut consumer, point).await;
                for passing in later {
                    self.forget_a_day(forget).await;
                    consumer.restart_with(fault(*passing, false));
                    ended_at(&mut consumer, point).await;
                }
                consumer.restart_with(None);
                vec![consumer]
            }
            Way::Joined => {
                let mut consumer = self.start("one", fault(1, false));
                consumer.wait_log("partitions assigned").await;
                let other = self.start("two", None);
                ended_at(&mut consumer, point).await;
                vec![other]
            }
            Way::Stopping => {
                let mut consumer = self.start("one", fault(1, false));
                consumer.wait_log("partitions assigned").await;
                consumer.ask_to_stop();
                ended_at(&mut consumer, point).await;
                consumer.restart_with(None);
                vec![consumer]
            }
            Way::Frozen(passing) => {
                let frozen = self.start("one", fault(passing, true));
                frozen.wait_log(&format!("fault: {}", point.name())).await;
                let heir = self.start("two", None);
                heir.wait_log("partitions assigned partitions=8").await;
                frozen.thaw();
                frozen.wait_log("lost=true").await;
                vec![heir, frozen]
            }
        }
    }

    /// Has the next start drop days: retention is shorter than it was.
    async fn forget_a_day(&self, wanted: bool) {
        if wanted {
            let shorter = "update inbox.settings set retention_days = retention_days - 3";
            self.database.superuser().batch_execute(shorter).await.expect("updated");
        }
    }

    /// Whether the days that are kept are those that the settings say, at the next visit to them
    /// at the latest: what a killed process was doing holds them for a moment.
    async fn assert_days(&self) {
        let visit = "select inbox.maintain()";
        self.database.superuser().batch_execute(visit).await.expect("visited");
        let sql = "select w.oldest = (now() at time zone 'utc')::date - s.retention_days \
                   from inbox.window() as w, inbox.settings as s";
        let kept: bool = self.database.superuser().query_one(sql, &[]).await.expect("days").get(0);
        assert!(kept, "days past retention are there, or others are not");
    }
}

async fn ended_at(consumer: &mut Consumer, point: Point) {
    let status = consumer.ended_within(REACHED).await;
    let name = point.name();
    let status = status.unwrap_or_else(|| panic!("{name} was not passed within {REACHED:?}"));
    assert_eq!(status.signal(), Some(libc::SIGKILL), "at {name}, by the fault: {status}");
    assert!(consumer.log_count(&format!("fault: {name}")) > 0, "it ended at {name}");
}

async fn live(backlog: &Backlog, point: Point, strategy: Strategy, way: Way) {
    let case = Case::set(backlog, strategy).await;
    let members = case.live(point, way).await;
    let counted = consumer::count(&case.database, &backlog.truth, &backlog.topic).await;
    counted.assert_effectively_once();
    if matches!(way, Way::Forgetting(_)) {
        case.assert_days().await;
    }
    for mut member in members {
        assert!(member.sigterm().await.success(), "it had no reason to stop");
    }
}

/// Runs all of them to their ends, and fails with those that failed.
fn all(cases: impl IntoIterator<Item = (Point, Strategy, Way)>) {
    let only = std::env::var("OUTBOX_TEST_POINT").ok();
    let wanted =
        |case: &(Point, Strategy, Way)| only.as_ref().is_none_or(|only| case.0.name() == only);
    let cases: VecDeque<_> = cases.into_iter().filter(wanted).collect();
    // The frozen cases have some of the points only.
    assert!(only.is_some() || !cases.is_empty());
    let cases = Mutex::new(cases);
    let failed = Mutex::new(Vec::new());
    let backlog = runtime().block_on(Backlog::publish());
    // In the loop's condition, the lock would be held until its body ends: one case at a time.
    let next = || locked(&cases).pop_front();
    let work = || {
        while let Some((point, strategy, way)) = next() {
            let name = format!("{} ({way:?}, {strategy:?})", point.name());
            let begun = Instant::now();
            // A runtime each, as a test has it: a case that clears up blocks no other.
            let case = || runtime().block_on(live(&backlog, point, strategy, way));
            match panic::catch_unwind(AssertUnwindSafe(case)) {
                Ok(()) => report(&format!("{name}: {:.1?}", begun.elapsed())),
                Err(_) => locked(&failed).push(name),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..crate::matrix::at_once() {
            scope.spawn(work);
        }
    });
    let failed = locked(&failed);
    assert!(failed.is_empty(), "fails at {failed:?}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn crashes(point: Point) -> Vec<(Point, Strategy, Way)> {
    let case = |strategy| way(point, strategy).map(|way| (point, strategy, way));
    Strategy::ALL.into_iter().filter_map(case).collect()
}

/// The strategies take turns.
#[test]
fn each_message_takes_effect_once_through_a_crash_at_every_point() {
    all(Point::ALL.iter().enumerate().filter_map(|(n, point)| {
        let cases = crashes(*point);
        cases.get(n % cases.len()).copied()
    }));
}

#[test]
#[ignore = "three times as many cases: `just long` runs them"]
fn with_every_strategy_each_message_takes_effect_once_through_a_crash_at_every_point() {
    all(Point::ALL.iter().flat_map(|point| crashes(*point)));
}

#[test]
fn a_consumer_that_freezes_anywhere_and_is_replaced_does_no_harm_when_it_thaws() {
    let points = [
        Point::Claimed,
        Point::Handled,
        Point::Committing,
        Point::Committed,
        Point::Failed,
        Point::Parking,
        Point::Retried,
    ];
    let strategies = [Strategy::Rows, Strategy::Watermark];
    let passing = |point| if point == Point::Committing { OF_A_MESSAGE } else { 3 };
    let each = |point| strategies.map(|strategy| (point, strategy, Way::Frozen(passing(point))));
    all(points.into_iter().flat_map(each).chain([(
        Point::MarkMoved,
        Strategy::Watermark,
        Way::Frozen(3),
    )]));
}

#[test]
fn each_point_is_reached_with_some_strategy() {
    for point in Point::ALL {
        assert!(!crashes(*point).is_empty(), "{}", point.name());
    }
}
