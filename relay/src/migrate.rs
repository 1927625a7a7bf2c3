//! Applies the migrations, or prints them.

use anyhow::anyhow;

use crate::config::Config;

/// Which migrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Set {
    /// The producer's database.
    Outbox,
    /// The consumer's database.
    Inbox,
}

/// The SQL of a set, in order.
///
/// # Errors
/// Not built yet.
pub fn sql(set: Set) -> anyhow::Result<String> {
    Err(anyhow!("migrate --set {set:?} --print is not built yet"))
}

/// Brings the tables of a set up to date.
///
/// # Errors
/// The database can't be reached, or a migration failed and was rolled back.
#[expect(clippy::unused_async, reason = "not built yet")]
pub async fn run(_config: &Config, set: Set) -> anyhow::Result<()> {
    Err(anyhow!("migrate --set {set:?} is not built yet"))
}
