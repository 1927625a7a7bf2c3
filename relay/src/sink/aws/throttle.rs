//! How fast requests may follow one another, and what there is to say of it where the service holds the relay back.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The first pause after the service did not take something; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// What was said is worth a word when it was said for so long, and not for longer than that ago.
const NOTABLE: Duration = Duration::from_secs(2);
const OVER: Duration = Duration::from_secs(10);

/// What the service says of the pace; shared with who tells people of it.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Option<Told>>);

#[derive(Clone, Debug)]
struct Told {
    since: Instant,
    last: Instant,
    said: String,
}

impl Throttle {
    pub(super) fn told(&self, said: &str) {
        self.told_at(said, Instant::now());
    }

    /// What was said last, where it is worth a word.
    pub(super) fn notable(&self) -> Option<String> {
        self.notable_at(Instant::now())
    }

    fn told_at(&self, said: &str, now: Instant) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let going_on = told.take().filter(|it| now.duration_since(it.last) < OVER);
        let since = going_on.map_or(now, |it| it.since);
        *told = Some(Told { since, last: now, said: said.to_owned() });
    }

    fn notable_at(&self, now: Instant) -> Option<String> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let is_notable = told.last.duration_since(told.since) >= NOTABLE;
        (is_notable && now.duration_since(told.last) < OVER).then_some(told.said)
    }
}

/// The pace of one delivery.
#[derive(Debug)]
pub(super) struct Pace {
    allowed: usize,
    max: usize,
    pause: Duration,
}

impl Pace {
    /// At most `max` requests at once.
    pub(super) fn new(max: usize) -> Self {
        Pace { allowed: max, max, pause: PAUSE }
    }

    /// How many requests may be under way.
    pub(super) fn allowed(&self) -> usize {
        self.allowed
    }

    /// A request was stored, all of it.
    pub(super) fn faster(&mut self) {
        self.pause = PAUSE;
        self.allowed = self.max.min(self.allowed + 1);
    }

    /// Something was not taken now. Returns how long nothing is sent.
    pub(super) fn slower(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = PAUSE_MAX.min(2 * self.pause);
        self.allowed = (self.allowed / 2).max(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_halves_and_the_pause_doubles_until_something_is_stored() {
        let mut pace = Pace::new(8);
        let pauses: Vec<_> = (0..9).map(|_| pace.slower().as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pace.allowed(), 1);
        pace.faster();
        assert_eq!((pace.allowed(), pace.slower()), (2, PAUSE));
        (0..20).for_each(|_| pace.faster());
        assert_eq!(pace.allowed(), 8);
    }

    #[test]
    fn what_holds_the_relay_back_for_seconds_is_told_until_it_is_over() {
        let throttle = Throttle::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        throttle.told_at("a", at(0));
        assert_eq!(throttle.notable_at(at(0)), None, "once is no reason to wake anyone");
        throttle.told_at("b", at(2));
        assert_eq!(throttle.notable_at(at(3)).as_deref(), Some("b"));
        assert_eq!(throttle.notable_at(at(12)), None, "it is over");
        throttle.told_at("c", at(12));
        assert_eq!(throttle.notable_at(at(12)), None, "it begins again");
    }
}
