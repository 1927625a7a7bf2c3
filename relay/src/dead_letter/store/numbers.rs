//! Places and counts, between the table's types and ours.

use tokio_postgres::{Row, types::PgLsn};

use crate::core::{lsn::Lsn, position::RowPosition};

pub(super) fn position(row: &Row, column: usize) -> RowPosition {
    let commit = Lsn::new(row.get::<_, PgLsn>(column).into());
    RowPosition { commit, ordinal: unsigned(row.get(column + 1)) }
}

/// Ordinals count rows of a transaction: they don't come near either type's end.
pub(super) fn signed(ordinal: u64) -> i64 {
    i64::try_from(ordinal).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(ordinal: i64) -> u64 {
    u64::try_from(ordinal).unwrap_or(0)
}
