//! The decisions of an inbox without a database: what is new, what waits, what is given up.
//!
//! It is also the model that the suite holds the real one against.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, SystemTime},
};

use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::{
    failure::{Failure, Kind},
    handler,
    message::{Message, RawMessage},
    message_id::{Day, MessageId},
    ordering::OrderBy,
    processor::{AGAIN, DEFER_MIN, Stop, untellable},
    repertoire,
    retry::Retry,
};

/// `inbox.settings` as it is unless somebody changes it, in days.
const RETENTION: i32 = 14;
const AHEAD: i32 = 7;
const TICK: Duration = Duration::from_millis(1);

/// An inbox in memory, around state that a handler changes: messages take effect once, in the order
/// of their key, and what fails is tried again when its time has come, by a clock that the test
/// moves.
///
/// For the logic of a handler that is written without SQL, `Fn(&mut State, Message<T>)`, and called
/// from the real one; and for consumers of other stores that are to behave as the inbox does. A
/// handler that fails leaves the state as it was.
///
/// **What it can't show**: anything about a handler's SQL, its locks and its errors; two processes,
/// and copies that come at the same time; outages; batches and watermarks; how long anything takes. [`super::assert_effectively_once`] shows the first two, on a PostgreSQL.
///
/// ```
/// use std::time::Duration;
/// use outbox_idempotency::{Failure, Message, MessageId, Source, testing::{Fate, MemoryInbox}};
///
/// #[derive(Clone)]
/// struct Account { open: bool, cents: i64 }
///
/// let mut inbox = MemoryInbox::new(Account { open: false, cents: 0 }, |account, message: Message<i64>| {
///     if !account.open {
///         return Err(Failure::transient("not open yet"));
///     }
///     account.cents += message.payload;
///     Ok(())
/// });
/// let message = |n: i64| {
///     let id = MessageId::of_bytes(&n.to_be_bytes(), std::time::SystemTime::now());
///     Message::new(id, Source::new("deposits", 0, n), Some(n.to_string().into())).with_key("7")
/// };
/// assert_eq!(inbox.process(&message(5))?, Fate::Parked);
/// assert_eq!(inbox.process(&message(6))?, Fate::Waiting);
/// inbox.state_mut().open = true;
/// inbox.advance(Duration::from_secs(1))?;
/// assert_eq!(inbox.process(&message(5))?, Fate::Duplicate);
/// assert_eq!(inbox.state().cents, 11);
/// # Ok::<(), outbox_idempotency::Stop>(())
/// ```
pub struct MemoryInbox<S> {
    state: S,
    work: Box<Work<S>>,
    ordering: OrderBy,
    retry: Retry,
    now: SystemTime,
    /// Of messages, what the inbox would have a row for.
    taken: BTreeSet<(Uuid, Day)>,
    parked: BTreeMap<Uuid, Lane>,
    dead: Vec<Dead>,
    /// Ids of messages that were given up since their day is not kept.
    untold: BTreeSet<Uuid>,
}

type Work<S> = dyn FnMut(&mut S, RawMessage) -> Result<(), Failure> + Send;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fate {
    /// It took effect.
    Applied,
    /// It had come before.
    Duplicate,
    /// It failed, and waits for its time.
    Parked,
    /// Stored behind a parked one of its lane.
    Waiting,
    /// Given up.
    Dead,
}

/// A message that was given up.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Dead {
    /// The message.
    pub message: RawMessage,
    /// Why, in one stable word: as [`Failure::code`].
    pub code: String,
    /// How often it was tried.
    pub attempts: u32,
    unclaimed: bool,
}

/// What one call of the handler came to.
enum Tried {
    Applied,
    Again { attempts: u32, due: SystemTime },
    GivenUp(Failure, u32),
}

/// A message that waits, and whether it was given up without a claim and replayed.
struct Waiting(RawMessage, bool);

/// Messages that wait, in their order; there is at least one.
struct Lane {
    queue: VecDeque<Waiting>,
    /// Of the first message, failed so far.
    attempts: u32,
    due: SystemTime,
}

impl<S: std::fmt::Debug> std::fmt::Debug for MemoryInbox<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryInbox")
            .field("state", &self.state)
            .field("parked", &self.parked.len())
            .field("dead", &self.dead)
            .finish_non_exhaustive()
    }
}

impl<S: Clone + 'static> MemoryInbox<S> {
    /// An inbox that has taken nothing, and a handler of JSON messages.
    pub fn new<T, H>(state: S, mut handler: H) -> Self
    where
        T: DeserializeOwned,
        H: FnMut(&mut S, Message<T>) -> Result<(), Failure> + Send + 'static,
    {
        let work = move |state: &mut S, message: RawMessage| {
            let payload = handler::json(&message)?;
            let message = message.with(payload);
            let outcome = catch_unwind(AssertUnwindSafe(|| handler(state, message)));
            outcome.unwrap_or_else(|panic| Err(handler::panicked(&*panic)))
        };
        MemoryInbox {
            state,
            work: Box::new(work),
            ordering: OrderBy::default(),
            retry: Retry::default(),
            now: SystemTime::now(),
            taken: BTreeSet::new(),
            parked: BTreeMap::new(),
            dead: Vec::new(),
            untold: BTreeSet::new(),
        }
    }

    /// With another retry policy. No part of a delay is cut at random here.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// With something else to keep in order.
    #[must_use]
    pub fn order_by(mut self, ordering: OrderBy) -> Self {
        self.ordering = ordering;
        self
    }

    /// What came of the messages.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// To change the world around a handler.
    pub fn state_mut(&mut self) -> &mut S {
        &mut self.state
    }

    /// Messages that wait, those of a lane in their order.
    pub fn parked(&self) -> impl Iterator<Item = &RawMessage> {
        self.parked.values().flat_map(|lane| lane.queue.iter().map(|waiting| &waiting.0))
    }

    /// Messages that were given up, the latest last.
    pub fn dead_letters(&self) -> &[Dead] {
        &self.dead
    }

    /// A message comes from the broker. Messages of one key must come in order, but for copies.
    ///
    /// # Errors
    /// The handler can't continue; the message is untouched.
    pub fn process(&mut self, message: &RawMessage) -> Result<Fate, Stop> {
        if !self.has_day(&message.id) {
            let is_first = self.untold.insert(message.id.uuid());
            if !is_first {
                return Ok(Fate::Duplicate);
            }
            let why = untellable(&message.id);
            return Ok(self.bury(Waiting(message.clone(), true), &why, 0));
        }
        let id = (message.id.uuid(), message.id.day());
        if self.taken.contains(&id) {
            return Ok(Fate::Duplicate);
        }
        let lane_id = self.ordering.lane(message);
        let fate = match self.parked.get_mut(&lane_id) {
            Some(lane) => {
                lane.queue.push_back(Waiting(message.clone(), false));
                Fate::Waiting
            }
            None => match self.work(message.clone(), 0)? {
                Tried::Applied => Fate::Applied,
                Tried::GivenUp(failure, attempts) => {
                    self.bury(Waiting(message.clone(), false), &failure, attempts)
                }
                Tried::Again { attempts, due } => {
                    let queue = VecDeque::from([Waiting(message.clone(), false)]);
                    self.parked.insert(lane_id, Lane { queue, attempts, due });
                    Fate::Parked
                }
            },
        };
        self.taken.insert(id);
        Ok(fate)
    }

    /// An operator replays the dead letters that `choose` takes: each goes behind what waits of its
    /// lane. How many.
    pub fn replay(&mut self, mut choose: impl FnMut(&Dead) -> bool) -> usize {
        let chosen: Vec<Dead> = self.dead.extract_if(.., |dead| choose(dead)).collect();
        let now = self.now;
        for Dead { message, unclaimed, .. } in &chosen {
            let lane = self.parked.entry(self.ordering.lane(message));
            let lane =
                lane.or_insert_with(|| Lane { queue: VecDeque::new(), attempts: 0, due: now });
            lane.queue.push_back(Waiting(message.clone(), *unclaimed));
        }
        chosen.len()
    }

    /// Time passes: what comes due meanwhile is tried again, the longest due first.
    ///
    /// # Errors
    /// The handler can't continue; what it had is untouched, and due.
    pub fn advance(&mut self, time: Duration) -> Result<(), Stop> {
        let end = self.now + time;
        while let Some((lane_id, due)) =
            self.parked.iter().map(|(id, lane)| (*id, lane.due)).min_by_key(|(_, due)| *due)
        {
            if due > end {
                break;
            }
            self.now = self.now.max(due);
            self.take_up(lane_id)?;
        }
        self.now = end;
        Ok(())
    }

    /// Tries the first message of a lane.
    fn take_up(&mut self, lane_id: Uuid) -> Result<(), Stop> {
        let lane = self.parked.get(&lane_id).expect("a lane that was found");
        let Waiting(head, unclaimed) =
            lane.queue.front().expect("a lane without messages is removed");
        let (head, unclaimed, failed) = (head.clone(), *unclaimed, lane.attempts);
        let (id, claims) = ((head.id.uuid(), head.id.day()), unclaimed && self.has_day(&head.id));
        // A copy was taken meanwhile.
        let tried = match claims && self.taken.contains(&id) {
            true => Tried::Applied,
            false => self.work(head.clone(), failed)?,
        };
        if claims && matches!(tried, Tried::Applied) {
            self.taken.insert(id);
        }
        let next = match tried {
            Tried::Again { attempts, due } => Some((attempts, due)),
            Tried::Applied => None,
            Tried::GivenUp(failure, attempts) => {
                self.bury(Waiting(head, unclaimed), &failure, attempts);
                None
            }
        };
        let lane = self.parked.get_mut(&lane_id).expect("it was there before");
        if next.is_none() {
            lane.queue.pop_front();
        }
        // The next message starts over, and at once.
        (lane.attempts, lane.due) = next.unwrap_or((0, self.now));
        if lane.queue.is_empty() {
            self.parked.remove(&lane_id);
        }
        Ok(())
    }

    /// Calls the handler with a message that has failed so often.
    fn work(&mut self, mut message: RawMessage, failed: u32) -> Result<Tried, Stop> {
        message.attempt = failed + 1;
        let before = self.state.clone();
        let Err(failure) = (self.work)(&mut self.state, message) else { return Ok(Tried::Applied) };
        self.state = before;
        let uncounted = matches!(failure.kind, Kind::Defer(_) | Kind::Trouble);
        let attempts = failed + u32::from(!uncounted);
        let delay = match failure.kind {
            Kind::Fatal => return Err(Stop::Handler(failure.text().to_owned())),
            Kind::Permanent => None,
            Kind::Defer(until) => {
                Some(until.duration_since(self.now).unwrap_or_default().max(DEFER_MIN))
            }
            Kind::After(delay) => self.retry.delay(attempts, 0.0).map(|policy| policy.max(delay)),
            Kind::Transient
            | Kind::Conflict
            | Kind::Session
            | Kind::Outage
            | Kind::Lost
            | Kind::Doubt => self.retry.delay(attempts, 0.0),
            Kind::Trouble => Some(AGAIN),
        };
        Ok(match delay {
            // Time must pass, or a handler that defers to the past would never let it.
            Some(delay) => {
                Tried::Again { attempts, due: self.now + repertoire::delay(delay).max(TICK) }
            }
            None => Tried::GivenUp(failure, attempts),
        })
    }

    fn bury(&mut self, given_up: Waiting, failure: &Failure, attempts: u32) -> Fate {
        let Waiting(message, unclaimed) = given_up;
        // A message that can't be claimed may come again, and is one dead letter all the same.
        if self.dead.iter().all(|dead| dead.message.id != message.id) {
            let code = failure.code().to_owned();
            self.dead.push(Dead { message, code, attempts, unclaimed });
        }
        Fate::Dead
    }

    fn has_day(&self, id: &MessageId) -> bool {
        let today = MessageId::at(Uuid::nil(), self.now).day().0;
        (today - RETENTION..=today + AHEAD).contains(&id.day().0)
    }
}
