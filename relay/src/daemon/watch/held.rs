//! Whether the server holds the stream back for standbys that are away. Keepalives come meanwhile, so that
//! the stream looks well.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    core::lsn::Lsn,
    postgres::{
        catalog::{InspectError, standby_slots},
        sql::SqlSession,
    },
    state::Board,
};

/// A standby that starts again is away for less; one that is only slow moves on meanwhile.
const HELD_MIN: Duration = Duration::from_secs(5);

/// What the last looks have found.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Where the stream has stood since when.
    since: Option<(Lsn, Instant)>,
}

impl Held {
    /// Looks, and tells the board and the log.
    pub(super) async fn look(
        &mut self,
        session: &SqlSession,
        slot: &str,
        board: &Board,
    ) -> Result<(), InspectError> {
        let waiting = standby_slots::waiting(session.client(), slot).await?;
        let at = waiting.as_ref().map(|_| board.received_up_to());
        let held = self.held(at, Instant::now());
        let why = waiting.filter(|_| held).map(|slots| standby_slots::in_words(&slots));
        if board.held_back(why.clone()) {
            match why {
                Some(reason) => tracing::error!(reason, "PostgreSQL sends no events"),
                None => tracing::info!("the server sends events again"),
            }
        }
        Ok(())
    }

    /// `waiting` is where the stream stands while the server waits.
    fn held(&mut self, waiting: Option<Lsn>, now: Instant) -> bool {
        let since = waiting.map(|at| match self.since {
            Some(before) if before.0 == at => before,
            _ => (at, now),
        });
        self.since = since;
        since.is_some_and(|(_, since)| now.duration_since(since) >= HELD_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_waits_at_one_place_is_held_and_one_that_moves_on_is_not() {
        let begun = Instant::now();
        let mut held = Held::default();
        let mut look = |at: Option<u64>, seconds| {
            held.held(at.map(Lsn::new), begun + Duration::from_secs(seconds))
        };
        assert!(!look(Some(1), 0));
        assert!(!look(Some(1), 4));
        assert!(look(Some(1), 5));
        assert!(!look(Some(2), 6), "it moved on");
        assert!(!look(None, 9));
        assert!(!look(Some(2), 12), "it did not wait meanwhile");
        assert!(look(Some(2), 17));
    }
}
