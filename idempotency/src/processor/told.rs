//! What is logged of messages that fail: a line a second at most, with how many had none. Pure.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const EVERY: Duration = Duration::from_secs(1);

/// When the last line was written, and how many failures had none since.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<(Option<Instant>, u64)>);

impl Told {
    /// One more has failed. Returns how many others had no line, if this one is to have one.
    pub(super) fn tell(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.0.is_some_and(|at| now.saturating_duration_since(at) < EVERY) {
            told.1 += 1;
            return None;
        }
        told.0 = Some(now);
        Some(std::mem::take(&mut told.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_has_a_line_and_the_next_second_counts_those_without() {
        let (told, now) = (Told::default(), Instant::now());
        let at = |ms| told.tell(now + Duration::from_millis(ms));
        assert_eq!([at(0), at(1), at(999)], [Some(0), None, None]);
        assert_eq!([at(1000), at(1001)], [Some(2), None]);
        assert_eq!(at(5000), Some(1));
    }
}
