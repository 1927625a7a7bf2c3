//! Asks for the slot. Called wherever a start must know where that is.

use crate::{
    config::Config,
    daemon::ended::Ended,
    postgres::{
        catalog::slot::{self, SlotState},
        sql::SqlSession,
    },
};

/// The slot, if it exists, and the database that the session is in.
pub(super) async fn survey(
    config: &Config,
    session: &SqlSession,
) -> Result<(Option<SlotState>, String), Ended> {
    const DOING: &str = "looking at the slot";
    let slot = slot::inspect(session.client(), &config.postgres.slot)
        .await
        .map_err(|e| Ended::postgres(DOING, e))?;
    let database = session
        .client()
        .query_one("select current_database()::text", &[])
        .await
        .and_then(|row| row.try_get::<_, String>(0))
        .map_err(|e| Ended::postgres(DOING, e))?;
    Ok((slot, database))
}
