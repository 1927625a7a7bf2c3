//! Takes messages, in any number of copies, and gives each its one effect, in the order of its key.
//!
//! No broker here: a runner brings messages, those of one key in order and one after the other,
//! and acknowledges them when [`Processor::process`] has returned. By then each has taken effect,
//! waits durably, or is a dead letter. The database alone knows which; nothing here is remembered,
//! so two processes that both believe a message to be theirs do no harm.

mod aside;
mod batches;
mod build;
mod by_id;
mod claim;
mod clock;
mod due;
mod forgotten;
mod hands;
mod large;
mod marked;
mod payload;
mod plans;
mod position;
mod reads;
mod settle;
mod store;
mod stranger;
mod taken;
mod timeline;
mod told;
mod unmarked;
mod untold;
mod upkeep;
mod watch;
mod watermark;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    alert::Alerts,
    error::{InboxError, sort_state},
    failure::Failure,
    fault::{Point, point},
    handler::Work,
    inbox::Inbox,
    message::{RawMessage, Source},
    meter::{Meter, Outcome},
    ordering::OrderBy,
    retry::Retry,
    transaction::Open,
    window::no_partition,
};
use aside::Called;
#[cfg(feature = "testing")]
pub(crate) use aside::untellable;
#[cfg(feature = "kafka-plain")]
pub(crate) use due::AT_ONCE;
use store::Shelf;
#[cfg(feature = "testing")]
pub(crate) use store::{AGAIN, DEFER_MIN};

/// While the database is away: the first wait, and the longest.
const OUTAGE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The consumer must stop: a handler said so, or the database refuses the inbox itself. The
/// messages at hand were not touched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Stop {
    /// A handler returned [`Failure::fatal`].
    #[error("the handler can't continue: {0}")]
    Handler(String),
    /// The inbox is refused by its database.
    #[error("the inbox can't continue")]
    Inbox(#[source] InboxError),
}

/// Whether messages are remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dedup {
    /// One row for each message: the default.
    #[default]
    Rows,
    /// One row for each partition, moved by each transaction: where one relay feeds the topic, and
    /// nothing else. Messages of a partition are handled one after the other, so it is for
    /// batches. A record that names no relay is a dead letter (`no-relay`); one that names another relay stops
    /// the consumer. One that a repair published, or that comes at a new offset behind the watermark, is looked
    /// up by its id. Change to it only after an orderly stop of all instances: otherwise messages that are
    /// remembered as rows, but whose offsets were not committed, take effect again.
    Watermark {
        /// The relay's name, as the header `outbox-relay` has it.
        relay: String,
    },
    /// Not at all: a message that comes twice takes effect twice. For handlers that are idempotent
    /// by themselves, and to measure what remembering costs. Keys that wait are still respected.
    Off,
}

impl Dedup {
    /// What becomes of a message that comes once more.
    pub(crate) fn of_copies(&self) -> &'static str {
        match self {
            Dedup::Rows | Dedup::Watermark { .. } => {
                "what has taken effect already is found to be a duplicate"
            }
            Dedup::Off => {
                "what has taken effect already takes effect again, since this consumer remembers no message (Dedup::Off)"
            }
        }
    }
}

/// A handler with its inbox, and what happens when it fails. Cheap to clone.
#[derive(Clone)]
pub struct Processor {
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Shared {
    inbox: Inbox,
    work: Arc<dyn Work>,
    batch_max: usize,
    dedup: Dedup,
    ordering: OrderBy,
    retry: Retry,
    alerts: Alerts,
    time_limit: Option<Duration>,
    slow_after: Duration,
    at_work: Arc<Mutex<watch::AtWork>>,
    meter: Meter,
    /// Watermarks as this process left them.
    marks: Arc<Mutex<HashMap<marked::Partition, watermark::Mark>>>,
    /// Partitions of which was told that a message came behind their watermark.
    passed: Arc<Mutex<HashSet<marked::Partition>>>,
    /// Topics and codes of records that did not come from the relay, of which was told.
    strange: Arc<stranger::Told>,
    /// Partitions of which no watermark from before is left.
    unmarked: Arc<Mutex<HashSet<marked::Partition>>>,
    /// The broker's ids of topics, where they are known.
    topics: Arc<Mutex<HashMap<Arc<str>, String>>>,
    large: large::Large,
    /// Held by the one that looks whether parked lanes are due.
    lookout: Arc<tokio::sync::Mutex<()>>,
    in_hand: hands::Lanes,
    reads: Option<Arc<reads::Reads>>,
    plans: Arc<plans::Plans>,
    /// Of failures that are tried again.
    told: Arc<told::Told>,
    /// A lane was parked here.
    parked: Arc<Notify>,
    /// More lanes may be due.
    due: Arc<Notify>,
}

impl std::fmt::Debug for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processor").field("inbox", &self.shared.inbox).finish_non_exhaustive()
    }
}

/// What one run of a transaction came to.
enum Attempt {
    Done,
    /// A large message is to be stored, which takes a turn.
    Large,
    /// There was nothing to do.
    Idle,
    Failed(Failure),
}

/// Messages of a transaction, by what is to be done with them.
#[derive(Default)]
struct Sorted<'a> {
    fresh: Vec<&'a RawMessage>,
    waiting: Vec<&'a RawMessage>,
    outside: Vec<&'a RawMessage>,
    /// Of those outside, what no relay has sent.
    strange: Vec<(Source, stranger::Why)>,
    /// Ids of those outside that are claimed all the same.
    forgotten: HashSet<Uuid>,
    duplicates: usize,
    moved: Option<marked::Moved>,
}

impl Processor {
    /// Its inbox.
    pub fn inbox(&self) -> &Inbox {
        &self.shared.inbox
    }

    /// Most messages in one transaction.
    pub fn batch_max(&self) -> usize {
        self.shared.batch_max
    }

    /// The lane of a message: those of one lane are to be handled one after the other, in the order in
    /// which they came. As [`OrderBy`] says; of a whole partition with [`Dedup::Watermark`].
    pub fn lane(&self, message: &RawMessage) -> Uuid {
        if self.by_partition() {
            return OrderBy::Partition.lane(message);
        }
        self.shared.ordering.lane(message)
    }

    #[cfg(feature = "kafka-plain")]
    pub(crate) fn meter(&self) -> &Meter {
        &self.shared.meter
    }

    /// Tells the hooks of something that this crate does not know by itself.
    #[cfg(feature = "kafka-plain")]
    pub(crate) fn raise(&self, alert: &crate::alert::Alert) {
        self.shared.alerts.raise(alert);
    }

    /// For texts that have messages come once more.
    pub(crate) fn of_copies(&self) -> &'static str {
        self.shared.dedup.of_copies()
    }

    /// Counts what is parked now.
    fn has_parked(&self, how: Outcome, messages: usize) {
        self.shared.meter.count(how, messages);
        if self.shared.plans.grow(messages) {
            self.shared.inbox.sessions().prepare_anew();
        }
    }

    fn shelf(&self) -> Shelf {
        let inbox = &self.shared.inbox;
        let (consumer_id, repertoire) = (inbox.consumer_id(), inbox.repertoire());
        Shelf { consumer_id, ordering: self.shared.ordering, repertoire }
    }

    /// One transaction for all of them.
    async fn attempt(
        &self,
        messages: &[RawMessage],
        large_too: bool,
        called: &Called,
    ) -> Result<Attempt, InboxError> {
        let turn = if large_too { Some(self.shared.large.turn().await) } else { None };
        let begun = Instant::now();
        let (open, sorted) = self.claim(messages).await?;
        point(Point::Claimed);
        if sorted.duplicates > 0 && self.was_ended(&open, called).await? {
            open.rollback().await?;
            return Err(InboxError::Ended);
        }
        let mut stored = sorted.waiting.iter().chain(&sorted.outside);
        if !large_too && stored.any(|message| message.is_large()) {
            open.rollback().await?;
            return Ok(Attempt::Large);
        }
        let shelf = self.shelf();
        shelf.append(&open, &sorted.waiting).await?;
        let mut buried = Vec::new();
        for message in &sorted.outside {
            let failure = sorted.why(message);
            let new_code = shelf
                .bury(&open, message, &failure, 0, 0, sorted.is_unclaimed(&message.id))
                .await?;
            buried.push((message, failure, new_code));
        }
        drop(turn);
        // Before the handler, which may leave the session in any role.
        self.move_mark(&open, &sorted).await?;
        if !sorted.fresh.is_empty() {
            called.with(&sorted.fresh, messages.len());
            let work = sorted.fresh.iter().map(|message| (*message).clone()).collect();
            if let Err(failure) = self.work(&open, work).await {
                let transaction = open.transaction();
                // What can't be told to the database now is rolled back with its connection.
                if let Err(why) = open.rollback().await {
                    called.may_be_ended(transaction);
                    if matches!(why, InboxError::Escaped | InboxError::Ended) {
                        return Err(why);
                    }
                }
                point(Point::Failed);
                return Ok(Attempt::Failed(failure));
            }
            point(Point::Handled);
        } else if sorted.waiting.is_empty() && sorted.outside.is_empty() {
            open.rollback().await?;
            self.shared.meter.count(Outcome::Duplicate, sorted.duplicates);
            return Ok(Attempt::Done);
        }
        let transaction = open.transaction();
        match self.finish(open, &sorted).await {
            Err(why @ (InboxError::Escaped | InboxError::Ended)) => {
                called.may_be_ended(transaction);
                return Err(why);
            }
            // Whether it was kept the next claim tells; this one was answered.
            Err(InboxError::Unavailable(error)) if !sorted.fresh.is_empty() => {
                return Ok(Attempt::Failed(Failure::at_commit(error)));
            }
            // Of what the handler has done.
            Err(InboxError::Conflict(error)) if !sorted.fresh.is_empty() => {
                return Ok(Attempt::Failed(Failure::of_conflict(error)));
            }
            finished => finished?,
        }
        point(Point::Committed);
        let meter = &self.shared.meter;
        meter.transaction(begun.elapsed());
        meter.count(Outcome::Applied, sorted.fresh.len());
        meter.count(Outcome::Duplicate, sorted.duplicates);
        self.has_parked(Outcome::Waiting, sorted.waiting.len());
        for (message, failure, new_code) in buried {
            self.announce(message, &failure, new_code);
            self.tell_stranger(message, &failure);
        }
        Ok(Attempt::Done)
    }

    /// Begins, claims, and looks which lanes are parked: one round trip.
    async fn claim<'a>(
        &self,
        messages: &'a [RawMessage],
    ) -> Result<(Open, Sorted<'a>), InboxError> {
        let claimed = match &self.shared.dedup {
            Dedup::Watermark { relay } => self.claim_marked(relay, messages).await,
            Dedup::Rows | Dedup::Off => self.claim_each(messages).await,
        };
        match claimed {
            // A day was dropped since we looked: look again.
            Err(InboxError::Refused { source, .. }) if no_partition(&source) => {
                self.shared.inbox.maintain().await?;
                Err(InboxError::Conflict(source))
            }
            Ok((open, mut sorted)) => {
                self.know_letters(&open, &mut sorted).await?;
                Ok((open, sorted))
            }
            Err(error) => Err(error),
        }
    }

    async fn claim_each<'a>(
        &self,
        messages: &'a [RawMessage],
    ) -> Result<(Open, Sorted<'a>), InboxError> {
        let inbox = &self.shared.inbox;
        let off = self.shared.dedup == Dedup::Off;
        self.outdate_marks(messages).await?;
        let mut sorted = Sorted::default();
        let mut known = Vec::with_capacity(messages.len());
        for message in messages {
            if off || inbox.can_tell(&message.id).await? {
                known.push(message);
            } else {
                sorted.outside.push(message);
            }
        }
        let lanes: Vec<Uuid> =
            known.iter().map(|message| self.shared.ordering.lane(message)).collect();
        let (open, mut claimed, parked) = if off {
            claim::nothing(inbox, &known, &lanes).await?
        } else {
            claim::rows(inbox, &known, &lanes).await?
        };
        for (message, lane) in known.into_iter().zip(lanes) {
            // Of copies in one batch the first is taken.
            if !claimed.remove(&message.id.uuid()) {
                sorted.duplicates += 1;
            } else if parked.contains(&lane) {
                sorted.waiting.push(message);
            } else {
                sorted.fresh.push(message);
            }
        }
        Ok((open, sorted))
    }
}

/// The work said that it was done, and ignored the failure of a statement.
fn aborted(state: String) -> Failure {
    let code = format!("sqlstate-{state}");
    Failure::new(sort_state(&state).into(), code, InboxError::Aborted(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_remembers_nothing_is_promised_no_duplicate() {
        assert!(Dedup::Rows.of_copies().contains("duplicate"));
        assert!(!Dedup::Off.of_copies().contains("duplicate"));
    }
}
