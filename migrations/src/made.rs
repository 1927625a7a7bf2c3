//! Functions, triggers and defaults that the migrations of the set `outbox` make: which of them somebody has dropped,
//! and putting them back.
//!
//! Whoever drops a function with `cascade` drops the triggers and defaults that call it, and the history says all the
//! same that everything is applied. Only what is missing is made again, by the statements that the migrations have for
//! it: to run them all would rewrite an index and take locks that no one needs. Tables, columns and indexes are the
//! relay's concern. Called by `migrate`, and by `check`, which names what is missing.

use std::fmt;

use tokio_postgres::{Client, Error, error::SqlState};

use crate::{
    MigrateError, Set,
    apply::{ATTEMPTS_MAX, LOCK_KEY, LOCK_TIMEOUT, PAUSE, Settings, database},
};

/// A function, a trigger or a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    kind: Kind,
    /// What of it is to be said.
    told: Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Function {
        name: &'static str,
        arguments: &'static str,
    },
    Trigger {
        table: &'static str,
        name: &'static str,
    },
    /// Its value is that of the newest migration.
    Default {
        table: &'static str,
        column: &'static str,
        value: &'static str,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// What it means that it is missing.
    Here(&'static str),
    /// The relay says it where it says more of the table.
    Elsewhere,
}

const fn function(name: &'static str, arguments: &'static str, without: &'static str) -> Made {
    Made { kind: Kind::Function { name, arguments }, told: Told::Here(without) }
}

const fn trigger(table: &'static str, name: &'static str, told: Told) -> Made {
    Made { kind: Kind::Trigger { table, name }, told }
}

const fn default(
    table: &'static str,
    column: &'static str,
    value: &'static str,
    told: Told,
) -> Made {
    Made { kind: Kind::Default { table, column, value }, told }
}

const EVENTS: &str = "events";
const LETTERS: &str = "dead_letters";
const NOW: &str = "clock_timestamp()";
const THIS: &str = "pg_current_xact_id()";
const KEPT: &str = "an event that was discarded may be published, where its row is deleted early";
const MARKED: &str = "events that come back with a copy of outbox.dead_letters are not known as such, and may be \
                      published once more without the header that says so";
const INSERTS: &str = "an insert that does not name the column fails";
const DELETES: &str = "deleting rows of outbox.events fails";
const REQUIRED: Told = Told::Here(INSERTS);

/// In the order in which they can be made.
const MADE: &[Made] = &[
    function("uuid_v7", "", "writers that call it, or leave the id to its default, fail"),
    function(
        "publish",
        "text, jsonb, text, text, jsonb, integer, uuid",
        "writers that call it fail",
    ),
    function("note_deletion", "", "deletions are not recorded, by which a lost slot is repaired"),
    function("note_deletions", "regclass", "no table can be made to record its deletions"),
    function("keep_until_settled", "", KEPT),
    function("note_restored", "", MARKED),
    // `check` says it of each table that is published, unless its rows are kept.
    trigger(EVENTS, "outbox_gone", Told::Elsewhere),
    trigger(EVENTS, "outbox_moved", Told::Elsewhere),
    trigger(LETTERS, "keep_until_settled", Told::Here(KEPT)),
    trigger(LETTERS, "note_restored", Told::Here(MARKED)),
    default(EVENTS, "id", "outbox.uuid_v7()", REQUIRED),
    default(EVENTS, "headers", "'{}'::jsonb", REQUIRED),
    default(EVENTS, "created_at", NOW, REQUIRED),
    default(EVENTS, "xid", THIS, Told::Elsewhere),
    default(LETTERS, "state", "'parked'::text", Told::Elsewhere),
    default(LETTERS, "parked_at", NOW, Told::Elsewhere),
    default(LETTERS, "changed_at", NOW, Told::Elsewhere),
    default("leaders", "since", NOW, REQUIRED),
    default("progress", "stored_at", NOW, REQUIRED),
    default("deletions", "writer", THIS, Told::Here(DELETES)),
];

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Function { name, arguments } => {
                write!(f, "the function outbox.{name}({arguments})")
            }
            Kind::Trigger { table, name } => write!(f, "the trigger {name} of outbox.{table}"),
            Kind::Default { table, column, .. } => {
                write!(f, "the default of outbox.{table}.{column}")
            }
        }
    }
}

impl Made {
    /// What it means that it is missing; `None` where the relay's own looks at that table say it.
    pub fn means(&self) -> Option<&'static str> {
        match self.told {
            Told::Here(means) => Some(means),
            Told::Elsewhere => None,
        }
    }

    /// What is wrong with it.
    pub fn is(&self) -> &'static str {
        match self.kind {
            Kind::Trigger { .. } => "is missing, or not enabled always",
            Kind::Function { .. } | Kind::Default { .. } => "is missing",
        }
    }

    /// Whether rights on it went with it.
    pub fn has_grants(&self) -> bool {
        matches!(self.kind, Kind::Function { .. })
    }

    fn parts(&self) -> (&'static str, &'static str, &'static str) {
        match self.kind {
            Kind::Function { name, arguments } => ("function", name, arguments),
            Kind::Trigger { table, name } => ("trigger", table, name),
            Kind::Default { table, column, .. } => ("default", table, column),
        }
    }

    /// What makes it again.
    fn statements(&self) -> String {
        match self.kind {
            Kind::Function { name, .. } => {
                let begins = [
                    format!("create or replace function outbox.{name}("),
                    format!("comment on function outbox.{name}("),
                    format!("revoke execute on function outbox.{name}("),
                ];
                begins.iter().filter_map(|begin| newest(begin)).collect::<Vec<_>>().join("\n")
            }
            // The function makes both, and looks for the first alone.
            Kind::Trigger { table: EVENTS, .. } => "\
                drop trigger if exists outbox_gone on outbox.events; \
                drop trigger if exists outbox_moved on outbox.events; \
                select outbox.note_deletions('outbox.events');"
                .to_owned(),
            Kind::Trigger { table, name } => {
                let create = newest(&format!("create trigger {name}\n")).unwrap_or_default();
                format!(
                    "drop trigger if exists {name} on outbox.{table};\n{create}\n\
                     alter table outbox.{table} enable always trigger {name};"
                )
            }
            Kind::Default { table, column, value } => {
                format!("alter table outbox.{table} alter column {column} set default {value};")
            }
        }
    }
}

/// The newest statement of the migrations that begins so.
fn newest(begin: &str) -> Option<&'static str> {
    let mut all = Set::Outbox.migrations().iter().flat_map(|migration| statements(migration.sql));
    all.rfind(|statement| statement.starts_with(begin))
}

/// The statements of a migration's text, with the comments before them left out. Each ends with a line, and a body
/// in dollars is part of one.
fn statements(sql: &'static str) -> Vec<&'static str> {
    let mut found = Vec::new();
    let (mut begin, mut at, mut in_body) = (None, 0, false);
    for line in sql.split_inclusive('\n') {
        let (from, text) = (at, line.trim_end());
        at += line.len();
        if begin.is_none() && (text.is_empty() || text.starts_with("--")) {
            continue;
        }
        let begun = *begin.get_or_insert(from);
        in_body ^= text.matches("$$").count() % 2 == 1;
        if !in_body && text.ends_with(';') {
            found.extend(sql.get(begun..from + text.len()));
            begin = None;
        }
    }
    found
}

/// Which of the functions, triggers and defaults that the migrations of the set `outbox` make are not there, or, of
/// triggers, do not fire. To be asked of a database that has all of this version's migrations. Tables and columns that
/// are not there themselves have nothing missing, nor has a column that may be null, which somebody has changed.
///
/// # Errors
/// The database's.
pub async fn missing_outbox(client: &Client) -> Result<Vec<&'static Made>, Error> {
    let parts = || MADE.iter().map(Made::parts);
    let kinds: Vec<&str> = parts().map(|(kind, ..)| kind).collect();
    let firsts: Vec<&str> = parts().map(|(_, first, _)| first).collect();
    let seconds: Vec<&str> = parts().map(|(.., second)| second).collect();
    let rows = client.query(MISSING, &[&kinds, &firsts, &seconds]).await?;
    let mut missing = Vec::with_capacity(rows.len());
    for row in rows {
        let place: i64 = row.try_get(0)?;
        let place = usize::try_from(place).ok().and_then(|place| place.checked_sub(1));
        missing.extend(place.and_then(|place| MADE.get(place)));
    }
    Ok(missing)
}

/// A table of events in a layout of its own has no column xid, and no triggers that use it.
const MISSING: &str = "\
select o.place from unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[]) \
        with ordinality o (kind, one, two, place) \
    left join pg_catalog.pg_namespace n on n.nspname operator(pg_catalog.=) 'outbox' \
    left join pg_catalog.pg_class c on c.relnamespace operator(pg_catalog.=) n.oid \
        and c.relname::pg_catalog.text operator(pg_catalog.=) o.one and o.kind operator(pg_catalog.<>) 'function' \
        and c.relkind operator(pg_catalog.=) any ('{r,p}'::pg_catalog.\"char\"[]) \
    left join pg_catalog.pg_attribute a on a.attrelid operator(pg_catalog.=) c.oid and not a.attisdropped \
        and a.attname::pg_catalog.text operator(pg_catalog.=) \
            case o.kind when 'default' then o.two else 'xid' end \
where not case o.kind \
    when 'function' then exists (select from pg_catalog.pg_proc p \
        where p.pronamespace operator(pg_catalog.=) n.oid \
            and p.proname::pg_catalog.text operator(pg_catalog.=) o.one \
            and pg_catalog.oidvectortypes(p.proargtypes) operator(pg_catalog.=) o.two) \
    when 'trigger' then a.attname is null or exists (select from pg_catalog.pg_trigger g \
            join pg_catalog.pg_proc p on p.oid operator(pg_catalog.=) g.tgfoid \
        where g.tgrelid operator(pg_catalog.=) c.oid \
            and g.tgname::pg_catalog.text operator(pg_catalog.=) o.two \
            and g.tgenabled operator(pg_catalog.=) 'A' and p.pronamespace operator(pg_catalog.=) n.oid) \
    else a.attname is null or a.atthasdef or not a.attnotnull end \
order by o.place";

/// Makes again what [`missing_outbox`] names, and returns it, all in one transaction. [`crate::apply`] comes first. It
/// waits for whoever uses a table as that does; no one waits behind it for more than a moment.
///
/// Not cancel safe, as [`crate::apply`].
///
/// # Errors
/// [`MigrateError::Database`], or [`MigrateError::Busy`] where others use a table for some minute.
pub async fn restore_outbox(client: &mut Client) -> Result<Vec<&'static Made>, MigrateError> {
    let before = Settings::pin(client).await?;
    let outcome = restore_patiently(client).await;
    // The session is the caller's.
    let put_back = before.put_back(client).await;
    let restored = outcome?;
    put_back?;
    Ok(restored)
}

async fn restore_patiently(client: &mut Client) -> Result<Vec<&'static Made>, MigrateError> {
    const DOING: &str = "putting back functions, triggers and defaults; nothing was changed";
    let mut attempts = 1;
    loop {
        match restore(client).await {
            Err(error) if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                return Err(database(DOING, error));
            }
            Err(_) if attempts < ATTEMPTS_MAX => {
                attempts += 1;
                client.execute(PAUSE, &[]).await.map_err(|e| database(DOING, e))?;
            }
            Err(_) => {
                return Err(MigrateError::Busy {
                    what: "a table of the outbox was in use for so long that what was dropped is not put back; \
                           nothing was changed"
                        .to_owned(),
                    remedy: "run this command again; pg_stat_activity has the transactions that are open"
                        .to_owned(),
                });
            }
            restored => return restored.map_err(|e| database(DOING, e)),
        }
    }
}

async fn restore(client: &mut Client) -> Result<Vec<&'static Made>, Error> {
    if missing_outbox(client).await?.is_empty() {
        return Ok(Vec::new());
    }
    let transaction = client.transaction().await?;
    let limit = format!("set local lock_timeout = '{LOCK_TIMEOUT}'");
    transaction.batch_execute(&limit).await?;
    transaction.execute("select pg_advisory_xact_lock($1)", &[&LOCK_KEY]).await?;
    // Another one may have done it until we had the lock.
    let missing = missing_outbox(transaction.client()).await?;
    for made in &missing {
        transaction.batch_execute(&made.statements()).await?;
    }
    transaction.commit().await?;
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_taken_whole_and_without_what_stands_before_it() {
        const SQL: &str =
            "-- outbox\n\ncreate f as $$\nbegin;\nend\n$$;\n-- more\nrevoke x\n    from y;\n";
        assert_eq!(statements(SQL), ["create f as $$\nbegin;\nend\n$$;", "revoke x\n    from y;"]);
    }

    #[test]
    fn whatever_is_made_has_the_statement_that_makes_it() {
        for made in MADE {
            let statements = made.statements();
            let creates = match made.kind {
                Kind::Function { name, .. } => format!("create or replace function outbox.{name}("),
                Kind::Trigger { table: LETTERS, name } => format!("create trigger {name}\n"),
                _ => continue,
            };
            assert_eq!(statements.matches(&creates).count(), 1, "{made}: {statements}");
        }
        let newest = newest("create or replace function outbox.note_deletion()").expect("made");
        assert!(newest.contains("enable_seqscan") && newest.ends_with("$$;"), "{newest}");
    }
}
