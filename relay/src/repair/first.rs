//! Whether what a first start that was cut short is to read may be gone: it has no snapshot of which everything was
//! delivered, but its slot is made, and from then on nothing is left out in silence.

use tokio_postgres::Client;

use super::{
    losses::{Published, accounted_for, gone, vanished},
    tables::Table,
};
use crate::core::{halt::Halt, leaves::Leaves};

/// Whether the rows that `upper` shows, the snapshot of its slot, are still there. `leaves` are the partitions that were;
/// `rows_kept` is the operator's word that none is deleted before it is published. A table that has no account of deletions needs none for a first start: that it has none is said.
///
/// # Errors
/// The database's.
pub async fn still_there(
    client: &Client,
    tables: &[Table],
    upper: &str,
    leaves: &Leaves,
    rows_kept: bool,
) -> Result<Result<(), Halt>, tokio_postgres::Error> {
    if rows_kept {
        return Ok(Ok(()));
    }
    for table in tables {
        if let Err(Halt { reason, remedy }) = accounted_for(table) {
            tracing::warn!(
                remedy,
                "{reason}: rows that were deleted since the first start are not missed"
            );
            continue;
        }
        if let Some(halt) = gone(client, table, upper, leaves, Published::Unknown).await? {
            return Ok(Err(halt));
        }
    }
    Ok(vanished(client, tables, Some(upper), leaves).await?.map_or(Ok(()), Err))
}
