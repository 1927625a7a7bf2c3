//! How long to wait before the next attempt: doubling, capped, with jitter.

use std::time::Duration;

/// Waiting times, each about twice the last.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    /// Begins at `min` and stays at `max`.
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Backoff { next: min, max }
    }

    /// The next waiting time: between half and all of the current step, so that many relays that
    /// lost the same server don't come back at once.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_times_double_up_to_the_cap() {
        let (min, max) = (Duration::from_millis(100), Duration::from_millis(500));
        let mut backoff = Backoff::new(min, max);
        for step_ms in [100, 200, 400, 500, 500] {
            let wait = backoff.next_wait();
            let step = Duration::from_millis(step_ms);
            assert!(step / 2 <= wait && wait <= step, "{wait:?} of {step:?}");
        }
    }
}
