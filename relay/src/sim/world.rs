//! The state of everything that is not the relay, and what must hold of it at each step.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{broker::Broker, catalog::Catalog, server::Server, table::Table};
use crate::core::{
    lsn::Lsn,
    position::{Position, RowPosition},
    progress::Progress,
};

/// A defect that the simulation must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// A delivery is proven before the broker has it.
    StoredTooEarly,
    /// A start takes "up to L" to cover the commit that starts at L.
    ResumesTooLate,
    /// A start does not take a row's position to cover the row itself.
    ResumesTooEarly,
    /// The last record of a delivery is forgotten.
    DropsTheLast,
    /// A park is answered before it is durable.
    ParksTooEarly,
    /// A release is finished in the table before it is delivered.
    FinishesTooEarly,
    /// Progress is stored without the releases under way.
    ForgetsReleases,
    /// The broker takes transactions of a fenced producer.
    FencesNobody,
    /// The table takes statements of a session that lost the leader's lock.
    LocksNobody,
    /// A server is told a position that was received and not delivered.
    ConfirmsReceived,
    /// A release takes in what another one has delivered.
    TakesWhatIsDelivered,
    /// A release gives places that progress counts as done to what is taken in later.
    GivesPlacesTwice,
    /// A start does not know of events that were parked and that progress does not cover.
    ForgetsWhatIsThere,
    /// Lanes beyond what memory is for are taken to be free.
    AsksNobody,
    /// A start believes the progress that it read before it fenced its predecessor.
    ReadsBeforeFence,
    /// Progress in the database is stored by a session that lost the leader's lock.
    StoresUnheld,
    /// Rows that were moved are taken for new ones.
    PublishesMoved,
    /// A start takes the tables to have been published all the time as they are now.
    ForgetsThePublication,
    /// A look while the relay streams is not compared with the one before.
    LooksPast,
    /// A start that finds that rows are not published halts, and does not remember why.
    ForgetsTheGap,
    /// A repair begins after what was committed when it begins.
    RepairsTooLittle,
    /// A slot is replaced for a repair that no progress tells of.
    AnnouncesNothing,
    /// Several records of a lane are under way at a broker that stores each by itself.
    SendsManyOfALane,
}

impl Mutant {
    pub(super) const ALL: &[Mutant] = &[
        Mutant::StoredTooEarly,
        Mutant::ResumesTooLate,
        Mutant::ResumesTooEarly,
        Mutant::DropsTheLast,
        Mutant::ParksTooEarly,
        Mutant::FinishesTooEarly,
        Mutant::ForgetsReleases,
        Mutant::FencesNobody,
        Mutant::LocksNobody,
        Mutant::ConfirmsReceived,
        Mutant::TakesWhatIsDelivered,
        Mutant::GivesPlacesTwice,
        Mutant::ForgetsWhatIsThere,
        Mutant::AsksNobody,
        Mutant::ReadsBeforeFence,
        Mutant::StoresUnheld,
        Mutant::PublishesMoved,
        Mutant::ForgetsThePublication,
        Mutant::LooksPast,
        Mutant::ForgetsTheGap,
        Mutant::RepairsTooLittle,
        Mutant::AnnouncesNothing,
        Mutant::SendsManyOfALane,
    ];
}

/// An event of the outbox; its id is its index.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Index of its lane; `None` for one that stands alone.
    pub(super) lane: Option<usize>,
    /// Its number within the lane.
    pub(super) sequence: u64,
    pub(super) position: RowPosition,
    pub(super) delivered: bool,
    pub(super) discarded: bool,
    /// At-least-once: stored again, so that what follows may have overtaken it.
    pub(super) refused: bool,
    /// The broker refuses it until somebody corrects it.
    pub(super) bad: bool,
    /// Whether it ever was, or can't be a record at all.
    pub(super) was_bad: bool,
    /// It can be a record.
    pub(super) fit: bool,
    /// The transaction that wrote it, and the table that it is in.
    pub(super) xid: u64,
    pub(super) table: u32,
    /// No stream has it: its table was not published when it was written.
    pub(super) hidden: bool,
    /// It is in its table no more.
    pub(super) deleted: bool,
    /// Its transaction comes again whole, as a person has decided.
    pub(super) again: bool,
    /// A person has decided not to publish it.
    pub(super) left_out: bool,
}

/// A record on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) id: usize,
    pub(super) position: RowPosition,
    /// It says that it may have come before.
    pub(super) repaired: bool,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) random: StdRng,
    pub(super) mutant: Option<Mutant>,
    pub(super) exactly_once: bool,
    /// Progress is kept by the database, and stored after records were.
    pub(super) apart: bool,
    /// The broker stores each record by itself, in any order but that of a lane.
    pub(super) by_lane: bool,
    pub(super) events: Vec<Event>,
    /// Events of each lane, in order.
    pub(super) lanes: BTreeMap<usize, Vec<usize>>,
    pub(super) server: Server,
    pub(super) catalog: Catalog,
    /// Somebody changes the publication, deletes rows and loses slots.
    pub(super) meddled: bool,
    /// The server passes over what was written while there was no publication, as from PostgreSQL 18 on.
    pub(super) passes_over: bool,
    /// A person has decided to leave out what is not published when the next slot is made; from here on.
    pub(super) leaves_out: Option<Lsn>,
    pub(super) broker: Broker,
    pub(super) table: Table,
    /// Whether anything still goes wrong.
    pub(super) faults: bool,
    pub(super) violation: Option<String>,
    /// What happened, for the one seed that somebody looks at.
    pub(super) story: Option<Vec<String>>,
    /// Events before this one are covered by stored progress, and were seen to be safe.
    covered: usize,
}

/// The world as its inhabitants hold it. One thread: the lock is never waited for.
pub(super) type Shared = Arc<Mutex<World>>;

pub(super) fn look(world: &Shared) -> MutexGuard<'_, World> {
    world.try_lock().expect("one turn at a time, and none holds it across an await")
}

impl World {
    pub(super) fn new(seed: u64, mutant: Option<Mutant>) -> Shared {
        let mut random = StdRng::seed_from_u64(seed);
        let exactly_once = random.random_bool(0.6);
        let apart = !exactly_once && random.random_bool(0.6);
        let by_lane = apart && random.random_bool(0.5);
        let meddled = random.random_bool(0.15);
        let passes_over = random.random_bool(0.5);
        Arc::new(Mutex::new(World {
            random,
            mutant,
            exactly_once,
            apart,
            by_lane,
            events: Vec::new(),
            lanes: BTreeMap::new(),
            server: Server::new(),
            catalog: Catalog::new(),
            meddled,
            passes_over,
            leaves_out: None,
            broker: Broker::default(),
            table: Table::default(),
            faults: true,
            violation: None,
            story: None,
            covered: 0,
        }))
    }

    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Whether something that may happen does, once in `times`.
    pub(super) fn once_in(&mut self, times: u32) -> bool {
        self.random.random_range(0..times) == 0
    }

    /// As [`World::once_in`], for what goes wrong.
    pub(super) fn fails_once_in(&mut self, times: u32) -> bool {
        self.faults && self.once_in(times)
    }

    pub(super) fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(what());
        }
    }

    pub(super) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A consumer can read it from now on.
    pub(super) fn consumed(&mut self, Sent { id, position, repaired }: Sent) {
        let mark = if repaired { ", repaired" } else { "" };
        self.tell(|| format!("event {id} is delivered at {position}{mark}"));
        let Some(event) = self.events.get(id) else {
            return self.violated(format!("event {id} was never committed"));
        };
        if event.discarded && self.exactly_once {
            self.violated(format!("event {id} was discarded, and delivered at {position}"));
        } else if event.delivered && self.exactly_once && !repaired && !event.again {
            self.violated(format!("event {id} was delivered twice, again at {position}"));
        } else if !event.delivered
            && let Some(lane) = event.lane
        {
            let sequence = usize::try_from(event.sequence).unwrap();
            let before = self.lanes[&lane].iter().take(sequence);
            let missed = before.copied().find(|id| {
                let earlier = &self.events[*id];
                // What no stream has comes behind what the stream has.
                let is_passed = earlier.hidden && !repaired;
                let is_done = earlier.delivered || earlier.discarded || earlier.left_out;
                !(is_done || earlier.refused || is_passed)
            });
            if let Some(missed) = missed {
                self.violated(format!("event {id} overtook event {missed} of lane {lane}"));
            }
        }
        self.events[id].delivered = true;
    }

    /// A progress record is stored.
    pub(super) fn progressed(&mut self, progress: &Progress) {
        let Some(position) = progress.position else { return };
        self.tell(|| format!("progress {position}, releases {:?}", progress.releases));
        if progress.snapshots.iter().any(|snapshot| snapshot.lsn > position.resume_lsn()) {
            self.violated(format!("progress at {position} has a snapshot that it has not passed"));
        }
        while let Some(event) = self.events.get(self.covered) {
            if !position.covers(event.position) {
                break;
            }
            let parked = || self.table.has(self.covered);
            // What no stream has is missed at the end.
            let is_passed = event.hidden || event.left_out;
            if !(event.delivered || event.discarded || is_passed || parked()) {
                let (id, at) = (self.covered, event.position);
                self.violated(format!("progress {position} covers event {id} at {at}, lost"));
            }
            self.covered += 1;
        }
    }

    /// The server was told `lsn`, and may forget what is before it.
    pub(super) fn confirmed(&mut self, lsn: Lsn) {
        let durable = self.broker.position.map_or(Lsn::ZERO, Position::resume_lsn);
        // Where its making was cut short, a slot's own place is all that is known.
        if lsn > durable.max(self.server.confirmed) {
            self.violated(format!("{lsn} was confirmed, while stored progress is {durable}"));
        }
        self.server.confirmed = self.server.confirmed.max(lsn);
    }

    /// The server knows an older place of the slot, as after a crash.
    pub(super) fn forgets_confirmed(&mut self) {
        let server = &mut self.server;
        let known = server.wal.partition_point(|earlier| earlier.end <= server.confirmed);
        let forgotten = self.random.random_range(0..=known.min(6));
        let Some(begins) = server.slot else { return };
        if let Some(last) = (known - forgotten).checked_sub(1) {
            let older = server.wal[last].end.max(begins);
            self.server.confirmed = older;
            self.tell(|| format!("the server crashes, and knows {older} as confirmed"));
        }
    }

    /// What has not come to its end, when everything had time to.
    pub(super) fn unfinished(&self) -> Option<String> {
        let missing: BTreeSet<usize> = (0..self.events.len())
            .filter(|id| {
                let event = &self.events[*id];
                !(event.delivered || event.discarded || event.left_out)
            })
            .collect();
        if !missing.is_empty() {
            return Some(format!("events {missing:?} are missing"));
        }
        if let Some(left) = self.table.unfinished() {
            return Some(left);
        }
        if let Some(left) = self.broker.unfinished() {
            return Some(left);
        }
        let end = self.server.end();
        (self.server.confirmed < end)
            .then(|| format!("{} is confirmed of {end}", self.server.confirmed))
    }
}

/// Lets others take their turns: at random none, once or several times. A place to die at.
pub(super) async fn turns(world: &Shared) {
    let turns = look(world).random.random_range(0..3);
    for _ in 0..turns {
        Turn(false).await;
    }
}

struct Turn(bool);

impl Future for Turn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}
