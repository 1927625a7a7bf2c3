//! Whether the tables are those that stored progress speaks of: a copy of the volume that was put
//! back without its slots has other transactions under the same ids.

use tokio_postgres::Client;

use super::{sql::literal, tables::Table};
use crate::core::witness::Witness;

/// What the tables say of the newest published event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognised {
    /// It is there; or it may be gone, as somebody has deleted such rows since.
    Same,
    /// Its transaction is another one.
    Another,
    /// It is gone, and nothing says how.
    Missing,
}

/// Looks for the newest published event, of which the id is not to come any more. `rows_kept` is the
/// operator's word that rows go only once they are published.
///
/// # Errors
/// The database's.
pub async fn recognise(
    client: &Client,
    tables: &[Table],
    witness: Witness,
    rows_kept: bool,
) -> Result<Recognised, tokio_postgres::Error> {
    let Witness { xid, created_ms, .. } = witness;
    let xid = format!("'{xid}'::pg_catalog.xid8");
    let mut is_another = false;
    for table in tables {
        let found = format!(
            "select coalesce(pg_catalog.bool_or(r.ms = {created_ms}), false), \
                    coalesce(pg_catalog.bool_or(r.ms > {created_ms}), false) \
             from (select ({}) / 1000 as ms from {} t where t.xid = {xid}) r",
            table.moment(),
            table.from()
        );
        let row = client.query_one(&found, &[]).await?;
        if row.try_get(0)? {
            return Ok(Recognised::Same);
        }
        is_another |= row.try_get::<_, bool>(1)?;
    }
    match is_another {
        true => Ok(Recognised::Another),
        false if rows_kept || may_be_gone(client, tables, &xid).await? => Ok(Recognised::Same),
        false => Ok(Recognised::Missing),
    }
}

/// Whether rows of a transaction may have been deleted: the account says so, a relation has another file
/// than at first, or all of before is gone with it.
async fn may_be_gone(
    client: &Client,
    tables: &[Table],
    xid: &str,
) -> Result<bool, tokio_postgres::Error> {
    let noted = format!("select exists (select from outbox.deletions d where d.newest >= {xid})");
    if client.query_one(&noted, &[]).await?.try_get(0)? {
        return Ok(true);
    }
    for table in tables {
        let name = literal(&table.sql_name());
        let emptied = format!(
            "select exists (select from pg_catalog.pg_class c \
                 where c.relkind = 'r' and c.relfilenode <> c.oid and c.oid in ( \
                     select {name}::pg_catalog.regclass \
                     union select relid from pg_catalog.pg_partition_tree({name}))) \
             or not exists (select from {} t where t.xid < {xid})",
            table.from()
        );
        if client.query_one(&emptied, &[]).await?.try_get(0)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A snapshot that shows nothing of what was created later than `created_ms`, nor of what was written
/// after the first of that, nor of a transaction that is open now: its rows can't be seen yet.
///
/// # Errors
/// The database's.
pub async fn before(
    client: &Client,
    tables: &[Table],
    created_ms: i64,
) -> Result<String, tokio_postgres::Error> {
    let open = "pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())";
    let mut first = format!("select {open}::pg_catalog.text::pg_catalog.int8");
    for table in tables {
        // There is no min(xid8).
        first.push_str(&format!(
            " union all (select t.xid::pg_catalog.text::pg_catalog.int8 from {} t \
             where ({}) / 1000 > {created_ms} order by t.xid limit 1)",
            table.from(),
            table.moment()
        ));
    }
    let query = format!("select pg_catalog.min(f.xid) from ({first}) as f (xid)");
    let first: i64 = client.query_one(&query, &[]).await?.try_get(0)?;
    Ok(format!("{first}:{first}:"))
}
