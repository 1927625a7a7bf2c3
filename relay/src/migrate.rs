//! `outbox-relay migrate`: applies or prints a set of migrations.

use anyhow::Context;
use outbox_migrations::{Applied, Set};

use crate::{config::Config, postgres::sql};

/// Brings the database up to date. Two at once do not clash: the second waits, and finds
/// nothing left to do.
///
/// # Errors
/// No connection, or a migration failed; a failed migration leaves nothing behind.
pub async fn run(config: &Config, set: Set) -> anyhow::Result<Vec<Applied>> {
    let application = format!("outbox-relay {} migrate", config.name);
    let mut session =
        sql::connect(&config.connect()?, &application).await.context("connecting to PostgreSQL")?;
    outbox_migrations::apply(session.client_mut(), set)
        .await
        .with_context(|| format!("applying the {} migrations", set.name()))
}
