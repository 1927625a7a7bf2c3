//! What a consumer group promises, by what there is to see after each step.

use std::collections::{BTreeMap, BTreeSet};

use super::{Answer, backend::ATTEMPTS, world::Log};

/// Messages that the inbox could not tell about.
pub(super) const OUTSIDE: &str = "outside-window";

/// What there is to see of an inbox, by the numbers of the messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// In their order.
    pub(super) effects: Vec<i32>,
    pub(super) parked: Vec<i32>,
    /// Neither replayed nor discarded.
    pub(super) dead: Vec<Letter>,
}

#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) message: i32,
    pub(super) code: String,
    pub(super) attempts: u32,
}

impl Seen {
    /// All that the inbox has taken over.
    pub(super) fn stored(&self) -> BTreeSet<i32> {
        let dead = self.dead.iter().map(|letter| letter.message);
        self.effects.iter().chain(&self.parked).copied().chain(dead).collect()
    }
}

/// What was seen until now.
#[derive(Default)]
pub(super) struct Promise {
    pub(super) seen: Seen,
    /// Their keys continued without them.
    ever_dead: BTreeSet<i32>,
}

impl Promise {
    /// # Errors
    /// With the promise that is broken.
    pub(super) fn keep(&mut self, log: &Log, committed: &[i64], seen: Seen) -> Result<(), String> {
        let stored = seen.stored();
        if let Some(n) = self.seen.stored().difference(&stored).next() {
            return Err(format!("vanished: {n} was stored, and is not any more"));
        }
        self.ever_dead.extend(seen.dead.iter().map(|letter| letter.message));
        once(&seen)?;
        self.in_order(log, &seen.effects)?;
        for (partition, offset) in committed.iter().enumerate() {
            let unstored = log.before(partition, *offset).find(|n| !stored.contains(n));
            if let Some(n) = unstored {
                return Err(format!("acknowledged: {partition}@{offset} is committed, not {n}"));
            }
        }
        for letter in &seen.dead {
            given_up(log, letter)?;
        }
        self.seen = seen;
        Ok(())
    }

    /// Of a key, what takes effect has before it all that was published before it, but for what was
    /// a dead letter.
    fn in_order(&self, log: &Log, effects: &[i32]) -> Result<(), String> {
        let mut lanes: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
        for n in effects.iter().filter(|n| !self.ever_dead.contains(n)) {
            lanes.entry(log.lane(*n)).or_default().push(*n);
        }
        for (lane, found) in lanes {
            let all = log.of_lane(lane).filter(|n| !self.ever_dead.contains(n));
            let expected: Vec<i32> = all.take(found.len()).collect();
            if found != expected {
                return Err(format!("overtaken: lane {lane} has {found:?}, not {expected:?}"));
            }
        }
        Ok(())
    }

    /// # Errors
    /// When something is not done that could have been.
    pub(super) fn finished(&self, log: &Log, resumed: &[i64]) -> Result<(), String> {
        for n in log.numbers() {
            let outside = |l: &super::promise::Letter| l.message == n && l.code == OUTSIDE;
            if !self.seen.effects.contains(&n) && !self.seen.dead.iter().any(outside) {
                return Err(format!("lost: {n} had no effect: {:?}", self.seen));
            }
        }
        match (0..resumed.len()).find(|p| log.after(*p, resumed[*p]).next().is_some()) {
            Some(partition) => Err(format!("stuck: {partition}@{}", resumed[partition])),
            None => Ok(()),
        }
    }
}

/// Nothing takes effect twice, or will; nothing is at two places.
fn once(seen: &Seen) -> Result<(), String> {
    let mut places: BTreeMap<i32, &str> = BTreeMap::new();
    let effects = seen.effects.iter().map(|n| (*n, "applied"));
    let parked = seen.parked.iter().map(|n| (*n, "parked"));
    // A copy that came when its day was forgotten is a dead letter whatever became of the first.
    let dead = seen.dead.iter().filter(|letter| letter.code != OUTSIDE);
    let dead = dead.map(|letter| (letter.message, "dead"));
    for (n, place) in effects.chain(parked).chain(dead) {
        if let Some(before) = places.insert(n, place) {
            return Err(format!("doubled: {n} is {before} and {place}"));
        }
    }
    Ok(())
}

/// A dead letter has a reason.
fn given_up(log: &Log, letter: &Letter) -> Result<(), String> {
    let reason = match letter.code.as_str() {
        OUTSIDE => letter.attempts == 0,
        "never" => log.answers(letter.message).contains(&Answer::Permanent),
        "transient" | "panic" => letter.attempts == ATTEMPTS,
        _ => false,
    };
    if reason { Ok(()) } else { Err(format!("given up: {letter:?}")) }
}
