//! Looks for releases that wait though the stream has passed them.
//!
//! A WAL message only says where in the stream a release takes its place. One that the pipeline
//! passed over because its transaction was not visible yet, one beyond the bounds of what is noted, or
//! one in WAL that is lost leaves rows that wait; they are the truth, so they are announced again.

use std::{collections::HashMap, time::Duration};

use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    core::lsn::Lsn,
    daemon::{context::Context, ended::Ended, locks},
    dead_letter::{self, DeadLetterError},
    postgres::sql::SqlSession,
    state::Board,
};

/// One look costs a step into an index of what waits.
const INTERVAL: Duration = Duration::from_secs(2);

/// Looks again and again. Returns what ends the attempt. Cancel safe.
pub(in crate::daemon) async fn watch(context: &Context, session: &SqlSession) -> Ended {
    const DOING: &str = "looking for releases that wait";
    let (mut seen, mut skipped) = (Seen::default(), locks::Skipped::default());
    loop {
        sleep(INTERVAL).await;
        match look(session, &context.config.name, &context.board, &mut seen).await {
            Ok(()) => skipped.passed(),
            Err(error) if locks::passes(&error) => skipped.tell(session, DOING, &error).await,
            Err(error @ DeadLetterError::Misconfigured { .. }) => {
                return Ended::dead_letters(DOING, error);
            }
            Err(error) => {
                return Ended::postgres("announcing a release again", error);
            }
        }
    }
}

async fn look(
    session: &SqlSession,
    relay: &str,
    board: &Board,
    seen: &mut Seen,
) -> Result<(), DeadLetterError> {
    let waiting = dead_letter::waiting(session, relay).await?;
    let end = if waiting.is_empty() { Lsn::ZERO } else { dead_letter::wal_end(session).await? };
    for release in seen.overdue(&waiting, end, board.delivered_up_to()) {
        tracing::info!(%release, "a release waits though the stream has passed it: announcing it again");
        dead_letter::announce(session, relay, release).await?;
    }
    Ok(())
}

/// What was seen to wait. At the first look its announcement is somewhere in the WAL, perhaps not
/// yet flushed; by the second it is before the end of it; once delivery has passed that, it was
/// passed over.
#[derive(Debug, Default)]
struct Seen(HashMap<Uuid, Option<Lsn>>);

impl Seen {
    fn overdue(&mut self, waiting: &[Uuid], end: Lsn, delivered: Option<Lsn>) -> Vec<Uuid> {
        let before = std::mem::take(&mut self.0);
        let mut overdue = Vec::new();
        for release in waiting {
            let passed = match before.get(release) {
                None => None,
                Some(None) => Some(end),
                Some(Some(passed)) if delivered.is_some_and(|delivered| delivered >= *passed) => {
                    overdue.push(*release);
                    None // As seen for the first time.
                }
                Some(passed) => *passed,
            };
            self.0.insert(*release, passed);
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_announced_again_once_delivery_has_passed_its_announcement_and_not_before() {
        let (mut seen, a, b) = (Seen::default(), Uuid::from_u128(1), Uuid::from_u128(2));
        let mut overdue = |waiting: &[Uuid], end, delivered| seen.overdue(waiting, end, delivered);
        let none = Vec::<Uuid>::new();
        let at = |lsn| Some(Lsn::new(lsn));
        assert_eq!(overdue(&[a], Lsn::new(10), at(99)), none.clone());
        assert_eq!(overdue(&[a, b], Lsn::new(20), at(99)), none.clone());
        assert_eq!(overdue(&[a, b], Lsn::new(30), at(19)), none.clone(), "it lags");
        assert_eq!(overdue(&[a, b], Lsn::new(30), None), none.clone());
        assert_eq!(overdue(&[a, b], Lsn::new(40), at(20)), vec![a]);
        assert_eq!(overdue(&[a, b], Lsn::new(40), at(50)), vec![b], "each in its time");
        assert_eq!(overdue(&[], Lsn::new(40), at(50)), none.clone());
        assert_eq!(overdue(&[a], Lsn::new(50), at(99)), none.clone(), "it starts over");
    }
}
