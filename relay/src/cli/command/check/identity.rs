//! Publications of others that publish updates and deletes: PostgreSQL then refuses to change a table
//! whose rows have no identity.
//!
//! The tables of the migrations have one. A table of events has none by default: it has no index, and with
//! the whole row as its identity each DELETE would write that to the WAL.

use tokio_postgres::Client;

use super::{Finding, warning};
use crate::{postgres::catalog::InspectError, route::Mapping};

/// Tables of ours, and those that are mapped, whose rows can't be changed for somebody's publication.
pub(super) async fn lacking(
    mapping: &Mapping,
    client: &Client,
) -> Result<Option<Finding>, InspectError> {
    let sql = "select c.oid::pg_catalog.regclass::pg_catalog.text, \
             pg_catalog.string_agg(pg_catalog.quote_ident(p.pubname), ', ' order by p.pubname) \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         cross join lateral (select pg_catalog.array_agg(o.oid) from ( \
             select c.oid union select a.relid::pg_catalog.oid \
             from pg_catalog.pg_partition_ancestors(c.oid) as a (relid)) as o) as s (oids) \
         join pg_catalog.pg_publication p on (p.pubupdate or p.pubdelete) and exists ( \
             select from pg_catalog.pg_publication_tables e \
             join pg_catalog.pg_class ec on ec.relname = e.tablename and ec.oid = any (s.oids) \
             join pg_catalog.pg_namespace en on en.oid = ec.relnamespace \
                 and en.nspname = e.schemaname \
             where e.pubname = p.pubname) \
         where c.relkind = 'r' and c.relreplident <> 'f' \
             and (n.nspname = 'outbox' or exists ( \
                 select from unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) \
                     as m (schema, name) \
                 join pg_catalog.pg_class mc on mc.relname = m.name and mc.oid = any (s.oids) \
                 join pg_catalog.pg_namespace mn on mn.oid = mc.relnamespace \
                     and mn.nspname = m.schema)) \
             and not exists (select from pg_catalog.pg_index i where i.indrelid = c.oid \
                 and (c.relreplident = 'd' and i.indisprimary \
                     or c.relreplident = 'i' and i.indisreplident)) \
         group by c.oid order by c.oid";
    let schemas: Vec<&str> = mapping.tables().iter().map(|table| &*table.schema).collect();
    let names: Vec<&str> = mapping.tables().iter().map(|table| &*table.table).collect();
    let what = "publications of the outbox tables";
    let found = client.query(sql, &[&schemas, &names]).await;
    let found = found.map_err(|source| InspectError::Query { what, source })?;
    let read = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
    let found: Result<Vec<(String, String)>, tokio_postgres::Error> =
        found.iter().map(read).collect();
    let found = found.map_err(|source| InspectError::Query { what, source })?;
    let Some((_, publications)) = found.first() else { return Ok(None) };
    let tables: Vec<&str> = found.iter().map(|(table, _)| table.as_str()).collect();
    let tables = tables.join(", ");
    let statements: Vec<String> = found
        .iter()
        .map(|(table, _)| format!("alter table {table} replica identity full"))
        .collect();
    Ok(Some(warning(
        "publications",
        format!(
            "PostgreSQL refuses each UPDATE and DELETE of rows of {tables}, which have no replica identity: \
             {publications} publishes them"
        ),
        format!(
            "if rows of it are to be deleted, leave it out of that publication; or `{}`, for each new \
             partition too: each row that is deleted is then written to the WAL",
            statements.join("; ")
        ),
    )))
}
