//! What others may have put on a table that keeps rows out of it, or changes them, before they are stored.

use tokio_postgres::Client;

use super::{error::InspectError, rows::rows};

/// Triggers before each inserted row, and rules in place of an insert, of a table and its partitions: the
/// statements that remove them. The migrations' own triggers are not among them.
///
/// # Errors
/// [`InspectError`].
pub async fn on(client: &Client, schema: &str, table: &str) -> Result<Vec<String>, InspectError> {
    rows(client, "triggers and rules", SQL, &[&schema, &table]).await
}

const SQL: &str = "\
with named as (select c.oid from pg_catalog.pg_class c \
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
        where n.nspname::pg_catalog.text = $1 and c.relname::pg_catalog.text = $2), \
    tables as (select named.oid from named \
        union select p.relid::pg_catalog.oid from named, pg_catalog.pg_partition_tree(named.oid) p) \
select pg_catalog.to_jsonb(l.line)::pg_catalog.text from ( \
    select pg_catalog.format('drop trigger %I on %s', g.tgname, g.tgrelid::pg_catalog.regclass) as line \
    from pg_catalog.pg_trigger g join tables t on t.oid = g.tgrelid \
    where not g.tgisinternal and g.tgparentid = 0 and g.tgenabled in ('O', 'A') and g.tgtype & 7 = 7 \
        and not exists (select from pg_catalog.pg_proc f join pg_catalog.pg_namespace m on m.oid = f.pronamespace \
            where f.oid = g.tgfoid and m.nspname = 'outbox' and f.proname = 'note_restored') \
    union all \
    select pg_catalog.format('drop rule %I on %s', r.rulename, r.ev_class::pg_catalog.regclass) \
    from pg_catalog.pg_rewrite r join tables t on t.oid = r.ev_class \
    where r.ev_type = '3' and r.is_instead and r.ev_enabled in ('O', 'A')) l order by l.line";
