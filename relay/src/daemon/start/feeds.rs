//! The sessions that a repair reads the tables on.

use crate::{
    daemon::{context::Context, ended::Ended},
    leader,
    metrics::Cause,
    postgres::sql::{self, SqlSession},
    repair::Table,
};

/// A session for each table, on the server that this relay leads on.
pub(super) async fn connect(
    context: &Context,
    session: &SqlSession,
    tables: Vec<Table>,
) -> Result<Vec<(Table, SqlSession)>, Ended> {
    const DOING: &str = "connecting to read the outbox tables for a repair";
    let failed = |e| Ended::postgres(DOING, e);
    let leads = leader::leads(&context.config.postgres.slot, session.pid());
    let application = format!("outbox-relay {} repair", context.config.name);
    let mut feeds = Vec::with_capacity(tables.len());
    for table in tables {
        let feed = sql::connect(&context.parts.connect, &application)
            .await
            .map_err(|e| Ended::connect(DOING, e))?;
        let held = feed.client().query_one(&leads, &[]).await;
        if !held.and_then(|row| row.try_get(0)).map_err(failed)? {
            let error =
                anyhow::anyhow!("{} is another server than {}", feed.host(), session.host());
            return Err(Ended::retry(Cause::Postgres, DOING, error));
        }
        feeds.push((table, feed));
    }
    Ok(feeds)
}
