//! A defect of the relay, wherever it is: the code at a point panics, once. The process lives, the attempt ends, and
//! the next one continues from stored progress.

use outbox_harness::{
    relay::{Relay, Settings},
    wait,
};
use outbox_relay::fault::Point;
use tokio::time::Instant;

use super::{
    Delivery, all,
    lines::delivers_again,
    story::{REACHED, Way},
    way,
};

/// Which panic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panic {
    /// At this passing of the point.
    pub(super) passing: u64,
    /// By a relay that begins with what is in the table.
    pub(super) seeding: bool,
}

/// All points that a relay passes by itself and after which it continues.
pub(super) fn everywhere(delivery: Delivery) -> impl Iterator<Item = (Point, Way)> {
    Point::ALL.iter().filter_map(move |point| {
        let (passing, seeding) = match way(*point, delivery)? {
            Way::Starting => (1, false),
            Way::Running(passings) => (*passings.last()?, false),
            Way::Seeding(passings) => (*passings.last()?, true),
            _ => return None,
        };
        Some((*point, Way::Panicking(Panic { passing, seeding })))
    })
}

/// It continues by itself, and says what has happened.
pub(super) async fn panicked_at(settings: Settings, point: &str, panic: Panic) -> Relay {
    let mut relay = settings.fault(&format!("{point}:{}:panic", panic.passing)).spawn();
    wait::until("the point is passed", REACHED, || async {
        if relay.logs_contain(&format!("fault: {point}")) { Ok(()) } else { Err("not yet") }
    })
    .await
    .expect("it is passed");
    relay.wait_log("will try again").await;
    relay.wait_ready().await;
    delivers_again(&relay, Instant::now()).await;
    assert!(relay.log_text().contains("panicked"), "{}", relay.log_text());
    relay
}

#[test]
#[ignore = "minutes: `just long` runs it"]
fn exactly_once_holds_through_a_panic_at_every_point() {
    all(Delivery::ExactlyOnce, everywhere(Delivery::ExactlyOnce));
}

#[test]
#[ignore = "as above: `just long` runs it"]
fn at_least_once_holds_through_a_panic_at_every_point() {
    all(Delivery::AtLeastOnce, everywhere(Delivery::AtLeastOnce));
}

#[test]
#[ignore = "as above: `just long` runs it"]
fn to_nats_exactly_once_holds_through_a_panic_at_every_point() {
    all(Delivery::Nats, everywhere(Delivery::Nats));
}

/// One each in the start, in the sink's own thread, in the source, and in what releases.
#[test]
fn a_relay_whose_code_panics_says_so_and_continues_and_loses_and_repeats_nothing() {
    let points = [Point::LanesRead, Point::CommitUnderWay, Point::StatusSent, Point::ReleaseBegun];
    let some = everywhere(Delivery::ExactlyOnce);
    all(Delivery::ExactlyOnce, some.filter(|(point, _)| points.contains(point)));
}
