//! Delivery and parking against a scripted sink and a table in memory.

mod beside;
mod played;

use std::collections::BTreeMap;

use proptest::prelude::*;
use tokio::sync::Semaphore;

use self::played::{RELEASE, ScriptedSink, Table, announced, name};
use super::*;
use crate::{
    core::{
        lsn::Lsn,
        position::Position,
        record::{Announced, BatchLimits, RecordHead},
    },
    dead_letter::Lane,
};

/// Positions alone.
struct Plain;

impl Course for Plain {
    fn advance(&mut self, progress: &mut Progress, batch: &Batch, end: usize) -> bool {
        progress.position = crate::pipeline::position_after(batch, end);
        progress.position.is_some()
    }

    fn stored(&mut self, _: &Progress, proof: Stored) {
        drop(proof);
    }

    fn origin(&self) -> Origin<'_> {
        Origin::Stream
    }
}

const LIMITS: BatchLimits = BatchLimits { records_max: 1000, bytes_max: 1 << 20 };

fn at(commit: u64, ordinal: u64) -> RowPosition {
    RowPosition { commit: Lsn::new(commit), ordinal }
}

/// A batch of `topic key`, with ` !` behind those that are too large; numbered by their place.
fn batch(commit: u64, events: &[&str]) -> Arc<Batch> {
    let mut batch = Batch::new(LIMITS);
    for (ordinal, event) in events.iter().enumerate() {
        let mut words = event.split(' ');
        let mut record = batch.start_record(RecordHead {
            position: at(commit, ordinal as u64),
            topic: words.next().expect("a topic"),
            key: words.next().map(str::as_bytes),
            payload: Some(if words.next().is_some() { b"bad" } else { b"good" }),
            partition: None,
            timestamp_ms: None,
        });
        record.header("outbox-id", ordinal.to_string().as_bytes());
        record.finish();
    }
    batch.position = Some(Position::UpTo(Lsn::new(commit + 1)));
    Arc::new(batch)
}

fn delivery(plain: bool) -> Delivery<ScriptedSink, Table> {
    let board = Board::new("orders", "s", "1");
    let sink = ScriptedSink { plain, ..ScriptedSink::default() };
    let progress = Progress::before_first_start("s");
    Delivery::new(sink, Table::default(), Lanes::new(100), progress, board)
}

#[tokio::test]
async fn a_refused_event_parks_its_lane_from_there_and_the_others_flow() {
    let mut delivery = delivery(false);
    let events = ["t a", "t b", "t a !", "t b", "t a", "gone x", "t c", "gone x"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored, ["t a 0", "t b 1", "t b 3", "t c 6"]);
    assert_eq!(delivery.desk.table().parked(), ["t a 2", "t a 4", "gone x 5", "gone x 7"]);
    let progress = delivery.publisher.progress.as_ref().expect("stored");
    assert_eq!(progress.position, Some(Position::UpTo(Lsn::new(2))));
    delivery.deliver(&mut batch(2, &["t a", "t b"]), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored.last().map(String::as_str), Some("t b 1"));
    assert_eq!(delivery.desk.table().parked().last(), Some(&"t a 0"));
}

#[tokio::test]
async fn what_precedes_a_parked_event_goes_its_way_when_it_is_sent_again() {
    let mut delivery = delivery(false);
    let lane = Lane::of("t", Some(b"a"), None).expect("a lane");
    delivery.lanes.park(lane, at(1, 1));
    let events = ["t a", "t a !", "t a"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored, ["t a 0"]);
    assert_eq!(delivery.desk.table().parked(), ["t a 1", "t a 2"]);
}

#[tokio::test]
async fn a_batch_of_which_all_is_parked_still_moves_progress() {
    let mut delivery = delivery(false);
    delivery.deliver(&mut batch(1, &["gone a", "gone b"]), &mut Plain).await.expect("delivered");
    let progress = delivery.publisher.progress.as_ref().expect("stored");
    assert_eq!(progress.position, Some(Position::UpTo(Lsn::new(2))));
    // No one has counted yet; were the table to lose them now, nothing else would know of them.
    let parked = progress.parked.as_ref().expect("it knows of them");
    let ids: Vec<String> = parked.ids.iter().map(ToString::to_string).collect();
    assert_eq!((parked.events, ids), (2, vec!["1@0/1:1".to_owned(), "0@0/1:0".to_owned()]));
}

#[tokio::test]
async fn at_least_once_parks_what_is_refused_and_nothing_that_is_stored() {
    let mut delivery = delivery(true);
    let events = ["t a", "t a !", "t a", "t b !", "t c"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored, ["t a 0", "t a 2", "t c 4"]);
    delivery.until_parked().await.expect("parked");
    assert_eq!(delivery.desk.table().parked(), ["t a 1", "t b 3"]);
    delivery.deliver(&mut batch(2, &["t a", "t c"]), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored.last().map(String::as_str), Some("t c 1"));
    delivery.until_parked().await.expect("parked");
    assert_eq!(delivery.desk.table().parked(), ["t a 1", "t b 3", "t a 0"]);
}

#[tokio::test]
async fn what_may_share_a_refusal_is_parked_unasked_where_others_have_waited_enough() {
    let mut delivery = delivery(false);
    delivery.suspicion = Suspicion::without_patience();
    let events = ["u a", "t a", "t b !", "u b", "t c !", "t d", "u c"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored, ["u a 0", "u b 3", "u c 6"]);
    assert_eq!(delivery.publisher.refusals, 1, "the broker is asked once");
    assert_eq!(delivery.desk.table().parked(), ["t a 1", "t b 2", "t c 4", "t d 5"]);
    let progress = delivery.publisher.progress.as_ref().expect("stored");
    assert_eq!(progress.position, Some(Position::UpTo(Lsn::new(2))));
}

/// Asking about each would take longer than others can wait, so all of a lane are suspected; each
/// release of them must tell something, or they would go round for ever.
#[tokio::test]
async fn many_suspects_of_one_lane_come_to_an_end_however_slow_the_broker_is() {
    const MANY: usize = 1_000;
    const BAD: usize = 630;
    let mut delivery = delivery(false);
    delivery.publisher.names_few = true;
    delivery.suspicion = Suspicion::without_patience();
    let mut events = vec!["t a"; MANY];
    events[BAD] = "t a !";
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.refusals, 1, "others wait for one question");
    assert_eq!(delivery.desk.table().parked().len(), MANY);
    let mut rounds = 0;
    while delivery.publisher.stored.len() < BAD {
        rounds += 1;
        assert!(rounds < 5, "{} of {BAD} are stored", delivery.publisher.stored.len());
        delivery.release(&announced(), LIMITS).await.expect("released");
        delivery.finish_complete().await.expect("finished");
    }
    assert_eq!(
        delivery.desk.table().parked().len(),
        MANY - BAD,
        "the refused one, and what follows"
    );
}

#[tokio::test]
async fn a_released_lane_is_free_and_one_that_is_refused_again_is_not() {
    let mut delivery = delivery(false);
    let events = ["t a !", "gone b", "t a", "gone b", "t a"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    for row in delivery.desk.table().rows.values_mut() {
        row.bad = false; // Somebody has corrected it; the topic is still gone.
    }
    let limits = BatchLimits { records_max: 2, ..LIMITS };
    let places = delivery.release(&announced(), limits).await.expect("released");
    assert_eq!(places, 5);
    delivery.finish_complete().await.expect("finished");
    assert_eq!(delivery.publisher.stored, ["t a 0", "t a 2", "t a 4"]);
    assert_eq!(delivery.desk.table().parked(), ["gone b 1", "gone b 3"]);
    assert_eq!(delivery.lanes.len(), 1);
    assert_eq!(delivery.progress.releases, []);
    delivery.deliver(&mut batch(10, &["t a", "gone b"]), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored.len(), 4);
    assert_eq!(delivery.desk.table().parked().len(), 3);
}

#[tokio::test]
async fn a_release_goes_on_where_progress_says_that_it_was() {
    let mut delivery = delivery(false);
    let events = ["gone a", "gone a", "gone a", "gone a"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    for (place, row) in (0..).zip(delivery.desk.table().rows.values_mut()) {
        row.name = row.name.replace("gone", "back");
        row.place = Some(place);
    }
    delivery.progress.begin_release(RELEASE, Lsn::new(9));
    delivery.progress.deliver_release(RELEASE, 3);
    delivery.release(&announced(), LIMITS).await.expect("released");
    assert_eq!(delivery.publisher.stored, ["back a 3"]);
}

/// The simulation's seed 2053 of its time: places of what was put back, which progress counts as
/// done, were given once more, and what got them was skipped.
#[tokio::test]
async fn what_a_release_put_back_gets_new_places_when_it_is_begun_again() {
    let mut delivery = delivery(false);
    let events = ["gone a", "gone a", "gone a"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    let fix = |delivery: &mut Delivery<ScriptedSink, Table>, events: usize| {
        for row in delivery.desk.table().rows.values_mut().take(events) {
            row.name = row.name.replace("gone", "back");
        }
    };
    fix(&mut delivery, 1);
    delivery.release(&announced(), LIMITS).await.expect("released");
    assert_eq!(delivery.publisher.stored, ["back a 0"]);
    // The relay ends before the release is complete; by its next life the others are corrected.
    delivery.progress = delivery.publisher.progress.clone().expect("stored");
    fix(&mut delivery, 3);
    delivery.release(&announced(), LIMITS).await.expect("released");
    assert_eq!(delivery.publisher.stored, ["back a 0", "back a 1", "back a 2"]);
}

/// It would be in every progress record from then on.
#[tokio::test]
async fn a_release_of_which_nothing_is_left_is_no_longer_in_progress() {
    let mut delivery = delivery(false);
    delivery.progress.begin_release(RELEASE, Lsn::new(9));
    delivery.progress.deliver_release(RELEASE, 2);
    assert_eq!(delivery.release(&announced(), LIMITS).await.expect("released"), 0);
    assert_eq!(delivery.progress.releases, []);
    delivery.progress.begin_release(RELEASE, Lsn::new(9));
    assert_eq!(delivery.due(vec![announced()]).await.expect("looked up"), []);
    assert_eq!(delivery.progress.releases, []);
}

#[tokio::test]
async fn an_event_without_a_lane_that_is_in_the_table_waits_when_it_is_sent_again() {
    let mut delivery = delivery(false);
    delivery.lanes.expect(at(1, 1));
    delivery.deliver(&mut batch(1, &["t", "t", "t"]), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored, ["t - 0", "t - 2"]);
    assert_eq!(delivery.desk.table().parked(), ["t - 1"]);
}

#[tokio::test]
async fn lanes_beyond_what_memory_is_for_wait_all_the_same_and_are_released() {
    let mut delivery = delivery(false);
    delivery.lanes = Lanes::new(1);
    let events = ["gone a", "gone b", "gone c", "t a"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    delivery
        .deliver(&mut batch(2, &["gone c", "t c", "gone b"]), &mut Plain)
        .await
        .expect("delivered");
    assert_eq!(delivery.publisher.stored, ["t a 3", "t c 1"]);
    let parked = ["gone a 0", "gone b 1", "gone c 2", "gone c 0", "gone b 2"];
    assert_eq!(delivery.desk.table().parked(), parked);
    assert_eq!(delivery.lanes.len(), 3);
    for row in delivery.desk.table().rows.values_mut() {
        row.name = row.name.replace("gone", "back");
    }
    delivery.release(&announced(), LIMITS).await.expect("released");
    delivery.finish_complete().await.expect("finished");
    let released = ["back a 0", "back b 1", "back c 2", "back c 0", "back b 2"];
    assert_eq!(delivery.publisher.stored.get(2..), Some(&released.map(String::from)[..]));
    assert_eq!(delivery.lanes.len(), 0);
}

proptest! {
    /// Every event is delivered or parked, once; of each lane first what is delivered, then what is
    /// parked, both in order.
    #[test]
    fn nothing_is_lost_doubled_or_overtaken(
        batches in proptest::collection::vec(
            proptest::collection::vec((0..4_u8, 0..10_u8), 0..30), 1..4),
        in_memory in 0..3_usize,
        plain: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut delivery = delivery(plain);
            delivery.lanes = Lanes::new(in_memory);
            let permits = Arc::new(Semaphore::new(0));
            delivery.desk.table().permits = plain.then(|| Arc::clone(&permits));
            let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (commit, events) in (1..).zip(&batches) {
                let events: Vec<String> = events
                    .iter()
                    .map(|(key, luck)| {
                        let topic = if *luck == 1 { "gone" } else { "t" };
                        // Without transactions, what follows a refused one may be stored before it is parked.
                        let bad = *luck == 0 && !plain;
                        format!("{topic} k{key}{}", if bad { " !" } else { "" })
                    })
                    .collect();
                let events: Vec<&str> = events.iter().map(String::as_str).collect();
                let mut batch = batch(commit, &events);
                for record in batch.iter() {
                    let lane = format!("{} {}", record.topic, String::from_utf8_lossy(record.key.unwrap_or_default()));
                    all.entry(lane).or_default().push(name(&record));
                }
                let mut course = Plain;
                // What it waits for is parked only then.
                let waits = async {
                    loop {
                        tokio::task::yield_now().await;
                        permits.add_permits(1);
                    }
                };
                tokio::select! {
                    biased;
                    delivered = delivery.deliver(&mut batch, &mut course) => delivered.expect("delivered"),
                    () = waits => {}
                }
            }
            permits.add_permits(100);
            delivery.until_parked().await.expect("parked");
            for (lane, expected) in all {
                let of_lane = |name: &&str| name.starts_with(&format!("{lane} "));
                let stored = delivery.publisher.stored.iter().map(String::as_str);
                let parked = delivery.desk.table().parked();
                let found: Vec<&str> = stored.chain(parked).filter(of_lane).collect();
                assert_eq!(found, expected);
            }
        });
    }
}
