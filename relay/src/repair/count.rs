//! How many rows there are, as far as it matters.

use tokio_postgres::{Client, error::SqlState};

use super::{
    sql::{identifier, literal, shown_name, visible},
    tables::Table,
};
use crate::{
    core::{leaves::Leaves, printable::counted},
    route::TableName,
};

/// Rows are counted up to here.
pub(super) const COUNTED_MAX: i64 = 100_000;
/// Tables that are named with the number of their rows.
const NAMED_MAX: usize = 8;

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

/// Rows that a `pg_snapshot` does not show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowsSince {
    /// How many, at most one more than `COUNTED_MAX`.
    pub rows: i64,
    /// How many of these each table and partition has, the one with most first.
    pub by_table: Vec<(String, i64)>,
}

/// Counts the rows that a `pg_snapshot` does not show, and all rows of partitions that are not among `leaves`, those
/// that it shows: they were attached since.
///
/// # Errors
/// The database's.
pub async fn rows_since(
    client: &Client,
    tables: &[Table],
    snapshot: &str,
    leaves: &Leaves,
) -> Result<RowsSince, tokio_postgres::Error> {
    let mut since = RowsSince::default();
    let leaves: Vec<i64> = leaves.oids().into_iter().map(i64::from).collect();
    for table in tables {
        let query = format!(
            "select {}, count from ( \
                 select t.tableoid, pg_catalog.count(*) as count from ( \
                     select t.tableoid from {} t where not {} or t.tableoid <> {}::pg_catalog.regclass \
                         and pg_catalog.cardinality($1::pg_catalog.int8[]) > 0 \
                         and t.tableoid::pg_catalog.int8 <> all ($1) limit {}) t group by 1) c",
            shown_name("c.tableoid::pg_catalog.regclass::pg_catalog.text"),
            table.from(),
            visible(snapshot),
            literal(&table.sql_name()),
            COUNTED_MAX + 1 - since.rows
        );
        for row in client.query(&query, &[&leaves]).await? {
            let (name, rows): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            since.rows += rows;
            since.by_table.push((name, rows));
        }
    }
    since.by_table.sort_by(|(a, more), (b, rows)| (rows, a).cmp(&(more, b)));
    Ok(since)
}

/// Counts the rows that a `pg_snapshot` shows although they were created later than `taken_ms`, when it was taken: their
/// column `xid` had another default, or they came from elsewhere. At most one more than `COUNTED_MAX`.
///
/// # Errors
/// The database's.
pub async fn rows_younger(
    client: &Client,
    tables: &[Table],
    snapshot: &str,
    taken_ms: i64,
) -> Result<i64, tokio_postgres::Error> {
    let mut rows = 0;
    // Of another, the stream publishes rows whatever their xid is.
    for table in tables.iter().filter(|table| table.stamped) {
        let condition =
            format!("{} and ({}) / 1000 > {taken_ms}", visible(snapshot), table.moment());
        rows += count(client, table, &condition, rows).await?;
    }
    Ok(rows)
}

/// How many rows of a table there are, where `so_far` are counted.
async fn count(
    client: &Client,
    table: &Table,
    condition: &str,
    so_far: i64,
) -> Result<i64, tokio_postgres::Error> {
    let query = format!(
        "select pg_catalog.count(*) from (select from {} t where {condition} limit {}) t",
        table.from(),
        COUNTED_MAX + 1 - so_far
    );
    client.query_one(&query, &[]).await?.try_get(0)
}

impl RowsSince {
    /// As a person reads it: how many, and where the most of them are.
    pub fn in_words(&self) -> String {
        let all = in_words(self.rows);
        let named = self.by_table.iter().take(NAMED_MAX);
        let mut named: Vec<String> =
            named.map(|(name, rows)| format!("{} in {name}", in_words(*rows))).collect();
        match self.by_table.len().saturating_sub(NAMED_MAX) {
            0 => {}
            more => named.push(format!("the rest in {}", counted(more as u64, "other table"))),
        }
        match named.is_empty() {
            true => format!("{all} of the outbox tables"),
            false => format!("{all} of the outbox tables ({})", named.join(", ")),
        }
    }
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
        for (so_far, condition) in [
            (&mut around.published, format!("not {seen}")),
            (&mut around.earlier, earlier),
            (&mut around.left_out, seen.clone()),
        ] {
            *so_far += count(client, table, &condition, *so_far).await?;
        }
    }
    Ok(around)
}

/// Rows of these topics. A `*` in a pattern stands for any text; `None` where no column says the topic.
///
/// # Errors
/// The database's.
pub async fn rows_of_topics(
    client: &Client,
    tables: &[Table],
    patterns: &[String],
) -> Result<Option<i64>, tokio_postgres::Error> {
    let mut rows = 0;
    for table in tables {
        let Some(topic) = &table.topic else { return Ok(None) };
        let any = patterns.iter().map(|pattern| {
            let escaped = pattern.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
            format!(
                "t.{}::pg_catalog.text operator(pg_catalog.~~) {}",
                identifier(topic),
                literal(&escaped.replace('*', "%"))
            )
        });
        let any = any.collect::<Vec<_>>().join(" or ");
        rows += count(client, table, &any, rows).await?;
    }
    Ok(Some(rows))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_table_is_named_with_its_rows() {
        let of = |counts: &[i64]| {
            let table = |(at, rows): (usize, &i64)| (format!("outbox.p{at}"), *rows);
            let by_table = counts.iter().enumerate().map(table).collect();
            RowsSince { rows: counts.iter().sum(), by_table }.in_words()
        };
        assert_eq!(of(&[]), "0 rows of the outbox tables");
        assert_eq!(
            of(&[6, 1]),
            "7 rows of the outbox tables (6 rows in outbox.p0, 1 row in outbox.p1)"
        );
        let many = of(&[1; 11]);
        assert!(many.ends_with("1 row in outbox.p7, the rest in 3 other tables)"), "{many}");
    }
}
