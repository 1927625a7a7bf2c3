//! A topic's administrator at work between two steps of a delivery: the relay freezes at a point, its topic
//! grows, is deleted, recreated, emptied or set otherwise, and the relay thaws under the same writers.
//!
//! The relay must come back without a hand, and park nothing that the topic takes. What is missing at the end
//! was in the topic when it was deleted ([`count`]).

mod count;

use std::time::Duration;

use outbox_harness::{
    Harness,
    database::Role,
    event::Event,
    host::report,
    load::{Load, Plan},
    postgres::Session,
    probes::Probes,
    relay::Relay,
    topic::{Record, Topic},
    wait,
};
use outbox_relay::fault::Point;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::count::{Case, Held};
use super::{
    Delivery, PARTITIONS, all,
    story::{ENOUGH, LIMIT, REACHED, SCARCE, Way, is, poison, release_all, trouble, until},
};

/// The fewest partitions that the topic has in any case: events name none beyond these.
const FEWEST: i32 = 2;
const MORE: i32 = 8;
/// Less than the bulky events have, which are taken otherwise.
const LOWERED: &str = "60000";
const BULKY_BYTES: usize = 80_000;
const BULKY_EVERY: Duration = Duration::from_millis(100);
/// Of a writer's transactions.
const INTERVAL: Duration = Duration::from_millis(25);
/// A topic that is missing is watched for so long: longer than any case takes.
const GRACE: &str = "120s";
/// From the end of the change until the relay is ready, and what was written since is in the topic.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// Said of a delivery that is given up, after ten seconds in which all lanes wait.
const TIMED_OUT: &str = "two thirds of transaction.timeout.ms";
/// Keys of what is written after the change.
const AFTER: &str = "after-";
const NO_TOPIC: &str = "select count(*) > 0 from outbox.dead_letters \
                        where state = 'parked' and reason = 'unknown_topic'";
const TOO_BULKY: &str = "select count(*) > 0 from outbox.dead_letters \
                         where state = 'parked' and reason = 'too_large' and payload is not null \
                             and octet_length(payload) < 100000";
/// Nothing waits but what is too large, and what is behind it in its lane.
const RELEASED_BY_ITSELF: &str = "select count(*) = 0 from outbox.dead_letters as letter \
    where state in ('parked', 'releasing') and not exists ( \
        select from outbox.dead_letters as ahead \
        where state in ('parked', 'releasing') and reason = 'too_large' \
            and ahead.relay = letter.relay and ahead.lane is not distinct from letter.lane \
            and (ahead.commit_lsn, ahead.ordinal) <= (letter.commit_lsn, letter.ordinal))";

/// What the administrator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The topic gets more partitions.
    Grown,
    /// It is deleted and recreated with so many.
    Recreated(i32),
    /// It is deleted, and recreated after the relay has parked events of it.
    RecreatedLate,
    /// It takes smaller records only, and larger ones again later.
    Lowered,
    /// It takes larger records.
    Raised,
    /// Its records are deleted, up to its end.
    Emptied,
}

impl Change {
    const ALL: [Change; 8] = [
        Change::Grown,
        Change::Recreated(PARTITIONS),
        Change::Recreated(FEWEST),
        Change::Recreated(MORE),
        Change::RecreatedLate,
        Change::Lowered,
        Change::Raised,
        Change::Emptied,
    ];

    /// The topic's partitions after it.
    const fn partitions(self) -> i32 {
        match self {
            Change::Grown => MORE,
            Change::Recreated(partitions) => partitions,
            _ => PARTITIONS,
        }
    }

    /// Whether records that were in the topic are gone.
    const fn deletes(self) -> bool {
        matches!(self, Change::Recreated(_) | Change::RecreatedLate | Change::Emptied)
    }

    /// What is done while the relay is frozen.
    async fn begin(self, topic: &Topic, held: &Held) {
        match self {
            Change::Grown => topic.grow(MORE.unsigned_abs() as usize).await,
            Change::Recreated(partitions) => {
                topic.delete().await;
                // Kafka 4.1 may lose its own request to end a transaction in a partition that it is about
                // to create, and ends no other transaction until that times out, after 30 s or more.
                topic.clone().create(partitions).await.is_served().await;
            }
            Change::RecreatedLate => topic.delete().await,
            Change::Lowered => topic.set(LIMIT, LOWERED).await,
            Change::Raised => topic.set(LIMIT, ENOUGH).await,
            Change::Emptied => topic.delete_records(&held.ends).await,
        }
    }

    /// What is done after it has thawed, if that is not all.
    async fn end(self, t: &Harness, topic: &Topic, others: &Topic) {
        match self {
            Change::RecreatedLate => {
                until(t, "events are parked for the missing topic", NO_TOPIC).await;
                flows(others).await;
                topic.clone().create(PARTITIONS).await;
            }
            Change::Lowered => {
                until(t, "events that are too large now are parked", TOO_BULKY).await;
                topic.set(LIMIT, ENOUGH).await;
            }
            _ => {}
        }
    }
}

/// At which of its passings the relay freezes at a point; `None` where no step of a delivery is near.
fn passing(point: Point, delivery: Delivery) -> Option<u64> {
    let only = |of: Delivery, passing| (delivery == of).then_some(passing);
    match point {
        Point::BatchGiven | Point::RecordsProduced | Point::RecordsStored | Point::Delivered => {
            Some(12)
        }
        Point::TransactionBegun
        | Point::ProgressProduced
        | Point::CommitUnderWay
        | Point::Committed => only(Delivery::ExactlyOnce, 12),
        Point::ProgressFollows => only(Delivery::AtLeastOnce, 12),
        Point::Aborting | Point::Aborted => only(Delivery::ExactlyOnce, 2),
        Point::StoringAlone => only(Delivery::AtLeastOnce, 2),
        Point::Parking
        | Point::Parked
        | Point::ReleaseBegun
        | Point::ReleaseDelivered
        | Point::ReleaseStored => Some(2),
        Point::Leading
        | Point::ProgressInTable
        | Point::ProgressTopicMade
        | Point::ProgressRead
        | Point::Fenced
        | Point::DecisionStored
        | Point::FirstProgressStored
        | Point::SlotMade
        | Point::SlotStored
        | Point::RepairAnnounced
        | Point::RepairBegun
        | Point::RepairPageStored
        | Point::RepairDelivered
        | Point::RepairEnded
        | Point::LanesRead
        | Point::AnnouncedAgain
        | Point::StreamStarted
        | Point::ReleaseFinished
        | Point::CommandChanged
        | Point::CommandAnnounced
        | Point::CommandCommitted
        | Point::Confirmable
        | Point::StatusSent
        | Point::Finishing => None,
    }
}

/// Lives through one change.
///
/// # Panics
/// When the point is not passed, the relay does not come back, or the count is wrong.
pub(super) async fn live(point: Point, delivery: Delivery, passing: u64, change: Change) {
    let case = Case { point, delivery, change };
    let t = Harness::start().await;
    let topic = t.topic("orders").create_with(PARTITIONS, &[(LIMIT, SCARCE)]).await;
    let others = t.topic("others").create(1).await;
    let plan = |topic: &Topic, partitions, writers| Plan {
        topic: topic.name().to_owned(),
        partitions,
        writers,
        transactions: u64::MAX,
    };
    let load = Load::paced(t.database(), &plan(&topic, FEWEST, 2), INTERVAL).await;
    let beside = Load::paced(t.database(), &plan(&others, 1, 1), INTERVAL).await;
    let fault = format!("{}:{passing}:freeze", point.name());
    let settings = t.relay().set("sink.delivery", delivery.setting());
    let settings = settings.set("postgres.start", "all").set("sink.topic_grace", GRACE);
    let relay = settings.fault(&fault).spawn();
    let enough = CancellationToken::new();
    let changed = async {
        // Ends the bulky events also where this fails.
        let _enough = enough.clone().drop_guard();
        tokio::select! {
            () = frozen(&relay, point) => {}
            () = trouble(&t, &topic) => unreachable!("there is no end of trouble"),
        }
        let held = Held::in_topic(&topic, case).await;
        change.begin(&topic, &held).await;
        let thawed = Instant::now();
        relay.thaw();
        let probes = Probes::of(&relay);
        change.end(&t, &topic, &others).await;
        comes_back(&t, &[&topic, &others], &probes, (case, thawed)).await;
        held
    };
    let (held, ()) = tokio::join!(changed, bulky(&t, &topic, &enough));
    load.stop().await;
    beside.stop().await;
    until(&t, "what the topic takes is released by itself", RELEASED_BY_ITSELF).await;
    nothing_parked_that_is_taken(&t, change).await;
    let truth = t.committed().await;
    let (of_others, of_topic): (Vec<_>, Vec<_>) =
        truth.into_iter().partition(|row| row.topic == others.name());
    let records = brought_home(&t, &topic, &held, of_topic.iter().map(|row| row.id.clone())).await;
    case.count(&of_topic, &held, &records);
    let expected = of_others.iter().map(|row| row.id.clone());
    count::assert_untouched(delivery, &of_others, &others.records_with(expected).await);
    assert_eq!(relay.log_text().matches("fault: ").count(), 1, "{}", relay.log_text());
    assert!(!relay.logs_contain(TIMED_OUT), "a delivery timed out: {}", relay.log_text());
}

async fn frozen(relay: &Relay, point: Point) {
    let said = format!("fault: {}", point.name());
    let passed = tokio::time::timeout(REACHED, relay.wait_log(&said)).await;
    passed.unwrap_or_else(|_| panic!("{} was not passed: {}", point.name(), relay.log_text()));
}

/// Events that most of these topics take, until it is enough.
async fn bulky(t: &Harness, topic: &Topic, enough: &CancellationToken) {
    let mut writer = t.database().connect(Role::Writer).await;
    for key in (10..30).cycle() {
        large(&mut writer, topic, &format!("customer-{key}"), BULKY_BYTES).await;
        tokio::select! {
            () = enough.cancelled() => return,
            () = tokio::time::sleep(BULKY_EVERY) => {}
        }
    }
}

async fn large(writer: &mut Session, topic: &Topic, key: &str, bytes: usize) {
    let event = Event::to(topic.name()).key(key).payload("bulk".repeat(bytes / 4).into());
    let transaction = writer.transaction().await.expect("a transaction begins");
    event.insert(transaction.client()).await.expect("the event is inserted");
    transaction.commit().await.expect("the transaction is committed");
}

/// Waits until more is in the topic.
async fn flows(topic: &Topic) {
    let before = topic.ends().await;
    wait::until("others flow", wait::PATIENCE, || async {
        if topic.ends().await > before { Ok(()) } else { Err("not yet") }
    })
    .await
    .expect("they do");
}

/// The relay is ready, and what is written now comes, to each partition that the topics have now.
async fn comes_back(
    t: &Harness,
    topics: &[&Topic; 2],
    probes: &Probes,
    (case, thawed): (Case, Instant),
) {
    let since = Instant::now();
    let mut writer = t.database().connect(Role::Writer).await;
    let mut expected = Vec::new();
    for (topic, partitions) in topics.iter().zip([case.change.partitions(), 1]) {
        let transaction = writer.transaction().await.expect("a transaction begins");
        for partition in 0..partitions {
            for event in [
                Event::to(topic.name()).key(&format!("{AFTER}{partition}")).partition(partition),
                Event::to(topic.name()).key(&format!("{AFTER}{partition}-by-key")),
            ] {
                event.insert(transaction.client()).await.expect("the event is inserted");
            }
        }
        transaction.commit().await.expect("the transaction is committed");
    }
    if case.change != Change::Grown && case.change != Change::Emptied {
        poison(&mut writer, topics[0], &format!("{AFTER}large")).await;
    }
    let sql = "select id::text from outbox.events where key like $1";
    let rows = t.database().superuser().query(sql, &[&format!("{AFTER}%")]).await.expect("ids");
    expected.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    wait::until("what is written now is delivered", BACK_WITHIN, || async {
        let records = [topics[0].records().await, topics[1].records().await].concat();
        let came = |id: &&String| records.iter().any(|record| record.id() == Some(id.as_str()));
        match expected.iter().filter(|id| !came(id)).count() {
            0 => Ok(()),
            missing => Err(format!("{missing} of {} are missing", expected.len())),
        }
    })
    .await
    .expect("it is");
    probes.ready_within(BACK_WITHIN, since).await;
    probes.assert_always_live();
    probes.assert_never_halted();
    report(&format!("{case}: back {:.1?} after it thawed", thawed.elapsed()));
}

/// Looks at all that were ever parked.
async fn nothing_parked_that_is_taken(t: &Harness, change: Change) {
    let after = format!(
        "select count(*) = 0 from outbox.dead_letters where convert_from(key, 'UTF8') like '{AFTER}%'"
    );
    assert!(is(t, &after).await, "something was parked that was written after the change");
    let limit = if change == Change::Lowered { LOWERED } else { SCARCE };
    let small = format!(
        "select count(*) = 0 from outbox.dead_letters \
         where reason = 'too_large' and coalesce(octet_length(payload), 0) < {limit} - 1000"
    );
    assert!(is(t, &small).await, "something was parked as too large that is not");
}

/// What is too large for the topic is released by a person, once it takes that; then everything must be
/// there that was not there before.
async fn brought_home(
    t: &Harness,
    topic: &Topic,
    held: &Held,
    expected: impl Iterator<Item = String>,
) -> Vec<Record> {
    let mut operator = t.database().connect(Role::Operator).await;
    topic.set(LIMIT, ENOUGH).await;
    release_all(t, &mut operator).await;
    let expected: Vec<String> = expected.filter(|id| !held.has(id)).collect();
    topic.records_with(expected).await
}

fn case(delivery: Delivery, (point, change): (Point, Change)) -> (Point, Way) {
    let passing = passing(point, delivery).expect("a point that is passed");
    (point, Way::Changed(passing, change))
}

fn every(delivery: Delivery) -> impl Iterator<Item = (Point, Way)> {
    let points = Point::ALL.iter().filter(move |point| passing(**point, delivery).is_some());
    let changes = |point: &Point| Change::ALL.map(|change| (*point, change));
    points.flat_map(changes).map(move |chosen| case(delivery, chosen))
}

#[test]
fn exactly_once_holds_through_some_changes_of_a_topic_within_a_delivery() {
    let chosen = [
        (Point::RecordsStored, Change::Recreated(FEWEST)),
        (Point::RecordsStored, Change::RecreatedLate),
        (Point::CommitUnderWay, Change::Recreated(PARTITIONS)),
        (Point::Aborting, Change::Recreated(MORE)),
        (Point::RecordsProduced, Change::Emptied),
        (Point::ReleaseBegun, Change::RecreatedLate),
        (Point::Parking, Change::Lowered),
    ];
    all(Delivery::ExactlyOnce, chosen.map(|chosen| case(Delivery::ExactlyOnce, chosen)));
}

#[test]
fn at_least_once_holds_through_some_changes_of_a_topic_within_a_delivery() {
    let chosen = [
        (Point::BatchGiven, Change::Grown),
        (Point::RecordsStored, Change::Recreated(FEWEST)),
        (Point::ProgressFollows, Change::Recreated(MORE)),
        (Point::StoringAlone, Change::Lowered),
        (Point::ReleaseDelivered, Change::Raised),
        (Point::Delivered, Change::RecreatedLate),
    ];
    all(Delivery::AtLeastOnce, chosen.map(|chosen| case(Delivery::AtLeastOnce, chosen)));
}

#[test]
#[ignore = "minutes: `just long` runs it"]
fn exactly_once_holds_through_each_change_of_a_topic_at_every_point_of_a_delivery() {
    all(Delivery::ExactlyOnce, every(Delivery::ExactlyOnce));
}

#[test]
#[ignore = "as above: `just long` runs it"]
fn at_least_once_holds_through_each_change_of_a_topic_at_every_point_of_a_delivery() {
    all(Delivery::AtLeastOnce, every(Delivery::AtLeastOnce));
}
