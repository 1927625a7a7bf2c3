//! The table of dead letters: what `dead_letter::Store`'s statements do.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use super::{
    broker::{self, id},
    row::{Row, State},
    server::uuid,
    world::{Mutant, Shared, World, look, turns},
};
use crate::{
    core::{
        header,
        lsn::Lsn,
        position::{Position, RowPosition},
        progress::ReleaseRecord,
        record::{Announced, Batch, RecordHead, RefusedRecord},
    },
    dead_letter::{
        BEHIND, DeadLetterError, DeadLetters, Lane, Lanes, Letter, PutBack, Release, Seen,
    },
};

#[derive(Debug, Default)]
pub(super) struct Table {
    /// In the order of positions.
    pub(super) rows: Vec<Row>,
    /// Of a mutant: answered, and not yet durable.
    pending: Vec<Row>,
    pub(super) releases: usize,
    /// How many rows there ever were.
    parked: usize,
}

impl Table {
    fn shown(&self) -> Vec<(usize, State, Option<&str>, Option<u64>)> {
        let rows = self.rows.iter();
        rows.map(|row| (row.id, row.state, row.release.as_deref(), row.place)).collect()
    }

    /// Whether events of the release are not delivered.
    pub(super) fn is_under_way(&self, release: &str) -> bool {
        self.rows.iter().any(|row| row.is_leaving(release))
    }

    /// Whether the event was ever parked, durably.
    pub(super) fn has(&self, id: usize) -> bool {
        self.rows.iter().any(|row| row.id == id)
    }

    pub(super) fn unfinished(&self) -> Option<String> {
        let waiting: Vec<_> =
            self.rows.iter().filter(|row| row.waits()).map(|row| (row.id, row.state)).collect();
        (!waiting.is_empty()).then(|| format!("dead letters {waiting:?} are left"))
    }

    /// What is parked, and what is here past `progress`. At most `max` lanes are known without asking.
    pub(super) fn lanes(
        &self,
        progress: Option<Position>,
        max: usize,
        mutant: Option<Mutant>,
    ) -> Lanes {
        let mut lanes = Lanes::new(max);
        for row in self.rows.iter().filter(|row| row.state != State::Released) {
            let (commit, ordinal) = row.at;
            let at = RowPosition { commit, ordinal };
            if let Some(lane) = row.lane.filter(|_| row.waits()) {
                lanes.park(lane, at);
            }
            let is_past = progress.is_some_and(|progress| !progress.covers(at));
            if is_past && mutant != Some(Mutant::ForgetsWhatIsThere) {
                lanes.expect(at);
            }
        }
        lanes.told([]);
        lanes
    }

    fn insert(&mut self, mut row: Row) {
        row.number = self.parked;
        self.parked += 1;
        let place = self.rows.partition_point(|other| (other.at, other.id) < (row.at, row.id));
        if self.rows.get(place).is_none_or(|other| (other.at, other.id) != (row.at, row.id)) {
            self.rows.insert(place, row);
        }
    }

    pub(super) fn flush(&mut self) {
        for row in std::mem::take(&mut self.pending) {
            self.insert(row);
        }
    }

    /// The session is gone.
    pub(super) fn forget(&mut self) {
        self.pending.clear();
    }
}

/// The relay's session.
pub(super) struct SimTable {
    pub(super) world: Shared,
    pub(super) session: u64,
    /// Rows that were there when a repair asked for the first time.
    known: Option<usize>,
}

fn lost() -> DeadLetterError {
    DeadLetterError::Misconfigured { what: "the session is lost".into(), remedy: String::new() }
}

impl SimTable {
    pub(super) fn new(world: &Shared, session: u64) -> Self {
        SimTable { world: Arc::clone(world), session, known: None }
    }

    /// One statement: it may fail before or after it has taken effect.
    async fn statement<T>(
        &self,
        what: &str,
        statement: impl FnOnce(&mut World) -> T,
    ) -> Result<T, DeadLetterError> {
        turns(&self.world).await;
        let done = {
            let world = &mut *look(&self.world);
            let leads = world.leads(self.session).is_ok() || world.is(Mutant::LocksNobody);
            if !leads || world.fails_once_in(50) {
                return Err(lost());
            }
            let session = self.session;
            world.tell(|| format!("session {session}: {what}"));
            let done = statement(world);
            let table = &world.table;
            let rows = || format!("  {:?}", table.shown());
            if let Some(story) = &mut world.story {
                story.push(rows());
            }
            done
        };
        turns(&self.world).await;
        if look(&self.world).fails_once_in(50) { Err(lost()) } else { Ok(done) }
    }
}

/// Marks what progress counts as delivered, takes in whatever else waits in the release's lanes, and
/// returns these.
fn take_in(table: &mut Table, release: &str, known: &[ReleaseRecord]) -> Vec<Lane> {
    let mine = table.rows.iter().filter(|row| row.is_leaving(release));
    let lanes: Vec<Lane> = mine.filter_map(|row| row.lane).collect();
    for row in &mut table.rows {
        if known.iter().any(|known| row.is_delivered(known)) {
            row.state = State::Released;
        } else if row.waits()
            && !row.is_of(release)
            && row.lane.is_some_and(|lane| lanes.contains(&lane))
        {
            row.state = State::Releasing;
            row.release = Some(release.to_owned());
            row.place = None;
        }
    }
    lanes
}

fn give_places(table: &mut Table, release: &str, done: u64) {
    let is_left = |row: &&mut Row| row.is_leaving(release);
    let mut left: Vec<&mut Row> = table.rows.iter_mut().filter(is_left).collect();
    left.sort_by_key(|row| (row.at, row.id));
    for (place, row) in (done..).zip(left) {
        row.place = Some(place);
    }
}

fn begun(table: &Table, release: &str) -> Option<Release> {
    let mut begun: Option<Release> = None;
    for row in table.rows.iter().filter(|row| row.is_of(release)) {
        if !matches!(row.state, State::Releasing | State::Discarded) {
            continue;
        }
        let begun = begun.get_or_insert_default();
        let others = || table.rows.iter().any(|other| other.waits() && other.lane == row.lane);
        if let Some(lane) = row.lane
            && (row.state == State::Releasing || !others())
        {
            begun.lanes.push(lane);
        }
        if row.state == State::Releasing {
            begun.end = begun.end.max(row.place.expect("it has one") + 1);
        }
    }
    begun
}

impl DeadLetters for SimTable {
    async fn park(&mut self, letters: &[Letter<'_>]) -> Result<(), DeadLetterError> {
        let rows: Vec<Row> = letters
            .iter()
            .map(|Letter { record, lane, fit, .. }| Row {
                number: 0,
                id: id(record),
                at: (record.position.commit, record.position.ordinal),
                lane: *lane,
                key: record.key.map(<[u8]>::to_vec),
                fit: *fit,
                repaired: broker::sent(record).repaired,
                state: State::Parked,
                release: None,
                place: None,
            })
            .collect();
        let causes = letters.iter().filter(|letter| letter.reason != BEHIND);
        for cause in causes.map(|letter| id(&letter.record)) {
            let world = &mut *look(&self.world);
            if !world.events[cause].was_bad {
                world.violated(format!("event {cause} is parked, and nobody refused it"));
            }
        }
        self.statement("park", |world| match world.is(Mutant::ParksTooEarly) {
            true => world.table.pending.extend(rows),
            false => rows.into_iter().for_each(|row| world.table.insert(row)),
        })
        .await
    }

    async fn find(&mut self, batch: &Batch) -> Result<Vec<usize>, DeadLetterError> {
        let ids: Vec<usize> = batch.iter().map(|record| id(&record)).collect();
        let known = self.known;
        let (there, known) = self
            .statement("find", |world| {
                // What this repair has parked itself is of rows that it has read before.
                let known = known.unwrap_or(world.table.parked);
                let rows = &world.table.rows;
                let is_it = |row: &Row, id: usize| {
                    row.id == id && row.state != State::Released && row.number < known
                };
                let there = |index: &usize| rows.iter().any(|row| is_it(row, ids[*index]));
                ((0..ids.len()).filter(there).collect(), known)
            })
            .await?;
        self.known = Some(known);
        Ok(there)
    }

    async fn parked_of(
        &mut self,
        lanes: &[Lane],
    ) -> Result<Vec<(Lane, RowPosition)>, DeadLetterError> {
        self.statement("ask for lanes", |world| {
            let mut parked: BTreeMap<Lane, RowPosition> = BTreeMap::new();
            if world.is(Mutant::AsksNobody) {
                return Vec::new();
            }
            for row in world.table.rows.iter().filter(|row| row.waits()) {
                let (commit, ordinal) = row.at;
                if let Some(lane) = row.lane.filter(|lane| lanes.contains(lane)) {
                    parked.entry(lane).or_insert(RowPosition { commit, ordinal });
                }
            }
            parked.into_iter().collect()
        })
        .await
    }

    async fn look_up(&mut self, announced: &[Announced]) -> Result<Vec<Seen>, DeadLetterError> {
        let ids: Vec<String> = announced.iter().map(|one| one.id.clone()).collect();
        self.statement("look up", |world| {
            let rows = &world.table.rows;
            let waits = |row: &Row| matches!(row.state, State::Releasing | State::Discarded);
            let due = |id: &String| rows.iter().any(|row| row.is_of(id) && waits(row));
            ids.iter().map(|id| if due(id) { Seen::Due } else { Seen::Nothing }).collect()
        })
        .await
    }

    async fn begin(
        &mut self,
        release: &str,
        known: &[ReleaseRecord],
    ) -> Result<Option<Release>, DeadLetterError> {
        let done = known.iter().find(|known| known.id == release).map_or(0, |r| r.delivered);
        let freed = self
            .statement("take in", |world| {
                let known = if world.is(Mutant::TakesWhatIsDelivered) { &[] } else { known };
                take_in(&mut world.table, release, known)
            })
            .await?;
        self.statement("give places", |world| {
            let done = if world.is(Mutant::GivesPlacesTwice) { 0 } else { done };
            give_places(&mut world.table, release, done);
        })
        .await?;
        let begun = self.statement("begun", |world| begun(&world.table, release)).await?;
        if look(&self.world).is(Mutant::FinishesTooEarly) {
            let all = ReleaseRecord {
                id: release.to_owned(),
                commit: Lsn::ZERO,
                delivered: u64::MAX,
                complete: true,
            };
            self.finish(&all).await?;
        }
        if begun.is_none() && freed.is_empty() {
            return Ok(None);
        }
        let mut begun = begun.unwrap_or_default();
        begun.lanes.extend(freed);
        begun.end = begun.end.max(done);
        Ok(Some(begun))
    }

    async fn read(
        &mut self,
        release: &str,
        from: u64,
        first: RowPosition,
        batch: &mut Batch,
    ) -> Result<Option<u64>, DeadLetterError> {
        let mut rows: Vec<Row> = self
            .statement("read", |world| {
                let rows = world.table.rows.iter().filter(|row| row.is_leaving(release));
                rows.filter(|row| row.place >= Some(from)).cloned().collect()
            })
            .await?;
        rows.sort_by_key(|row| row.place);
        let mut next = from;
        for row in rows {
            if batch.is_full() {
                break;
            }
            let place = row.place.expect("it was compared");
            let mut record = batch.start_record(RecordHead {
                position: RowPosition { ordinal: first.ordinal + place, ..first },
                topic: "orders",
                key: row.key.as_deref(),
                payload: Some(b"{}"),
                partition: None,
                timestamp_ms: None,
            });
            record.header(header::ID, uuid(row.id).as_bytes());
            if row.repaired {
                record.header(header::REPAIRED, b"1");
            }
            record.finish();
            if !row.fit {
                let (index, error) = (batch.len() - 1, "scripted".to_owned());
                let reason = "headers_shape";
                batch.unfit.push(RefusedRecord { index, reason, error, certain: true });
            }
            next = place + 1;
        }
        Ok((next > from).then_some(next))
    }

    async fn put_back(
        &mut self,
        release: &str,
        letters: &[PutBack<'_>],
        from: u64,
    ) -> Result<(), DeadLetterError> {
        let refused: Vec<(u64, Option<Lane>)> =
            letters.iter().map(|letter| (letter.ordinal, letter.lane)).collect();
        self.statement("put back", |world| {
            for row in world.table.rows.iter_mut().filter(|row| row.is_leaving(release)) {
                let Some(place) = row.place else { continue };
                let itself = refused.iter().any(|(other, _)| *other == place);
                let behind = refused.iter().any(|(other, lane)| {
                    lane.is_some() && *lane == row.lane && *other < place && place >= from
                });
                if itself || behind {
                    row.state = State::Parked;
                    row.release = None;
                    row.place = None;
                }
            }
        })
        .await
    }

    fn finish(
        &mut self,
        release: &ReleaseRecord,
    ) -> impl Future<Output = Result<(), DeadLetterError>> + Send {
        let release = release.clone();
        let table = SimTable::new(&self.world, self.session);
        async move {
            table
                .statement("finish", |world| {
                    for row in &mut world.table.rows {
                        if row.is_delivered(&release) {
                            row.state = State::Released;
                        } else if row.state == State::Discarded && row.is_of(&release.id) {
                            row.release = None;
                        }
                    }
                })
                .await
        }
    }
}
