//! What happens in every case: writers that roll back, lanes that are poisoned, refused, released
//! while they are still refused, corrected and released; a relay that ends in the middle of it,
//! again and again; a last one that must bring everything home.

use std::{
    collections::{BTreeSet, HashMap},
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use outbox_harness::{
    Harness, check,
    database::Role,
    event::{Committed, Event, SEQUENCE},
    load::{Load, Plan},
    postgres::Session,
    proxy::Proxy,
    relay::{Relay, Settings},
    topic::{Record, Topic},
    wait,
};
use outbox_relay::{
    dead_letter::operator::{Operator, Selection},
    fault::Point,
};

use super::{
    Delivery, PARTITIONS,
    commands::commands_end_at,
    frozen::frozen_at,
    lines::{Cut, Moment, cut_at},
    panics::{Panic, panicked_at},
    place::Place,
    topics::{self, Change},
};

/// Above this many bytes the broker refuses what is sent to the topic.
pub(super) const LIMIT: &str = "max.message.bytes";
/// Payload of an event that is too large, now and then.
const POISON_BYTES: usize = 120_000;
pub(super) const SCARCE: &str = "100000";
pub(super) const ENOUGH: &str = "1000000";
const PARKED: &str = "select count(*) > 0 from outbox.dead_letters where state = 'parked'";
const NONE_PARKED: &str =
    "select count(*) = 0 from outbox.dead_letters where state in ('parked', 'releasing')";
const NONE_RELEASING: &str =
    "select count(*) = 0 from outbox.dead_letters where state = 'releasing'";
/// Within this a poison is parked, or was taken.
const SOON: Duration = Duration::from_secs(5);
/// Of a writer's transactions.
const INTERVAL: Duration = Duration::from_millis(25);
/// Within this a point is passed, or never will be.
pub(super) const REACHED: Duration = Duration::from_secs(40);

/// How the story gets to a point.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// Any start passes it.
    Starting,
    /// It is passed while the story continues: a life each ends at these passings.
    Running(&'static [u64]),
    /// As `Running`, with a relay that begins with what is in the table.
    Seeding(&'static [u64]),
    /// An orderly stop passes it.
    Stopping,
    /// An operator's command passes it, in its own process.
    Command,
    /// The code that passes there panics, and the relay continues by itself.
    Panicking(Panic),
    /// As `Running`, but the relay freezes there, a standby takes over, and it thaws.
    Frozen(u64),
    /// The relay freezes there, and has a dead line when it thaws.
    Cut(Cut),
    /// The relay freezes at this passing, its topic is changed, and it thaws: a story of its own.
    Changed(u64, Change),
}

impl Way {
    /// Where the relay starts that has none: with what is in the table, or with what comes.
    fn start(self) -> &'static str {
        match self {
            Way::Seeding(_)
            | Way::Panicking(Panic { seeding: true, .. })
            | Way::Cut(Cut { moment: Moment::Seeding, .. }) => "all",
            _ => "now",
        }
    }
}

/// Lives through it.
///
/// # Panics
/// When the point is not passed, or anything is lost, doubled (exactly-once) or out of order.
pub(super) async fn live(point: Point, delivery: Delivery, way: Way) {
    if let Way::Changed(passing, change) = way {
        return topics::live(point, delivery, passing, change).await;
    }
    let t = Harness::start().await;
    if let Some(place) = Place::of(delivery, &t).await {
        return live_in_peace(t, (point, delivery, way), place).await;
    }
    let topic = t.topic("orders").create_with(PARTITIONS, &[(LIMIT, SCARCE)]).await;
    let plan = Plan {
        topic: topic.name().to_owned(),
        partitions: PARTITIONS,
        writers: 2,
        transactions: u64::MAX,
    };
    let load = Load::paced(t.database(), &plan, INTERVAL).await;
    let settings = t
        .relay()
        .set("sink.delivery", delivery.setting())
        .set("postgres.start", way.start())
        .set("leader.timeout", "2s")
        .set("sink.topic_grace", "100ms");
    let mut before = BTreeSet::new();
    let mut troubled = async || {
        before = before_the_slot(&t).await;
        trouble(&t, &topic).await;
    };
    // The trouble lasts as long as the lives do, and every case has some.
    let relays = tokio::select! {
        relays = async {
            let relays = lives(&t, settings, (point, delivery, way), &async || parks(&t).await).await;
            parks(&t).await;
            relays
        } => relays,
        () = troubled() => unreachable!("there is no end of trouble"),
    };
    load.stop().await;
    bring_home(&t, &topic, &before, delivery).await;
    drop(relays);
}

/// The same without trouble: no one refuses anything.
async fn live_in_peace(t: Harness, case: (Point, Delivery, Way), place: Place) {
    let plan = Plan {
        topic: place.topic().to_owned(),
        partitions: PARTITIONS,
        writers: 2,
        transactions: u64::MAX,
    };
    let load = Load::paced(t.database(), &plan, INTERVAL).await;
    let settings =
        place.settings(t.relay()).set("postgres.start", case.2.start()).set("leader.timeout", "2s");
    let writes = async || {
        let before = place.records().await.len();
        wait::until("more is written", wait::PATIENCE, || async {
            if place.records().await.len() > before { Ok(()) } else { Err("not yet") }
        })
        .await
        .expect("it is");
    };
    let all_lives = async {
        let relays = lives(&t, settings, case, &writes).await;
        // The last one has delivered something, too: what is owed is known by the first record of each lane.
        writes().await;
        relays
    };
    let (relays, before) = tokio::join!(all_lives, before_the_slot(&t));
    load.stop().await;
    let count = wait::until("all is written", wait::PATIENCE, || async {
        let records = place.records().await;
        // By the same records: what is committed close to the slot's beginning may be owed or not.
        let truth = owed(t.committed().await, &before, &records);
        match check::compare(&truth, &records, PARTITIONS) {
            count if count.lost == 0 => Ok(count),
            count => Err(format!("{} events are missing", count.lost)),
        }
    })
    .await
    .expect("it is");
    match place {
        // The order is that in which a consumer sees each for the first time.
        Place::File(_) | Place::Rabbit(_) | Place::Kafka(_) => count.assert_at_least_once(),
        #[cfg(feature = "pulsar")]
        Place::Pulsar(_) => count.assert_at_least_once(),
        Place::Nats(_) => count.assert_exactly_once(),
        // What is sent again within five minutes is dropped there.
        #[cfg(feature = "aws")]
        Place::Sqs(..) => count.assert_exactly_once(),
    }
    drop(relays);
}

/// Relays that run at the end, and the line that they need.
type Lives = (Vec<Relay>, Option<Proxy>);

/// The relay's lives; the last one continues. `at_work` waits until it has done enough of what it does.
async fn lives(
    t: &Harness,
    settings: Settings,
    case: (Point, Delivery, Way),
    at_work: &impl AsyncFn(),
) -> Lives {
    let (point, delivery, way) = case;
    let name = point.name();
    let mut relay = match way {
        Way::Starting => {
            let mut relay = settings.fault(name).spawn();
            ended_at(&mut relay, name).await;
            relay.restart_with(None);
            at_work().await;
            relay.kill9().await;
            relay.restart_with(Some(name));
            ended_at(&mut relay, name).await;
            relay
        }
        Way::Running(passings) | Way::Seeding(passings) => {
            let (first, later) = passings.split_first().expect("a passing");
            let mut relay = settings.fault(&format!("{name}:{first}")).spawn();
            ended_at(&mut relay, name).await;
            for passing in later {
                relay.restart_with(Some(&format!("{name}:{passing}")));
                ended_at(&mut relay, name).await;
            }
            relay
        }
        Way::Stopping => {
            let mut relay = settings.fault(name).spawn();
            at_work().await;
            relay.ask_to_stop();
            ended_at(&mut relay, name).await;
            relay
        }
        Way::Command => {
            let relay = settings.clone().spawn();
            commands_end_at(t, &settings, name).await;
            return (vec![relay], None);
        }
        Way::Panicking(panic) => {
            return (vec![panicked_at(settings, name, panic).await], None);
        }
        Way::Frozen(passing) => {
            return (frozen_at(settings, name, passing, delivery).await, None);
        }
        Way::Cut(cut) => {
            let (relays, line) = cut_at(t, settings, name, cut, at_work).await;
            return (relays, Some(line));
        }
        Way::Changed(..) => unreachable!("it has a story of its own"),
    };
    relay.restart_with(None);
    relay.wait_ready().await;
    (vec![relay], None)
}

async fn ended_at(relay: &mut Relay, point: &str) {
    let status = relay.ended_within(REACHED).await;
    let status = status.unwrap_or_else(|| panic!("{point} was not passed within {REACHED:?}"));
    assert_eq!(status.signal(), Some(libc::SIGKILL), "at {point}, by the fault: {status}");
    assert!(relay.logs_contain(&format!("fault: {point}")), "it ended at {point}");
}

/// Waits until the relay has delivered enough to have parked something.
async fn parks(t: &Harness) {
    until(t, "something is parked", "select count(*) > 0 from outbox.dead_letters").await;
}

/// Poisons a lane, releases it while the poison is still refused, corrects it, releases it; for ever.
pub(super) async fn trouble(t: &Harness, topic: &Topic) {
    let mut writer = t.database().connect(Role::Writer).await;
    let mut operator = t.database().connect(Role::Operator).await;
    for lane in (0..5).cycle() {
        // A broker shows a lower limit a moment before it keeps it, and takes the poison until then.
        loop {
            poison(&mut writer, topic, &format!("customer-{lane}")).await;
            if comes(t, "the poison is parked", PARKED, SOON).await.is_ok() {
                break;
            }
        }
        release(t, &mut operator).await;
        until(t, "the release is over", NONE_RELEASING).await;
        topic.set(LIMIT, ENOUGH).await;
        release_all(t, &mut operator).await;
        topic.set(LIMIT, SCARCE).await;
    }
}

pub(super) async fn poison(writer: &mut Session, topic: &Topic, key: &str) {
    let payload = "poison!".repeat(POISON_BYTES / 7 + 1);
    let transaction = writer.transaction().await.expect("a transaction begins");
    let event = Event::to(topic.name()).key(key).payload(payload.into());
    event.insert(transaction.client()).await.expect("the event is inserted");
    transaction.commit().await.expect("the transaction is committed");
}

fn is_poison(row: &Committed) -> bool {
    row.payload.as_ref().is_some_and(|payload| payload.len() > POISON_BYTES)
}

async fn release(t: &Harness, operator: &mut Session) {
    let mut operator = Operator::new(operator, t.database().name());
    operator.release(&Selection::default(), |_| {}).await.expect("it is announced");
}

/// Releases until nothing is parked or being released: what comes meanwhile is parked behind.
pub(super) async fn release_all(t: &Harness, operator: &mut Session) {
    let deadline = Instant::now() + wait::PATIENCE;
    while !is(t, NONE_PARKED).await {
        assert!(Instant::now() < deadline, "lanes are still parked after {:?}", wait::PATIENCE);
        release(t, operator).await;
        until(t, "the release is over", NONE_RELEASING).await;
    }
}

pub(super) async fn is(t: &Harness, condition: &str) -> bool {
    t.database().superuser().query_one(condition, &[]).await.expect("an answer").get(0)
}

pub(super) async fn until(t: &Harness, what: &str, condition: &str) {
    comes(t, what, condition, wait::PATIENCE).await.expect("it comes");
}

async fn comes(t: &Harness, what: &str, condition: &str, patience: Duration) -> anyhow::Result<()> {
    wait::until(what, patience, || async {
        if is(t, condition).await { Ok(()) } else { Err("not yet") }
    })
    .await
}

/// Events that were committed before there was a slot, or so close to it that it can't be told:
/// the relay starts from now.
async fn before_the_slot(t: &Harness) -> BTreeSet<String> {
    let slot = format!(
        "select count(confirmed_flush_lsn) > 0 from pg_replication_slots \
         where slot_name = 'outbox_{}'",
        t.database().name()
    );
    until(t, "the slot is made", &slot).await;
    t.committed().await.into_iter().map(|row| row.id).collect()
}

/// Fixes what is refused, waits until everything is delivered, and counts.
async fn bring_home(t: &Harness, topic: &Topic, before: &BTreeSet<String>, delivery: Delivery) {
    let mut operator = t.database().connect(Role::Operator).await;
    let deadline = Instant::now() + wait::PATIENCE;
    let (truth, mut records) = loop {
        // Again and again: what the trouble asked for last may reach the broker after this.
        topic.set(LIMIT, ENOUGH).await;
        release_all(t, &mut operator).await;
        let records = topic.records().await;
        let truth = owed(t.committed().await, before, &records);
        let there: BTreeSet<&str> = records.iter().filter_map(Record::id).collect();
        let missing = truth.iter().filter(|row| !there.contains(row.id.as_str())).count();
        if missing == 0 {
            break (truth, records);
        }
        assert!(Instant::now() < deadline, "{missing} events are missing");
    };
    let count = check::compare(&truth, &records, PARTITIONS);
    if delivery == Delivery::ExactlyOnce {
        count.assert_exactly_once();
        assert_eq!(check::positions_that_step_back(&records), Vec::<String>::new());
        return;
    }
    check::Count { out_of_order: 0, ..count }.assert_at_least_once();
    // What was in flight with a refused event may precede it, and overtake what shared its request
    // until that is stored again: the order is that of the last time each was stored.
    let (poison, others): (Vec<_>, Vec<_>) = truth.into_iter().partition(is_poison);
    let mut counted: BTreeSet<String> = poison.into_iter().map(|row| row.id).collect();
    records.reverse();
    records.retain(|record| record.id().is_some_and(|id| counted.insert(id.to_owned())));
    records.reverse();
    check::compare(&others, &records, PARTITIONS).assert_exactly_once();
}

/// What must have been delivered: all but what precedes, in its lane, the first that the slot has
/// seen.
fn owed(
    committed: Vec<Committed>,
    before: &BTreeSet<String>,
    records: &[Record],
) -> Vec<Committed> {
    let lane = |row: &Committed| (row.key.clone(), row.partition);
    let sequence = |row: &Committed| row.headers.get(SEQUENCE).and_then(|n| n.parse::<u64>().ok());
    let there: BTreeSet<&str> = records.iter().filter_map(Record::id).collect();
    let mut first = HashMap::new();
    for row in committed.iter().filter(|row| there.contains(row.id.as_str())) {
        let first = first.entry(lane(row)).or_insert(u64::MAX);
        *first = sequence(row).unwrap_or(u64::MAX).min(*first);
    }
    let mut owed = committed;
    owed.retain(|row| {
        let seen = first.get(&lane(row)).is_some_and(|first| sequence(row) >= Some(*first));
        !before.contains(&row.id) || there.contains(row.id.as_str()) || seen
    });
    owed
}
