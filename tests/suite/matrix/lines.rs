//! A relay that freezes at a point, and has a dead line when it thaws: to PostgreSQL or to the broker, for
//! good or until it is repaired.

use std::time::Duration;

use outbox_harness::{
    Harness,
    database::Role,
    probes::Probes,
    proxy::Proxy,
    relay::{Relay, STOP, Settings},
    wait,
};
use outbox_relay::fault::Point;
use serde_json::Value;
use tokio::time::Instant;

use super::{Delivery, story::Way, way};

/// An outage shows within this, and its end within that (DESIGN: command line).
const SEEN: Duration = Duration::from_secs(20);
const OVER: Duration = Duration::from_secs(10);
/// The longest waits: for a new connection to PostgreSQL (`connect_timeout`), and for the broker's answer to the request
/// that fences. Meanwhile the relay is not ready.
const ANSWER: Duration = Duration::from_secs(30);
/// Within this a point is passed, or never will be.
const REACHED: Duration = Duration::from_secs(40);

/// Which line, and how it dies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// At this passing of the point.
    pub(super) passing: u64,
    pub(super) moment: Moment,
    pub(super) side: Side,
    pub(super) death: Death,
}

/// What the relay is at when it passes the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Running,
    /// It begins with what is in the table.
    Seeding,
    /// It was asked to stop.
    Stopping,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Postgres,
    Broker,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Death {
    /// The connections of before carry nothing any more, not even their end. New ones work.
    Stranded,
    /// Nothing passes, and new connections are not answered, until the relay has noticed.
    Frozen,
}

/// All points that a relay passes by itself, with each line and each death.
pub(super) fn everywhere(delivery: Delivery) -> impl Iterator<Item = (Point, Way)> {
    let points = Point::ALL.iter().filter_map(move |point| {
        let (passing, moment) = match way(*point, delivery)? {
            Way::Starting => (1, Moment::Running),
            Way::Running(passings) => (*passings.first()?, Moment::Running),
            Way::Seeding(passings) => (*passings.first()?, Moment::Seeding),
            Way::Stopping => (1, Moment::Stopping),
            // `lines` has the commands.
            Way::Command | Way::Panicking(_) | Way::Frozen(_) | Way::Cut(_) | Way::Changed(..) => {
                return None;
            }
        };
        Some((*point, passing, moment))
    });
    points.flat_map(|(point, passing, moment)| {
        [Side::Postgres, Side::Broker].into_iter().flat_map(move |side| {
            let ways = [Death::Stranded, Death::Frozen];
            ways.map(|death| (point, Way::Cut(Cut { passing, moment, side, death })))
        })
    })
}

/// The relay freezes at the point, its line dies, and it thaws: it notices in time, says that it is not
/// ready, and continues without a hand. The line is returned with it, which needs it.
pub(super) async fn cut_at(
    t: &Harness,
    settings: Settings,
    point: &str,
    cut: Cut,
    at_work: &impl AsyncFn(),
) -> (Vec<Relay>, Proxy) {
    let (settings, line) = through(t, settings, cut.side).await;
    let mut relay = settings.fault(&format!("{point}:{}:freeze", cut.passing)).spawn();
    if cut.moment == Moment::Stopping {
        at_work().await;
        relay.ask_to_stop();
    }
    wait::until("the point is passed", REACHED, || async {
        if relay.logs_contain(&format!("fault: {point}")) { Ok(()) } else { Err("not yet") }
    })
    .await
    .expect("it is passed");
    match cut.death {
        Death::Stranded => line.strand(),
        Death::Frozen => line.freeze(),
    }
    let before = gave_up(&relay);
    relay.thaw();
    let thawed = Instant::now();
    if cut.moment == Moment::Stopping {
        let status = relay.wait_end(STOP).await;
        assert!(status.success(), "{status}: {}", relay.log_text());
        line.heal();
        relay.restart_with(None);
        relay.wait_ready().await;
        return (vec![relay], line);
    }
    let probes = Probes::of(&relay);
    match cut.death {
        Death::Stranded => delivers_again(&relay, thawed).await,
        Death::Frozen => {
            let gives_up = wait::until("it gives the line up", ANSWER + OVER, || async {
                if gave_up(&relay) > before { Ok(()) } else { Err(relay.log_text()) }
            });
            let (given_up, _reason) = tokio::join!(gives_up, probes.not_ready_within(SEEN, thawed));
            given_up.expect("a wait has a limit");
            line.heal();
            probes.ready_within(OVER, Instant::now()).await;
        }
    }
    probes.assert_always_live();
    (vec![relay], line)
}

/// How often it has begun anew.
fn gave_up(relay: &Relay) -> usize {
    relay.log_text().matches("will try again").count()
}

pub(super) async fn delivers_again(relay: &Relay, thawed: Instant) {
    let delivered = async || {
        let status = relay.try_status().await.map_err(|error| format!("{error:#}"))?;
        let count = status.get("records_delivered").and_then(Value::as_u64);
        count.ok_or_else(|| status.to_string())
    };
    let left = || (thawed + SEEN + OVER).saturating_duration_since(Instant::now());
    let before = wait::until("it answers", left(), &delivered).await.expect("it answers");
    wait::until("it delivers again", left(), async || match delivered().await? {
        found if found > before => Ok(()),
        found => Err(format!("{found} records")),
    })
    .await
    .expect("a dead line is noticed");
}

async fn through(t: &Harness, settings: Settings, side: Side) -> (Settings, Proxy) {
    match side {
        Side::Postgres => {
            let (host, port) = t.database().postgres().address();
            let server = format!("{host}:{port}");
            let line = Proxy::to(&server).await;
            let url = t.database().url(Role::Relay).replace(&server, &line.address());
            (settings.set("postgres.url", &url), line)
        }
        Side::Broker => {
            let line = t.kafka().line().await;
            (settings.set("sink.properties.\"bootstrap.servers\"", &line.address()), line)
        }
    }
}
