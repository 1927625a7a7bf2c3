//! What brokers say of quotas. A client that goes beyond one gets its answer, and with it for how long
//! the broker reads nothing more of its connection.
//!
//! Pure: told by the producer's polling thread through `reach`, read by `daemon`. It costs nothing where no
//! broker throttles, and no property of librdkafka turns it on or off.

use std::time::{Duration, Instant};

/// What a broker reads late by less, again and again, is no reason to wake anybody.
const NOTABLE: Duration = Duration::from_secs(1);
/// What was said is forgotten at a tenth of this machine's time, so that a second of waiting in ten seconds,
/// or more, remains.
const FORGOTTEN: u32 = 10;
/// No more than this is remembered: two thirds of it are forgotten within twenty seconds.
const REMEMBERED_MAX: Duration = Duration::from_secs(3);
/// A delivery under a quota is tried again by then: `transaction.timeout.ms` allows no longer one.
const OVER_AFTER: Duration = Duration::from_mins(15);

/// A broker's latest word, and how much it matters.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    last: Option<Last>,
    /// What the brokers have let the client wait, less what is forgotten.
    waited: Duration,
    /// When `waited` was that.
    as_of: Option<Instant>,
}

#[derive(Debug)]
struct Last {
    broker: String,
    wait: Duration,
    at: Instant,
    /// A delivery was stored since.
    stored: bool,
}

impl Throttle {
    /// A broker reads nothing from a client for this time.
    pub(super) fn told(&mut self, broker: String, wait: Duration, now: Instant) {
        if wait.is_zero() {
            return;
        }
        self.waited = (self.waited(now) + wait).min(REMEMBERED_MAX);
        self.as_of = Some(now);
        self.last = Some(Last { broker, wait, at: now, stored: false });
    }

    /// A delivery is stored.
    pub(super) fn stored(&mut self, now: Instant) {
        let waited = self.waited(now);
        if let Some(last) = self.last.as_mut().filter(|last| !last.stored) {
            last.stored = true;
            self.waited = waited;
            self.as_of = Some(now);
        }
    }

    /// Which broker, and for how long at its latest answer, where that is worth a word.
    pub(super) fn notable(&self, now: Instant) -> Option<(&str, Duration)> {
        let last = self.last.as_ref()?;
        let over = now.saturating_duration_since(last.at) > OVER_AFTER;
        (!over && self.waited(now) >= NOTABLE).then_some((last.broker.as_str(), last.wait))
    }

    /// Nothing is forgotten while nothing is stored.
    fn waited(&self, now: Instant) -> Duration {
        let since = self.as_of.filter(|_| self.last.as_ref().is_some_and(|last| last.stored));
        let passed = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.waited.saturating_sub(passed / FORGOTTEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_wait_of_a_second_is_notable_until_deliveries_are_stored_without_one() {
        let (mut throttle, begun) = (Throttle::default(), Instant::now());
        throttle.told("b1".into(), ms(0), begun);
        assert_eq!(throttle.notable(begun), None);
        throttle.told("b1".into(), ms(40_000), begun);
        let later = begun + Duration::from_mins(14);
        assert_eq!(throttle.notable(later), Some(("b1", ms(40_000))), "nothing is stored yet");
        assert_eq!(throttle.notable(later + Duration::from_mins(2)), None, "nothing is tried");
        throttle.stored(later);
        assert!(throttle.notable(later + ms(19_000)).is_some());
        assert_eq!(throttle.notable(later + ms(21_000)), None);
    }

    #[test]
    fn short_waits_are_notable_where_they_take_a_tenth_of_the_time() {
        let (mut often, mut now) = (Throttle::default(), Instant::now());
        let mut seldom = Throttle::default();
        for _ in 0..100 {
            now += ms(1_000);
            often.told("b1".into(), ms(200), now);
            seldom.told("b1".into(), ms(50), now);
            often.stored(now);
            seldom.stored(now);
        }
        assert_eq!(often.notable(now), Some(("b1", ms(200))));
        assert_eq!(seldom.notable(now), None);
    }
}
