//! The table of dead letters, or the whole schema, under another name: what is in it is still there.

use serde::Deserialize;
use tokio_postgres::Client;

use super::{error::InspectError, rows::rows};

#[derive(Deserialize)]
struct Found {
    name: String,
    back: String,
}

/// If `outbox.dead_letters` is missing and a table with its columns is there: the statement that gives it its name
/// back.
///
/// # Errors
/// [`InspectError`].
pub async fn dead_letters(client: &Client) -> Result<Option<String>, InspectError> {
    let found: Vec<Found> = rows(client, "tables that were renamed", SQL, &[]).await?;
    let in_words = |Found { name, back }: &Found| {
        format!("if {name} is that table, which was renamed: as its owner, `{back}`")
    };
    let all: Vec<String> = found.iter().map(in_words).collect();
    Ok((!all.is_empty()).then(|| all.join("; ")))
}

/// If the schema `outbox` is missing and one with its tables is there: the statement that gives it its name back.
///
/// # Errors
/// [`InspectError`].
pub async fn schema(client: &Client) -> Result<Option<String>, InspectError> {
    let found: Vec<Found> = rows(client, "schemas that were renamed", SCHEMA, &[]).await?;
    let in_words = |Found { name, back }: &Found| {
        format!("if the schema {name} is it, which was renamed: as its owner, `{back}`")
    };
    let all: Vec<String> = found.iter().map(in_words).collect();
    Ok((!all.is_empty()).then(|| all.join("; ")))
}

const SCHEMA: &str = "\
select pg_catalog.jsonb_build_object('name', pg_catalog.quote_ident(n.nspname), \
    'back', pg_catalog.format('alter schema %I rename to outbox', n.nspname))::pg_catalog.text \
from pg_catalog.pg_namespace n \
where pg_catalog.to_regnamespace('outbox') is null and (select pg_catalog.count(*) from pg_catalog.pg_class c \
    where c.relnamespace = n.oid and c.relkind in ('r', 'p') \
        and c.relname in ('events', 'leaders', 'relay_keys', 'dead_letters', 'migrations')) = 5 \
order by n.nspname limit 3";

/// Recognized by its columns and its owner. A copy by `create table … (like …)` has the same, so a person decides.
const SQL: &str = "\
select pg_catalog.jsonb_build_object('name', pg_catalog.format('%I.%I', n.nspname, c.relname), \
    'back', pg_catalog.concat_ws('; ', \
        case when n.nspname <> 'outbox' \
            then pg_catalog.format('alter table %I.%I set schema outbox', n.nspname, c.relname) end, \
        case when c.relname <> 'dead_letters' \
            then pg_catalog.format('alter table outbox.%I rename to dead_letters', c.relname) end))::pg_catalog.text \
from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
where pg_catalog.to_regclass('outbox.dead_letters') is null and c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'outbox_aside' \
    and c.relowner = (select o.nspowner from pg_catalog.pg_namespace o where o.nspname = 'outbox') \
    and (select pg_catalog.count(*) from pg_catalog.pg_attribute a \
        where a.attrelid = c.oid and not a.attisdropped and a.attname in ('commit_lsn', 'ordinal', 'lane', 'fit', \
            'release_id', 'release_ordinal', 'parked_at', 'discarded_why')) = 8 \
order by n.nspname <> 'outbox', c.oid desc limit 3";
