//! Whether the session that took the leader's lock has it still.

use tokio_postgres::error::SqlState;

use super::ended::Ended;
use crate::{leader, metrics::Cause, postgres::sql::SqlSession};

/// Asks the server whether the session still leads.
pub(super) async fn still_leads(session: &SqlSession, slot: &str) -> Result<(), Ended> {
    let leads = session.client().query_one(&leader::leads(slot, session.pid()), &[]).await;
    if leads.and_then(|row| row.try_get(0)).map_err(lock_failed(session))? {
        return Ok(());
    }
    let error = anyhow::anyhow!(
        "the relay's claim in outbox.leaders is gone, or another relay has claimed the slot"
    );
    Err(Ended::retry(Cause::Postgres, "looking whether this relay still leads", error))
}

/// What an answer about the lock means that is an error.
pub(super) fn lock_failed(session: &SqlSession) -> impl Fn(tokio_postgres::Error) -> Ended {
    |error| match leader::unusable(&error) {
        Some(halt) => Ended::NoLeaders(halt),
        None => {
            const DOING: &str = "asking for the leader's lock";
            if error.code() != Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
                return Ended::postgres(DOING, error);
            }
            let error = anyhow::Error::new(error).context(format!(
                "{} is a standby, or read-only: with several hosts, add target_session_attrs=read-write to \
                 postgres.url; with one, name the primary there",
                session.host()
            ));
            Ended::retry(Cause::Postgres, DOING, error)
        }
    }
}
