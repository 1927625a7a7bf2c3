//! Whether a role can use the table of dead letters: asked before it is needed, and told from an
//! answer.

use serde::Deserialize;
use tokio_postgres::{Client, error::SqlState};

use super::DeadLetterError;
use crate::{reconcile::Halt, source::slot::InspectError};

#[derive(Debug, Deserialize)]
struct Rights {
    exists: bool,
    usage: bool,
    select: bool,
    insert: bool,
    update: bool,
}

/// What would halt the relay when it starts, or parks its first event; `role` is whom to grant.
///
/// # Errors
/// [`InspectError`].
pub(crate) async fn lacking(client: &Client, role: &str) -> Result<Option<Halt>, InspectError> {
    const WHAT: &str = "the rights on outbox.dead_letters";
    let sql = "select jsonb_build_object( \
                   'exists', c.oid is not null, \
                   'usage', coalesce(has_schema_privilege(n.oid, 'usage'), false), \
                   'select', coalesce(has_table_privilege(c.oid, 'select'), false), \
                   'insert', coalesce(has_table_privilege(c.oid, 'insert'), false), \
                   'update', coalesce(has_table_privilege(c.oid, 'update'), false))::text \
               from (values ('outbox', 'dead_letters')) v (schema, name) \
               left join pg_catalog.pg_namespace n on n.nspname = v.schema \
               left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = v.name";
    let failed = |source| InspectError::Query { what: WHAT, source };
    let row = client.query_one(sql, &[]).await.map_err(failed)?;
    let text: &str = row.try_get(0).map_err(failed)?;
    let rights: Rights =
        serde_json::from_str(text).map_err(|source| InspectError::Shape { what: WHAT, source })?;
    Ok(rights.lacking(role))
}

/// What the answer of the database means.
pub(super) fn sorted(doing: &'static str, source: tokio_postgres::Error) -> DeadLetterError {
    let absent = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    match source.code() {
        Some(code) if absent.contains(code) || *code == SqlState::UNDEFINED_COLUMN => {
            let (what, remedy) = missing();
            DeadLetterError::Misconfigured { what: what.into(), remedy: remedy.into() }
        }
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            let (what, remedy) = not_granted();
            DeadLetterError::Misconfigured { what: what.into(), remedy: remedy.into() }
        }
        _ => DeadLetterError::Database { doing, source },
    }
}

/// What happened, and what to do, where there is no such table.
fn missing() -> (&'static str, &'static str) {
    (
        "the table outbox.dead_letters, where refused events are parked, is missing or of another \
         version",
        "run `outbox-relay migrate` as the schema's owner",
    )
}

/// Where it may not be used.
fn not_granted() -> (&'static str, &'static str) {
    (
        "the relay's role may not use outbox.dead_letters, where refused events are parked",
        "grant usage on schema outbox and select, insert, update on outbox.dead_letters to it \
         (docs/ROLES.md)",
    )
}

impl Rights {
    fn lacking(&self, role: &str) -> Option<Halt> {
        if !self.exists {
            let (what, remedy) = missing();
            return Some(Halt::new(what, remedy));
        }
        let mut grants = Vec::new();
        if !self.usage {
            grants.push(format!("grant usage on schema outbox to {role}"));
        }
        let on_table = [("select", self.select), ("insert", self.insert), ("update", self.update)];
        let lacks: Vec<&str> =
            on_table.into_iter().filter(|(_, has)| !has).map(|(right, _)| right).collect();
        if !lacks.is_empty() {
            let lacks = lacks.join(", ");
            grants.push(format!("grant {lacks} on outbox.dead_letters to {role}"));
        }
        (!grants.is_empty()).then(|| Halt::new(not_granted().0, format!("`{}`", grants.join("; "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_right_that_lacks_is_granted_by_the_remedy() {
        let all = Rights { exists: true, usage: true, select: true, insert: true, update: true };
        assert_eq!(all.lacking("relay"), None);
        let remedy = |rights: Rights| rights.lacking("relay").expect("something lacks").remedy;
        assert_eq!(
            remedy(Rights { insert: false, update: false, ..all }),
            "`grant insert, update on outbox.dead_letters to relay`"
        );
        let none =
            Rights { exists: true, usage: false, select: false, insert: false, update: false };
        assert_eq!(
            remedy(none),
            "`grant usage on schema outbox to relay; grant select, insert, update on \
             outbox.dead_letters to relay`"
        );
        let nothing =
            Rights { exists: false, usage: false, select: false, insert: false, update: false };
        assert!(remedy(nothing).contains("outbox-relay migrate"));
    }
}
