//! Whether a dump has filled the tables.

use tokio_postgres::Client;

use super::{sql::visible, tables::Table};
use crate::core::halt::Halt;

/// Rows that are looked at for [`is_filled`].
const SAMPLE: i64 = 1000;

/// Whether rows that `snapshot` shows were written by other transactions than their column `xid` says, so that a dump has
/// brought them; `pg_upgrade` keeps both. Most of a sample, for the owner may have moved some.
///
/// # Errors
/// The database's.
pub async fn is_filled(
    client: &Client,
    tables: &[Table],
    snapshot: &str,
) -> Result<bool, tokio_postgres::Error> {
    let seen = visible(snapshot);
    let (mut kept, mut brought) = (0, 0);
    for table in tables.iter().filter(|table| table.stamped) {
        let query = format!(
            "select pg_catalog.count(*) filter (where s.same), pg_catalog.count(*) filter (where not s.same) \
             from (select t.xid::pg_catalog.xid operator(pg_catalog.=) t.xmin as same from {} t \
                   where {seen} limit {SAMPLE}) s",
            table.from()
        );
        let row = client.query_one(&query, &[]).await?;
        kept += row.try_get::<_, i64>(0)?;
        brought += row.try_get::<_, i64>(1)?;
    }
    Ok(brought > kept)
}

/// Whether a table has rows that carry another cluster's transaction ids: a repair would skip them. Rows that were copied
/// into a table whose relay is at home are to be skipped, so [`complete`](super::complete) asks this only where every row is read.
///
/// # Errors
/// The database's.
pub async fn foreign(
    client: &Client,
    tables: &[Table],
) -> Result<Option<Halt>, tokio_postgres::Error> {
    let mut all: Option<Halt> = None;
    for table in tables {
        let Some(halt) = of_this_cluster(client, table).await? else { continue };
        match &mut all {
            None => all = Some(halt),
            Some(all) => {
                all.reason = format!("{}; {}", all.reason, halt.reason);
                all.remedy = format!("{}; {}", all.remedy, halt.remedy);
            }
        }
    }
    Ok(all)
}

pub(super) async fn of_this_cluster(
    client: &Client,
    table: &Table,
) -> Result<Option<Halt>, tokio_postgres::Error> {
    let from = table.from();
    let query = format!(
        "select exists (select from {from} t where t.xid >= \
             pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())), \
         exists (select from {from} t where t.xid = '0'::pg_catalog.xid8)"
    );
    let row = client.query_one(&query, &[]).await?;
    let (what, which) = match (row.try_get(0)?, row.try_get(1)?) {
        (false, false) => return Ok(None),
        // No snapshot tells those that are published from the others.
        (ids_to_come, true) => {
            let more =
                if ids_to_come { " or xid >= pg_snapshot_xmax(pg_current_snapshot())" } else { "" };
            (
                "has rows with the transaction id 0, which no transaction has",
                format!("xid = '0'{more}"),
            )
        }
        (true, false) => (
            "has rows with the transaction ids of another cluster, from a dump",
            "xid >= pg_snapshot_xmax(pg_current_snapshot())".to_owned(),
        ),
    };
    let name = &table.name;
    Ok(Some(Halt::new(
        format!("{name} {what}"),
        format!("`update {name} set xid = pg_current_xact_id() where {which}`"),
    )))
}
