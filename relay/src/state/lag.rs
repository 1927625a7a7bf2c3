//! How long what is not delivered has been waiting, without comparing two machines' clocks.
//!
//! The WAL's end is sampled about once a second. When the end first passed the delivered position
//! is when the waiting began. Pure: the time comes from the caller.

use std::{collections::VecDeque, time::Duration};

use crate::core::lsn::Lsn;

/// Enough for eight minutes at one a second; then every second sample is dropped, so that a lag
/// of days still fits, at the price of resolution.
const SAMPLES_MAX: usize = 512;

/// The end of the WAL over time, thinned.
#[derive(Debug)]
pub(super) struct Lag {
    /// Time since the board was made, and the end at that time; both ascending.
    samples: VecDeque<(Duration, Lsn)>,
    /// Time between samples.
    step: Duration,
}

impl Lag {
    pub(super) fn new() -> Self {
        Lag { samples: VecDeque::new(), step: Duration::from_secs(1) }
    }

    /// Forgets everything: the server may be another one now.
    pub(super) fn reset(&mut self) {
        *self = Lag::new();
    }

    /// Whether a sample is due.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.samples.back().is_none_or(|(last, _)| now.saturating_sub(*last) >= self.step)
    }

    /// Notes the end at `now`, if a sample is due.
    pub(super) fn sample(&mut self, now: Duration, wal_end: Lsn) {
        let moved = self.samples.back().is_none_or(|(_, last)| wal_end > *last);
        if !moved || !self.is_due(now) {
            return;
        }
        self.samples.push_back((now, wal_end));
        if self.samples.len() > SAMPLES_MAX {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.step *= 2;
        }
    }

    /// How long something past `delivered` has been there. Samples that were passed are dropped.
    pub(super) fn behind(&mut self, now: Duration, delivered: Lsn) -> Duration {
        while self.samples.front().is_some_and(|(_, end)| *end <= delivered) {
            self.samples.pop_front();
        }
        if self.samples.is_empty() {
            self.step = Duration::from_secs(1);
        }
        self.samples.front().map_or(Duration::ZERO, |(since, _)| now.saturating_sub(*since))
    }
}

#[cfg(test)]
mod tests {
    use crate::state::lag::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn lag_is_counted_from_when_the_end_passed_the_delivered_position() {
        let mut lag = Lag::new();
        for second in 0..10 {
            lag.sample(s(second), Lsn::new(100 * (second + 1)));
        }
        assert_eq!(lag.behind(s(10), Lsn::new(300)), s(7));
        assert_eq!(lag.behind(s(10), Lsn::new(1000)), s(0));
        assert_eq!(lag.behind(s(20), Lsn::new(1000)), s(0), "idle is not lag");
    }

    #[test]
    fn an_event_after_an_idle_hour_does_not_count_the_hour() {
        let mut lag = Lag::new();
        lag.sample(s(0), Lsn::new(100));
        assert_eq!(lag.behind(s(0), Lsn::new(100)), s(0));
        lag.sample(s(3600), Lsn::new(200));
        assert_eq!(lag.behind(s(3602), Lsn::new(100)), s(2));
    }

    #[test]
    fn a_lag_of_days_takes_no_more_memory() {
        let mut lag = Lag::new();
        for second in 0..200_000 {
            lag.sample(s(second), Lsn::new(100 + second));
        }
        assert!(lag.samples.len() <= SAMPLES_MAX);
        assert_eq!(lag.behind(s(200_000), Lsn::new(1)), s(200_000));
    }
}
