//! What an administrator has changed on the relay's own tables, so that these refuse rows or hide them.
//!
//! What keeps rows out and says nothing is in `meddling`.

use serde::Deserialize;
use tokio_postgres::{Client, error::SqlState};

use super::{error::InspectError, rows::rows};

/// One change.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Altered {
    /// What is wrong, and of which table.
    pub seen: String,
    /// The statement that undoes it, for the table's owner.
    pub remedy: String,
    /// Whether the table can't even be read by this role.
    pub hides: bool,
    /// Whether it refuses rows only if they are as it says.
    pub may: bool,
}

/// On all tables of the relay, in an order in which the remedies work.
///
/// # Errors
/// [`InspectError`].
pub async fn look(client: &Client) -> Result<Vec<Altered>, InspectError> {
    rows(client, "what was changed on the relay's tables", SQL, &[]).await
}

/// Triggers of others on `outbox.dead_letters` that may refuse a row. Most only look on.
///
/// # Errors
/// [`InspectError`].
pub async fn triggers(client: &Client) -> Result<Vec<Altered>, InspectError> {
    rows(client, "triggers", TRIGGERS, &[]).await
}

/// What of it explains that the server refused a statement with `code`; empty where nothing does. What refuses rows
/// explains it only of a statement on `outbox.dead_letters` (`is_parking`); what hides them, of any.
///
/// # Errors
/// [`InspectError`].
pub async fn explaining(
    client: &Client,
    code: &SqlState,
    is_parking: bool,
) -> Result<Vec<Altered>, InspectError> {
    let mut found = look(client).await?;
    if !is_parking || *code == SqlState::INSUFFICIENT_PRIVILEGE {
        found.retain(|it| it.hides);
    }
    match found.is_empty() && is_parking {
        true => triggers(client).await,
        false => Ok(found),
    }
}

/// Whether the server has refused what a statement is or was to write, and will do so again.
#[must_use]
pub fn may_explain(code: &SqlState) -> bool {
    ["09", "22", "23", "27", "38", "39", "42", "44", "P0"]
        .iter()
        .any(|class| code.code().starts_with(class))
}

/// All changes as one sentence and one line of SQL.
#[must_use]
pub fn in_words(found: &[Altered]) -> (String, String) {
    let all =
        |of: fn(&Altered) -> &str, between| found.iter().map(of).collect::<Vec<_>>().join(between);
    let remedy = all(|it| &it.remedy, "; ");
    (all(|it| &it.seen, "; "), format!("as the table's owner, `{remedy}`"))
}

/// The columns are those of the newest migration; `added` is the default of those that have one.
const SQL: &str = "\
with t as (select c.oid from pg_catalog.pg_class c \
        where c.oid = pg_catalog.to_regclass('outbox.dead_letters')), \
    ours (name, type, required, added) as (values \
        ('id', 'bigint', true, null), ('relay', 'text', true, null), ('system_id', 'text', true, null), \
        ('commit_lsn', 'pg_lsn', true, null), ('ordinal', 'bigint', true, null), \
        ('event_id', 'text', false, null), ('lane', 'uuid', false, null), ('topic', 'text', false, null), \
        ('key', 'bytea', false, null), ('partition', 'integer', false, null), \
        ('timestamp_ms', 'bigint', false, null), ('payload', 'bytea', false, null), \
        ('headers', 'jsonb', true, null), ('fit', 'boolean', true, null), ('reason', 'text', true, null), \
        ('error', 'text', true, null), ('state', 'text', true, '''parked'''), \
        ('release_id', 'uuid', false, null), ('release_ordinal', 'bigint', false, null), \
        ('parked_at', 'timestamp with time zone', true, 'clock_timestamp()'), \
        ('changed_at', 'timestamp with time zone', true, 'clock_timestamp()'), \
        ('discarded_by', 'text', false, null), ('discarded_why', 'text', false, null), \
        ('xid', 'xid', false, null)), \
    columns as (select a.attname::pg_catalog.text as name, a.attnum, a.attnotnull as required, \
            pg_catalog.format_type(a.atttypid, a.atttypmod) as type, \
            a.atthasdef or a.attidentity <> '' as filled, \
            exists (select from ours where ours.name = a.attname::pg_catalog.text) as ours \
        from pg_catalog.pg_attribute a join t on t.oid = a.attrelid \
        where a.attnum > 0 and not a.attisdropped), \
    indexes as (select i.*, (select pg_catalog.string_agg( \
                pg_catalog.pg_get_indexdef(i.indexrelid, k, true), ', ' order by k) \
            from pg_catalog.generate_series(1, i.indnkeyatts) k) = 'relay, commit_lsn, ordinal, \
hashtextextended(COALESCE(event_id, ''''::text), 0::bigint)' \
                and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null as serves, \
            c.relname = 'dead_letters_position' as is_named \
        from pg_catalog.pg_index i join t on t.oid = i.indrelid \
        join pg_catalog.pg_class c on c.oid = i.indexrelid), \
    found as ( \
    select 1 as place, r.oid::pg_catalog.regclass::pg_catalog.text as name, \
        pg_catalog.format('row level security of %s hides rows from the role %I', \
            r.oid::pg_catalog.regclass, current_user) as seen, \
        pg_catalog.format('alter table %s disable row level security%s', r.oid::pg_catalog.regclass, \
            case when r.relforcerowsecurity then ', no force row level security' end) as remedy \
    from pg_catalog.pg_class r \
    where r.oid in (select pg_catalog.to_regclass(ours) from pg_catalog.unnest(array['outbox.dead_letters', \
            'outbox.leaders', 'outbox.relay_keys', 'outbox.progress', 'outbox.deletions', \
            'outbox.migrations']) ours) \
        and pg_catalog.row_security_active(r.oid) \
    union all \
    select 2, c.conname::pg_catalog.text, pg_catalog.format( \
            'the constraint %I of outbox.dead_letters is not the relay''s, and may refuse parked events', \
            c.conname), \
        pg_catalog.format('alter table outbox.dead_letters drop constraint %I', c.conname) \
    from pg_catalog.pg_constraint c join t on t.oid = c.conrelid \
    where c.contype in ('c', 'f', 'u', 'x') and c.conname <> 'dead_letters_state_check' \
    union all \
    select 3, i.indexrelid::pg_catalog.regclass::pg_catalog.text, pg_catalog.format( \
            'the index %s of outbox.dead_letters is not as the relay made it, and may refuse parked events', \
            i.indexrelid::pg_catalog.regclass), \
        pg_catalog.format('drop index %s', i.indexrelid::pg_catalog.regclass) \
    from indexes i \
    where not i.serves and (i.indisunique or i.is_named) and not i.indisprimary and not exists ( \
        select from pg_catalog.pg_constraint c where c.conindid = i.indexrelid) \
    union all \
    select 4, c.name, pg_catalog.format( \
            'the column %I of outbox.dead_letters is not the relay''s, has no default, and takes no null', \
            c.name), \
        pg_catalog.format('alter table outbox.dead_letters alter column %I drop not null', c.name) \
    from columns c where c.required and not c.ours and not c.filled \
    union all \
    select 4, c.name, pg_catalog.format( \
            'the column %I of outbox.dead_letters takes no null, which some parked events have there', \
            c.name), \
        pg_catalog.format('alter table outbox.dead_letters alter column %I drop not null', c.name) \
    from columns c join ours o on o.name = c.name where c.required and not o.required \
    union all \
    select 5, c.name, pg_catalog.format('the column %I of outbox.dead_letters has no default', c.name), \
        pg_catalog.format('alter table outbox.dead_letters alter column %I set default %s', c.name, o.added) \
    from columns c join ours o on o.name = c.name where o.added is not null and not c.filled \
    union all \
    select 5, c.name, 'the column id of outbox.dead_letters gives no next id', \
        'alter table outbox.dead_letters alter column id add generated by default as identity; \
         select setval(pg_get_serial_sequence(''outbox.dead_letters'', ''id''), max(id)) \
         from outbox.dead_letters' \
    from columns c where c.name = 'id' and not c.filled \
    union all \
    select 6, c.name, pg_catalog.format('the column %I of outbox.dead_letters is of type %s, not %s', \
            c.name, c.type, o.type), \
        pg_catalog.format('alter table outbox.dead_letters alter column %I type %s using %1$I::%2$s', \
            c.name, o.type) \
    from columns c join ours o on o.name = c.name where o.type <> c.type \
    union all \
    select 7, '', 'outbox.dead_letters lacks its unique index on the position of an event, without which \
no event can be parked', \
        'create unique index dead_letters_position on outbox.dead_letters (relay, commit_lsn, ordinal, \
hashtextextended(coalesce(event_id, ''''), 0))' \
    from t where not exists (select from indexes i where i.serves)) \
select pg_catalog.jsonb_build_object('seen', f.seen, 'remedy', f.remedy, 'hides', f.place = 1, \
    'may', f.place in (2, 3)) \
    ::pg_catalog.text \
from found f order by f.place, f.name";

const TRIGGERS: &str = "\
select pg_catalog.jsonb_build_object( \
    'seen', pg_catalog.format('the trigger %I of outbox.dead_letters may be what refuses it', g.tgname), \
    'hides', false, 'may', true, \
    'remedy', pg_catalog.format('alter table outbox.dead_letters disable trigger %I', g.tgname)) \
    ::pg_catalog.text \
from pg_catalog.pg_trigger g \
where g.tgrelid = pg_catalog.to_regclass('outbox.dead_letters') and not g.tgisinternal \
    and g.tgenabled in ('O', 'A') and g.tgname <> 'keep_until_settled' and g.tgtype & 20 <> 0 \
order by g.tgname";
