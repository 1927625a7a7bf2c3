//! Locks that others hold on what the relay reads or writes: waited for a little, then named.
//!
//! The session that holds the leader's lock must not wait long for anything else: what else it does
//! would stop flowing, the relay would give it up, and the server would continue waiting on its behalf,
//! as the leader. What only looks tries again later; what must be done ends the attempt with the name
//! of who is in the way.

use std::time::Duration;

use tokio_postgres::error::{Severity, SqlState};

use super::ended::Ended;
use crate::{
    causes,
    postgres::{holders, shortage, sql::SqlSession},
};

/// For one statement of the control session.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Has each statement of the session wait for a lock no longer than a second. Several may wait one after the
/// other before the session looks dead, after `leader.timeout`.
pub(super) async fn limit(
    session: &SqlSession,
    leader_timeout: Duration,
) -> Result<(), tokio_postgres::Error> {
    let wait_max = WAIT_MAX.min(leader_timeout / 10);
    let sql = format!("set lock_timeout = {}", wait_max.as_millis());
    session.client().batch_execute(&sql).await
}

/// Whether a statement failed only because of a lock.
pub(crate) fn refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let of = |error: &(dyn std::error::Error + 'static)| {
        let error = error.downcast_ref::<tokio_postgres::Error>();
        error.and_then(tokio_postgres::Error::code) == Some(&SqlState::LOCK_NOT_AVAILABLE)
    };
    std::iter::successors(Some(error), |error| error.source()).any(of)
}

/// Whether a look failed only for now: for a lock, or because the server has run out of something, was told to
/// cancel the statement, or has met a fault of its own. The session is as it was.
pub(crate) fn passes(error: &(dyn std::error::Error + 'static)) -> bool {
    refused(error) || answer(error).is_some_and(|answer| may_pass(answer.code().code()))
}

/// What the server has answered on a session that continues.
fn answer<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a tokio_postgres::error::DbError> {
    let answer = std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<tokio_postgres::Error>()?.as_db_error())?;
    (answer.parsed_severity() == Some(Severity::Error)).then_some(answer)
}

/// What a person must correct, such as a right that was revoked, does not pass: the next start says it.
fn may_pass(sqlstate: &str) -> bool {
    sqlstate == SqlState::QUERY_CANCELED.code()
        || ["40", "53", "58", "XX"].iter().any(|class| sqlstate.starts_with(class))
}

/// Tells of a look that could not be taken, once until it can be again.
#[derive(Debug, Default)]
pub(super) struct Skipped(bool);

impl Skipped {
    pub(super) async fn tell(
        &mut self,
        session: &SqlSession,
        doing: &'static str,
        error: &(dyn std::error::Error + Send + Sync + 'static),
    ) {
        if std::mem::replace(&mut self.0, true) {
            return;
        }
        if refused(error) {
            let held = holders::of_tables(session.client()).await;
            tracing::warn!(
                doing,
                held,
                "another session holds a lock that the relay needs: trying again"
            );
            return;
        }
        let remedy =
            answer(error).and_then(|answer| shortage::of_a_statement(answer.code().code()));
        let error = causes::of(error);
        tracing::warn!(
            doing,
            error,
            remedy,
            "a look at PostgreSQL failed: events flow, and the relay tries again"
        );
    }

    pub(super) fn passed(&mut self) {
        self.0 = false;
    }
}

/// What ended an attempt, with who holds the lock where that is the reason.
pub(super) async fn named(session: &SqlSession, ended: Ended) -> Ended {
    match ended {
        Ended::Retry { cause, doing, error } if refused(error.as_ref()) => {
            let held = holders::of_tables(session.client()).await;
            let error = error.context(format!(
                "another session holds a lock that the relay needs: {held}. Nothing is lost, and events of \
                 every key wait until it is gone"
            ));
            Ended::retry(cause, doing, error)
        }
        ended => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_may_get_over_is_told_from_what_a_person_must_mend() {
        for (code, passes) in [
            ("53200", true),
            ("57014", true),
            ("XX000", true),
            ("40P01", true),
            ("42501", false),
            ("57P01", false),
        ] {
            assert_eq!(may_pass(code), passes, "{code}");
        }
    }
}
