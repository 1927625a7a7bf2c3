//! librdkafka's side of a client: where its log goes, and which records failed.
//!
//! Called from librdkafka's and the producer's polling threads; holds locks for moments only.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryResult, ProducerContext},
};

use super::reach::Reach;

/// A line that says the same is written once in this time; an outage repeats it every second.
const REPEAT_EVERY: Duration = Duration::from_secs(30);
/// Lines remembered; beyond that all are forgotten, and some are written once more.
const REMEMBERED_MAX: usize = 256;

/// The opaque of the progress record: no index of a batch.
pub(super) const PROGRESS_OPAQUE: usize = usize::MAX;

/// Context of every client the sink makes.
pub(super) struct Context {
    client: &'static str,
    reach: Reach,
    failures: Mutex<Vec<Failure>>,
    said: Mutex<HashMap<String, Said>>,
    /// Why brokers don't let us in.
    locked_out: Mutex<Option<RDKafkaErrorCode>>,
}

/// A record that was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Index in the batch, or [`PROGRESS_OPAQUE`].
    pub opaque: usize,
    pub code: RDKafkaErrorCode,
}

struct Said {
    at: Instant,
    suppressed: u32,
}

impl Context {
    pub(super) fn new(client: &'static str, reach: &Reach) -> Self {
        Context {
            client,
            reach: reach.clone(),
            failures: Mutex::default(),
            said: Mutex::default(),
            locked_out: Mutex::default(),
        }
    }

    /// A broker reads nothing more from this client for this time, by a quota.
    pub(super) fn throttles(&self, broker: String, wait: Duration) {
        tracing::debug!(target: "librdkafka", client = self.client, broker, ?wait, "throttled");
        self.reach.throttles(broker, wait);
    }

    /// Notes a failure, told at once or reported later.
    pub(super) fn note(&self, failure: Failure) {
        unpoisoned(&self.failures).push(failure);
    }

    /// Whether any was noted since they were taken.
    pub(super) fn has_failures(&self) -> bool {
        !unpoisoned(&self.failures).is_empty()
    }

    /// Takes the failures noted since the last call, in the order of the batch. Complete once a
    /// flush has left nothing in flight.
    pub(super) fn take_failures(&self) -> Vec<Failure> {
        let mut failures = std::mem::take(&mut *unpoisoned(&self.failures));
        failures.sort_by_key(|failure| failure.opaque);
        failures
    }

    /// Takes what a broker last held against our credentials or certificates. A call that fails for
    /// it only says that it reached no one.
    pub(super) fn take_locked_out(&self) -> Option<RDKafkaErrorCode> {
        unpoisoned(&self.locked_out).take()
    }

    /// Whether to write a line that begins so, and how many like it were left out before.
    fn may_say(&self, facility: &str, text: &str) -> Option<u32> {
        // Digits (ports, durations, counts) don't make a line a different one.
        let same: String =
            facility.chars().chain(text.chars().filter(|c| !c.is_ascii_digit()).take(80)).collect();
        let mut said = unpoisoned(&self.said);
        if said.len() >= REMEMBERED_MAX && !said.contains_key(&same) {
            said.clear();
        }
        let now = Instant::now();
        match said.get_mut(&same) {
            Some(last) if now.duration_since(last.at) < REPEAT_EVERY => {
                last.suppressed += 1;
                None
            }
            Some(last) => {
                let suppressed = last.suppressed;
                *last = Said { at: now, suppressed: 0 };
                Some(suppressed)
            }
            None => {
                said.insert(same, Said { at: now, suppressed: 0 });
                Some(0)
            }
        }
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        let client = self.client;
        // CONFWARN: the user's properties go to producers and consumers alike, each of which
        // remarks on the other's.
        if matches!(level, RDKafkaLogLevel::Debug) || facility == "CONFWARN" {
            tracing::debug!(target: "librdkafka", client, facility, "{text}");
            return;
        }
        let Some(suppressed) = self.may_say(facility, text) else { return };
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "librdkafka", client, facility, suppressed, "{text}");
            }
            // An error to librdkafka is one that it will retry, or that a call returns to us.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
                tracing::warn!(target: "librdkafka", client, facility, suppressed, "{text}");
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::info!(target: "librdkafka", client, facility, suppressed, "{text}");
            }
        }
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if let Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) = code {
            *unpoisoned(&self.locked_out) = code;
        }
        if code == Some(RDKafkaErrorCode::Authentication) {
            self.reach.refused(reason);
        }
        self.reach.failed(reason);
        if let Some(suppressed) = self.may_say("ERROR", reason) {
            tracing::warn!(target: "librdkafka", client = self.client, suppressed, "{error}: {reason}");
        }
    }
}

impl ConsumerContext for Context {}

/// For clients that are only made to see whether they can be.
impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_differs_in_numbers_only_is_written_once() {
        let context = Context::new("test", &Reach::default());
        assert_eq!(context.may_say("FAIL", "connect to :9092 failed after 3 ms"), Some(0));
        assert_eq!(context.may_say("FAIL", "connect to :9092 failed after 14 ms"), None);
        assert_eq!(context.may_say("FAIL", "disconnected"), Some(0));
    }

    #[test]
    fn what_is_remembered_of_lines_is_bounded() {
        let context = Context::new("test", &Reach::default());
        for n in 0..u32::try_from(10 * REMEMBERED_MAX).expect("small") {
            let letters: String =
                n.to_string().bytes().map(|digit| char::from(digit + 32)).collect();
            context.may_say("FAIL", &letters);
        }
        assert!(unpoisoned(&context.said).len() <= REMEMBERED_MAX);
    }
}
