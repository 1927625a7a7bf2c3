//! Whether the session that took the leader's lock has it still.

use super::ended::Ended;
use crate::{leader, metrics::Cause, postgres::sql::SqlSession};

/// Asks the server whether the session still leads.
pub(super) async fn still_leads(session: &SqlSession, slot: &str) -> Result<(), Ended> {
    let leads = session.client().query_one(&leader::leads(slot, session.pid()), &[]).await;
    if leads.and_then(|row| row.try_get(0)).map_err(lock_failed)? {
        return Ok(());
    }
    let error = anyhow::anyhow!(
        "the relay's claim in outbox.leaders is gone, or another relay has claimed the slot"
    );
    Err(Ended::retry(Cause::Postgres, "looking whether this relay still leads", error))
}

/// What an answer about the lock means that is an error.
pub(super) fn lock_failed(error: tokio_postgres::Error) -> Ended {
    match leader::unusable(&error) {
        Some(halt) => Ended::NoLeaders(halt),
        None => Ended::retry(Cause::Postgres, "asking for the leader's lock", error),
    }
}
