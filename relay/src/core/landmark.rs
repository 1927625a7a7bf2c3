//! A commit by which a WAL is known again, and the look at whether it is still the same one.
//!
//! A volume that was put back to an older state has its LSNs again, with other commits at them. As
//! long as its WAL is shorter than what is delivered, that tells; later only its commits do. So the
//! stream begins at the newest commit that is delivered, which must come again as it was, and no
//! other may come before the delivered position. Pure: no clock, no I/O, no task.

use serde::{Deserialize, Serialize};

use crate::core::{
    lsn::Lsn,
    position::{Position, RowPosition},
};

/// The newest commit that the stream carried by a position, or where the slot began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Landmark {
    /// Start of its commit record. LSNs are given again after a rollback, transaction ids as well.
    pub commit: Lsn,
    /// As the stream names it, without the epoch; 0 where the slot began, with no commit there.
    pub xid: u32,
    /// When it was committed, in microseconds since 2000-01-01 UTC.
    pub time_us: i64,
}

impl Landmark {
    /// The slot's stream has nothing that was committed before `begins`.
    pub fn beginning(begins: Lsn) -> Self {
        Landmark { commit: begins, xid: 0, time_us: 0 }
    }

    fn is_commit(self) -> bool {
        self.xid != 0
    }
}

/// What the server sends is not what it sent before: nothing of it may be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server's WAL from {from} on is not the one of which everything {delivered} was delivered"
)]
pub struct AnotherHistory {
    /// The position that it was compared by.
    pub delivered: Position,
    /// Up to here it may be the same.
    pub from: Lsn,
}

/// Looks at what comes first, until all before the delivered position is known to be the same.
#[derive(Debug)]
pub(crate) struct Recognition {
    delivered: Position,
    /// `None` where there is nothing to know it by, or once it is known.
    landmark: Option<Landmark>,
    /// It must come again, and has not yet.
    awaited: bool,
}

impl Recognition {
    /// For a stream from `landmark` on, or from where its slot is `confirmed` if that is later.
    pub(crate) fn new(landmark: Option<Landmark>, delivered: Position, confirmed: Lsn) -> Self {
        let awaited = landmark.is_some_and(|it| it.is_commit() && confirmed <= it.commit);
        Recognition { delivered, landmark, awaited }
    }

    /// What is delivered.
    pub(crate) fn delivered(&self) -> Position {
        self.delivered
    }

    /// Whether that row is delivered.
    pub(crate) fn has(&self, row: RowPosition) -> bool {
        self.delivered.covers(row)
    }

    /// Where the stream is to begin.
    pub(crate) fn start(landmark: Option<Landmark>, delivered: Position) -> Lsn {
        let start = delivered.resume_lsn();
        landmark.map_or(start, |landmark| start.min(landmark.commit))
    }

    /// Whether it is still to be seen that what is delivered is in this WAL.
    pub(crate) fn is_pending(&self) -> bool {
        self.landmark.is_some()
    }

    /// A transaction begins.
    ///
    /// # Errors
    /// [`AnotherHistory`].
    pub(crate) fn begin(&mut self, sent: Landmark) -> Result<(), AnotherHistory> {
        let Some(landmark) = self.landmark else { return Ok(()) };
        let delivered = self.has(RowPosition { commit: sent.commit, ordinal: 0 });
        let is_it = sent == landmark;
        if (self.awaited || delivered) && !is_it {
            return Err(self.another(landmark));
        }
        self.awaited = false;
        // Inside a transaction nothing more comes before the position.
        if !delivered || matches!(self.delivered, Position::Row(_)) {
            self.landmark = None;
        }
        Ok(())
    }

    /// Between transactions: all that was committed before `end` has come.
    ///
    /// # Errors
    /// [`AnotherHistory`].
    pub(crate) fn reach(&mut self, end: Lsn) -> Result<(), AnotherHistory> {
        let Some(landmark) = self.landmark else { return Ok(()) };
        if self.awaited && end > landmark.commit {
            return Err(self.another(landmark));
        }
        if !self.awaited && end >= self.delivered.resume_lsn() {
            self.landmark = None;
        }
        Ok(())
    }

    fn another(&self, landmark: Landmark) -> AnotherHistory {
        AnotherHistory { delivered: self.delivered, from: landmark.commit }
    }
}

#[cfg(test)]
mod tests {
    use crate::core::landmark::*;

    fn commit(at: u64) -> Landmark {
        Landmark { commit: Lsn::new(at), xid: 700 + u32::try_from(at).expect("small"), time_us: 5 }
    }

    fn up_to(lsn: u64) -> Position {
        Position::UpTo(Lsn::new(lsn))
    }

    fn another() -> Result<(), AnotherHistory> {
        Err(AnotherHistory { delivered: up_to(90), from: Lsn::new(50) })
    }

    fn look(landmark: Landmark, delivered: Position, confirmed: u64) -> Recognition {
        Recognition::new(Some(landmark), delivered, Lsn::new(confirmed))
    }

    #[test]
    fn the_same_wal_is_known_by_its_newest_commit_or_by_nothing_after_it() {
        let mut crashed = look(commit(50), up_to(90), 20);
        assert_eq!(crashed.begin(commit(50)), Ok(()));
        assert!(crashed.is_pending());
        assert_eq!(crashed.begin(commit(90)), Ok(()));
        assert!(!crashed.is_pending());
        let mut idle = look(commit(50), up_to(90), 90);
        assert_eq!(idle.reach(Lsn::new(90)), Ok(()));
        assert!(!idle.is_pending());
        let row = Position::Row(RowPosition { commit: Lsn::new(50), ordinal: 3 });
        let mut inside = look(commit(50), row, 50);
        assert_eq!(inside.begin(commit(50)), Ok(()));
        assert!(!inside.is_pending());
        assert_eq!(inside.begin(commit(51)), Ok(()));
    }

    #[test]
    fn a_wal_without_the_newest_commit_is_another_one() {
        let rolled_back = || look(commit(50), up_to(90), 20);
        for sent in [
            commit(60),
            commit(95),
            Landmark { xid: 1, ..commit(50) },
            Landmark { time_us: 6, ..commit(50) },
        ] {
            assert_eq!(rolled_back().begin(sent), another(), "{sent:?}");
        }
        assert_eq!(rolled_back().reach(Lsn::new(50)), Ok(()), "it is where the next record starts");
        assert_eq!(rolled_back().reach(Lsn::new(51)), another());
    }

    /// The newest commit is older than the volume, and what was delivered after it had no events.
    #[test]
    fn a_wal_with_a_commit_where_there_was_none_is_another_one() {
        let mut after_it = look(commit(50), up_to(90), 60);
        assert_eq!(after_it.reach(Lsn::new(60)), Ok(()));
        assert!(after_it.is_pending(), "nothing may be confirmed yet");
        assert_eq!(after_it.begin(commit(70)), another());
        let mut behind_it = look(commit(50), up_to(90), 50);
        assert_eq!(behind_it.begin(commit(50)), Ok(()));
        assert_eq!(behind_it.begin(commit(70)), another());
        let mut from_its_slot = look(Landmark::beginning(Lsn::new(50)), up_to(90), 50);
        assert_eq!(from_its_slot.begin(commit(50)), another());
        let mut first = look(Landmark::beginning(Lsn::new(50)), up_to(50), 50);
        assert_eq!(first.begin(commit(50)), Ok(()));
    }
}
