//! What delivery is tested against: a sink that refuses by script, and a table in memory.

use std::{collections::BTreeMap, future::ready};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::*;
use crate::{
    core::{
        progress::ReleaseRecord,
        record::{Record, RecordHead},
    },
    dead_letter::{DeadLetterError, Lane, Letter, PutBack, Release, Seen},
    sink::{ProgressStore, Receipt, StoredProgress},
};

pub(super) const RELEASE: &str = "r";

/// Refuses payload `bad` together with all that it is sent with, topic `gone` by the record. Of few records
/// (`names_few`) it names the first that is bad.
#[derive(Debug, Default)]
pub(super) struct ScriptedSink {
    /// At-least-once: what is not refused is stored, each by itself.
    pub(super) plain: bool,
    pub(super) stored: Vec<String>,
    pub(super) progress: Option<Progress>,
    /// Deliveries that were refused after something was sent.
    pub(super) refusals: usize,
    pub(super) names_few: bool,
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

    fn is_apart(&self) -> bool {
        self.plain
    }

    fn publish(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        progress: Option<Bytes>,
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
            let stored = progress.map(|progress| {
                self.progress = Some(Progress::decode(&progress).expect("progress"));
                Stored::scripted()
            });
            Ok(Receipt { restamped: 0, progress: stored })
        };
        ready(outcome)
    }
}

/// Topic, key and number of a record.
pub(super) fn name(record: &Record<'_>) -> String {
    let key = record.key.map_or("-".into(), String::from_utf8_lossy);
    let id = record.event_id().map(String::from_utf8_lossy).unwrap_or_default();
    format!("{} {key} {id}", record.topic)
}

pub(super) fn announced() -> Announced {
    Announced { id: RELEASE.to_owned(), xid: 1, first: at(9, 0), after: 0 }
}

/// The table: by position, what is parked and, of a release, its place.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) rows: BTreeMap<(Lsn, u64), Row>,
    /// Parks as often as it is given a permit; `None` parks at once.
    pub(super) permits: Option<Arc<Semaphore>>,
}

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) lane: Option<Lane>,
    pub(super) place: Option<u64>,
    pub(super) released: bool,
    pub(super) bad: bool,
}

pub(super) type Outcome<T> = Result<T, DeadLetterError>;

impl DeadLetters for Table {
    async fn park(&mut self, letters: &[Letter<'_>]) -> Outcome<()> {
        if let Some(permits) = &self.permits {
            permits.acquire().await.expect("it is open").forget();
        }
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
        Ok(())
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
    pub(super) fn parked(&self) -> Vec<&str> {
        self.rows.values().filter(|row| !row.released).map(|row| row.name.as_str()).collect()
    }
}
