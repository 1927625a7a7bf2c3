//! Batches and their deliveries, as the pipeline tells of them.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use jiff::Timestamp;

use super::{Board, Phase, behind::LATE, status::LastBatch};
use crate::core::{epoch, position::Position};

impl Board {
    /// A batch of the stream is worked on from now on.
    pub fn batch_taken(&self) {
        self.0.working.set(self.now());
    }

    /// Nothing of the batch is left.
    pub fn batch_done(&self) {
        self.0.working.clear();
    }

    /// Something came of the batch: it is stored, refused or parked.
    pub(super) fn batch_goes_on(&self) {
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
        if records > 0 || state.delivered != position {
            self.0.flowed.set(now);
        }
        state.delivered = position;
        if records > 0 {
            self.0.records.fetch_add(records, Relaxed);
            self.0.bytes.fetch_add(bytes, Relaxed);
            state.last_batch = Some(LastBatch { records, bytes, seconds: took.as_secs_f64() });
            state.last_age = newest_commit_us.map(|commit| (now, age_of_commit(commit)));
        }
        self.settle(&mut state, records > 0);
    }

    /// That the stream is late though it moves; forgotten when the phase ends.
    pub fn late(&self, words: Option<String>) {
        self.concern(LATE, words);
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
}

/// By this machine's clock and the database's; a clock that is ahead gives zero.
fn age_of_commit(commit_us: i64) -> Duration {
    let now = Timestamp::now().as_microsecond();
    let age = now.saturating_sub(commit_us.saturating_add(epoch::POSTGRES_US));
    Duration::from_micros(u64::try_from(age).unwrap_or(0))
}
