//! What others may have put on the inbox's tables, and whether a row that was written is there.
//!
//! A trigger that returns nothing, a rule, a policy: each has a statement succeed that stored nothing,
//! and a message would be lost without a word. They are refused when an inbox opens and looked for
//! while it is used; what a message rests on is proven when it is written.

use tokio_postgres::Client;

use crate::error::InboxError;

/// Tables whose rows row-level security hides; statements that remove triggers and rules which may
/// pass over or change rows. Each null where there are none.
const LOOK: &str = "with ours as (select c.oid, c.oid::pg_catalog.regclass as name \
        from pg_catalog.pg_class as c \
            join pg_catalog.pg_namespace as n on n.oid operator(pg_catalog.=) c.relnamespace \
        where n.nspname operator(pg_catalog.=) 'inbox' and c.relkind operator(pg_catalog.=) \
            any (array['r', 'p']::pg_catalog.\"char\"[])) \
    select (select pg_catalog.string_agg(t.name, ', ') from pg_catalog.unnest( \
            array['inbox.messages', 'inbox.consumers', 'inbox.settings', 'inbox.parked_lanes', \
                'inbox.parked', 'inbox.dead_letters', 'inbox.watermarks', 'inbox.applied']) as t (name) \
            where pg_catalog.to_regclass(t.name) is not null \
                and pg_catalog.row_security_active(pg_catalog.to_regclass(t.name))), \
        (select pg_catalog.string_agg(l.line, '; ') from ( \
            select pg_catalog.format('drop trigger %I on %s', t.tgname, o.name) as line \
            from pg_catalog.pg_trigger as t join ours as o on o.oid operator(pg_catalog.=) t.tgrelid \
            where not t.tgisinternal and t.tgenabled operator(pg_catalog.=) \
                any (array['O', 'A']::pg_catalog.\"char\"[]) \
                and (t.tgtype operator(pg_catalog.&) 3::pg_catalog.int2) operator(pg_catalog.=) 3 \
            union all select pg_catalog.format('drop rule %I on %s', r.rulename, o.name) \
            from pg_catalog.pg_rewrite as r join ours as o on o.oid operator(pg_catalog.=) r.ev_class \
            where r.ev_enabled operator(pg_catalog.=) \
                any (array['O', 'A']::pg_catalog.\"char\"[])) as l)";

/// Whether somebody may hide, change or pass over rows of the inbox.
///
/// # Errors
/// [`InboxError::Setting`], with what to type.
pub(crate) async fn look(client: &Client) -> Result<(), InboxError> {
    let refused = |error| InboxError::of("looking at the inbox's tables", error);
    let rows = client.query_typed(LOOK, &[]).await.map_err(refused)?;
    let row = rows.first().expect("a query without a table returns one row");
    if let Some(tables) = row.try_get::<_, Option<&str>>(0).map_err(refused)? {
        return Err(InboxError::Setting(format!(
            "row-level security may hide rows of {tables} from the consumer's role, and a message whose \
             row is hidden would take effect twice; type, for each table: alter table … disable row \
             level security"
        )));
    }
    match row.try_get::<_, Option<&str>>(1).map_err(refused)? {
        None => Ok(()),
        Some(drop) => Err(InboxError::Setting(format!(
            "a trigger before each row, or a rule, may pass over or change what the inbox stores, and a \
             message would be lost without a word; type, as the tables' owner: {drop}. A trigger that \
             runs after each row may take its place"
        ))),
    }
}

/// A statement succeeded, and its row is not there.
pub(crate) fn kept_out_of(table: &str) -> InboxError {
    InboxError::Setting(format!(
        "a row that was written into {table} is not there: a trigger, a rule or row-level security of \
         somebody's keeps it out. Nothing of the message is stored or acknowledged; type `\\d {table}` in \
         psql to see what it is, and drop it"
    ))
}
