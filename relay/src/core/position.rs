//! How far the relay has come: a commit and a place inside it, or everything up to an LSN.
//!
//! LSNs of rows are neither unique nor ordered across transactions, so they never serve as
//! positions. The two kinds of [`Position`] are not one number: in one of eighteen commits the
//! next transaction's `final_lsn` equals the last one's `end_lsn`, and comparing with `<=` would
//! lose it. Pure values: no clock, no I/O, no task. Made by `source`, stored by `progress`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::core::lsn::Lsn;

/// The place of one Insert or Message in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RowPosition {
    /// `final_lsn` of the transaction's Begin message: the start of its commit record.
    pub commit: Lsn,
    /// Counted from 0 over every Insert and Message of the transaction as sent, before mapping.
    pub ordinal: u64,
}

impl fmt::Display for RowPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.commit, self.ordinal)
    }
}

/// The text is not of the form `16/B374D848:12`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an event's position, which looks like 16/B374D848:12")]
pub struct ParsePositionError(String);

impl FromStr for RowPosition {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.rsplit_once(':')
            .and_then(|(commit, ordinal)| {
                Some(RowPosition { commit: commit.parse().ok()?, ordinal: ordinal.parse().ok()? })
            })
            .ok_or_else(|| ParsePositionError(text.to_owned()))
    }
}

/// Everything that is done, as one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// That row and all before it: a batch was cut inside a transaction.
    Row(RowPosition),
    /// All commits that start before this LSN; one that starts at it is not done.
    /// A `Commit.end_lsn`, or the end of a keepalive sent between transactions.
    UpTo(Lsn),
}

impl Position {
    /// Whether `row` is at or before this position.
    pub fn covers(self, row: RowPosition) -> bool {
        match self {
            Position::Row(done) => row <= done,
            Position::UpTo(end) => row.commit < end,
        }
    }

    /// Whether everything that `other` covers is covered by `self`.
    pub fn includes(self, other: Position) -> bool {
        match (self, other) {
            (Position::Row(a), Position::Row(b)) => a >= b,
            (Position::UpTo(a), Position::UpTo(b)) => a >= b,
            // `other` covers a row of the commit at `b.commit`, which `a` has only if it is past it.
            (Position::UpTo(a), Position::Row(b)) => a > b.commit,
            // Commits before `b` are all covered only if none can start between.
            (Position::Row(a), Position::UpTo(b)) => a.commit >= b,
        }
    }

    /// What PostgreSQL may be told, and where streaming starts again: nothing past the commit's
    /// start inside a transaction, so that the server sends that transaction again from its Begin.
    pub fn resume_lsn(self) -> Lsn {
        match self {
            Position::Row(row) => row.commit,
            Position::UpTo(end) => end,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::Row(row) => write!(f, "{row}"),
            Position::UpTo(end) => write!(f, "up to {end}"),
        }
    }
}

/// A position that PostgreSQL may be told, because a stored progress record covers it. Made only
/// from a sink's proof of storage, or from a record that was read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmable(Position);

impl Confirmable {
    /// `position` is covered by a progress record that the broker has.
    pub(crate) fn stored(position: Position) -> Self {
        Confirmable(position)
    }

    /// What PostgreSQL is told.
    pub fn lsn(self) -> Lsn {
        self.0.resume_lsn()
    }

    /// What is covered.
    pub fn position(self) -> Position {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use crate::core::position::*;

    fn row(commit: u64, ordinal: u64) -> RowPosition {
        RowPosition { commit: Lsn::new(commit), ordinal }
    }

    #[test]
    fn a_commit_that_starts_where_the_last_one_ended_is_not_covered() {
        let end = Position::UpTo(Lsn::new(100));
        assert!(end.covers(row(99, 7)));
        assert!(!end.covers(row(100, 0)));
    }

    #[test]
    fn a_row_covers_itself_and_what_precedes_it() {
        let done = Position::Row(row(100, 3));
        assert!(done.covers(row(100, 3)) && done.covers(row(100, 0)) && done.covers(row(90, 9)));
        assert!(!done.covers(row(100, 4)) && !done.covers(row(101, 0)));
        assert_eq!(
            done.resume_lsn(),
            Lsn::new(100),
            "nothing past the commit's start is confirmed"
        );
    }

    #[test]
    fn the_end_of_a_transaction_includes_its_rows_and_not_the_next_one() {
        assert!(Position::UpTo(Lsn::new(101)).includes(Position::Row(row(100, 9))));
        assert!(!Position::UpTo(Lsn::new(100)).includes(Position::Row(row(100, 0))));
        assert!(Position::Row(row(100, 0)).includes(Position::UpTo(Lsn::new(100))));
        assert!(!Position::Row(row(100, 0)).includes(Position::UpTo(Lsn::new(101))));
    }
}
