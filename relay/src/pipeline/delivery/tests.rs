//! Delivery and parking against a scripted sink and a table in memory.

use std::{collections::BTreeMap, future::ready};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    core::{
        lsn::Lsn,
        position::Position,
        progress::ReleaseRecord,
        record::{Announced, BatchLimits, Record, RecordHead},
    },
    dead_letter::{DeadLetterError, Release, Seen},
    sink::{ProgressStore, Receipt, StoredProgress},
};

const RELEASE: &str = "r";

/// Refuses payload `bad` together with all that it is sent with, topic `gone` by the record. Of few records
/// (`names_few`) it names the first that is bad.
#[derive(Debug, Default)]
struct ScriptedSink {
    /// At-least-once: what is not refused is stored, each by itself.
    plain: bool,
    stored: Vec<String>,
    progress: Option<Progress>,
    /// Deliveries that were refused after something was sent.
    refusals: usize,
    names_few: bool,
}

impl ProgressStore for ScriptedSink {
    async fn peek(&mut self) -> Result<StoredProgress, SinkError> {
        Ok(StoredProgress::default())
    }

    fn read(&mut self) -> impl Future<Output = Result<StoredProgress, SinkError>> + Send {
        ready(Ok(StoredProgress::default()))
    }

    fn fence(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send {
        ready(Ok(()))
    }

    fn store(&mut self, progress: Bytes) -> impl Future<Output = Result<Stored, SinkError>> + Send {
        self.progress = Some(Progress::decode(&progress).expect("progress"));
        ready(Ok(Stored::scripted()))
    }
}

impl Publisher for ScriptedSink {
    fn delivery_limit(&self) -> Option<Duration> {
        None
    }

    fn publish(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        progress: Bytes,
    ) -> impl Future<Output = Result<Receipt, SinkError>> + Send {
        let records: Vec<_> = range.filter_map(|index| Some((index, batch.get(index)?))).collect();
        let bad = |record: &Record<'_>| record.payload == Some(b"bad");
        let refuse = |index, reason, certain| RefusedRecord {
            index,
            reason,
            error: "scripted".into(),
            certain,
        };
        let gone: Vec<_> = records
            .iter()
            .filter(|(_, record)| record.topic == "gone")
            .map(|(index, _)| refuse(*index, "unknown_topic", true))
            .collect();
        let outcome = if !gone.is_empty() {
            Err(SinkError::Refused { records: gone, rest: Rest::NotSent })
        } else if self.plain && records.iter().any(|(_, record)| bad(record)) {
            let is_bad = |(_, record): &(usize, Record<'_>)| bad(record);
            let (refused, stored): (Vec<_>, Vec<_>) = records.into_iter().partition(is_bad);
            self.stored.extend(stored.iter().map(|(_, record)| name(record)));
            let records = refused.iter().map(|(index, _)| refuse(*index, "too_large", false));
            Err(SinkError::Refused { records: records.collect(), rest: Rest::Stored })
        } else if records.iter().any(|(_, record)| bad(record)) {
            self.refusals += 1;
            // A batch of the wire is refused, which has one topic.
            let first = records.iter().find(|(_, record)| bad(record));
            if let Some((index, _)) = first.filter(|_| self.names_few && records.len() <= ALONE_MAX)
            {
                let records = vec![refuse(*index, "too_large", true)];
                return ready(Err(SinkError::Refused { records, rest: Rest::NotStored }));
            }
            let guilty = first.map(|(_, record)| record.topic);
            let records = records.iter().filter(|(_, record)| Some(record.topic) == guilty);
            let records = records.map(|(index, _)| refuse(*index, "too_large", false));
            Err(SinkError::Refused { records: records.collect(), rest: Rest::NotStored })
        } else {
            self.stored.extend(records.iter().map(|(_, record)| name(record)));
            self.progress = Some(Progress::decode(&progress).expect("progress"));
            Ok(Receipt { restamped: 0, progress: Some(Stored::scripted()) })
        };
        ready(outcome)
    }
}

/// Topic, key and number of a record.
fn name(record: &Record<'_>) -> String {
    let key = record.key.map_or("-".into(), String::from_utf8_lossy);
    let id = record.event_id().map(String::from_utf8_lossy).unwrap_or_default();
    format!("{} {key} {id}", record.topic)
}

fn announced() -> Announced {
    Announced { id: RELEASE.to_owned(), xid: 1, first: at(9, 0), after: 0 }
}

/// The table: by position, what is parked and, of a release, its place.
#[derive(Debug, Default)]
struct Table {
    rows: BTreeMap<(Lsn, u64), Row>,
}

#[derive(Debug, Clone)]
struct Row {
    name: String,
    lane: Option<Lane>,
    place: Option<u64>,
    released: bool,
    bad: bool,
}

type Outcome<T> = Result<T, DeadLetterError>;

impl DeadLetters for Table {
    fn park(&mut self, letters: &[Letter<'_>]) -> impl Future<Output = Outcome<()>> + Send {
        for letter in letters {
            let RowPosition { commit, ordinal } = letter.record.position;
            self.rows.entry((commit, ordinal)).or_insert_with(|| Row {
                name: name(&letter.record),
                lane: letter.lane,
                place: None,
                released: false,
                bad: letter.record.payload == Some(b"bad"),
            });
        }
        ready(Ok(()))
    }

    async fn find(&mut self, batch: &Batch) -> Outcome<Vec<usize>> {
        let there = |(_, record): &(usize, Record<'_>)| {
            self.rows.values().any(|row| row.name == name(record))
        };
        Ok(batch.iter().enumerate().filter(there).map(|(index, _)| index).collect())
    }

    fn parked_of(
        &mut self,
        lanes: &[Lane],
    ) -> impl Future<Output = Outcome<Vec<(Lane, RowPosition)>>> + Send {
        let mut parked: BTreeMap<Lane, RowPosition> = BTreeMap::new();
        for (&(commit, ordinal), row) in self.rows.iter().filter(|(_, row)| !row.released) {
            if let Some(lane) = row.lane.filter(|lane| lanes.contains(lane)) {
                parked.entry(lane).or_insert(RowPosition { commit, ordinal });
            }
        }
        ready(Ok(parked.into_iter().collect()))
    }

    fn look_up(
        &mut self,
        announced: &[Announced],
    ) -> impl Future<Output = Outcome<Vec<Seen>>> + Send {
        let due = |one: &Announced| one.id == RELEASE && !self.parked().is_empty();
        let seen = |one| if due(one) { Seen::Due } else { Seen::Nothing };
        ready(Ok(announced.iter().map(seen).collect()))
    }

    fn begin(
        &mut self,
        release: &str,
        known: &[ReleaseRecord],
    ) -> impl Future<Output = Outcome<Option<Release>>> + Send {
        assert_eq!(release, RELEASE);
        let done = known.iter().find(|known| known.id == release).map_or(0, |r| r.delivered);
        let places = self.rows.values().filter_map(|row| row.place);
        let mut end = places.max().map_or(0, |last| last + 1).max(done);
        let mut lanes = Vec::new();
        for row in self.rows.values_mut().filter(|row| !row.released) {
            if row.place.is_none() {
                row.place = Some(end);
                end += 1;
            }
            lanes.extend(row.lane);
        }
        let any = self.rows.values().any(|row| !row.released);
        ready(Ok(any.then_some(Release { lanes, end })))
    }

    fn read(
        &mut self,
        _release: &str,
        from: u64,
        first: RowPosition,
        batch: &mut Batch,
    ) -> impl Future<Output = Outcome<Option<u64>>> + Send {
        let mut next = from;
        for row in self.rows.values() {
            let Some(place) = row.place.filter(|place| *place >= from) else { continue };
            if batch.is_full() {
                break;
            }
            let mut words = row.name.split(' ');
            let (topic, key, id) = (words.next(), words.next(), words.next());
            let ordinal = first.ordinal + place;
            let mut record = batch.start_record(RecordHead {
                position: RowPosition { ordinal, ..first },
                topic: topic.expect("a topic"),
                key: key.map(str::as_bytes),
                payload: Some(if row.bad { b"bad" } else { b"good" }),
                partition: None,
                timestamp_ms: None,
            });
            record.header("outbox-id", id.unwrap_or_default().as_bytes());
            record.finish();
            next = place + 1;
        }
        ready(Ok((next > from).then_some(next)))
    }

    fn put_back(
        &mut self,
        _release: &str,
        letters: &[PutBack<'_>],
        from: u64,
    ) -> impl Future<Output = Outcome<()>> + Send {
        for row in self.rows.values_mut() {
            let Some(place) = row.place else { continue };
            let behind = |letter: &&PutBack<'_>| {
                letter.ordinal == place
                    || (letter.lane.is_some() && letter.lane == row.lane && letter.ordinal < place)
            };
            if letters.iter().any(|letter| letter.ordinal == place)
                || (place >= from && letters.iter().find(behind).is_some())
            {
                row.place = None;
            }
        }
        ready(Ok(()))
    }

    fn finish(&mut self, release: &ReleaseRecord) -> impl Future<Output = Outcome<()>> + Send {
        let delivered = |row: &&mut Row| row.place.is_some_and(|place| place < release.delivered);
        for row in self.rows.values_mut().filter(delivered) {
            row.released = true;
        }
        ready(Ok(()))
    }
}

impl Table {
    fn parked(&self) -> Vec<&str> {
        self.rows.values().filter(|row| !row.released).map(|row| row.name.as_str()).collect()
    }
}

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
    assert_eq!(delivery.dead_letters.parked(), ["t a 2", "t a 4", "gone x 5", "gone x 7"]);
    let progress = delivery.publisher.progress.as_ref().expect("stored");
    assert_eq!(progress.position, Some(Position::UpTo(Lsn::new(2))));
    delivery.deliver(&mut batch(2, &["t a", "t b"]), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored.last().map(String::as_str), Some("t b 1"));
    assert_eq!(delivery.dead_letters.parked().last(), Some(&"t a 0"));
}

#[tokio::test]
async fn what_precedes_a_parked_event_goes_its_way_when_it_is_sent_again() {
    let mut delivery = delivery(false);
    let lane = Lane::of("t", Some(b"a"), None).expect("a lane");
    delivery.lanes.park(lane, at(1, 1));
    let events = ["t a", "t a !", "t a"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored, ["t a 0"]);
    assert_eq!(delivery.dead_letters.parked(), ["t a 1", "t a 2"]);
}

#[tokio::test]
async fn a_batch_of_which_all_is_parked_still_moves_progress() {
    let mut delivery = delivery(false);
    delivery.deliver(&mut batch(1, &["gone a", "gone b"]), &mut Plain).await.expect("delivered");
    let progress = delivery.publisher.progress.as_ref().expect("stored");
    assert_eq!(progress.position, Some(Position::UpTo(Lsn::new(2))));
}

#[tokio::test]
async fn at_least_once_parks_what_is_refused_and_nothing_that_is_stored() {
    let mut delivery = delivery(true);
    let events = ["t a", "t a !", "t a", "t b !", "t c"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored, ["t a 0", "t a 2", "t c 4"]);
    assert_eq!(delivery.dead_letters.parked(), ["t a 1", "t b 3"]);
    delivery.deliver(&mut batch(2, &["t a", "t c"]), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored.last().map(String::as_str), Some("t c 1"));
    assert_eq!(delivery.dead_letters.parked(), ["t a 1", "t b 3", "t a 0"]);
}

#[tokio::test]
async fn what_may_share_a_refusal_is_parked_unasked_where_others_have_waited_enough() {
    let mut delivery = delivery(false);
    delivery.suspicion = Suspicion::without_patience();
    let events = ["u a", "t a", "t b !", "u b", "t c !", "t d", "u c"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored, ["u a 0", "u b 3", "u c 6"]);
    assert_eq!(delivery.publisher.refusals, 1, "the broker is asked once");
    assert_eq!(delivery.dead_letters.parked(), ["t a 1", "t b 2", "t c 4", "t d 5"]);
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
    assert_eq!(delivery.dead_letters.parked().len(), MANY);
    let mut rounds = 0;
    while delivery.publisher.stored.len() < BAD {
        rounds += 1;
        assert!(rounds < 5, "{} of {BAD} are stored", delivery.publisher.stored.len());
        delivery.release(&announced(), LIMITS).await.expect("released");
        delivery.finish_complete().await.expect("finished");
    }
    assert_eq!(
        delivery.dead_letters.parked().len(),
        MANY - BAD,
        "the refused one, and what follows"
    );
}

#[tokio::test]
async fn a_released_lane_is_free_and_one_that_is_refused_again_is_not() {
    let mut delivery = delivery(false);
    let events = ["t a !", "gone b", "t a", "gone b", "t a"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    for row in delivery.dead_letters.rows.values_mut() {
        row.bad = false; // Somebody has mended it; the topic is still gone.
    }
    let limits = BatchLimits { records_max: 2, ..LIMITS };
    let places = delivery.release(&announced(), limits).await.expect("released");
    assert_eq!(places, 5);
    delivery.finish_complete().await.expect("finished");
    assert_eq!(delivery.publisher.stored, ["t a 0", "t a 2", "t a 4"]);
    assert_eq!(delivery.dead_letters.parked(), ["gone b 1", "gone b 3"]);
    assert_eq!(delivery.lanes.len(), 1);
    assert_eq!(delivery.progress.releases, []);
    delivery.deliver(&mut batch(10, &["t a", "gone b"]), &mut Plain).await.expect("delivered");
    assert_eq!(delivery.publisher.stored.len(), 4);
    assert_eq!(delivery.dead_letters.parked().len(), 3);
}

#[tokio::test]
async fn a_release_goes_on_where_progress_says_that_it_was() {
    let mut delivery = delivery(false);
    let events = ["gone a", "gone a", "gone a", "gone a"];
    delivery.deliver(&mut batch(1, &events), &mut Plain).await.expect("delivered");
    for (place, row) in (0..).zip(delivery.dead_letters.rows.values_mut()) {
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
    let mend = |delivery: &mut Delivery<ScriptedSink, Table>, events: usize| {
        for row in delivery.dead_letters.rows.values_mut().take(events) {
            row.name = row.name.replace("gone", "back");
        }
    };
    mend(&mut delivery, 1);
    delivery.release(&announced(), LIMITS).await.expect("released");
    assert_eq!(delivery.publisher.stored, ["back a 0"]);
    // The relay ends before the release is complete; by its next life the others are mended.
    delivery.progress = delivery.publisher.progress.clone().expect("stored");
    mend(&mut delivery, 3);
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
    assert_eq!(delivery.dead_letters.parked(), ["t - 1"]);
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
    assert_eq!(delivery.dead_letters.parked(), parked);
    assert_eq!(delivery.lanes.len(), 3);
    for row in delivery.dead_letters.rows.values_mut() {
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
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut delivery = delivery(false);
            delivery.lanes = Lanes::new(in_memory);
            let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (commit, events) in (1..).zip(&batches) {
                let events: Vec<String> = events
                    .iter()
                    .map(|(key, luck)| {
                        let topic = if *luck == 1 { "gone" } else { "t" };
                        format!("{topic} k{key}{}", if *luck == 0 { " !" } else { "" })
                    })
                    .collect();
                let events: Vec<&str> = events.iter().map(String::as_str).collect();
                let mut batch = batch(commit, &events);
                for record in batch.iter() {
                    let lane = format!("{} {}", record.topic, String::from_utf8_lossy(record.key.unwrap_or_default()));
                    all.entry(lane).or_default().push(name(&record));
                }
                delivery.deliver(&mut batch, &mut Plain).await.expect("delivered");
            }
            for (lane, expected) in all {
                let of_lane = |name: &&str| name.starts_with(&format!("{lane} "));
                let stored = delivery.publisher.stored.iter().map(String::as_str);
                let parked = delivery.dead_letters.parked();
                let found: Vec<&str> = stored.chain(parked).filter(of_lane).collect();
                assert_eq!(found, expected);
            }
        });
    }
}
