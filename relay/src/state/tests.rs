use jiff::Timestamp;

use super::*;
use crate::core::{epoch, progress::ParkedId};

fn now_us() -> i64 {
    Timestamp::now().as_microsecond() - epoch::POSTGRES_US
}

#[test]
fn a_board_follows_a_delivery() {
    let board = Board::new("orders", "outbox_orders", "1");
    board.phase(Phase::Streaming);
    board.server(Lsn::new(5000));
    board.received(Lsn::new(2000));
    assert_eq!(board.summary_line(), None);
    board.delivery_started();
    assert!(board.vitals(board.now()).delivering_for.is_some());
    let position = Position::UpTo(Lsn::new(1000));
    board.delivered(Some(position), 3, 77, Duration::from_millis(4), Some(now_us() - 7_000_000));
    board.confirmed(Lsn::new(1000));
    assert!(board.vitals(board.now()).delivering_for.is_none());
    let status = board.status();
    assert!(status.ready && status.role == "leader");
    assert_eq!(status.lag_bytes, Some(4000));
    assert!(status.lag_seconds.is_some_and(|lag| (7.0..9.0).contains(&lag)));
    assert_eq!(status.delivered, Some(position));
    assert_eq!((status.records_delivered, status.bytes_delivered, status.batches), (3, 77, 1));
    let line = board.summary_line().expect("records flowed");
    assert!(
        line.starts_with("3 records in 0 s") && line.ends_with("delivered up to 0/3E8"),
        "{line}"
    );
    assert_eq!(board.summary_line(), None);
    board.delivered(Some(position), 1, 77, Duration::from_millis(4), Some(now_us()));
    assert!(board.summary_line().is_some_and(|line| line.starts_with("1 record in 0 s")));
}

#[test]
fn a_delivery_that_failed_is_not_under_way_any_more() {
    let board = Board::new("orders", "s", "1");
    board.delivery_started();
    board.phase(Phase::Stopping);
    assert!(board.vitals(board.now()).delivering_for.is_none());
}

/// A broker that answers and stores nothing: each delivery is given up, and the stream starts over.
#[test]
fn a_delivery_that_is_tried_again_and_again_counts_from_its_first_try() {
    let board = Board::new("orders", "s", "1");
    board.phase(Phase::Streaming);
    board.delivery_started();
    let later = board.now() + Duration::from_secs(60);
    let first = board.vitals(later).delivering_for;
    let now = board.now();
    while board.now().as_micros() <= now.as_micros() {
        std::hint::spin_loop();
    }
    board.phase(Phase::Starting { doing: "again".into() });
    board.phase(Phase::Streaming);
    assert_eq!(board.vitals(later).delivering_for, None, "it may be stored by now");
    board.delivery_started();
    assert_eq!(board.vitals(later).delivering_for, first);
    board.delivered(None, 0, 0, Duration::ZERO, None);
    board.delivery_started();
    assert!(board.vitals(later).delivering_for < first, "it starts over");
}

#[test]
fn a_broker_that_refuses_events_takes_deliveries() {
    let board = Board::new("orders", "s", "1");
    board.delivery_started();
    board.delivery_refused();
    let later = board.now() + Duration::from_secs(100);
    assert_eq!(board.vitals(later).delivering_for, None);
}

#[test]
fn a_cause_is_shown_while_it_lasts_also_between_two_attempts() {
    let board = Board::new("orders", "s", "1");
    let because = || board.status().not_ready_because.unwrap_or_default();
    board.phase(Phase::Retrying {
        doing: "reading progress".into(),
        error: "no broker answers".into(),
        next_attempt_in: Duration::from_secs(5),
    });
    for doing in ["connecting for replication", "reading progress from Kafka"] {
        board.phase(Phase::Starting { doing: doing.into() });
        let expected = format!("reading progress: no broker answers; trying again: {doing}");
        assert_eq!(because(), expected);
    }
    board.phase(Phase::Halted { reason: "r".into(), remedy: "m".into() });
    board.phase(Phase::Starting { doing: "looking again".into() });
    assert_eq!(because(), "halted: r; m; trying again: looking again");
    board.phase(Phase::Streaming);
    board.phase(Phase::Starting { doing: "following a change of the table".into() });
    assert_eq!(because(), "starting: following a change of the table", "it is over");
}

#[test]
fn nothing_is_claimed_before_it_is_known() {
    let board = Board::new("orders", "s", "1");
    let status = board.status();
    assert_eq!((status.lag_bytes, status.received, status.delivered), (None, None, None));
    assert_eq!(status.not_ready_because.as_deref(), Some("starting: reading settings"));
    let samples = board.render_metrics();
    for line in samples.lines().filter(|line| !line.starts_with('#')) {
        let blind = ["lsn", "lag", "parked_lanes", "parked_events"];
        assert!(!blind.iter().any(|word| line.contains(word)), "{line}");
    }
}

#[test]
fn the_lag_of_a_relay_that_halted_grows_with_the_servers_wal() {
    let board = Board::new("orders", "s", "1");
    board.phase(Phase::Halted { reason: "r".into(), remedy: "m".into() });
    board.server_wal_end(Lsn::new(5000));
    assert_eq!(board.status().lag_bytes, None, "nobody knows yet what is delivered");
    board.confirmed(Lsn::new(1000));
    assert_eq!(board.status().lag_bytes, Some(4000), "at least what is confirmed");
    board.resumed(Position::UpTo(Lsn::new(1500)));
    assert_eq!(board.status().lag_bytes, Some(3500));
    std::thread::sleep(Duration::from_millis(2));
    board.server_wal_end(Lsn::new(9000));
    let status = board.status();
    assert_eq!(status.lag_bytes, Some(7500));
    assert!(status.lag_seconds.is_some_and(|lag| lag > 0.001), "{status:?}");
    let metrics = board.render_metrics();
    assert!(metrics.contains("outbox_relay_lag_bytes 7500\n"), "{metrics}");
}

#[test]
fn a_server_whose_wal_ends_earlier_is_another_one() {
    let board = Board::new("orders", "s", "1");
    board.resumed(Position::UpTo(Lsn::new(1000)));
    board.server_wal_end(Lsn::new(9000));
    // The walsender is a little ahead of the query; that is no step back.
    board.server(Lsn::new(9100));
    board.server_wal_end(Lsn::new(9050));
    assert_eq!(board.status().server_wal_end, Some(Lsn::new(9100)));
    board.server_wal_end(Lsn::new(2000));
    assert_eq!(board.status().lag_bytes, Some(1000));
}

#[test]
fn a_standby_knows_nothing_of_the_stream() {
    let board = Board::new("orders", "s", "1");
    board.resumed(Position::UpTo(Lsn::new(1000)));
    board.server_wal_end(Lsn::new(9000));
    board.confirmed(Lsn::new(1000));
    board.parked_lanes(2);
    board.parked(&ParkedRecord { lanes: 2, events: 7, ..ParkedRecord::default() });
    board.phase(Phase::Standby { doing: "waiting".into() });
    let status = board.status();
    assert_eq!((status.server_wal_end, status.delivered, status.confirmed), (None, None, None));
    assert_eq!((status.lag_bytes, status.lag_seconds), (None, None));
    assert_eq!((status.parked_lanes, status.parked_events), (None, None));
}

#[test]
fn a_release_has_no_lag_of_its_own() {
    let board = Board::new("orders", "s", "1");
    board.server_wal_end(Lsn::new(1000));
    let position = Some(Position::UpTo(Lsn::new(1000)));
    board.delivered(position, 3, 77, Duration::from_millis(4), None);
    assert_eq!(board.status().lag_seconds, Some(0.0));
}

#[test]
fn the_lag_is_not_known_while_nobody_tells_where_the_wal_ends_or_it_ends_too_early() {
    let board = Board::new("orders", "s", "1");
    board.phase(Phase::Streaming);
    board.server_wal_end(Lsn::new(5000));
    board.resumed(Position::UpTo(Lsn::new(5000)));
    let now = board.now();
    assert_eq!(board.lag(now).map(|(bytes, _)| bytes), Some(0));
    assert_eq!(board.lag(now + Duration::from_secs(30)), None, "the server is away");
    board.server_wal_end(Lsn::new(3000));
    assert_eq!(board.lag(board.now()), None, "its volume was rolled back");
    board.server_wal_end(Lsn::new(5300));
    assert_eq!(board.lag(board.now()).map(|(bytes, _)| bytes), Some(300));
}

#[test]
fn events_that_are_parked_are_not_known_while_more_lanes_are_parked_than_were_counted() {
    let board = Board::new("orders", "s", "1");
    board.phase(Phase::Streaming);
    board.parked(&ParkedRecord { lanes: 1, events: 2, ..ParkedRecord::default() });
    assert_eq!(board.status().parked_events, Some(2));
    board.parked_lanes(20);
    assert_eq!((board.status().parked_lanes, board.status().parked_events), (Some(20), None));
    let says = |words: &str| board.concerns().iter().any(|concern| concern.starts_with(words));
    assert!(says("20 lanes are parked, and their later events wait"), "{:?}", board.concerns());
    board.parked(&ParkedRecord { lanes: 20, events: 200, ..ParkedRecord::default() });
    assert_eq!(board.status().parked_events, Some(200));
    assert!(says("20 lanes are parked (200 events), and"), "{:?}", board.concerns());
}

#[test]
fn the_last_error_says_since_when_it_is_over() {
    let board = Board::new("orders", "s", "1");
    let over = |board: &Board| board.status().last_error.and_then(|error| error.over_since);
    board.error("there is no publication".into());
    board.phase(Phase::Halted { reason: "r".into(), remedy: "m".into() });
    board.phase(Phase::Starting { doing: "fencing".into() });
    assert_eq!(over(&board), None, "a start may halt again");
    board.phase(Phase::Streaming);
    assert!(over(&board).is_some());
    board.error("parked events are lost".into());
    board.phase(Phase::Streaming);
    assert_eq!(over(&board), None, "nothing has fixed that");
}

#[test]
fn what_was_parked_is_known_before_it_is_counted_and_through_each_count() {
    let board = Board::new("orders", "s", "1");
    let id = |id: &&str| ParkedId { id: (*id).to_owned(), place: None, xid: None };
    let texts = |ids: &[&str]| ids.iter().map(id).collect::<Vec<_>>();
    let park = |ids: &[&str]| board.parked_more(ids.len() as u64, 1, texts(ids).into_iter());
    let known = || board.parked_last().map(|parked| (parked.table, parked.events, parked.ids));
    park(&["a", "it's"]);
    assert_eq!(known(), Some((0, 2, texts(&["a"]))), "of the other there is only the number");
    board.parked_count_begins();
    park(&["b"]);
    let counted = |ids: &[&str]| ParkedRecord { table: 7, lanes: 1, events: 2, ids: texts(ids) };
    board.parked(&counted(&["a"]));
    assert_eq!(known(), Some((7, 3, texts(&["b", "a"]))), "it was counted without the last");
    board.parked_count_begins();
    board.parked(&counted(&["b", "a"]));
    assert_eq!(known(), Some((7, 2, texts(&["b", "a"]))));
    board.parked_unknown();
    assert_eq!(known(), Some((7, 2, texts(&["b", "a"]))), "also while it can't be counted");
    assert_eq!(board.parked_elsewhere(7), None);
    assert_eq!(board.parked_elsewhere(8).map(|parked| parked.events), Some(2));
    board.parked_before(&counted(&[]), 8, None);
    assert_eq!(board.parked_elsewhere(8), None);
    assert_eq!(known(), Some((8, 2, texts(&["b", "a"]))));
    board.parked_before(&counted(&[]), 9, Some(&ParkedRecord { events: 1, ..counted(&["a"]) }));
    assert_eq!(
        known(),
        Some((9, 1, texts(&["b"]))),
        "what is written down as lost is not missed again"
    );
}

#[test]
fn events_that_are_lost_are_told_until_they_are_no_more_and_logged_once() {
    let board = Board::new("orders", "s", "1");
    let lost = || Some((3, "lost".to_owned()));
    assert!(board.parked_events_are_lost(lost()));
    assert!(!board.parked_events_are_lost(lost()));
    assert_eq!(board.concerns(), ["lost"]);
    assert!(board.render_metrics().contains("outbox_relay_lost_parked_events 3"));
    board.phase(Phase::Standby { doing: "waiting".into() });
    assert_eq!(board.concerns(), [""; 0], "another tells of it");
    assert!(!board.parked_events_are_lost(lost()), "the log has it");
    board.parked_events_are_lost(None);
    assert_eq!(board.concerns(), [""; 0]);
}

fn streaming(end: u64, delivered: u64) -> Board {
    let board = Board::new("orders", "s", "1");
    board.phase(Phase::Streaming);
    board.server_wal_end(Lsn::new(end));
    board.delivered(Some(Position::UpTo(Lsn::new(delivered))), 0, 0, Duration::ZERO, None);
    board
}

#[test]
fn a_stream_that_stands_still_is_not_ready_and_an_idle_one_is() {
    let why = |end, delivered, seconds| {
        let board = streaming(end, delivered);
        let behind = board.vitals(board.now() + Duration::from_secs(seconds)).behind;
        behind.and_then(|behind| behind.stands_still())
    };
    assert_eq!(why(5 << 20, 5 << 20, 17), None, "it is idle");
    assert_eq!(why((5 << 20) + 8000, 5 << 20, 17), None, "a record that is not whole yet");
    assert_eq!(why(9 << 20, 6 << 20, 14), None, "it may continue");
    let told = why(9 << 20, 6 << 20, 17).expect("it stands");
    assert!(told.contains("nothing was delivered for 1") && told.contains("3072 KiB"), "{told}");
    let board = streaming(9 << 20, 6 << 20);
    let later = board.now() + Duration::from_secs(17);
    let stands = || board.vitals(later).behind.and_then(|behind| behind.stands_still()).is_some();
    assert!(stands());
    board.delivery_started();
    assert!(!stands(), "a delivery that takes long has words of its own");
    board.delivery_refused();
    assert!(stands());
    board.phase(Phase::Stopping);
    assert_eq!(board.vitals(later).behind, None, "it does not stream");
}

#[test]
fn a_stream_moves_with_an_event_or_its_position_and_not_with_the_same_progress_again() {
    let board = streaming(9 << 20, 6 << 20);
    let later = Duration::from_secs(60);
    let delivered = |records, at| {
        let before = board.now();
        while board.now().as_micros() <= before.as_micros() {
            std::hint::spin_loop();
        }
        board.delivered(Some(Position::UpTo(Lsn::new(at))), records, 0, Duration::ZERO, None);
        board.0.flowed.age(later)
    };
    let begun = board.0.flowed.age(later);
    assert_eq!(delivered(0, 6 << 20), begun);
    let event = delivered(1, 6 << 20);
    assert!(event < begun);
    assert!(delivered(0, 7 << 20) < event);
}
