//! How much is parked: for the board and for progress, whatever else the relay is at.

use tokio_postgres::{Client, Error};

use crate::progress::{PARKED_IDS_MAX, ParkedRecord};

/// Counts, over the index of what is parked.
///
/// # Errors
/// The table can't be read, or the session is broken.
pub async fn count(client: &Client, relay: &str) -> Result<ParkedRecord, Error> {
    // Ids that can be typed between quotes; of others there is only the number.
    let sql = format!(
        "select pg_catalog.count(distinct lane), pg_catalog.count(*), \
             'outbox.dead_letters'::pg_catalog.regclass::pg_catalog.oid, \
             array(select event_id from outbox.dead_letters \
                   where relay operator(pg_catalog.=) $1 and state in ('parked', 'releasing') \
                       and event_id operator(pg_catalog.~) '^[0-9A-Za-z_.:-]{{1,64}}$' \
                   limit {PARKED_IDS_MAX}) \
         from outbox.dead_letters \
         where relay operator(pg_catalog.=) $1 and state in ('parked', 'releasing')"
    );
    let row = client.query_one(&sql, &[&relay]).await?;
    let number = |index| row.try_get(index).map(|n: i64| u64::try_from(n).unwrap_or_default());
    Ok(ParkedRecord {
        lanes: number(0)?,
        events: number(1)?,
        table: row.try_get(2)?,
        ids: row.try_get(3)?,
    })
}
