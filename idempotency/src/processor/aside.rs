//! Puts a message that failed aside: parked until it is tried again, or as a dead letter.

use super::{Attempt, OUTAGE, Processor, Stop, store::Due};
use crate::{
    alert::Alert,
    error::InboxError,
    failure::{Failure, Kind},
    fault::{Point, point},
    message::RawMessage,
    message_id::MessageId,
    meter::Outcome,
};

/// The code of a message whose handler has ended its transaction.
pub(super) const ENDED: &str = "transaction-ended";
/// The code of a message whose handler has kept its transaction.
pub(super) const KEPT: &str = "transaction-kept";
/// The code of a message whose handler has returned while a statement of it continued.
pub(super) const UNFINISHED: &str = "statement-unfinished";

impl Processor {
    /// [`Processor::put_aside`], until that has succeeded: nothing else knows of the message.
    pub(super) async fn surely_put_aside(
        &self,
        message: &RawMessage,
        failure: &Failure,
    ) -> Result<(), Stop> {
        // Before a connection is taken: whoever has one does not wait for a turn.
        let _turn = match message.is_large() {
            true => Some(self.shared.large.turn().await),
            false => None,
        };
        let mut wait = OUTAGE.0;
        while let Attempt::Failed(why) = self.settle(|| self.put_aside(message, failure)).await? {
            tracing::warn!(
                consumer = self.shared.inbox.consumer(),
                error = why.text(),
                "a message that failed could not be put aside; waiting {wait:?}, it is not \
                 acknowledged"
            );
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(OUTAGE.1);
        }
        Ok(())
    }

    /// Stores a message that failed, in a transaction that claims it again: another process may
    /// have been quicker.
    async fn put_aside(
        &self,
        message: &RawMessage,
        failure: &Failure,
    ) -> Result<Attempt, InboxError> {
        let (open, sorted) = self.claim(std::slice::from_ref(message)).await?;
        let shelf = self.shelf();
        // Its handler has committed the claim, and not all of the effect.
        let in_part = failure.code() == ENDED && sorted.duplicates > 0;
        if sorted.fresh.is_empty() && sorted.outside.is_empty() && !in_part {
            shelf.append(&open, &sorted.waiting).await?;
            self.move_mark(&open, &sorted).await?;
            self.finish(open, &sorted).await?;
            self.shared.meter.count(Outcome::Waiting, sorted.waiting.len());
            return Ok(Attempt::Done);
        }
        let attempts = if matches!(failure.kind, Kind::Defer(_)) { 0 } else { 1 };
        // What can't be claimed can't be parked either.
        let due =
            if sorted.outside.is_empty() && !in_part { self.due(failure, attempts) } else { None };
        let attempts = i32::try_from(attempts).unwrap_or(i32::MAX);
        if let Some(due) = due {
            shelf.park(&open, message, attempts, due, failure).await?;
            point(Point::Parking);
            self.move_mark(&open, &sorted).await?;
            self.finish(open, &sorted).await?;
            point(Point::Parked);
            self.shared.meter.count(Outcome::Parked, 1);
            self.shared.parked.notify_one();
            return Ok(Attempt::Done);
        }
        let new_code = shelf.bury(&open, message, failure, attempts, 0).await?;
        self.move_mark(&open, &sorted).await?;
        self.finish(open, &sorted).await?;
        self.announce(failure, new_code);
        Ok(Attempt::Done)
    }

    /// When a message that failed is tried again; `None`: never.
    pub(super) fn due(&self, failure: &Failure, failed: u32) -> Option<Due> {
        let by_policy = || self.shared.retry.delay(failed, rand::random());
        match failure.kind {
            Kind::Defer(until) => Some(Due::At(until)),
            Kind::Permanent | Kind::Fatal => None,
            Kind::After(delay) => Some(Due::In(by_policy()?.max(delay))),
            Kind::Transient
            | Kind::Conflict
            | Kind::Session
            | Kind::Outage
            | Kind::Lost
            | Kind::Doubt => Some(Due::In(by_policy()?)),
        }
    }

    pub(super) fn announce(&self, failure: &Failure, new_code: bool) {
        self.shared.meter.count(Outcome::Dead, 1);
        let consumer = self.shared.inbox.consumer().to_owned();
        let code = self.shared.inbox.repertoire().code(failure.code());
        tracing::warn!(consumer, code, "a message became a dead letter");
        self.shared.alerts.raise(&Alert::DeadLetter { consumer, code, new_code });
    }
}

/// Why a message that the inbox can't tell from a copy is a dead letter.
pub(crate) fn untellable(id: &MessageId) -> Failure {
    if id.is_dated() {
        Failure::permanent("outside-window", "older or newer than what is kept")
    } else {
        Failure::permanent("undated", "neither its id nor its record carries its producer's time")
    }
}
