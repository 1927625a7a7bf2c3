//! When a failed message is tried again. Pure.

use std::time::Duration;

use crate::repertoire;

/// Doubling delays up to a limit, each cut by a random part so that those who failed together do
/// not come back together; then a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    first: Duration,
    max: Duration,
    attempts_max: u32,
}

impl Default for Retry {
    /// 8 attempts, with delays from 200 ms to 5 min.
    fn default() -> Self {
        Retry { first: Duration::from_millis(200), max: Duration::from_secs(300), attempts_max: 8 }
    }
}

impl Retry {
    /// Delays that begin with `first` and double up to `max`; 8 attempts.
    pub fn exponential(first: Duration, max: Duration) -> Self {
        Retry { first, max, ..Retry::default() }
    }

    /// How often a message is tried in all, the first time included; 0 is as 1.
    #[must_use]
    pub fn attempts(mut self, max: u32) -> Self {
        self.attempts_max = max;
        self
    }

    /// The delay after `failed` attempts, at least 1; `None` when there were enough. `random` is
    /// in 0..1; at most half of the delay is cut.
    pub(crate) fn delay(&self, failed: u32, random: f64) -> Option<Duration> {
        if failed >= self.attempts_max {
            return None;
        }
        let doublings = failed.saturating_sub(1).min(31);
        let whole = repertoire::delay(self.first.saturating_mul(1 << doublings).min(self.max));
        Some(whole.mul_f64(1.0 - random / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_end() {
        let retry = Retry::exponential(Duration::from_secs(1), Duration::from_secs(5)).attempts(5);
        let delays: Vec<_> = (1..=5).map(|n| retry.delay(n, 0.0)).collect();
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(delays, [seconds(1), seconds(2), seconds(4), seconds(5), None]);
        assert_eq!(retry.delay(1, 1.0), Some(Duration::from_millis(500)));
        assert_eq!(Retry::default().attempts(0).delay(1, 0.0), None);
        let longest = Retry::exponential(Duration::MAX, Duration::MAX).delay(1, 0.0);
        assert_eq!(longest, Some(repertoire::LONGEST_DELAY));
        assert!(Retry::default().attempts(u32::MAX).delay(u32::MAX - 1, 0.0).is_some());
    }
}
