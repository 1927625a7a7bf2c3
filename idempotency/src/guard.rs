//! What others may have put on the inbox's tables, and whether a row that was written is there.
//!
//! A trigger that returns nothing, a rule, a policy: each has a statement succeed that stored nothing,
//! and a message would be lost without a word. Without its unique index, or after a crash that emptied
//! an unlogged table, a copy is taken for new. They are refused when an inbox opens and looked for
//! while it is used; what a message rests on is proven when it is written.

use tokio_postgres::Client;

use crate::error::InboxError;

/// Tables whose rows row-level security hides; statements that remove triggers and rules which may
/// pass over or change rows; that make tables durable which a crash empties; that make unique indexes
/// which tell a copy from a new message. Each null where there are none.
const LOOK: &str = "with ours as (select c.oid, c.oid::pg_catalog.regclass as name \
        from pg_catalog.pg_class as c \
            join pg_catalog.pg_namespace as n on n.oid operator(pg_catalog.=) c.relnamespace \
        where n.nspname operator(pg_catalog.=) 'inbox' and c.relkind operator(pg_catalog.=) \
            any (array['r', 'p']::pg_catalog.\"char\"[])) \
    select (select pg_catalog.string_agg(t.name, ', ') from pg_catalog.unnest( \
            array['inbox.messages', 'inbox.consumers', 'inbox.settings', 'inbox.parked_lanes', \
                'inbox.parked', 'inbox.dead_letters', 'inbox.watermarks', 'inbox.applied', 'inbox.losses']) as t (name) \
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
                any (array['O', 'A']::pg_catalog.\"char\"[])) as l), \
        (select pg_catalog.string_agg(pg_catalog.format('alter table %s set logged', c.oid::pg_catalog.regclass), \
                '; ') \
            from pg_catalog.pg_class as c where c.oid operator(pg_catalog.=) any (select o.oid from ours as o) \
                and c.relkind operator(pg_catalog.=) 'r' and c.relpersistence operator(pg_catalog.<>) 'p'), \
        (select pg_catalog.string_agg(pg_catalog.format('create unique index on %s (%s)', k.name, k.columns), '; ') \
            from (values ('inbox.messages', 'consumer_id, id, day'), \
                ('inbox.consumers', 'name'), ('inbox.parked_lanes', 'consumer_id, lane'), \
                ('inbox.watermarks', 'consumer_id, topic, partition')) as k (name, columns) \
            where pg_catalog.to_regclass(k.name)::pg_catalog.oid operator(pg_catalog.=) \
                    any (select o.oid from ours as o) and not exists ( \
                select from pg_catalog.pg_index as i \
                where i.indrelid operator(pg_catalog.=) pg_catalog.to_regclass(k.name)::pg_catalog.oid \
                    and i.indisunique and i.indisvalid and i.indimmediate \
                    and i.indpred is null and i.indexprs is null \
                    and (select pg_catalog.string_agg(a.attname::pg_catalog.text, ', ' \
                        order by a.attname::pg_catalog.text) \
                        from pg_catalog.unnest(i.indkey) with ordinality as c (number, place) \
                        join pg_catalog.pg_attribute as a on a.attrelid operator(pg_catalog.=) i.indrelid \
                            and a.attnum operator(pg_catalog.=) c.number \
                        where c.place operator(pg_catalog.<=) i.indnkeyatts) \
                    operator(pg_catalog.=) (select pg_catalog.string_agg(n.name, ', ' order by n.name) \
                        from pg_catalog.string_to_table(k.columns, ', ') as n (name))))";

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
    if let Some(drop) = row.try_get::<_, Option<&str>>(1).map_err(refused)? {
        return Err(InboxError::Setting(format!(
            "a trigger before each row, or a rule, may pass over or change what the inbox stores, and a \
             message would be lost without a word; type, as the tables' owner: {drop}. A trigger that \
             runs after each row may take its place"
        )));
    }
    if let Some(keep) = row.try_get::<_, Option<&str>>(2).map_err(refused)? {
        return Err(InboxError::Setting(format!(
            "a table of the inbox is unlogged: a crash of the server empties it, and a standby has \
             nothing of it, so messages would take effect twice or be lost without a word; type, as the \
             tables' owner: {keep}"
        )));
    }
    match row.try_get::<_, Option<&str>>(3).map_err(refused)? {
        None => Ok(()),
        Some(create) => Err(InboxError::Setting(format!(
            "a table of the inbox has lost its unique index, without which a second copy is taken for a \
             new message; type, as the tables' owner: {create}. Where that fails, some messages have \
             taken effect twice already: delete the second rows first"
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
