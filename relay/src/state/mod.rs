//! What the relay knows about itself: written by `daemon`, `pipeline` and `source`, read by
//! `admin`. Cheap to clone and to write: positions are atomics, the rest is behind one short lock
//! that is never held across an await.

pub mod health;
mod known;
mod lag;
mod report;
pub mod status;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
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
    dead_letter::lost,
    metrics::Metrics,
};

/// 2000-01-01 UTC, PostgreSQL's epoch, in microseconds since Unix's.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
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
    /// Since when deliveries have been tried, and none stored, whatever began anew meanwhile.
    unstored: Stamp,
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
    /// As last counted, also where it can't be counted any more.
    parked: Option<ParkedRecord>,
    /// What was parked in a table that is gone.
    lost_parked: Option<ParkedRecord>,
    /// By what they are about.
    concerns: BTreeMap<&'static str, String>,
    /// Why the server sends nothing of what there is.
    held_back: Option<String>,
    /// Since when the brokers do not answer, and who of them.
    broker_error: Option<(Duration, String)>,
    /// What they answer where nothing can be delivered by that.
    broker_says: Option<String>,
    /// What failed last, until the relay has come further.
    trouble: Option<String>,
    lag: Lag,
    /// When the summary was last made, and the records delivered by then.
    summary: (Duration, u64),
}

impl Board {
    /// A board that says `starting`.
    pub fn new(name: &str, slot: &str, version: &str) -> Self {
        let board = Board(Arc::new(Inner {
            name: name.to_owned(),
            slot: slot.to_owned(),
            version: version.to_owned(),
            metrics: Metrics::new(name, slot, version),
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
            sampled: Stamp::default(),
            told: Stamp::default(),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            repaired_from: Known::default(),
            parked_lanes: Known::default(),
            parked_events: Known::default(),
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
                concerns: BTreeMap::new(),
                held_back: None,
                broker_error: None,
                broker_says: None,
                lost_parked: None,
                trouble: None,
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
        state.held_back = None;
        if matches!(phase, Phase::Standby { .. }) {
            self.0.unstored.clear();
            let Inner { received, confirmed, wal_end, asked_end, .. } = &*self.0;
            let Inner { parked_lanes, parked_events, .. } = &*self.0;
            for known in [received, confirmed, wal_end, asked_end, parked_lanes, parked_events] {
                known.clear();
            }
            state.delivered = None;
            state.last_age = None;
            state.parked = None;
            state.lag.reset();
        }
        match &phase {
            Phase::Retrying { .. } => state.trouble = Some(phase.detail()),
            Phase::Halted { .. } => state.trouble = Some(format!("halted: {}", phase.detail())),
            Phase::Starting { .. } | Phase::Stopping => {}
            Phase::Standby { .. } | Phase::Streaming | Phase::Repairing { .. } => {
                state.trouble = None;
                state.trouble_is_over();
            }
        }
        if matches!(phase, Phase::Retrying { .. } | Phase::Halted { .. }) {
            state.error_is_trouble = true;
        }
        state.phase = phase;
        state.phase_since = now;
    }

    /// PostgreSQL has answered.
    pub fn heard(&self) {
        self.0.heard.set(self.now());
    }

    /// The brokers have answered.
    pub fn broker_heard(&self) {
        self.0.broker_heard.set(self.now());
        let mut state = self.state();
        state.broker_error = None;
        state.broker_says = None;
    }

    /// The brokers have answered, and nothing can be delivered by what they say.
    pub fn broker_says(&self, what: String) {
        let mut state = self.state();
        state.broker_error = None;
        state.broker_says = Some(what);
    }

    /// The brokers have answered, if not by a sign of life that was asked for.
    pub fn broker_answered(&self) {
        self.state().broker_error = None;
    }

    /// The brokers were asked for a sign of life and gave none; who of them, and why.
    pub fn broker_silent(&self, who: String) {
        let now = self.now();
        let mut state = self.state();
        let since = state.broker_error.as_ref().map_or(now, |(since, _)| *since);
        state.broker_error = Some((since, who));
    }

    /// Whether the brokers have answered so recently.
    pub fn broker_heard_within(&self, time: Duration) -> bool {
        self.0.broker_heard.age(self.now()).is_some_and(|age| age < time)
    }

    /// Whether the brokers answered when they were last asked, and nothing that keeps events back.
    pub fn broker_answers(&self) -> bool {
        let state = self.state();
        state.broker_error.is_none() && state.broker_says.is_none()
    }

    /// Whether they gave no answer when they were last asked.
    pub fn broker_is_silent(&self) -> bool {
        self.state().broker_error.is_some()
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
            self.state().lag.sample(now, Lsn::new(end));
        }
    }

    /// A batch of the stream is worked on from now on.
    pub fn batch_taken(&self) {
        self.0.working.set(self.now());
    }

    /// Nothing of the batch is left.
    pub fn batch_done(&self) {
        self.0.working.clear();
    }

    /// Something came of the batch: it is stored, refused or parked.
    fn batch_goes_on(&self) {
        let now = self.now();
        if self.0.working.age(now).is_some() {
            self.0.working.set(now);
        }
    }

    /// A batch is handed to the broker.
    pub fn delivery_started(&self) {
        let now = self.now();
        self.0.delivering.set(now);
        if self.0.unstored.age(now).is_none() {
            self.0.unstored.set(now);
        }
    }

    /// The broker has answered to a delivery, and refuses some of it: that is no outage.
    pub fn delivery_refused(&self) {
        self.0.delivering.clear();
        self.0.unstored.clear();
        self.batch_goes_on();
        self.broker_heard();
    }

    /// A batch is stored, or progress alone (`records` 0); `position` is the stored progress's.
    /// `newest_commit_us` is its newest commit time in microseconds since 2000-01-01 UTC; `None`
    /// where the records are of no commit that is waited for, as those of a release.
    pub fn delivered(
        &self,
        position: Option<Position>,
        records: u64,
        bytes: u64,
        took: Duration,
        newest_commit_us: Option<i64>,
    ) {
        self.0.delivering.clear();
        self.0.unstored.clear();
        self.batch_goes_on();
        self.0.metrics.delivered(records, bytes, took);
        self.0.batches.fetch_add(1, Relaxed);
        let now = self.now();
        self.0.broker_heard.set(now);
        let mut state = self.state();
        state.broker_error = None;
        state.broker_says = None;
        state.delivered = position;
        if records > 0 {
            self.0.records.fetch_add(records, Relaxed);
            self.0.bytes.fetch_add(bytes, Relaxed);
            state.last_batch = Some(LastBatch { records, bytes, seconds: took.as_secs_f64() });
            state.last_age = newest_commit_us.map(|commit| (now, age_of_commit(commit)));
        }
    }

    /// A row was moved or copied, and is not published again.
    pub fn moved(&self) {
        self.0.moved.fetch_add(1, Relaxed);
        self.0.metrics.row_moved();
    }

    /// Whether the stream runs, which knows the parked lanes by itself.
    pub fn streams(&self) -> bool {
        self.state().phase == Phase::Streaming
    }

    /// How many records were delivered since the process began.
    pub fn records_delivered(&self) -> u64 {
        self.0.records.load(Relaxed)
    }

    /// How many lanes are parked.
    pub fn parked_lanes(&self, count: usize) {
        self.0.parked_lanes.set(count as u64);
    }

    /// What is parked was counted. Returns what was in a table that is gone, each time that one is.
    pub fn parked(&self, counted: &ParkedRecord) -> Option<ParkedRecord> {
        self.0.parked_events.set(counted.events);
        if !self.streams() {
            self.0.parked_lanes.set(counted.lanes);
        }
        let before = self.state().parked.replace(counted.clone())?;
        lost::lost(&before, counted)
    }

    /// What stored progress says was parked. Returns as [`Board::parked`] does.
    pub fn parked_before(&self, stored: &ParkedRecord) -> Option<ParkedRecord> {
        let mut state = self.state();
        let now = state.parked.get_or_insert_with(|| stored.clone());
        lost::lost(stored, now)
    }

    /// What was parked and is lost to the relay, until somebody has sent it again.
    pub fn lose_parked(&self, lost: &ParkedRecord) {
        self.state().lost_parked = Some(lost.clone());
    }

    /// As [`Board::lose_parked`] was told.
    pub fn lost_parked(&self) -> Option<ParkedRecord> {
        self.state().lost_parked.clone()
    }

    /// What was lost is there again.
    pub fn found_parked(&self) {
        self.state().lost_parked = None;
        self.concern("parked events", None);
    }

    /// What was parked when it was last counted, also where it can't be any more.
    pub fn parked_last(&self) -> Option<ParkedRecord> {
        self.state().parked.clone()
    }

    /// Something that a person should change, and that keeps no event waiting; `None` when it is changed.
    /// One for each `about`. Returns whether it is new.
    pub fn concern(&self, about: &'static str, what: Option<String>) -> bool {
        let mut state = self.state();
        match what {
            Some(what) => state.concerns.insert(about, what.clone()) != Some(what),
            None => {
                state.concerns.remove(about);
                false
            }
        }
    }

    /// Why the server sends nothing of what there is; `None` when it does. Returns whether that is new.
    pub fn held_back(&self, why: Option<String>) -> bool {
        let mut state = self.state();
        let before = std::mem::replace(&mut state.held_back, why);
        before != state.held_back
    }

    /// What there is of concern.
    pub fn concerns(&self) -> Vec<String> {
        self.state().concerns.values().cloned().collect()
    }

    /// What is parked has changed: it is to be counted soon.
    pub fn parking_changed(&self) {
        self.batch_goes_on();
        self.0.parking.notify_one();
    }

    /// Returns when what is parked has changed since the last call. Cancel safe.
    pub async fn parking_has_changed(&self) {
        self.0.parking.notified().await;
    }

    /// How much is parked could not be asked.
    pub fn parked_unknown(&self) {
        self.0.parked_events.clear();
        if !self.streams() {
            self.0.parked_lanes.clear();
        }
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

impl State {
    /// A retry succeeded, or a halt is over: the relay continues.
    fn trouble_is_over(&mut self) {
        if std::mem::take(&mut self.error_is_trouble)
            && let Some(error) = &mut self.last_error
        {
            error.over_since = Some(format!("{:.0}", Timestamp::now()));
        }
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("status", &self.status()).finish()
    }
}

/// By this machine's clock and the database's; a clock that is ahead gives zero.
fn age_of_commit(commit_us: i64) -> Duration {
    let now = Timestamp::now().as_microsecond();
    let age = now.saturating_sub(commit_us.saturating_add(POSTGRES_EPOCH_US));
    Duration::from_micros(u64::try_from(age).unwrap_or(0))
}
