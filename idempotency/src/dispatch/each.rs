//! Acknowledgement of each message by itself, and leases that are extended meanwhile.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::lanes::{Acknowledgement, Ending, LaneScheduler};
use crate::message::RawMessage;

/// What a broker is to be told of a message that it has delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer<H> {
    /// It has taken effect, or is kept in the database: delete it.
    Acknowledge(H),
    /// It was not touched: deliver it again, to anybody. If the broker can wait before it does, after
    /// so long.
    Return(H, Duration),
    /// It is still here: keep it from others for another lease.
    Extend(H),
}

/// Messages that are here, by the broker's handles, and what it is to be told.
pub(crate) struct EachMessage<H> {
    held: HashMap<u64, H>,
    next: u64,
    /// When leases are to be extended, soonest first: they all last as long.
    renewals: VecDeque<(Instant, u64)>,
    /// A third of a lease: two extensions may fail.
    renew_after: Option<Duration>,
    /// How long what was given up stays away.
    rest: Duration,
    answers: Vec<Answer<H>>,
    /// With workers now.
    running: usize,
    /// Nothing new is taken in.
    closing: bool,
}

impl<H> Acknowledgement for EachMessage<H> {
    type Token = u64;

    const GIVES_BACK: bool = true;

    fn taken(&mut self, _: &u64) {
        self.running += 1;
    }

    fn ended(&mut self, token: &u64, ending: Ending) {
        if matches!(ending, Ending::Handled | Ending::GivenUp) {
            self.running -= 1;
        }
        let Some(handle) = self.held.remove(token) else { return };
        self.answers.push(match ending {
            Ending::Handled => Answer::Acknowledge(handle),
            Ending::GivenUp | Ending::Behind => Answer::Return(handle, self.rest),
            Ending::Dropped => Answer::Return(handle, Duration::ZERO),
        });
    }
}

impl<H> EachMessage<H> {
    pub(super) fn new(lease: Option<Duration>, rest: Duration) -> Self {
        EachMessage {
            held: HashMap::new(),
            next: 0,
            renewals: VecDeque::new(),
            renew_after: lease.map(|lease| lease / 3),
            rest,
            answers: Vec::new(),
            running: 0,
            closing: false,
        }
    }
}

impl<H: Clone> LaneScheduler<EachMessage<H>> {
    /// Takes a message in; behind the end it is returned.
    pub(super) fn push(&mut self, message: RawMessage, lane: Uuid, handle: H, now: Instant) {
        let acks = &mut self.acks;
        if acks.closing {
            acks.answers.push(Answer::Return(handle, Duration::ZERO));
            return;
        }
        let token = acks.next;
        acks.next += 1;
        acks.held.insert(token, handle);
        if let Some(after) = acks.renew_after {
            acks.renewals.push_back((now + after, token));
        }
        self.add(message, lane, token);
    }

    /// What to tell the broker, each once.
    pub(super) fn answers(&mut self, now: Instant) -> Vec<Answer<H>> {
        let acks = &mut self.acks;
        while let Some((due, token)) = acks.renewals.front().copied()
            && due <= now
        {
            acks.renewals.pop_front();
            if let (Some(handle), Some(after)) = (acks.held.get(&token), acks.renew_after) {
                acks.answers.push(Answer::Extend(handle.clone()));
                acks.renewals.push_back((now + after, token));
            }
        }
        std::mem::take(&mut acks.answers)
    }

    /// When the next lease is to be extended.
    pub(super) fn renewal(&mut self) -> Option<Instant> {
        let acks = &mut self.acks;
        while acks.renewals.front().is_some_and(|(_, token)| !acks.held.contains_key(token)) {
            acks.renewals.pop_front();
        }
        acks.renewals.front().map(|(due, _)| *due)
    }

    /// Takes nothing more in, and returns what no worker has.
    pub(super) fn close(&mut self) {
        self.acks.closing = true;
        self.drop_queued(|_| true);
    }

    /// Messages that workers have.
    pub(super) fn running(&self) -> usize {
        self.acks.running
    }
}

#[cfg(test)]
mod tests;
