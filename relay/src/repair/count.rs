//! How many rows there are, as far as it matters.

use tokio_postgres::{Client, error::SqlState};

use super::{
    sql::{identifier, visible},
    tables::Table,
};
use crate::{core::printable::counted, route::TableName};

/// Rows are counted up to here.
pub(super) const COUNTED_MAX: i64 = 100_000;

/// How many rows are there now, at most one more than `COUNTED_MAX`; `None` where one of the
/// tables may not be read.
///
/// # Errors
/// The database's.
pub async fn rows_there(
    client: &Client,
    tables: &[TableName],
) -> Result<Option<i64>, tokio_postgres::Error> {
    let mut rows = 0;
    for TableName { schema, table } in tables {
        let query = format!(
            "select pg_catalog.count(*) from (select from {}.{} limit {}) t",
            identifier(schema),
            identifier(table),
            COUNTED_MAX + 1 - rows
        );
        rows += match client.query_one(&query, &[]).await {
            Ok(row) => row.try_get::<_, i64>(0)?,
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
    }
    Ok(Some(rows))
}

/// How many rows are there that a `pg_snapshot` does not show, at most one more than `COUNTED_MAX`.
///
/// # Errors
/// The database's.
pub async fn rows_since(
    client: &Client,
    tables: &[Table],
    snapshot: &str,
) -> Result<i64, tokio_postgres::Error> {
    let mut rows = 0;
    for table in tables {
        let query = format!(
            "select pg_catalog.count(*) from (select from {} t where not {} limit {}) t",
            table.from(),
            visible(snapshot),
            COUNTED_MAX + 1 - rows
        );
        rows += client.query_one(&query, &[]).await?.try_get::<_, i64>(0)?;
    }
    Ok(rows)
}

/// What a repair after a snapshot does with rows of the tables; each number is at most one more than
/// `COUNTED_MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// It publishes these: the snapshot does not show them.
    pub published: i64,
    /// Of them, those that were created at a moment or before.
    pub earlier: i64,
    /// It leaves these out: the snapshot shows them.
    pub left_out: i64,
}

/// Counts rows by a `pg_snapshot` and a moment, `created_ms`.
///
/// # Errors
/// The database's.
pub async fn rows_around(
    client: &Client,
    tables: &[Table],
    snapshot: &str,
    created_ms: i64,
) -> Result<Around, tokio_postgres::Error> {
    let seen = visible(snapshot);
    let mut around = Around::default();
    for table in tables {
        let earlier = format!("not {seen} and ({}) / 1000 <= {created_ms}", table.moment());
        for (count, condition) in [
            (&mut around.published, format!("not {seen}")),
            (&mut around.earlier, earlier),
            (&mut around.left_out, seen.clone()),
        ] {
            let query = format!(
                "select pg_catalog.count(*) from (select from {} t where {condition} limit {}) t",
                table.from(),
                COUNTED_MAX + 1 - *count
            );
            *count += client.query_one(&query, &[]).await?.try_get::<_, i64>(0)?;
        }
    }
    Ok(around)
}

/// Whether there is a row at all.
///
/// # Errors
/// The database's.
pub async fn any_row(client: &Client, tables: &[Table]) -> Result<bool, tokio_postgres::Error> {
    for table in tables {
        let query = format!("select exists (select from {})", table.from());
        if client.query_one(&query, &[]).await?.try_get(0)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A number of rows as a person reads it.
pub fn in_words(rows: i64) -> String {
    match rows {
        rows if rows > COUNTED_MAX => format!("more than {COUNTED_MAX} rows"),
        rows => counted(rows.unsigned_abs(), "row"),
    }
}
