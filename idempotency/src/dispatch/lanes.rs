//! What has come from the broker and is not finished, in memory, as lanes for the workers.
//!
//! ```text
//! runner ─► push ─► lane queues ─► take ─► worker ─► done
//!    ▲                                               │
//!    └────────────── acknowledgement ◄───────────────┘
//! ```
//!
//! Pure bookkeeping. A lane is with one worker at a time. What a broker may be told of it is its
//! [`Acknowledgement`]'s matter: offsets behind which all is finished (`offsets`), or each message by
//! itself (`each`).

use std::collections::{BTreeSet, HashMap, VecDeque};

use uuid::Uuid;

use crate::message::RawMessage;

/// What a broker is told of the messages that it has delivered.
pub(crate) trait Acknowledgement {
    /// By which it knows a message that is here.
    type Token;

    /// Whether what waits behind a message that was given up is given up with it. The broker then delivers
    /// all of them again; otherwise the lane stands until the runner has ended.
    const GIVES_BACK: bool;

    /// A worker has it.
    fn taken(&mut self, token: &Self::Token);

    /// It is not here any more.
    fn ended(&mut self, token: &Self::Token, ending: Ending);
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All of it is committed: the only one that may be acknowledged.
    Handled,
    /// A worker had it, and nothing is known to be committed.
    GivenUp,
    /// No worker has had it, and one that came before it in its lane was given up.
    Behind,
    /// No worker has had it.
    Dropped,
}

/// A message, and what it was counted as.
#[derive(Debug)]
pub(crate) struct InFlight<T> {
    pub(crate) message: RawMessage,
    pub(super) lane: Uuid,
    pub(super) token: T,
    bytes: usize,
}

struct Lane<T> {
    queue: VecDeque<InFlight<T>>,
    /// With a worker, or in `ready`.
    taken: bool,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Lane { queue: VecDeque::new(), taken: false }
    }
}

/// What is between a runner and its workers.
pub(crate) struct LaneScheduler<A: Acknowledgement> {
    lanes: HashMap<Uuid, Lane<A::Token>>,
    /// Lanes with something for a worker, longest waiting first.
    ready: VecDeque<Uuid>,
    messages: usize,
    bytes: usize,
    pub(super) acks: A,
}

impl<A: Acknowledgement + Default> Default for LaneScheduler<A> {
    fn default() -> Self {
        LaneScheduler::with(A::default())
    }
}

impl<A: Acknowledgement> LaneScheduler<A> {
    pub(super) fn with(acks: A) -> Self {
        LaneScheduler { lanes: HashMap::new(), ready: VecDeque::new(), messages: 0, bytes: 0, acks }
    }

    /// Takes a message in.
    pub(super) fn add(&mut self, message: RawMessage, lane: Uuid, token: A::Token) {
        let bytes = message.bytes();
        self.messages += 1;
        self.bytes += bytes;
        let queue = self.lanes.entry(lane).or_default();
        queue.queue.push_back(InFlight { message, lane, token, bytes });
        if !queue.taken {
            queue.taken = true;
            self.ready.push_back(lane);
        }
    }

    /// At most `max` messages of lanes that no one works on; empty when there are none.
    pub(crate) fn take(&mut self, max: usize) -> Vec<InFlight<A::Token>> {
        let mut items = Vec::new();
        while items.len() < max {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(lane) = self.lanes.get_mut(&id) else { continue };
            let room = max - items.len();
            items.extend(lane.queue.drain(..room.min(lane.queue.len())));
        }
        items.iter().for_each(|item| self.acks.taken(&item.token));
        items
    }

    /// Whether there is something to take.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// What was taken is finished, or, where a worker gave up, was not touched.
    pub(crate) fn done(&mut self, items: &[InFlight<A::Token>], finished: bool) {
        let ending = if finished { Ending::Handled } else { Ending::GivenUp };
        for item in items {
            self.messages -= 1;
            self.bytes -= item.bytes;
            self.acks.ended(&item.token, ending);
        }
        let lanes: BTreeSet<Uuid> = items.iter().map(|item| item.lane).collect();
        if !finished {
            // No worker may take what comes behind it.
            if A::GIVES_BACK {
                lanes.iter().for_each(|id| self.give_back(id));
            }
            return;
        }
        for id in lanes {
            match self.lanes.get(&id) {
                Some(lane) if lane.queue.is_empty() => drop(self.lanes.remove(&id)),
                Some(_) => self.ready.push_back(id),
                None => {}
            }
        }
    }

    fn give_back(&mut self, lane: &Uuid) {
        let queue = self.lanes.remove(lane).map(|lane| lane.queue);
        for item in queue.into_iter().flatten() {
            self.messages -= 1;
            self.bytes -= item.bytes;
            self.acks.ended(&item.token, Ending::Behind);
        }
    }

    /// Drops what no worker has.
    pub(super) fn drop_queued(&mut self, goes: impl Fn(&A::Token) -> bool) {
        let LaneScheduler { lanes, ready, messages, bytes, acks } = self;
        for lane in lanes.values_mut() {
            lane.queue.retain(|item| {
                let goes = goes(&item.token);
                if goes {
                    *messages -= 1;
                    *bytes -= item.bytes;
                    acks.ended(&item.token, Ending::Dropped);
                }
                !goes
            });
        }
        // A lane that waits for a worker with nothing in it would be an empty batch.
        ready.retain(|id| {
            let empty = lanes.get(id).is_none_or(|lane| lane.queue.is_empty());
            if empty {
                lanes.remove(id);
            }
            !empty
        });
    }

    /// Messages here, and their size in bytes.
    pub(crate) fn load(&self) -> (usize, usize) {
        (self.messages, self.bytes)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty() && self.ready.is_empty()
    }
}
