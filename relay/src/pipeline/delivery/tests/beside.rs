//! Where records go before their progress, only progress waits for what is being parked.

use std::future::Future;

use futures_util::FutureExt as _;

use super::*;

/// At-least-once, and a table that parks as often as it is given a permit.
fn slow() -> (Delivery<ScriptedSink, Table>, Arc<Semaphore>) {
    let mut delivery = delivery(true);
    let permits = Arc::new(Semaphore::new(0));
    delivery.desk.table().permits = Some(Arc::clone(&permits));
    (delivery, permits)
}

fn done(work: impl Future<Output = Result<(), PipelineError>>) -> bool {
    work.now_or_never().map(|done| done.expect("it goes well")).is_some()
}

fn stored(delivery: &Delivery<ScriptedSink, Table>) -> Option<Position> {
    delivery.publisher.progress.as_ref().and_then(|progress| progress.position)
}

#[test]
fn others_go_on_and_progress_waits() {
    let (mut delivery, permits) = slow();
    assert!(done(delivery.deliver(&mut batch(1, &["gone a", "t b"]), &mut Plain)));
    assert!(done(delivery.deliver(&mut batch(2, &["t c", "gone a", "t b"]), &mut Plain)));
    assert_eq!(delivery.publisher.stored, ["t b 1", "t c 0", "t b 2"]);
    assert_eq!((stored(&delivery), delivery.settles_at()), (None, None));
    assert_eq!(delivery.board.parked_last(), None, "nothing is parked by now");
    assert!(!done(delivery.settle(&mut Plain)), "it waits for both");
    permits.add_permits(1);
    assert!(!done(delivery.settle(&mut Plain)), "it waits for the other one");
    assert_eq!(stored(&delivery), None);
    permits.add_permits(1);
    assert!(done(delivery.settle(&mut Plain)));
    assert_eq!(stored(&delivery), Some(Position::UpTo(Lsn::new(3))));
    let progress = delivery.publisher.progress.as_ref().expect("stored");
    assert_eq!(progress.parked.as_ref().map(|parked| parked.events), Some(2));
    assert_eq!(delivery.desk.table().parked(), ["gone a 0", "gone a 1"]);
    assert!(done(delivery.deliver(&mut batch(3, &["t b"]), &mut Plain)));
    assert_eq!(stored(&delivery), Some(Position::UpTo(Lsn::new(4))), "with its records again");
}

/// Else the position of a server that has something to park all the time would never move.
#[test]
fn what_is_parked_for_long_is_waited_for() {
    let (mut delivery, permits) = slow();
    assert!(done(delivery.deliver(&mut batch(1, &["gone a", "t b"]), &mut Plain)));
    delivery.desk.is_late();
    assert!(!done(delivery.deliver(&mut batch(2, &["t c"]), &mut Plain)));
    permits.add_permits(1);
    assert!(done(delivery.deliver(&mut batch(2, &["t c"]), &mut Plain)));
    assert_eq!(stored(&delivery), Some(Position::UpTo(Lsn::new(3))));
}

#[test]
fn no_more_is_being_parked_than_there_is_room_for() {
    let (mut delivery, permits) = slow();
    let full = vec!["gone a"; LIMITS.records_max];
    assert!(done(delivery.deliver(&mut batch(1, &full), &mut Plain)));
    assert!(done(delivery.deliver(&mut batch(2, &full), &mut Plain)));
    assert!(!done(delivery.deliver(&mut batch(3, &["gone a"]), &mut Plain)), "no room");
    permits.add_permits(1);
    assert!(done(delivery.deliver(&mut batch(3, &["gone a"]), &mut Plain)));
}

/// What is being parked is behind what the table has of the lane.
#[test]
fn a_release_has_all_that_was_parked_before_it() {
    let (mut delivery, permits) = slow();
    assert!(done(delivery.deliver(&mut batch(1, &["gone a", "gone a"]), &mut Plain)));
    assert!(delivery.due(vec![announced()]).now_or_never().is_none());
    permits.add_permits(1);
    let due = delivery.due(vec![announced()]).now_or_never().expect("it need not wait");
    assert_eq!(due.expect("looked up").len(), 1);
}

/// Exactly-once stores progress with the records.
#[test]
fn who_stores_progress_with_the_records_waits() {
    let mut delivery = delivery(false);
    let permits = Arc::new(Semaphore::new(0));
    delivery.desk.table().permits = Some(permits);
    assert!(!done(delivery.deliver(&mut batch(1, &["gone a", "t b"]), &mut Plain)));
    assert_eq!(delivery.publisher.stored, [""; 0]);
}
