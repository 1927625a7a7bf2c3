//! Puts a message that failed aside: parked until it is tried again, or as a dead letter.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use uuid::Uuid;

use super::{Attempt, OUTAGE, Processor, Stop, store::Due};
use crate::{
    alert::Alert,
    error::InboxError,
    failure::{Failure, Kind},
    fault::{Point, point},
    message::{RawMessage, Source},
    message_id::MessageId,
    meter::Outcome,
    transaction::Open,
};

/// The code of a message whose handler has ended its transaction.
pub(super) const ENDED: &str = "transaction-ended";
/// The code of a message whose handler has kept its transaction.
pub(super) const KEPT: &str = "transaction-kept";
/// The code of a message whose handler has returned while a statement of it continued.
pub(super) const UNFINISHED: &str = "statement-unfinished";

/// A line about a message that failed: whose it is, where it lay, and why.
macro_rules! failed {
    ($processor:expr, $message:expr, $failure:expr, $code:expr, $($more:tt)*) => {
        let Source { topic, partition, offset } = &$message.source;
        tracing::warn!(
            consumer = $processor.shared.inbox.consumer(),
            %topic,
            partition,
            offset,
            id = %$message.id,
            code = $code,
            error = $failure.text(),
            $($more)*
        );
    };
}

impl Processor {
    /// [`Processor::put_aside`], until that has succeeded: nothing else knows of the message.
    pub(super) async fn surely_put_aside(
        &self,
        message: &RawMessage,
        failure: &Failure,
        called: &Called,
    ) -> Result<(), Stop> {
        self.surely(message, || self.put_aside(message, failure, called)).await
    }

    /// Whether the handler has committed the transaction in which it was called last, and with it what was
    /// claimed there. That a message is claimed says no such thing: where the handler has rolled back, another
    /// process may have handled it since.
    pub(super) async fn was_ended(&self, open: &Open, called: &Called) -> Result<bool, InboxError> {
        match called.ended() {
            Some(transaction) => open.has_committed(&transaction).await,
            None => Ok(false),
        }
    }

    /// Of several messages whose handler has ended their transaction, those that it has committed: they
    /// are no more new, and no one knows how much of their effect is there.
    pub(super) async fn bury_what_was_committed(
        &self,
        batch: &[RawMessage],
        called: &Called,
        failure: &Failure,
    ) -> Result<(), Stop> {
        let messages = called.take();
        for message in batch.iter().filter(|message| messages.contains(&message.id.uuid())) {
            let bury = || async {
                let (open, sorted) = self.claim(std::slice::from_ref(message)).await?;
                if sorted.duplicates == 0 || !self.was_ended(&open, called).await? {
                    open.rollback().await?;
                    return Ok(Attempt::Done);
                }
                let new_code = self.shelf().bury(&open, message, failure, 1, 0, false).await?;
                self.finish(open, &sorted).await?;
                self.announce(message, failure, new_code);
                Ok(Attempt::Done)
            };
            self.surely(message, bury).await?;
        }
        Ok(())
    }

    async fn surely<F, Fut>(&self, message: &RawMessage, store: F) -> Result<(), Stop>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Attempt, InboxError>>,
    {
        // Before a connection is taken: whoever has one does not wait for a turn.
        let _turn = match message.is_large() {
            true => Some(self.shared.large.turn().await),
            false => None,
        };
        let mut wait = OUTAGE.0;
        while let Attempt::Failed(why) = self.settle(&store).await? {
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
        called: &Called,
    ) -> Result<Attempt, InboxError> {
        let (open, sorted) = self.claim(std::slice::from_ref(message)).await?;
        let shelf = self.shelf();
        // Its handler has committed the claim, and not all of the effect.
        let in_part = sorted.duplicates > 0 && self.was_ended(&open, called).await?;
        if sorted.fresh.is_empty() && sorted.outside.is_empty() && !in_part {
            shelf.append(&open, &sorted.waiting).await?;
            self.move_mark(&open, &sorted).await?;
            self.finish(open, &sorted).await?;
            self.has_parked(Outcome::Waiting, sorted.waiting.len());
            return Ok(Attempt::Done);
        }
        let attempts = if matches!(failure.kind, Kind::Defer(_) | Kind::Trouble) { 0 } else { 1 };
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
            self.has_parked(Outcome::Parked, 1);
            self.shared.parked.notify_one();
            if failure.kind == Kind::Trouble {
                self.tell_trouble(message, failure);
            }
            self.tell(message, failure);
            return Ok(Attempt::Done);
        }
        let unclaimed = sorted.is_unclaimed(&message.id);
        let new_code = shelf.bury(&open, message, failure, attempts, 0, unclaimed).await?;
        self.move_mark(&open, &sorted).await?;
        self.finish(open, &sorted).await?;
        self.announce(message, failure, new_code);
        Ok(Attempt::Done)
    }

    /// When a message that failed is tried again; `None`: never.
    pub(super) fn due(&self, failure: &Failure, failed: u32) -> Option<Due> {
        let by_policy = || self.shared.retry.delay(failed, rand::random());
        match failure.kind {
            Kind::Defer(until) => Some(Due::At(until)),
            Kind::Trouble => Some(Due::Again),
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

    /// A message that waits until the database can do again what its handler wants: for as long as that takes,
    /// so that is said.
    pub(super) fn tell_trouble(&self, message: &RawMessage, failure: &Failure) {
        let (consumer, code) = (self.shared.inbox.consumer().to_owned(), failure.code().to_owned());
        tracing::error!(
            consumer,
            id = %message.id,
            code,
            error = failure.text(),
            "by its code this is the database's trouble, or that of a server that it asks, and not the \
             message's: it costs no attempt, and makes no dead letter. The message waits until that is over, and \
             later ones of its key wait behind it; other keys continue. If a function of yours raises this code for \
             another reason, let it raise another one, or let the handler return .permanent(\"...\")"
        );
        let message = message.id.to_string();
        self.shared.alerts.raise(&Alert::Trouble { consumer, message, code });
    }

    /// A message that failed, and is tried again.
    pub(super) fn tell(&self, message: &RawMessage, failure: &Failure) {
        if matches!(failure.kind, Kind::Defer(_)) {
            return;
        }
        let Some(others) = self.shared.told.tell(Instant::now()) else { return };
        failed!(
            self,
            message,
            failure,
            failure.code(),
            attempt = message.attempt,
            others,
            "a message failed: it is tried again, and later ones of its key wait; `others` failed in the \
             seconds before, and have no line"
        );
    }

    pub(super) fn announce(&self, message: &RawMessage, failure: &Failure, new_code: bool) {
        self.shared.meter.count(Outcome::Dead, 1);
        let consumer = self.shared.inbox.consumer().to_owned();
        let code = self.shared.inbox.repertoire().code(failure.code());
        failed!(self, message, failure, code, "a message became a dead letter");
        self.shared.alerts.raise(&Alert::DeadLetter { consumer, code, new_code });
    }
}

/// For which messages the handler was called last, and in which transaction, if it may have ended that itself.
#[derive(Default)]
pub(super) struct Called(Mutex<(HashSet<Uuid>, Option<String>)>);

impl Called {
    /// Of a batch of so many: of one alone it is known.
    pub(super) fn with(&self, messages: &[&RawMessage], batch: usize) {
        let several = messages.iter().filter(|_| batch > 1);
        *self.held() = (several.map(|message| message.id.uuid()).collect(), None);
    }

    pub(super) fn may_be_ended(&self, transaction: Option<String>) {
        self.held().1 = transaction;
    }

    pub(super) fn ended(&self) -> Option<String> {
        self.held().1.clone()
    }

    fn take(&self) -> HashSet<Uuid> {
        std::mem::take(&mut self.held().0)
    }

    fn held(&self) -> MutexGuard<'_, (HashSet<Uuid>, Option<String>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
