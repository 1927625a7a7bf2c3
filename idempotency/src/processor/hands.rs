//! What a worker of parked lanes has in its hands, from one run of a transaction to the next.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use uuid::Uuid;

use super::taken::{Head, Which};

/// Parked messages for which the handler was called at once.
#[derive(Clone)]
pub(super) struct Parked {
    pub(super) lane: Uuid,
    pub(super) heads: Vec<Head>,
    /// That they were taken in, where a handler has ended it, or may have.
    pub(super) ended: Option<String>,
}

/// The lanes that this process's workers have in hand. A lane whose transaction was rolled back is no longer locked, and
/// is in hand until its worker has counted that.
pub(super) type Lanes = Arc<Mutex<HashSet<Uuid>>>;

/// From one run of a transaction to the next.
#[derive(Default)]
pub(super) struct Hands {
    all: Lanes,
    held: Mutex<Option<Uuid>>,
    blamed: Mutex<Option<Parked>>,
    doubted: Mutex<Option<Parked>>,
    next: Mutex<Option<(Which, i64)>>,
    now: Mutex<Option<(Which, i64)>>,
    in_the_way: AtomicU32,
}

impl Hands {
    /// Those of one worker beside others.
    pub(super) fn beside(all: &Lanes) -> Self {
        let mut hands = Self::default();
        hands.all = Arc::clone(all);
        hands
    }

    /// Takes a lane in hand instead of the one before. Returns whether no other worker has it.
    pub(super) fn hold(&self, lane: Uuid) -> bool {
        let mut mine = held(&self.held);
        if *mine == Some(lane) {
            return true;
        }
        let mut all = held(&self.all);
        if let Some(before) = mine.take() {
            all.remove(&before);
        }
        let is_free = all.insert(lane);
        if is_free {
            *mine = Some(lane);
        }
        is_free
    }

    /// Whether a lane is in hand.
    pub(super) fn has_some(&self) -> bool {
        held(&self.held).is_some()
    }

    /// The lane in hand may be taken by any worker.
    pub(super) fn let_go(&self) {
        if let Some(lane) = held(&self.held).take() {
            held(&self.all).remove(&lane);
        }
    }

    /// The first of these is to be blamed if that can't be said in its own transaction.
    pub(super) fn blame(&self, lane: Uuid, heads: &[Head]) {
        *held(&self.blamed) = Some(Parked { lane, heads: heads.to_vec(), ended: None });
    }

    /// The transaction that they were taken in was ended by its handler.
    pub(super) fn was_ended(&self, transaction: Option<String>) {
        if let Some(blamed) = &mut *held(&self.blamed) {
            blamed.ended = transaction;
        }
    }

    /// Their session is lost, so whether their handler has ended its transaction before could not be asked.
    pub(super) fn may_be_ended(&self, lane: Uuid, heads: &[Head], transaction: Option<String>) {
        if transaction.is_some() {
            let heads = heads.to_vec();
            *held(&self.doubted) = Some(Parked { lane, heads, ended: transaction });
        }
    }

    /// They are asked about again, until [`Hands::settle_doubt`].
    pub(super) fn doubted(&self) -> Option<Parked> {
        held(&self.doubted).clone()
    }

    pub(super) fn settle_doubt(&self) {
        *held(&self.doubted) = None;
    }

    pub(super) fn take_blamed(&self) -> Option<Parked> {
        held(&self.blamed).take()
    }

    /// The worker continues with this lane, and takes so many messages at most.
    pub(super) fn keep(&self, next: Which, max: i64) {
        *held(&self.next) = Some((next, max));
    }

    /// Of several that failed together, the first half is tried next.
    pub(super) fn keep_half(&self, lane: Uuid, group: &[Head]) {
        if group.len() > 1 {
            self.keep(Which::This(lane), i64::try_from(half(group).len()).unwrap_or(1));
        }
    }

    /// What was kept is what the worker continues with now.
    pub(super) fn begin(&self) {
        *held(&self.now) = held(&self.next).take();
    }

    /// The worker tries these again before anything else, once the pause is over.
    pub(super) fn stay(&self, lane: Uuid, max: usize) {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        *held(&self.now) = Some((Which::This(lane), max));
    }

    /// The next message of a lane once: whatever goes wrong then, the next look is at all lanes. Part of a batch that
    /// failed is tried by itself until that is settled.
    pub(super) fn now(&self) -> Option<(Which, i64)> {
        let mut now = held(&self.now);
        match *now {
            Some((Which::Next(..), _)) => now.take(),
            part => part,
        }
    }

    /// Another transaction was, of the inbox's own statements.
    pub(super) fn was_in_the_way(&self) {
        self.in_the_way.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn none_is_in_the_way(&self) {
        self.in_the_way.store(0, Ordering::Relaxed);
    }

    /// How often that was so since something was done. That other workers have all that is due says nothing.
    pub(super) fn in_the_way(&self) -> u32 {
        self.in_the_way.load(Ordering::Relaxed)
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// The larger one: of one, that one.
pub(super) fn half(group: &[Head]) -> &[Head] {
    group.get(..group.len().div_ceil(2)).unwrap_or_default()
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
