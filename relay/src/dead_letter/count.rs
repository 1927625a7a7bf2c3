//! How much is parked: for the board, whatever else the relay is at.

use tokio_postgres::{Client, Error};

/// What is parked under a relay's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Lanes; an event without one is none.
    pub lanes: u64,
    /// Events, those that are being released included.
    pub events: u64,
}

/// Counts, over the index of what is parked.
///
/// # Errors
/// The table can't be read, or the session is broken.
pub async fn count(client: &Client, relay: &str) -> Result<Parked, Error> {
    let sql = "select pg_catalog.count(distinct lane), pg_catalog.count(*) from outbox.dead_letters \
               where relay operator(pg_catalog.=) $1 and state in ('parked', 'releasing')";
    let row = client.query_one(sql, &[&relay]).await?;
    let number = |index| row.try_get(index).map(|n: i64| u64::try_from(n).unwrap_or_default());
    Ok(Parked { lanes: number(0)?, events: number(1)? })
}
