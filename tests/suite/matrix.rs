//! The crash matrix: at every place where a crash matters, in both delivery modes, a real relay
//! is ended, or frozen while a standby takes over, under writers, poison and releases; then what
//! is committed is counted against what a consumer reads.
//!
//! One story serves all: [`story`] tells it. Which cases there are comes from `Point::ALL` and
//! [`way`]: a new point does not compile before it says how the story gets there, and a case
//! whose point was not passed fails.

mod both;
mod commands;
mod frozen;
mod lines;
mod panics;
mod place;
mod story;
mod topics;

use std::{
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use outbox_harness::host::report;
use outbox_relay::fault::Point;

use self::story::{Way, live};

/// Of the topic that all events have.
const PARTITIONS: i32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    ExactlyOnce,
    AtLeastOnce,
    /// To a file, with progress in the database.
    File,
    /// To a stream of NATS, with progress in it: exactly once.
    Nats,
    /// To RabbitMQ, with progress in the database.
    Rabbit,
    /// To Kafka, with progress in the database.
    KafkaRecords,
    /// To a FIFO queue of SQS, with progress in the database.
    #[cfg(feature = "aws")]
    Sqs,
    /// To Pulsar, with progress in the database.
    #[cfg(feature = "pulsar")]
    Pulsar,
}

impl Delivery {
    const fn setting(self) -> &'static str {
        match self {
            Delivery::ExactlyOnce | Delivery::Nats => "exactly-once",
            _ => "at-least-once",
        }
    }
}

/// As [`way`], where progress is in the database, and no broker refuses anything.
fn way_to_file(point: Point) -> Option<Way> {
    match point {
        Point::BatchGiven
        | Point::Delivered
        | Point::ProgressInTable
        | Point::Confirmable
        | Point::StatusSent => Some(Way::Running(&[1, 3])),
        Point::ProgressTopicMade
        | Point::RecordsProduced
        | Point::RecordsStored
        | Point::TransactionBegun
        | Point::ProgressProduced
        | Point::CommitUnderWay
        | Point::Committed
        | Point::ProgressFollows
        | Point::Aborting
        | Point::Aborted
        | Point::StoringAlone
        | Point::Parking
        | Point::Parked
        | Point::ReleaseBegun
        | Point::ReleaseDelivered
        | Point::ReleaseStored
        | Point::ReleaseFinished
        | Point::CommandChanged
        | Point::CommandAnnounced
        | Point::CommandCommitted => None,
        others => way(others, Delivery::AtLeastOnce),
    }
}

/// As [`way`], where records and progress are one batch, and nothing is refused.
fn way_to_nats(point: Point) -> Option<Way> {
    match point {
        Point::TransactionBegun
        | Point::RecordsStored
        | Point::CommitUnderWay
        | Point::Committed => Some(Way::Running(&[1, 4])),
        Point::BatchGiven | Point::Delivered | Point::Confirmable | Point::StatusSent => {
            Some(Way::Running(&[1, 3]))
        }
        others => way_to_file(others).filter(|_| others != Point::ProgressInTable),
    }
}

/// As [`way_to_file`], where records are sent and confirmed one by one.
fn way_to_records(point: Point) -> Option<Way> {
    match point {
        Point::RecordsProduced | Point::RecordsStored => Some(Way::Running(&[1, 4])),
        others => way_to_file(others),
    }
}

/// How the story gets to a point. Numbers are those of its passings at which the relay's lives
/// end, one life each.
fn way(point: Point, delivery: Delivery) -> Option<Way> {
    if delivery == Delivery::File {
        return way_to_file(point);
    }
    if delivery == Delivery::Nats {
        return way_to_nats(point);
    }
    if matches!(delivery, Delivery::Rabbit | Delivery::KafkaRecords) {
        return way_to_records(point);
    }
    #[cfg(feature = "aws")]
    if delivery == Delivery::Sqs {
        return way_to_records(point);
    }
    #[cfg(feature = "pulsar")]
    if delivery == Delivery::Pulsar {
        return way_to_records(point);
    }
    let exactly_once = delivery == Delivery::ExactlyOnce;
    let only = |of: Delivery, way| (delivery == of).then_some(way);
    match point {
        // Passed by every start: the first ever, and one that finds everything under way.
        Point::Leading
        | Point::ProgressRead
        | Point::Fenced
        | Point::LanesRead
        | Point::AnnouncedAgain
        | Point::StreamStarted => Some(Way::Starting),
        // Passed once in a database's life, or again if nothing was stored by then.
        Point::ProgressTopicMade | Point::SlotMade | Point::SlotStored => Some(Way::Running(&[1])),
        Point::FirstProgressStored => Some(Way::Running(&[1, 1])),
        Point::RepairBegun | Point::RepairPageStored | Point::RepairEnded => {
            Some(Way::Seeding(&[1]))
        }
        Point::RepairAnnounced | Point::RepairDelivered => Some(Way::Seeding(&[1, 1])),
        Point::BatchGiven
        | Point::RecordsProduced
        | Point::RecordsStored
        | Point::Delivered
        | Point::Confirmable
        | Point::StatusSent => Some(Way::Running(&[1, 3])),
        Point::TransactionBegun
        | Point::ProgressProduced
        | Point::CommitUnderWay
        | Point::Committed => only(Delivery::ExactlyOnce, Way::Running(&[1, 4])),
        Point::ProgressFollows => only(Delivery::AtLeastOnce, Way::Running(&[1, 4])),
        Point::Aborting | Point::Aborted => only(Delivery::ExactlyOnce, Way::Running(&[1, 3])),
        Point::StoringAlone => only(Delivery::AtLeastOnce, Way::Running(&[1, 2])),
        // First when a lane is parked, later also when a release puts its events back.
        Point::Parking | Point::Parked => Some(Way::Running(&[1, 2, 3])),
        // First by a release that is put back, then by one that is delivered: the first comes
        // again in the second life, unless progress says that it is complete.
        Point::ReleaseBegun | Point::ReleaseDelivered => Some(Way::Running(&[1, 2])),
        Point::ReleaseStored | Point::ReleaseFinished => Some(Way::Running(&[1, 1])),
        Point::CommandChanged | Point::CommandAnnounced | Point::CommandCommitted => {
            exactly_once.then_some(Way::Command)
        }
        Point::Finishing => Some(Way::Stopping),
        Point::ProgressInTable => None,
        // Leaves events out on purpose: `remedies` has its story.
        Point::DecisionStored => None,
    }
}

/// Where progress is in the database: the points of a delivery at which a relay may have been replaced.
const AROUND_A_DELIVERY: [Point; 5] = [
    Point::BatchGiven,
    Point::RecordsProduced,
    Point::RecordsStored,
    Point::Delivered,
    Point::ProgressInTable,
];

/// The points that are such a sink's own; `just long` runs all.
#[cfg(any(feature = "aws", feature = "pulsar"))]
const OF_A_SINK: [Point; 3] =
    [Point::RecordsProduced, Point::RecordsStored, Point::ProgressInTable];

/// Cases of a matrix at once. One, beside the other tests of a run; a machine that does nothing else takes three
/// (`OUTBOX_TEST_AT_ONCE`). Each has servers' sessions by the dozen, of which there are 300.
pub(crate) fn at_once() -> usize {
    std::env::var("OUTBOX_TEST_AT_ONCE").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Runs all of them to their ends, and fails with those that failed.
fn all(delivery: Delivery, cases: impl IntoIterator<Item = (Point, Way)>) {
    let only = std::env::var("OUTBOX_TEST_POINT").ok();
    let wanted = |case: &(Point, Way)| only.as_ref().is_none_or(|only| case.0.name() == only);
    let cases: VecDeque<_> = cases.into_iter().filter(wanted).collect();
    // The frozen cases have some of the points only.
    assert!(only.is_some() || !cases.is_empty());
    let cases = Mutex::new(cases);
    let failed = Mutex::new(Vec::new());
    // In the loop's condition, the lock would be held until its body ends: one case at a time.
    let next = || locked(&cases).pop_front();
    let work = || {
        while let Some((point, way)) = next() {
            let name = format!("{} ({way:?}, {delivery:?})", point.name());
            let begun = Instant::now();
            // A runtime each, as a test has it: a case that clears up blocks no other.
            let case = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(live(point, delivery, way));
            };
            match panic::catch_unwind(AssertUnwindSafe(case)) {
                Ok(()) => report(&format!("{name}: {:.1?}", begun.elapsed())),
                Err(_) => locked(&failed).push(name),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..at_once() {
            scope.spawn(work);
        }
    });
    let failed = locked(&failed);
    assert!(failed.is_empty(), "fails at {failed:?}");
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn crashes(delivery: Delivery) -> impl Iterator<Item = (Point, Way)> {
    Point::ALL.iter().filter_map(move |point| Some((*point, way(*point, delivery)?)))
}

#[test]
fn exactly_once_holds_through_a_crash_at_every_point() {
    all(Delivery::ExactlyOnce, crashes(Delivery::ExactlyOnce));
}

#[test]
fn at_least_once_holds_through_a_crash_at_every_point() {
    all(Delivery::AtLeastOnce, crashes(Delivery::AtLeastOnce));
}

#[test]
fn progress_in_the_database_holds_through_a_crash_at_every_point() {
    all(Delivery::File, crashes(Delivery::File));
}

#[test]
fn to_nats_exactly_once_holds_through_a_crash_at_every_point() {
    all(Delivery::Nats, crashes(Delivery::Nats));
}

#[test]
#[ignore = "a minute of a broker that takes half of the machine: `just long` runs it"]
fn to_rabbitmq_at_least_once_holds_through_a_crash_at_every_point() {
    all(Delivery::Rabbit, crashes(Delivery::Rabbit));
}

#[test]
#[ignore = "as above: `just long` runs it"]
fn a_relay_to_rabbitmq_that_freezes_anywhere_and_is_replaced_keeps_every_lane_in_order() {
    all(Delivery::Rabbit, AROUND_A_DELIVERY.map(|point| (point, Way::Frozen(2))));
}

#[test]
#[ignore = "as above: `just long` runs it"]
fn to_kafka_with_progress_in_the_database_holds_through_a_crash_at_every_point() {
    all(Delivery::KafkaRecords, crashes(Delivery::KafkaRecords));
}

#[cfg(feature = "aws")]
#[test]
fn to_aws_sqs_nothing_is_lost_or_repeated_through_a_crash_while_it_delivers() {
    all(Delivery::Sqs, OF_A_SINK.map(|point| (point, Way::Running(&[1, 4]))));
}

#[cfg(feature = "aws")]
#[test]
#[ignore = "minutes: `just long` runs it"]
fn to_aws_sqs_nothing_is_lost_or_repeated_through_a_crash_at_every_point() {
    all(Delivery::Sqs, crashes(Delivery::Sqs));
}

#[cfg(feature = "aws")]
#[test]
#[ignore = "as above: `just long` runs it"]
fn a_relay_to_aws_sqs_that_freezes_anywhere_and_is_replaced_keeps_every_lane_in_order() {
    all(Delivery::Sqs, AROUND_A_DELIVERY.map(|point| (point, Way::Frozen(2))));
}

#[cfg(feature = "pulsar")]
#[test]
fn to_pulsar_at_least_once_holds_through_a_crash_while_it_delivers() {
    all(Delivery::Pulsar, OF_A_SINK.map(|point| (point, Way::Running(&[1, 4]))));
}

#[cfg(feature = "pulsar")]
#[test]
#[ignore = "minutes: `just long` runs it"]
fn to_pulsar_at_least_once_holds_through_a_crash_at_every_point() {
    all(Delivery::Pulsar, crashes(Delivery::Pulsar));
}

#[cfg(feature = "pulsar")]
#[test]
#[ignore = "as above: `just long` runs it"]
fn a_relay_to_pulsar_that_freezes_anywhere_and_is_replaced_keeps_every_lane_in_order() {
    all(Delivery::Pulsar, AROUND_A_DELIVERY.map(|point| (point, Way::Frozen(2))));
}

#[test]
fn a_relay_to_nats_that_freezes_anywhere_and_is_replaced_stores_nothing_when_it_thaws() {
    let points = [
        Point::BatchGiven,
        Point::RecordsStored,
        Point::CommitUnderWay,
        Point::Committed,
        Point::Delivered,
    ];
    all(Delivery::Nats, points.map(|point| (point, Way::Frozen(2))));
}

#[test]
fn a_relay_to_a_file_that_freezes_and_is_replaced_loses_nothing_when_it_thaws() {
    let points = [Point::BatchGiven, Point::Delivered, Point::ProgressInTable, Point::Confirmable];
    all(Delivery::File, points.map(|point| (point, Way::Frozen(2))));
}

#[test]
fn a_relay_that_freezes_anywhere_and_is_replaced_changes_nothing_when_it_thaws() {
    let points = [
        Point::BatchGiven,
        Point::RecordsStored,
        Point::CommitUnderWay,
        Point::Committed,
        Point::Delivered,
        Point::Parking,
        Point::Parked,
        Point::ReleaseBegun,
        Point::ReleaseStored,
    ];
    all(Delivery::ExactlyOnce, points.map(|point| (point, Way::Frozen(2))));
}

#[test]
#[ignore = "ten minutes: `just long` runs it"]
fn exactly_once_holds_and_is_back_in_time_with_a_dead_line_at_every_point() {
    all(Delivery::ExactlyOnce, lines::everywhere(Delivery::ExactlyOnce));
}

#[test]
#[ignore = "as above: `just long` runs it"]
fn at_least_once_holds_and_is_back_in_time_with_a_dead_line_at_every_point() {
    all(Delivery::AtLeastOnce, lines::everywhere(Delivery::AtLeastOnce));
}

#[test]
fn each_point_is_reached_in_some_mode() {
    for point in Point::ALL.iter().filter(|point| **point != Point::DecisionStored) {
        let modes = [Delivery::ExactlyOnce, Delivery::AtLeastOnce, Delivery::File, Delivery::Nats];
        assert!(modes.iter().any(|mode| way(*point, *mode).is_some()), "{}", point.name());
    }
}
