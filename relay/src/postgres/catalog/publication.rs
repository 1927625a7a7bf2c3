//! Reads how a publication names the outbox tables, together with a snapshot of that very moment.
//!
//! Only the catalogs' own rows are asked, which are seen as the statement's snapshot has them;
//! functions such as those behind `pg_publication_tables` see what is committed meanwhile. A table of which
//! DETACH CONCURRENTLY was cut short is no partition: the root no longer shows its rows. What the difference
//! between two looks means is `published`'s.

use tokio_postgres::Client;

use super::error::InspectError;
use crate::core::published::Published;

/// The tables themselves, and what they are partitions of.
const TREE: &str = "with recursive tree (name, root, oid, schema) as ( \
         select w.name, c.oid, c.oid, c.relnamespace \
         from unnest($2::text[], $3::text[], $4::text[]) as w (name, schema, relation) \
         join pg_catalog.pg_namespace n on n.nspname::text = w.schema \
         join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname::text = w.relation \
       union all \
         select t.name, t.root, above.oid, above.relnamespace \
         from tree t join pg_catalog.pg_class c on c.oid = t.oid and c.relispartition \
         join pg_catalog.pg_inherits i on i.inhrelid = t.oid \
         join pg_catalog.pg_class above on above.oid = i.inhparent \
     ), below (oid, xmin) as ( \
         select i.inhrelid, i.xmin::text from tree t join pg_catalog.pg_inherits i on i.inhparent = t.oid \
         where t.oid = t.root and not i.inhdetachpending \
       union all \
         select i.inhrelid, i.xmin::text from below b join pg_catalog.pg_inherits i on i.inhparent = b.oid \
         where not i.inhdetachpending \
     ), p as ( \
         select oid, xmin::text as xmin, puballtables \
         from pg_catalog.pg_publication where pubname::text = $1 \
     ), named (kind, oid, xmin, what) as ( \
         select 'table', r.oid, r.xmin::text, r.prrelid \
         from p join pg_catalog.pg_publication_rel r on r.prpubid = p.oid ";
/// From 15 on.
const SCHEMAS: &str = "union all \
         select 'schema', s.oid, s.xmin::text, s.pnnspid \
         from p join pg_catalog.pg_publication_namespace s on s.pnpubid = p.oid ";
const WAYS: &str = "), ways (root, own, way) as ( \
         select t.root, t.oid = t.root, pg_catalog.concat(n.kind, ' ', n.oid, ':', n.xmin) \
         from tree t join named n on n.what = case n.kind when 'table' then t.oid else t.schema end \
       union all \
         select t.root, t.oid = t.root, pg_catalog.concat('all ', nullif(t.oid, t.root)) \
         from tree t join p on p.puballtables \
     ) \
     select pg_catalog.pg_current_snapshot()::text, pg_catalog.jsonb_build_object( \
         'publication', \
         coalesce((select pg_catalog.concat(oid, ':', xmin) from p), ''), \
         'tables', \
         coalesce((select pg_catalog.jsonb_object_agg(t.name, pg_catalog.jsonb_build_object( \
             'oid', t.oid::int8, \
             'stamp', coalesce((select pg_catalog.concat(d.oid, ':', d.xmin) \
                     from pg_catalog.pg_attrdef d join pg_catalog.pg_attribute a \
                         on a.attrelid = d.adrelid and a.attnum = d.adnum \
                     where d.adrelid = t.oid and a.attname = 'xid'), ''), \
             'own', (select coalesce(pg_catalog.jsonb_agg(way order by way), '[]') \
                     from ways w where w.root = t.root and w.own), \
             'above', (select coalesce(pg_catalog.jsonb_agg(way order by way), '[]') \
                     from ways w where w.root = t.root and not w.own) \
         )) from tree t where t.oid = t.root), '{}'), \
         'attached', \
         coalesce((select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array( \
             oid::int8, xmin::int8) order by oid) from below), '[]'), \
         'unlogged', \
         coalesce((select pg_catalog.jsonb_agg(c.relname order by c.relname) from pg_catalog.pg_class c \
             where (c.relpersistence <> 'p' or c.relkind = 'f') and ( \
                 c.oid in (select oid from tree t where t.oid = t.root) \
                 or c.relkind <> 'p' and c.oid in (select oid from below))), '[]'), \
         'whole', \
         (select pg_catalog.substr(pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to( \
             coalesce(pg_catalog.string_agg(pg_catalog.concat(oid, ':', xmin), ',' order by oid), ''), \
             'UTF8')), 'hex'), 1, 32) from named) \
     )::text";

/// What is asked of one server, for one publication and its tables.
#[derive(Clone, Debug)]
pub struct Look {
    publication: String,
    /// Name as it is written, schema, table.
    names: [Vec<String>; 3],
    sql: String,
}

impl Look {
    /// `tables` are the settings'; `server_version_num` is the server's, such as 150004.
    pub fn new<'a>(
        server_version_num: u32,
        publication: &str,
        tables: impl Iterator<Item = (String, &'a str, &'a str)>,
    ) -> Self {
        let schemas = if server_version_num >= 150_000 { SCHEMAS } else { "" };
        let mut names = [Vec::new(), Vec::new(), Vec::new()];
        for (name, schema, table) in tables {
            let [written, schemas, relations] = &mut names;
            written.push(name);
            schemas.push(schema.to_owned());
            relations.push(table.to_owned());
        }
        let sql = format!("{TREE}{schemas}{WAYS}");
        Look { publication: publication.to_owned(), names, sql }
    }

    /// `pg_current_snapshot()` as text, and what the catalogs have in it.
    ///
    /// # Errors
    /// [`InspectError`].
    pub async fn at(&self, client: &Client) -> Result<(String, Published), InspectError> {
        let what = "how the tables are published";
        let failed = |source| InspectError::Query { what, source };
        let [names, schemas, relations] = &self.names;
        let row = client
            .query_one(&self.sql, &[&self.publication, names, schemas, relations])
            .await
            .map_err(failed)?;
        let published = serde_json::from_str(row.try_get(1).map_err(failed)?);
        let published = published.map_err(|source| InspectError::Shape { what, source })?;
        Ok((row.try_get(0).map_err(failed)?, published))
    }
}

/// Whether the publication, or a table's place in it, may have been changed after something was written that
/// the slot is still to send. For `check`, which does not know what was there before.
///
/// # Errors
/// [`InspectError`].
pub async fn changed_under(
    client: &Client,
    slot: &str,
    publication: &str,
    tables: impl Iterator<Item = (&str, &str)>,
) -> Result<bool, InspectError> {
    let sql = "select coalesce(bool_or(pg_catalog.age(x.xmin) \
                   between 0 and pg_catalog.age(s.catalog_xmin) - 1), false) \
               from pg_catalog.pg_replication_slots s, ( \
                   select xmin from pg_catalog.pg_publication where pubname::text = $2 \
                 union all \
                   select r.xmin from pg_catalog.pg_publication p \
                   join pg_catalog.pg_publication_rel r on r.prpubid = p.oid \
                   join pg_catalog.pg_class c on c.oid = r.prrelid \
                   join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                   join unnest($3::text[], $4::text[]) as w (schema, relation) \
                       on n.nspname::text = w.schema and c.relname::text = w.relation \
                   where p.pubname::text = $2) x \
               where s.slot_name::text = $1";
    let failed = |source| InspectError::Query { what: "the publication's age", source };
    let (schemas, relations): (Vec<_>, Vec<_>) = tables.unzip();
    let row = client.query_one(sql, &[&slot, &publication, &schemas, &relations]).await;
    row.and_then(|row| row.try_get(0)).map_err(failed)
}
