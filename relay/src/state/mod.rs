//! What the relay knows about itself: written by `daemon`, `pipeline` and `source`, read by
//! `admin`. Cheap to clone and to write: positions are atomics, the rest is behind one short lock
//! that is never held across an await.

mod behind;
pub mod boards;
mod broker;
pub mod concerns;
mod delivery;
mod died;
pub mod health;
mod known;
mod lag;
mod parked;
mod report;
pub mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::Notify, time::Instant};

pub use self::health::Phase;
use self::{
    known::{Known, Stamp},
    lag::Lag,
    status::{LastBatch, LastError},
};
use crate::{
    core::{
        lsn::Lsn,
        position::Position,
        progress::{ParkedRecord, Progress},
    },
    metrics::Metrics,
};

/// A handle to the one board of a relay.
#[derive(Clone)]
pub struct Board(Arc<Inner>);

struct Inner {
    name: String,
    slot: String,
    version: String,
    metrics: Metrics,
    born: Instant,
    received: Known,
    confirmed: Known,
    wal_end: Known,
    /// The end of the WAL as a query last had it.
    asked_end: Known,
    heard: Stamp,
    broker_heard: Stamp,
    beat: Stamp,
    delivering: Stamp,
    /// When a batch was taken, or last progressed; `None` while there is no batch.
    working: Stamp,
    /// Since when deliveries have been tried, and none stored, whatever started over meanwhile.
    unstored: Stamp,
    /// When events or the position last moved.
    flowed: Stamp,
    sampled: Stamp,
    /// When somebody said where the WAL ends.
    told: Stamp,
    records: AtomicU64,
    bytes: AtomicU64,
    batches: AtomicU64,
    moved: AtomicU64,
    /// Where the oldest stored snapshot lies.
    repaired_from: Known,
    parked_lanes: Known,
    parked_events: Known,
    /// Those that the table has lost.
    parked_lost: Known,
    /// Told when what is parked has changed.
    parking: Notify,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    phase_since: Duration,
    delivered: Option<Position>,
    last_batch: Option<LastBatch>,
    /// When the last delivery of commits ended, and how old its newest one was then.
    last_age: Option<(Duration, Duration)>,
    last_error: Option<LastError>,
    /// It is what the trouble is about, and over with it.
    error_is_trouble: bool,
    /// As last counted, also where it can't be counted any more, with what was parked since.
    parked: Option<ParkedRecord>,
    /// What was parked since the last count began.
    parked_since: ParkedRecord,
    /// What the log has been told of parked events that are lost.
    lost_told: String,
    /// By what they are about.
    concerns: BTreeMap<&'static str, String>,
    /// Why the server sends nothing of what there is.
    held_back: Option<String>,
    /// Which standby a commit of the control session waits for.
    stuck: Option<String>,
    /// Since when the brokers do not answer, and who of them.
    broker_error: Option<(Duration, String)>,
    /// What they answer where nothing can be delivered by that.
    broker_says: Option<String>,
    /// What the step of a start waits for, where that is known.
    waits_for: Option<String>,
    /// What failed last, until the relay has come further.
    trouble: Option<String>,
    /// Where the WAL ended when the stream died that this one follows, until this one is known to flow.
    died_at: Option<Lsn>,
    lag: Lag,
    /// When the summary was last made, and the records delivered by then.
    summary: (Duration, u64),
}

impl Board {
    /// A board that says `starting`.
    pub fn new(name: &str, slot: &str, version: &str) -> Self {
        Board::with(name, slot, version, Metrics::new(name, slot, version))
    }

    /// The same, of one of several relays of the process: its metrics say which.
    pub fn of_route(name: &str, slot: &str, version: &str) -> Self {
        Board::with(name, slot, version, Metrics::labelled(name, slot, version))
    }

    fn with(name: &str, slot: &str, version: &str, metrics: Metrics) -> Self {
        let board = Board(Arc::new(Inner {
            name: name.to_owned(),
            slot: slot.to_owned(),
            version: version.to_owned(),
            metrics,
            born: Instant::now(),
            received: Known::default(),
            confirmed: Known::default(),
            wal_end: Known::default(),
            asked_end: Known::default(),
            heard: Stamp::default(),
            broker_heard: Stamp::default(),
            beat: Stamp::default(),
            delivering: Stamp::default(),
            working: Stamp::default(),
            unstored: Stamp::default(),
            flowed: Stamp::default(),
            sampled: Stamp::default(),
            told: Stamp::default(),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            repaired_from: Known::default(),
            parked_lanes: Known::default(),
            parked_events: Known::default(),
            parked_lost: Known::default(),
            parking: Notify::new(),
            state: Mutex::new(State {
                phase: Phase::Starting { doing: "reading settings".into() },
                phase_since: Duration::ZERO,
                delivered: None,
                last_batch: None,
                last_age: None,
                last_error: None,
                error_is_trouble: false,
                parked: None,
                parked_since: ParkedRecord::default(),
                lost_told: String::new(),
                concerns: BTreeMap::new(),
                held_back: None,
                stuck: None,
                broker_error: None,
                broker_says: None,
                waits_for: None,
                trouble: None,
                died_at: None,
                lag: Lag::new(),
                summary: (Duration::ZERO, 0),
            }),
        }));
        board.beat();
        board
    }

    /// The relay's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Counters that others move: reconnects and refusals.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// A WAL message with our prefix announces nothing, for a reason that is one of a few fixed words.
    /// The first of each is logged: any role may write any number of them.
    pub fn message_ignored(&self, why: &'static str) {
        if self.0.metrics.message_ignored(why) {
            tracing::warn!(
                why,
                "a WAL message with the prefix outbox was ignored: it announces no release of this \
                 relay, so nothing waits for it. Others that are ignored for the same reason are \
                 counted in outbox_relay_ignored_messages_total and not logged"
            );
        }
    }

    /// A release can't be carried out now, for somebody has locked its rows. The first is logged; who has
    /// locked them, those say that look for it again.
    pub fn release_locked(&self) {
        if self.0.metrics.message_ignored("locked") {
            tracing::warn!(
                "a release was passed over, because someone else has locked rows of its lanes in \
                 outbox.dead_letters: these lanes stay parked, others flow, and it is announced again. \
                 `outbox-relay dead-letters release` names who holds them. Others are counted in \
                 outbox_relay_ignored_messages_total and not logged"
            );
        }
    }

    /// Up to where delivery has come; `None` before anything is known of it.
    pub fn delivered_up_to(&self) -> Option<Lsn> {
        self.state().delivered.map(Position::resume_lsn)
    }

    /// Up to where the stream has come in; the beginning before anything came.
    pub fn received_up_to(&self) -> Lsn {
        Lsn::new(self.0.received.get().unwrap_or_default())
    }

    /// What the relay is at from now on. Any but `Streaming` ends the delivery under way: its
    /// outcome is uncertain, and it will be replayed. Standing by ends all that is known of the
    /// stream: another relay moves it now.
    pub fn phase(&self, phase: Phase) {
        if phase != Phase::Streaming {
            self.0.delivering.clear();
            self.0.working.clear();
        }
        let now = self.now();
        let mut state = self.state();
        self.stream_ends(&mut state, &phase);
        state.held_back = None;
        state.concerns.remove(behind::LATE);
        state.stuck = None;
        state.waits_for = None;
        if matches!(phase, Phase::Standby { .. }) {
            self.0.unstored.clear();
            let Inner { received, confirmed, wal_end, asked_end, .. } = &*self.0;
            for known in [received, confirmed, wal_end, asked_end] {
                known.clear();
            }
            self.parked_is_anothers(&mut state);
            concerns::are_anothers(&mut state);
            state.delivered = None;
            state.last_age = None;
            state.lag.reset();
        }
        match &phase {
            Phase::Retrying { .. } => state.trouble = Some(phase.detail()),
            Phase::Halted { .. } => state.trouble = Some(format!("halted: {}", phase.detail())),
            Phase::Starting { .. } | Phase::Stopping => {}
            // Whether it does better than the last one is to be seen.
            Phase::Streaming if state.died_at.is_some() => {}
            Phase::Standby { .. } | Phase::Streaming | Phase::Repairing { .. } => state.flows(),
        }
        if matches!(phase, Phase::Retrying { .. } | Phase::Halted { .. }) {
            state.error_is_trouble = true;
        }
        state.phase = phase;
        state.phase_since = now;
        self.settle(&mut state, false);
        self.0.flowed.set(now);
    }

    /// PostgreSQL has answered.
    pub fn heard(&self) {
        self.0.heard.set(self.now());
    }

    /// Up to where delivery has come, as read from stored progress.
    pub fn resumed(&self, position: Position) {
        self.state().delivered = Some(position);
    }

    /// Progress is stored: a repair would begin at one of its snapshots.
    pub fn stored(&self, progress: &Progress) {
        let oldest = progress.snapshots.last().map(|oldest| oldest.lsn).unwrap_or_default();
        self.0.repaired_from.set(oldest.get());
    }

    /// A repair reads nothing that was committed before this; zero where that is not known.
    pub fn repaired_from(&self) -> Lsn {
        Lsn::new(self.0.repaired_from.get().unwrap_or_default())
    }

    /// The position received from PostgreSQL.
    pub fn received(&self, lsn: Lsn) {
        self.0.received.set(lsn.get());
    }

    /// A message came from PostgreSQL that says where its WAL ends. Once for each read from the
    /// socket is enough.
    pub fn server(&self, wal_end: Lsn) {
        let now = self.now();
        self.0.heard.set(now);
        self.wal_end(now, wal_end);
    }

    /// Where the server's WAL ends, by a query. Data messages of logical replication only say how
    /// far the walsender has come, so without this a backlog shows late. An end that has gone back
    /// is another server's.
    pub fn server_wal_end(&self, wal_end: Lsn) {
        if self.0.asked_end.get().is_some_and(|last| wal_end.get() < last) {
            self.0.wal_end.clear();
            self.0.sampled.clear();
            self.state().lag.reset();
        }
        self.0.asked_end.set(wal_end.get());
        self.wal_end(self.now(), wal_end);
    }

    fn wal_end(&self, now: Duration, wal_end: Lsn) {
        self.0.told.set(now);
        self.0.wal_end.raise(wal_end.get());
        let end = self.0.wal_end.get().unwrap_or_default();
        if self.0.sampled.age(now).is_none_or(|age| age >= Duration::from_secs(1)) {
            self.0.sampled.set(now);
            let mut state = self.state();
            state.lag.sample(now, Lsn::new(end));
            self.settle(&mut state, false);
        }
    }

    /// Why the server sends nothing of what there is; `None` when it does. Returns whether that is new.
    pub fn held_back(&self, why: Option<String>) -> bool {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.held_back, why);
        before != state.held_back
    }

    /// Which standby a commit of the control session waits for; `None` when it waits for none. Returns whether
    /// that is new.
    pub fn stuck(&self, why: Option<String>) -> bool {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.stuck, why);
        before != state.stuck
    }

    /// The position confirmed to PostgreSQL.
    pub fn confirmed(&self, lsn: Lsn) {
        self.0.confirmed.set(lsn.get());
    }

    /// Something went wrong; shown until the next one. No secret and no payload in it.
    pub fn error(&self, error: String) {
        let at = format!("{:.0}", Timestamp::now());
        let mut state = self.state();
        state.last_error = Some(LastError { error, at, over_since: None });
        state.error_is_trouble = false;
    }

    /// The daemon's heartbeat, once a second, also through outages.
    pub fn beat(&self) {
        self.0.beat.set(self.now());
    }

    fn now(&self) -> Duration {
        self.0.born.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain values, each whole by itself: still good after a panic elsewhere.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("status", &self.status()).finish()
    }
}
