//! Whether a stream that follows one that died does better.
//!
//! Each attempt takes a moment to fail, and who looks in that moment must not be told that all is well. So what
//! failed is told until an event is delivered, all that waited when the last stream died is passed, or nothing
//! waits.

use jiff::Timestamp;

use super::{Board, Phase, State};
use crate::core::{lsn::Lsn, position::Position};

impl Board {
    /// To be told before the phase changes.
    pub(super) fn stream_ends(&self, state: &mut State, next: &Phase) {
        let dies = matches!(next, Phase::Retrying { .. } | Phase::Halted { .. });
        if dies && state.phase == Phase::Streaming {
            let end = self.0.wal_end.get().max(self.0.received.get()).map(Lsn::new);
            state.died_at = state.died_at.max(Some(end.unwrap_or_default()));
        }
    }

    /// Looks whether the stream delivers, or has come as far as the WAL reached when the last one died, or
    /// reaches now.
    pub(super) fn settle(&self, state: &mut State, delivers: bool) {
        let Some(died_at) = state.died_at.filter(|_| state.phase == Phase::Streaming) else {
            return;
        };
        let reached = state.delivered.map(Position::resume_lsn);
        let end = self.0.wal_end.get().map(Lsn::new);
        let has_all = reached.is_some_and(|at| at >= died_at || end.is_some_and(|end| at >= end));
        if delivers || has_all {
            state.flows();
        }
    }
}

impl State {
    /// A retry succeeded, or a halt is over: the relay continues.
    pub(super) fn flows(&mut self) {
        self.died_at = None;
        self.trouble = None;
        if std::mem::take(&mut self.error_is_trouble)
            && let Some(error) = &mut self.last_error
        {
            error.over_since = Some(format!("{:.0}", Timestamp::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::state::{behind::STILL_MAX, health};

    const MIB: u64 = 1 << 20;

    fn retrying() -> Phase {
        Phase::Retrying {
            doing: "streaming".into(),
            error: "out of memory".into(),
            next_attempt_in: Duration::ZERO,
        }
    }

    /// A stream that has delivered up to 6 MiB of a WAL of 9 MiB has died, and the next one begins.
    fn follows(delivered: u64) -> Board {
        let board = Board::new("orders", "s", "1");
        let phases = [Phase::Streaming, retrying(), Phase::Starting { doing: "again".into() }];
        for phase in phases {
            board.heard();
            board.server_wal_end(Lsn::new(9 * MIB));
            board.resumed(Position::UpTo(Lsn::new(delivered * MIB)));
            board.phase(phase);
        }
        board.error("out of memory".into());
        board.phase(retrying());
        board.phase(Phase::Streaming);
        board
    }

    fn delivers(board: &Board, records: u64, to: u64) {
        let position = Some(Position::UpTo(Lsn::new(to * MIB)));
        board.delivered(position, records, 0, Duration::ZERO, None);
    }

    #[test]
    fn a_stream_that_follows_one_that_died_is_not_ready_before_it_delivers() {
        let board = follows(6);
        let why = || board.readiness().expect_err("it may die as well");
        assert!(why().starts_with("streaming: out of memory; trying again: "), "{}", why());
        delivers(&board, 0, 8);
        assert!(why().contains("out of memory"), "it is not past what the last one died of");
        assert_eq!(board.status().last_error.and_then(|it| it.over_since), None);
        delivers(&board, 1, 8);
        assert_eq!(board.readiness(), Ok(()));
        assert!(board.status().last_error.is_some_and(|it| it.over_since.is_some()));
        // The next one is not either, whatever that one has delivered.
        for phase in [retrying(), Phase::Streaming] {
            board.phase(phase);
        }
        assert!(why().contains("out of memory"));
    }

    #[test]
    fn a_stream_for_which_nothing_waits_is_ready_at_once() {
        assert_eq!(follows(9).readiness(), Ok(()));
        let board = follows(6);
        board.server_wal_end(Lsn::new(12 * MIB));
        delivers(&board, 0, 9);
        assert_eq!(board.readiness(), Ok(()), "all that waited then is passed");
        let board = follows(6);
        // Another server, whose WAL ends earlier.
        board.server_wal_end(Lsn::new(6 * MIB));
        assert_eq!(board.readiness(), Ok(()));
    }

    #[test]
    fn a_stream_that_lives_is_judged_by_itself_and_one_that_only_starts_is_not_blamed() {
        let board = follows(6);
        let later = board.now() + STILL_MAX + Duration::from_secs(1);
        let why = health::readiness(&board.vitals(later)).expect_err("nothing is delivered");
        assert!(!why.contains("out of memory"), "{why}");
        assert!(board.vitals(later).behind.is_some_and(|it| it.stands_still().is_some()));
        let board = Board::new("orders", "s", "1");
        board.heard();
        board.server_wal_end(Lsn::new(9 * MIB));
        board.resumed(Position::UpTo(Lsn::new(6 * MIB)));
        board.phase(retrying());
        board.phase(Phase::Streaming);
        assert_eq!(board.readiness(), Ok(()), "no stream has died");
    }

    #[test]
    fn another_relay_that_leads_or_a_repair_ends_it() {
        let repairs = Phase::Repairing { delivered: 0, through: None };
        for phase in [Phase::Standby { doing: "waiting".into() }, repairs] {
            let board = follows(6);
            board.phase(phase);
            board.heard();
            board.server_wal_end(Lsn::new(9 * MIB));
            board.resumed(Position::UpTo(Lsn::new(6 * MIB)));
            board.phase(Phase::Streaming);
            assert_eq!(board.readiness(), Ok(()));
        }
    }
}
