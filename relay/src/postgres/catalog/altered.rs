//! What an administrator has changed on the relay's own tables, so that these refuse rows or hide them.
//!
//! What keeps rows out and says nothing is in `meddling`; columns that are gone, in `columns`; which change is to
//! blame for an error, in `blame`; what may be, though most refuses nothing, in `suspects`.

use serde::Deserialize;
use tokio_postgres::Client;

use super::{error::InspectError, rows::rows};

/// One change.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Altered {
    /// What kind of change it is.
    pub(super) kind: Kind,
    /// What is wrong, and of which table.
    pub seen: String,
    /// What undoes it.
    pub(super) remedy: Remedy,
    /// The constraint, index or column that it is about, as the server names it in an error; of a trigger its function.
    pub(super) of: Option<String>,
    /// Whether whoever obeys has a table of dead letters without those of before.
    #[serde(default)]
    pub takes_letters: bool,
    /// What the relay no longer knows once somebody has obeyed, if anything.
    #[serde(default)]
    pub(super) costs: Option<String>,
}

/// What kind of change it is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// The table can't even be read by this role.
    Hides,
    /// A constraint or an index, which refuses what it names.
    Refuses,
    /// A column that takes no null, or has no default.
    Null,
    /// A column of another type.
    Type,
    /// The relay's own unique index is gone.
    Index,
    /// A column is gone.
    Absent,
    /// A trigger of somebody's, or what else is computed of each row.
    Trigger,
    /// A long value does not find room: an index on it, or a column that is not moved out of the row.
    Room,
    /// The sequence ends or repeats ids, which the relay gives then.
    Ids,
}

/// What undoes a change.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Remedy {
    /// A statement for the table's owner.
    Sql(String),
    /// More than that, in words.
    Text(String),
}

impl Altered {
    /// Whether the table can't even be read by this role.
    pub fn hides(&self) -> bool {
        self.kind == Kind::Hides
    }

    /// Whether a column is gone, so that statements on the table fail.
    pub fn is_absent(&self) -> bool {
        self.kind == Kind::Absent
    }

    /// Whether it refuses rows only if they are as it says.
    pub fn may(&self) -> bool {
        matches!(self.kind, Kind::Refuses | Kind::Trigger | Kind::Room)
    }

    /// Whether it refuses nothing: the relay numbers parked events itself where no id is free.
    pub fn is_of_ids(&self) -> bool {
        self.kind == Kind::Ids
    }
}

/// On those of the relay's tables that are named, in an order in which the remedies work. Columns that are gone are
/// left out.
///
/// # Errors
/// [`InspectError`].
pub(super) async fn look(client: &Client, tables: &[&str]) -> Result<Vec<Altered>, InspectError> {
    rows(client, "what was changed on the relay's tables", SQL, &[&tables]).await
}

/// All changes as one sentence and what to type.
#[must_use]
pub fn in_words(found: &[Altered]) -> (String, String) {
    let seen = found.iter().map(|it| it.seen.as_str()).collect::<Vec<_>>().join("; ");
    let mut texts: Vec<&str> = Vec::new();
    let mut statements: Vec<&str> = Vec::new();
    for it in found {
        match &it.remedy {
            Remedy::Sql(statement) => statements.push(statement),
            Remedy::Text(text) if texts.contains(&text.as_str()) => {}
            Remedy::Text(text) => texts.push(text),
        }
    }
    // That makes a table of the newest version: what is still wrong then is found by the next look.
    if !texts.is_empty() {
        return (seen, texts.join("; "));
    }
    let typed = format!("as the table's owner, `{}`", statements.join("; "));
    match found.iter().find_map(|it| it.costs.as_ref()) {
        Some(costs) => {
            (seen, format!("put the table back from a backup; or, {typed}, after which {costs}"))
        }
        None => (seen, typed),
    }
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
        ('xid', 'xid', false, null), ('restored_at', 'timestamp with time zone', false, null)), \
    columns as (select a.attname::pg_catalog.text as name, a.attnum, a.attnotnull as required, \
            pg_catalog.format_type(a.atttypid, a.atttypmod) as type, \
            a.atthasdef or a.attidentity <> '' as filled, \
            a.attlen = -1 and a.attstorage = 'p' as is_plain, \
            a.attname::pg_catalog.text in ('relay', 'system_id', 'reason', 'state', 'discarded_by') as is_short, \
            exists (select from ours where ours.name = a.attname::pg_catalog.text) as ours \
        from pg_catalog.pg_attribute a join t on t.oid = a.attrelid \
        where a.attnum > 0 and not a.attisdropped), \
    indexes as (select i.*, coalesce((select pg_catalog.string_agg( \
                pg_catalog.pg_get_indexdef(i.indexrelid, k, true), ', ' order by k) \
            from pg_catalog.generate_series(1, i.indnkeyatts) k) = 'relay, commit_lsn, ordinal, \
hashtextextended(COALESCE(event_id, ''''::text), 0::bigint)', false) as is_position, \
            exists (select from pg_catalog.generate_series(1, i.indnkeyatts) k \
                where pg_catalog.pg_get_indexdef(i.indexrelid, k, true) = 'id') as has_id, \
            c.relam, i.indisvalid and i.indimmediate and i.indisunique and i.indpred is null as is_whole, \
            c.relname::pg_catalog.text as relname \
        from pg_catalog.pg_index i join t on t.oid = i.indrelid \
        join pg_catalog.pg_class c on c.oid = i.indexrelid), \
    found as ( \
    select 1 as place, 'hides' as kind, r.oid::pg_catalog.regclass::pg_catalog.text as name, \
        pg_catalog.format('row level security of %s hides rows from the role %I', \
            r.oid::pg_catalog.regclass, current_user) as seen, \
        pg_catalog.format('alter table %s disable row level security%s', r.oid::pg_catalog.regclass, \
            case when r.relforcerowsecurity then ', no force row level security' end) as remedy \
    from pg_catalog.pg_class r \
    where r.oid in (select pg_catalog.to_regclass(needed) \
            from pg_catalog.unnest($1::pg_catalog.text[]) needed) \
        and pg_catalog.row_security_active(r.oid) \
    union all \
    select 2, 'refuses', c.conname::pg_catalog.text, pg_catalog.format( \
            'the constraint %I of outbox.dead_letters is not the relay''s, and may refuse parked events', \
            c.conname), \
        pg_catalog.format('alter table outbox.dead_letters drop constraint %I', c.conname) \
    from pg_catalog.pg_constraint c join t on t.oid = c.conrelid \
    where c.contype in ('c', 'f', 'u', 'x') and c.conname !~ '^(moved_[0-9]+_)?dead_letters_state_check[0-9]*$' \
        and coalesce(pg_catalog.to_jsonb(c) ->> 'conenforced', 'true') = 'true' \
        and not (c.contype = 'u' and exists ( \
            select from indexes i where i.indexrelid = c.conindid and i.has_id)) \
    union all \
    select 3, 'refuses', i.relname, pg_catalog.format( \
            'the index %s of outbox.dead_letters is not as the relay made it, and may refuse parked events', \
            i.indexrelid::pg_catalog.regclass), \
        pg_catalog.format('drop index %s', i.indexrelid::pg_catalog.regclass) \
    from indexes i \
    where not (i.is_position and i.is_whole) and (i.relname = 'dead_letters_position' \
            or i.indisunique and i.indisready and not i.is_position and not i.has_id) \
        and not i.indisprimary and not exists ( \
        select from pg_catalog.pg_constraint c where c.conindid = i.indexrelid) \
    union all \
    select 4, 'null', c.name, pg_catalog.format( \
            'the column %I of outbox.dead_letters is not the relay''s, has no default, and takes no null', \
            c.name), \
        pg_catalog.format('alter table outbox.dead_letters alter column %I drop not null', c.name) \
    from columns c where c.required and not c.ours and not c.filled \
    union all \
    select 4, 'null', c.name, pg_catalog.format( \
            'the column %I of outbox.dead_letters takes no null, which some parked events have there', \
            c.name), \
        pg_catalog.format('alter table outbox.dead_letters alter column %I drop not null', c.name) \
    from columns c join ours o on o.name = c.name where c.required and not o.required \
    union all \
    select 5, 'null', c.name, pg_catalog.format('the column %I of outbox.dead_letters has no default', c.name), \
        pg_catalog.format('alter table outbox.dead_letters alter column %I set default %s', c.name, o.added) \
    from columns c join ours o on o.name = c.name where o.added is not null and not c.filled \
    union all \
    select 5, 'null', c.name, 'the column id of outbox.dead_letters gives no next id', \
        'alter table outbox.dead_letters alter column id add generated by default as identity; \
         select setval(pg_get_serial_sequence(''outbox.dead_letters'', ''id''), max(id)) \
         from outbox.dead_letters' \
    from columns c where c.name = 'id' and not c.filled \
    union all \
    select 6, 'type', c.name, pg_catalog.format('the column %I of outbox.dead_letters is of type %s, not %s', \
            c.name, c.type, o.type), \
        pg_catalog.format('alter table outbox.dead_letters %salter column %I type %s using ' \
            || case o.type when 'bytea' then 'case when %2$I::text ~ E''^\\\\\\\\x([0-9a-f][0-9a-f])*$'' \
then %2$I::text::bytea else convert_to(%2$I::text, ''UTF8'') end%4$s' else '%2$I::text::%3$s%4$s' end, \
            case when o.added is not null then pg_catalog.format('alter column %I drop default, ', c.name) end, \
            c.name, o.type, case when o.added is not null then \
                pg_catalog.format(', alter column %I set default %s', c.name, o.added) end) \
    from columns c join ours o on o.name = c.name where o.type <> c.type \
    union all \
    select 7, 'index', null, 'outbox.dead_letters lacks its unique index on the position of an event, without which \
no event can be parked', \
        case when exists (select from indexes i where i.relname = 'dead_letters_position') \
            then 'drop index if exists outbox.dead_letters_position; ' else '' end || \
        'create unique index dead_letters_position on outbox.dead_letters (relay, commit_lsn, ordinal, \
hashtextextended(coalesce(event_id, ''''), 0))' \
    from t where not exists (select from indexes i where i.is_position and i.is_whole) \
    union all \
    select 8, 'room', i.relname, pg_catalog.format( \
            'the index %s of outbox.dead_letters is not the relay''s, and has no room for a long value', \
            i.indexrelid::pg_catalog.regclass), \
        pg_catalog.format('drop index %s', i.indexrelid::pg_catalog.regclass) \
    from indexes i join pg_catalog.pg_am m on m.oid = i.relam \
    where m.amname <> 'hash' and not i.indisunique and not i.indisexclusion and i.indisready and exists ( \
        select from pg_catalog.pg_attribute k \
        where k.attrelid = i.indexrelid and k.attlen = -1 and not exists (select from columns c \
            where c.attnum = i.indkey[k.attnum - 1] and c.is_short)) \
    union all \
    select 8, 'room', c.name, pg_catalog.format( \
            'the column %I of outbox.dead_letters has storage plain: a long value has no room in its row', c.name), \
        pg_catalog.format('alter table outbox.dead_letters alter column %I set storage extended', c.name) \
    from columns c where c.ours and c.is_plain and not c.is_short \
    union all \
    select 9, 'ids', null, pg_catalog.format( \
            'the sequence %s of the column id of outbox.dead_letters ends, descends or begins again, unlike the one \
that the relay made', s.seqrelid::pg_catalog.regclass), \
        pg_catalog.format('alter sequence %1$s as bigint increment by 1 no minvalue no maxvalue start with 1 restart \
no cycle; select setval(%1$L, max(id)) from outbox.dead_letters', s.seqrelid::pg_catalog.regclass) \
    from pg_catalog.pg_sequence s join pg_catalog.pg_depend d on d.objid = s.seqrelid \
            and d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.deptype in ('a', 'i') \
        join t on t.oid = d.refobjid and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
        join columns c on c.attnum = d.refobjsubid and c.name = 'id' \
    where s.seqmax < 9223372036854775807 or s.seqincrement < 0 or s.seqcycle) \
select pg_catalog.jsonb_build_object('kind', f.kind, 'seen', f.seen, \
    'remedy', pg_catalog.jsonb_build_object('sql', f.remedy), 'of', f.name)::pg_catalog.text \
from found f order by f.place, f.name";
