//! What someone has put on `outbox.dead_letters` that computes something of each row, and may refuse one by that. Most
//! refuses nothing, so only where the server has refused a row and nothing else explains it are they named.

use tokio_postgres::Client;

use super::{altered::Altered, error::InspectError, rows::rows};

/// Triggers, rules, indexes and columns of others.
///
/// # Errors
/// [`InspectError`].
pub(super) async fn look(client: &Client) -> Result<Vec<Altered>, InspectError> {
    rows(client, "what may refuse a parked event", SQL, &[]).await
}

const SQL: &str = "\
with t as (select pg_catalog.to_regclass('outbox.dead_letters') as oid), \
    columns as (select a.attname, a.attgenerated from pg_catalog.pg_attribute a join t on t.oid = a.attrelid \
        where a.attnum > 0 and not a.attisdropped and (a.atthasdef or a.attgenerated <> '') \
            and a.attname::pg_catalog.text not in ('id', 'state', 'parked_at', 'changed_at')), \
    found as ( \
    select 1 as place, pg_catalog.format('trigger %I', g.tgname) as what, p.proname as of, \
        pg_catalog.format('alter table outbox.dead_letters disable trigger %I', g.tgname) as remedy \
    from pg_catalog.pg_trigger g join t on t.oid = g.tgrelid join pg_catalog.pg_proc p on p.oid = g.tgfoid \
    where not g.tgisinternal and g.tgenabled in ('O', 'A') and g.tgtype & 20 <> 0 \
        and g.tgname not in ('keep_until_settled', 'note_restored') \
    union all \
    select 2, pg_catalog.format('rule %I', r.rulename), null, \
        pg_catalog.format('drop rule %I on outbox.dead_letters', r.rulename) \
    from pg_catalog.pg_rewrite r join t on t.oid = r.ev_class \
    where r.ev_type in ('2', '3') and r.ev_enabled in ('O', 'A') \
    union all \
    select 3, pg_catalog.format('index %I', c.relname), c.relname, \
        case when n.conname is null then pg_catalog.format('drop index outbox.%I', c.relname) \
            else pg_catalog.format('alter table outbox.dead_letters drop constraint %I', n.conname) end \
    from pg_catalog.pg_index i join t on t.oid = i.indrelid join pg_catalog.pg_class c on c.oid = i.indexrelid \
    left join pg_catalog.pg_constraint n on n.conindid = i.indexrelid and n.conrelid = i.indrelid \
    where not i.indisprimary and i.indisready \
        and (i.indexprs is not null or i.indpred is not null or i.indisunique) and c.relname !~ \
            '^dead_letters_(position|parked|history|waiting|missing|suspected|event|restored)(_ccnew[0-9]*)?$' \
    union all \
    select 4, pg_catalog.format('column %I', c.attname), null, \
        pg_catalog.format('alter table outbox.dead_letters alter column %I drop %s', c.attname, \
            case c.attgenerated when '' then 'default' else 'expression' end) \
    from columns c where c.attgenerated in ('', 's')) \
select pg_catalog.jsonb_build_object( \
    'seen', pg_catalog.format('the %s of outbox.dead_letters may be what refuses it', f.what), \
    'kind', 'trigger', 'of', f.of, 'remedy', pg_catalog.jsonb_build_object('sql', f.remedy))::pg_catalog.text \
from found f order by f.place, f.what";
