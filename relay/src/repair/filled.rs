//! Whether a dump has filled the tables.

use tokio_postgres::Client;

use super::{sql::visible, tables::Table};

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
