//! Whether the tables have all that a slot is still to send: a repair has a new slot, and what is in the old one
//! alone would be lost.

use tokio_postgres::{Client, SimpleQueryMessage, error::SqlState};

use super::sql::{NOW, full_xid, identifier, literal};
use crate::{core::lsn::Lsn, route::TableName};

/// Changes of the slot that are looked at; of more it is not known.
const CHANGES_MAX: usize = 100_000;

/// Whether each transaction that ends at `after` or later, of a slot that no one streams from, has as many rows in the
/// tables as were inserted. `None` where that can't be said soon.
///
/// # Errors
/// The database's.
pub async fn is_in_tables(
    client: &Client,
    slot: &str,
    publication: &str,
    after: Lsn,
    tables: &[TableName],
) -> Result<Option<bool>, tokio_postgres::Error> {
    // Of pgoutput's messages, `C` ends a transaction, and `I` is a row of the relation of which the OID follows.
    let changes = format!(
        "select lsn, xid, pg_catalog.get_byte(data, 0) as kind, \
             case pg_catalog.get_byte(data, 0) when 73 then \
                 pg_catalog.get_byte(data, 1)::int8 * 16777216 + pg_catalog.get_byte(data, 2) * 65536 \
                     + pg_catalog.get_byte(data, 3) * 256 + pg_catalog.get_byte(data, 4) end as relation \
         from pg_catalog.pg_logical_slot_peek_binary_changes({}, null, {CHANGES_MAX}, \
             'proto_version', '1', 'publication_names', {})",
        literal(slot),
        literal(&identifier(publication)),
    );
    let xid = full_xid("i.xid", NOW);
    let named = |name: &TableName| {
        let name = format!("{}.{}", identifier(&name.schema), identifier(&name.table));
        let oid =
            format!("{}::pg_catalog.regclass::pg_catalog.oid::pg_catalog.int8", literal(&name));
        (name, oid)
    };
    // A publication may have other tables, too.
    let ours = tables.iter().map(|name| named(name).1).collect::<Vec<_>>().join(", ");
    let there = tables.iter().map(|name| {
        let (name, oid) = named(name);
        format!(
            "select {oid} as relation, t.xid, pg_catalog.count(*) as rows from {name} t \
             where t.xid in (select s.xid from sent s where s.relation = {oid}) group by t.xid"
        )
    });
    let there = there.collect::<Vec<_>>().join(" union all ");
    let sql = format!(
        "set statement_timeout = '10s'; \
         with changes as materialized ({changes}), \
             sent as materialized ( \
                 select i.relation, {xid} as xid, pg_catalog.count(*) as rows from changes i \
                 where i.kind = 73 and i.relation in ({ours}) and i.xid in ( \
                     select c.xid from changes c where c.kind = 67 and c.lsn >= '{after}') \
                 group by 1, 2), \
             there as ({there}) \
         select case when (select pg_catalog.count(*) from changes) < {CHANGES_MAX} then (not exists ( \
             select from sent s left join there t on t.relation = s.relation and t.xid = s.xid \
             where s.rows <> coalesce(t.rows, 0)))::pg_catalog.text end; \
         reset statement_timeout"
    );
    match client.simple_query(&sql).await {
        Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => row.get(0).map(|it| it == "true"),
            _ => None,
        })),
        // It took too long; a table lacks the column `xid`; or, before PostgreSQL 18, the publication was missing when
        // something was written, and the slot sends nothing from there on.
        Err(error)
            if error.code().is_some_and(|code| {
                let unsaid = [
                    SqlState::QUERY_CANCELED,
                    SqlState::UNDEFINED_COLUMN,
                    SqlState::UNDEFINED_OBJECT,
                ];
                unsaid.contains(code)
            }) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
