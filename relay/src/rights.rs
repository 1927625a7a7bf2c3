//! Which documented rights a session's role lacks: asked once something was refused, whatever it was.
//!
//! The database names an object it refused, and neither the right nor the role. So whoever meets a
//! refusal asks for all rights of the list, and says everything that lacks with the statements that
//! give it. Called by `daemon`, `check` and `cli`.

use std::error::Error;

use outbox_migrations::grants::{Grant, Lacking, lacking};
use tokio_postgres::{Client, error::SqlState};

use crate::core::halt::Halt;

/// Whether the database refused something for a right.
pub(crate) fn is_refusal(error: &anyhow::Error) -> bool {
    let refused = |cause: &(dyn Error + 'static)| {
        let cause = cause.downcast_ref::<tokio_postgres::Error>();
        cause.and_then(tokio_postgres::Error::code) == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    };
    error.chain().any(refused)
}

/// What of `grants` lacks and stops everything; `None` where that is nothing. `meaning` says what it
/// means for the data.
///
/// # Errors
/// The question was not answered.
pub(crate) async fn stopping(
    client: &Client,
    grants: &[Grant],
    meaning: &str,
) -> Result<Option<Halt>, tokio_postgres::Error> {
    let lacking = lacking(client, grants).await?;
    // All that lacks is given at once, also what would only be warned of.
    let remedy = format!("`{lacking}`");
    let Some(found) = halt(&lacking.that_stop_everything(), meaning) else { return Ok(None) };
    let found = Halt { remedy, ..found };
    Ok(Some(match switched(client).await? {
        Some(switched) => switched.explains(found),
        None => found,
    }))
}

/// A login whose sessions a setting switches to another role when they begin.
struct Switched {
    login: String,
    role: String,
    /// What takes the setting back; `None` where the database has no such setting.
    reset: Option<String>,
}

impl Switched {
    /// The rights that count are the other role's. Others may use that role too, so to grant it more is seldom meant.
    fn explains(self, halt: Halt) -> Halt {
        let Switched { login, role, reset } = self;
        let reset = match reset {
            Some(statements) => format!("`{statements}`"),
            None => "take `role` out of the options in postgres.url and restart".to_owned(),
        };
        let Halt { reason, remedy } = halt;
        Halt::new(
            format!("{reason}. The session logged in as {login}, and a setting makes it {role}"),
            format!("{reset}; or, if it is to be {role}, {remedy}"),
        )
    }
}

async fn switched(client: &Client) -> Result<Option<Switched>, tokio_postgres::Error> {
    let sql = "select pg_catalog.quote_ident(session_user), pg_catalog.quote_ident(current_user), \
                   (select pg_catalog.string_agg(case \
                       when u.rolname is null and d.datname is null then 'alter role all reset role' \
                       when u.rolname is null then pg_catalog.format('alter database %I reset role', d.datname) \
                       when d.datname is null then pg_catalog.format('alter role %I reset role', u.rolname) \
                       else pg_catalog.format('alter role %I in database %I reset role', u.rolname, d.datname) \
                       end, '; ') \
                   from pg_catalog.pg_db_role_setting s \
                   left join pg_catalog.pg_roles u on u.oid operator(pg_catalog.=) s.setrole \
                   left join pg_catalog.pg_database d on d.oid operator(pg_catalog.=) s.setdatabase \
                   where (s.setrole operator(pg_catalog.=) 0 \
                           or u.rolname operator(pg_catalog.=) session_user) \
                       and (s.setdatabase operator(pg_catalog.=) 0 \
                           or d.datname operator(pg_catalog.=) pg_catalog.current_database()) \
                       and exists (select from pg_catalog.unnest(s.setconfig) c (line) \
                           where pg_catalog.starts_with(c.line, 'role='))) \
               where session_user operator(pg_catalog.<>) current_user";
    let Some(row) = client.query_opt(sql, &[]).await? else { return Ok(None) };
    Ok(Some(Switched { login: row.try_get(0)?, role: row.try_get(1)?, reset: row.try_get(2)? }))
}

/// The same, of what was found; `None` where nothing lacks.
pub(crate) fn halt(lacking: &Lacking, meaning: &str) -> Option<Halt> {
    let Lacking { role, .. } = lacking;
    (!lacking.is_empty()).then(|| {
        let rights = lacking.rights();
        Halt::new(format!("the role {role} lacks {rights}: {meaning}"), format!("`{lacking}`"))
    })
}

/// The tables of the relay's own that rights are needed on, each once. Events have looks of their own.
pub(crate) fn tables(grants: &[Grant]) -> Vec<&'static str> {
    let tables = grants.iter().map(|grant| grant.object);
    let mut tables: Vec<&str> =
        tables.filter(|it| it.starts_with("outbox.") && *it != "outbox.events").collect();
    tables.dedup();
    tables
}

/// For what the relay's role lacks.
pub(crate) const NOTHING_IS_PUBLISHED: &str =
    "nothing is published until it has them, and nothing is lost";
/// For what the relay's role lacks, before it needs that.
pub(crate) const HALTS_WHEN_NEEDED: &str =
    "the relay halts as soon as it needs what is missing, and nothing is lost";
/// For what a person's role lacks.
pub(crate) const NOTHING_WAS_CHANGED: &str = "nothing was changed";

#[cfg(test)]
mod tests {
    use super::*;
    use outbox_migrations::grants::OPERATOR;

    #[test]
    fn a_halt_for_rights_names_role_and_rights_and_its_remedy_is_the_statement() {
        let lacking = Lacking { role: "ops".into(), grants: OPERATOR.to_vec(), absent: Vec::new() };
        let halt = halt(&lacking, NOTHING_WAS_CHANGED).expect("something lacks");
        assert_eq!(
            halt.reason,
            "the role ops lacks usage on schema outbox; select, update on outbox.dead_letters: \
             nothing was changed"
        );
        assert_eq!(
            halt.remedy,
            "`grant usage on schema outbox to ops; grant select, update on outbox.dead_letters to \
             ops`"
        );
    }
}
