//! What is counted, through the `metrics` facade. `docs/CONSUMER.md` lists the names.

use std::{sync::Arc, time::Duration};

use metrics::{counter, gauge, histogram};

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Applied,
    Duplicate,
    /// Stored behind a message of its key that waits.
    Waiting,
    /// Stored for a retry.
    Parked,
    Dead,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::Duplicate => "duplicate",
            Outcome::Waiting => "waiting",
            Outcome::Parked => "parked",
            Outcome::Dead => "dead",
        }
    }
}

/// Looked up at each use: the recorder may be installed after the consumer was made.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    consumer: Arc<str>,
}

impl Meter {
    pub(crate) fn new(consumer: &str) -> Self {
        Meter { consumer: consumer.into() }
    }

    fn consumer(&self) -> Arc<str> {
        Arc::clone(&self.consumer)
    }

    pub(crate) fn count(&self, outcome: Outcome, messages: usize) {
        if messages > 0 {
            counter!("outbox_inbox_messages_total",
                "consumer" => self.consumer(), "outcome" => outcome.name())
            .increment(messages as u64);
        }
    }

    pub(crate) fn conflict(&self) {
        counter!("outbox_inbox_conflicts_total", "consumer" => self.consumer()).increment(1);
    }

    /// Keys that would have waited until a time that the database's clock had by mistake.
    pub(crate) fn rescheduled(&self, keys: i64) {
        counter!("outbox_inbox_rescheduled_keys_total", "consumer" => self.consumer())
            .increment(keys.unsigned_abs());
    }

    pub(crate) fn outage(&self) {
        counter!("outbox_inbox_outages_total", "consumer" => self.consumer()).increment(1);
    }

    pub(crate) fn slow(&self) {
        counter!("outbox_inbox_slow_handlers_total", "consumer" => self.consumer()).increment(1);
    }

    pub(crate) fn transaction(&self, took: Duration) {
        histogram!("outbox_inbox_transaction_seconds", "consumer" => self.consumer()).record(took);
    }

    /// What somebody else had the inbox forget.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats, and there are few")]
    pub(crate) fn losses(&self, losses: i64) {
        gauge!("outbox_inbox_losses", "consumer" => self.consumer()).set(losses as f64);
    }

    /// Offsets that were deleted before they were read.
    #[cfg(feature = "kafka-plain")]
    pub(crate) fn skipped(&self, topic: &str, offsets: i64) {
        counter!("outbox_inbox_skipped_offsets_total",
            "consumer" => self.consumer(), "topic" => topic.to_owned())
        .increment(offsets.unsigned_abs());
    }

    /// What the runner holds in memory.
    #[cfg(feature = "kafka-plain")]
    #[expect(
        clippy::cast_precision_loss,
        reason = "gauges are floats, and memory is not that large"
    )]
    pub(crate) fn in_flight(&self, messages: usize, bytes: usize, paused: bool) {
        let consumer = || self.consumer();
        gauge!("outbox_inbox_in_flight_messages", "consumer" => consumer()).set(messages as f64);
        gauge!("outbox_inbox_in_flight_bytes", "consumer" => consumer()).set(bytes as f64);
        gauge!("outbox_inbox_paused", "consumer" => consumer()).set(f64::from(u8::from(paused)));
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floats, and no count is that large")]
    pub(crate) fn gauges(&self, lanes: i64, parked: i64, oldest_seconds: f64, dead: i64) {
        let consumer = || self.consumer();
        gauge!("outbox_inbox_parked_lanes", "consumer" => consumer()).set(lanes as f64);
        gauge!("outbox_inbox_parked_messages", "consumer" => consumer()).set(parked as f64);
        gauge!("outbox_inbox_parked_oldest_seconds", "consumer" => consumer()).set(oldest_seconds);
        gauge!("outbox_inbox_dead_letters", "consumer" => consumer()).set(dead as f64);
    }
}
