//! What the relay knows about itself: written by `daemon`, `pipeline` and `source`, read by
//! `admin`. Cheap to clone and to write: positions are atomics, the rest is behind one short lock
//! that is never held across an await.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    health::{self, Phase, Vitals},
    lag::Lag,
    status::{LastBatch, LastError, Status, approximate},
};
use crate::{
    lsn::Lsn,
    metrics::{Gauges, Metrics},
    position::Position,
};

/// 2000-01-01 UTC, PostgreSQL's epoch, in microseconds since Unix's.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
/// For so long after a delivery the age of its newest commit counts as lag.
const DRAINING: Duration = Duration::from_secs(2);

/// A handle to the one board of a relay.
#[derive(Clone)]
pub struct Board(Arc<Inner>);

struct Inner {
    name: String,
    slot: String,
    version: String,
    metrics: Metrics,
    born: Instant,
    received: AtomicU64,
    confirmed: AtomicU64,
    wal_end: AtomicU64,
    heard: Stamp,
    broker_heard: Stamp,
    beat: Stamp,
    delivering: Stamp,
    sampled: Stamp,
    records: AtomicU64,
    bytes: AtomicU64,
    batches: AtomicU64,
    moved: AtomicU64,
    /// One more than there are; 0 is "not known".
    parked_lanes: AtomicU64,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    phase_since: Duration,
    delivered: Option<Position>,
    last_batch: Option<LastBatch>,
    /// When the last delivery with records ended, and how old its newest commit was then.
    last_age: Option<(Duration, Duration)>,
    last_error: Option<LastError>,
    /// Why the brokers did not answer when they were last asked.
    broker_error: Option<String>,
    lag: Lag,
    /// When the summary was last made, and the records delivered by then.
    summary: (Duration, u64),
}

/// A moment since the board was made, in microseconds, plus one; 0 is "never".
#[derive(Default)]
struct Stamp(AtomicU64);

impl Stamp {
    fn set(&self, now: Duration) {
        self.0.store(u64::try_from(now.as_micros()).unwrap_or(u64::MAX - 1) + 1, Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    fn age(&self, now: Duration) -> Option<Duration> {
        let since = self.0.load(Relaxed).checked_sub(1)?;
        Some(now.saturating_sub(Duration::from_micros(since)))
    }
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
            received: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            wal_end: AtomicU64::new(0),
            heard: Stamp::default(),
            broker_heard: Stamp::default(),
            beat: Stamp::default(),
            delivering: Stamp::default(),
            sampled: Stamp::default(),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            parked_lanes: AtomicU64::new(0),
            state: Mutex::new(State {
                phase: Phase::Starting { doing: "reading settings".into() },
                phase_since: Duration::ZERO,
                delivered: None,
                last_batch: None,
                last_age: None,
                last_error: None,
                broker_error: None,
                lag: Lag::new(),
                summary: (Duration::ZERO, 0),
            }),
        }));
        board.beat();
        board
    }

    /// Counters that others move: reconnects and refusals.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// What the relay is at from now on. Any but `Streaming` ends the delivery under way: its
    /// outcome is uncertain, and it will be replayed.
    pub fn phase(&self, phase: Phase) {
        if phase != Phase::Streaming {
            self.0.delivering.clear();
        }
        let now = self.now();
        let mut state = self.state();
        state.phase = phase;
        state.phase_since = now;
    }

    /// A connection to PostgreSQL stands; it may be to another server than the last one.
    pub fn connected(&self) {
        let now = self.now();
        self.0.heard.set(now);
        self.0.wal_end.store(0, Relaxed);
        self.0.sampled.clear();
        self.state().lag.reset();
    }

    /// PostgreSQL has answered a standby.
    pub fn heard(&self) {
        self.0.heard.set(self.now());
    }

    /// The brokers have answered.
    pub fn broker_heard(&self) {
        self.0.broker_heard.set(self.now());
        self.state().broker_error = None;
    }

    /// The brokers were asked for a sign of life and gave none.
    pub fn broker_silent(&self, error: String) {
        self.state().broker_error = Some(error);
    }

    /// Whether the brokers have answered so recently.
    pub fn broker_heard_within(&self, time: Duration) -> bool {
        self.0.broker_heard.age(self.now()).is_some_and(|age| age < time)
    }

    /// Whether the brokers answered when they were last asked.
    pub fn broker_answers(&self) -> bool {
        self.state().broker_error.is_none()
    }

    /// Where delivery goes on from, as read from stored progress.
    pub fn resumed(&self, position: Position) {
        self.state().delivered = Some(position);
    }

    /// The position received from PostgreSQL.
    pub fn received(&self, lsn: Lsn) {
        self.0.received.store(lsn.get(), Relaxed);
    }

    /// A message came from PostgreSQL that says where its WAL ends. Once for each read from the
    /// socket is enough.
    pub fn server(&self, wal_end: Lsn) {
        let now = self.now();
        self.0.heard.set(now);
        self.wal_end(now, wal_end);
    }

    /// Where the server's WAL ends, by a query. Data messages of logical replication only say how
    /// far the walsender has come, so without this a backlog shows late.
    pub fn server_wal_end(&self, wal_end: Lsn) {
        self.wal_end(self.now(), wal_end);
    }

    fn wal_end(&self, now: Duration, wal_end: Lsn) {
        let end = self.0.wal_end.fetch_max(wal_end.get(), Relaxed).max(wal_end.get());
        if self.0.sampled.age(now).is_none_or(|age| age >= Duration::from_secs(1)) {
            self.0.sampled.set(now);
            self.state().lag.sample(now, Lsn::new(end));
        }
    }

    /// A batch is handed to the broker.
    pub fn delivery_started(&self) {
        self.0.delivering.set(self.now());
    }

    /// A batch is stored, or progress alone (`records` 0); `position` is the stored progress's.
    /// `newest_commit_us` is its newest commit
    /// time in microseconds since 2000-01-01 UTC.
    pub fn delivered(
        &self,
        position: Option<Position>,
        records: u64,
        bytes: u64,
        took: Duration,
        newest_commit_us: i64,
    ) {
        self.0.delivering.clear();
        self.0.metrics.delivered(records, bytes, took);
        self.0.batches.fetch_add(1, Relaxed);
        let now = self.now();
        self.0.broker_heard.set(now);
        let mut state = self.state();
        state.broker_error = None;
        state.delivered = position;
        if records > 0 {
            self.0.records.fetch_add(records, Relaxed);
            self.0.bytes.fetch_add(bytes, Relaxed);
            state.last_batch = Some(LastBatch { records, bytes, seconds: took.as_secs_f64() });
            state.last_age = Some((now, age_of_commit(newest_commit_us)));
        }
    }

    /// A row was moved or copied, and is not published again.
    pub fn moved(&self) {
        self.0.moved.fetch_add(1, Relaxed);
        self.0.metrics.row_moved();
    }

    /// How many lanes are parked.
    pub fn parked_lanes(&self, count: usize) {
        self.0.parked_lanes.store(count as u64 + 1, Relaxed);
    }

    /// The position confirmed to PostgreSQL.
    pub fn confirmed(&self, lsn: Lsn) {
        self.0.confirmed.store(lsn.get(), Relaxed);
    }

    /// Something went wrong; shown until the next one. No secret and no payload in it.
    pub fn error(&self, error: String) {
        let at = format!("{:.0}", Timestamp::now());
        self.state().last_error = Some(LastError { error, at });
    }

    /// The daemon's heartbeat, once a second, also through outages.
    pub fn beat(&self) {
        self.0.beat.set(self.now());
    }

    /// `Err` has the reason why the relay is not delivering and could not.
    pub fn readiness(&self) -> Result<(), String> {
        health::readiness(&self.vitals(self.now()))
    }

    /// `Err` has the reason why the process should be restarted.
    pub fn liveness(&self) -> Result<(), String> {
        health::liveness(&self.vitals(self.now()))
    }

    /// Everything, as of now.
    pub fn status(&self) -> Status {
        let now = self.now();
        let vitals = self.vitals(now);
        let ready = health::readiness(&vitals);
        let (lag_bytes, lag) = self.lag(now);
        let state = self.state();
        let known = |at: &AtomicU64| Some(Lsn::new(at.load(Relaxed))).filter(|l| *l != Lsn::ZERO);
        Status {
            name: self.0.name.clone(),
            version: self.0.version.clone(),
            role: vitals.phase.role().into(),
            phase: vitals.phase.word().into(),
            detail: vitals.phase.detail(),
            ready: ready.is_ok(),
            not_ready_because: ready.err(),
            slot: self.0.slot.clone(),
            server_wal_end: known(&self.0.wal_end),
            received: known(&self.0.received),
            delivered: state.delivered,
            confirmed: known(&self.0.confirmed),
            lag_bytes,
            lag_seconds: state.delivered.map(|_| lag.as_secs_f64()),
            records_delivered: self.0.records.load(Relaxed),
            bytes_delivered: self.0.bytes.load(Relaxed),
            batches: self.0.batches.load(Relaxed),
            last_batch: state.last_batch.clone(),
            rows_moved: self.0.moved.load(Relaxed),
            parked_lanes: self.0.parked_lanes.load(Relaxed).checked_sub(1),
            last_error: state.last_error.clone(),
            uptime_seconds: now.as_secs_f64(),
        }
    }

    /// The text of `/metrics`, as of now.
    pub fn render_metrics(&self) -> String {
        let now = self.now();
        let vitals = self.vitals(now);
        let (lag_bytes, lag) = self.lag(now);
        let delivered = self.state().delivered.map_or(0, |position| position.resume_lsn().get());
        self.0.metrics.render(Gauges {
            ready: health::readiness(&vitals).is_ok(),
            role: vitals.phase.role(),
            server_wal_end: self.0.wal_end.load(Relaxed),
            received: self.0.received.load(Relaxed),
            delivered,
            confirmed: self.0.confirmed.load(Relaxed),
            parked_lanes: self.0.parked_lanes.load(Relaxed).saturating_sub(1),
            lag_bytes: lag_bytes.unwrap_or(0),
            lag,
        })
    }

    /// One line for a person who watches; `None` when nothing was delivered since the last one.
    pub fn summary_line(&self) -> Option<String> {
        let now = self.now();
        let records = self.0.records.load(Relaxed);
        let (lag_bytes, lag) = self.lag(now);
        let mut state = self.state();
        let (before, records_before) = std::mem::replace(&mut state.summary, (now, records));
        let new = records.saturating_sub(records_before);
        if new == 0 {
            return None;
        }
        let seconds = now.saturating_sub(before).as_secs_f64().max(0.001);
        let position = state.delivered.map_or_else(String::new, |p| format!(", delivered {p}"));
        Some(format!(
            "{new} records in {seconds:.0} s ({:.0}/s), lag {:.1} s, {}{position}",
            new as f64 / seconds,
            lag.as_secs_f64(),
            approximate(lag_bytes.unwrap_or(0)),
        ))
    }

    /// Bytes, when they are known, and time.
    fn lag(&self, now: Duration) -> (Option<u64>, Duration) {
        let end = Lsn::new(self.0.wal_end.load(Relaxed).max(self.0.received.load(Relaxed)));
        let mut state = self.state();
        let Some(delivered) = state.delivered.map(Position::resume_lsn) else {
            return (None, Duration::ZERO);
        };
        let waiting = state.lag.behind(now, delivered);
        // While a backlog drains, how late the events are; their commits may be older than we are.
        let late = state
            .last_age
            .filter(|(at, _)| now.saturating_sub(*at) < DRAINING)
            .map_or(Duration::ZERO, |(_, age)| age);
        ((end != Lsn::ZERO).then(|| end.bytes_since(delivered)), waiting.max(late))
    }

    fn vitals(&self, now: Duration) -> Vitals {
        let state = self.state();
        Vitals {
            phase: state.phase.clone(),
            phase_for: now.saturating_sub(state.phase_since),
            silent_for: self.0.heard.age(now),
            delivering_for: self.0.delivering.age(now),
            broker_silent_for: self.0.broker_heard.age(now),
            broker_error: state.broker_error.clone(),
            beat_ago: self.0.beat.age(now).unwrap_or(now),
        }
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

/// By this machine's clock and the database's; a clock that is ahead gives zero.
fn age_of_commit(commit_us: i64) -> Duration {
    let now = Timestamp::now().as_microsecond();
    let age = now.saturating_sub(commit_us.saturating_add(POSTGRES_EPOCH_US));
    Duration::from_micros(u64::try_from(age).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now_us() -> i64 {
        Timestamp::now().as_microsecond() - POSTGRES_EPOCH_US
    }

    #[test]
    fn a_board_follows_a_delivery() {
        let board = Board::new("orders", "outbox_orders", "1");
        board.connected();
        board.phase(Phase::Streaming);
        board.server(Lsn::new(5000));
        board.received(Lsn::new(2000));
        assert_eq!(board.summary_line(), None);
        board.delivery_started();
        assert!(board.vitals(board.now()).delivering_for.is_some());
        let position = Position::UpTo(Lsn::new(1000));
        board.delivered(Some(position), 3, 77, Duration::from_millis(4), now_us() - 7_000_000);
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
    }

    #[test]
    fn a_delivery_that_failed_is_not_under_way_any_more() {
        let board = Board::new("orders", "s", "1");
        board.delivery_started();
        board.phase(Phase::Stopping);
        assert!(board.vitals(board.now()).delivering_for.is_none());
    }

    #[test]
    fn nothing_is_claimed_before_it_is_known() {
        let status = Board::new("orders", "s", "1").status();
        assert_eq!((status.lag_bytes, status.received, status.delivered), (None, None, None));
        assert_eq!(status.not_ready_because.as_deref(), Some("starting: reading settings"));
    }
}
