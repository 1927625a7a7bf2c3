//! Brings a database up to date: one set, one migration after the other, each in a transaction of
//! its own, under a lock that lets a second caller wait for the first.

use std::error::Error;

use refinery_core::{Runner, error::Kind};
use tokio_postgres::Client;

use crate::{Set, former};

/// Key of the session's advisory lock: `outboxmg` in ASCII. One for all sets, since sets may meet
/// in one database and a migration takes moments.
const LOCK_KEY: i64 = 0x6F75_7462_6F78_6D67;

/// A migration that was not there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its version.
    pub version: i32,
    /// Its name.
    pub name: String,
}

/// Why a database is not up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database refused a statement or went away. What was applied before stays applied;
    /// mend the cause and run it again.
    #[error("{doing} failed")]
    Database {
        /// What was being done, with the migration's name.
        doing: String,
        /// The database's answer.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The history is not one that this version could have written. Nothing was changed; a person
    /// must look.
    #[error("{what}; {remedy}")]
    History {
        /// Where history and files differ.
        what: String,
        /// What to do about it.
        remedy: String,
    },
}

/// Applies what `set` has and the database lacks, and returns it, oldest first; empty when the
/// database was up to date. Waits while another session is applying a set.
///
/// Needs a direct connection: a pooler that switches sessions between transactions breaks the lock.
/// Not cancel safe: dropped half-way, close the client's connection, which frees the lock.
///
/// # Errors
/// See [`MigrateError`].
pub async fn apply(client: &mut Client, set: Set) -> Result<Vec<Applied>, MigrateError> {
    let search_path = pin_search_path(client).await?;
    let outcome = apply_alone(client, set).await;
    // The session is the caller's.
    let put_back = client
        .execute("select pg_catalog.set_config('search_path', $1, false)", &[&search_path])
        .await;
    let applied = outcome?;
    put_back.map_err(|e| database("putting the search_path back", e))?;
    for migration in &applied {
        tracing::info!(set = set.name(), version = migration.version, "migration applied");
    }
    Ok(applied)
}

/// From now on names mean PostgreSQL's own: others may have put their own into whatever schema comes
/// first otherwise. Returns what was set.
async fn pin_search_path(client: &Client) -> Result<String, MigrateError> {
    let failed = |e| database("looking at the search_path", e);
    let now = "select pg_catalog.current_setting('search_path')";
    let before = client.query_one(now, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)?;
    let pin = "select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)";
    client.execute(pin, &[]).await.map_err(failed)?;
    Ok(before)
}

async fn apply_alone(client: &mut Client, set: Set) -> Result<Vec<Applied>, MigrateError> {
    client
        .execute("select pg_advisory_lock($1)", &[&LOCK_KEY])
        .await
        .map_err(|e| database("waiting for another migration to end", e))?;
    let outcome = apply_locked(client, set).await;
    let unlocked = client.execute("select pg_advisory_unlock($1)", &[&LOCK_KEY]).await;
    let applied = outcome?;
    unlocked.map_err(|e| database("releasing the migration lock", e))?;
    Ok(applied)
}

async fn apply_locked(client: &mut Client, set: Set) -> Result<Vec<Applied>, MigrateError> {
    // The history lives in the set's schema, so that comes before the first migration.
    client
        .batch_execute(&format!("create schema if not exists {}", set.name()))
        .await
        .map_err(|e| database(&format!("creating the schema {set}"), e))?;
    client
        .batch_execute(&set.guard())
        .await
        .map_err(|e| database(&format!("looking whose the schema {set} is"), e))?;
    let migrations = set
        .migrations()
        .iter()
        .map(|m| refinery_core::Migration::unapplied(&m.file_name(), m.sql))
        .collect::<Result<Vec<_>, _>>()
        .expect("file names of a set follow refinery's rule");
    former::adopt(client, set, &migrations).await.map_err(|e| {
        database(&format!("adopting what former versions wrote to {}", set.history_table()), e)
    })?;
    let mut runner = Runner::new(&migrations);
    runner.set_migration_table_name(set.history_table());
    let report = runner.run_async(client).await.map_err(|error| refused(set, error))?;
    Ok(report
        .applied_migrations()
        .iter()
        .map(|m| Applied { version: m.version(), name: m.name().to_owned() })
        .collect())
}

fn database(doing: &str, source: tokio_postgres::Error) -> MigrateError {
    MigrateError::Database { doing: doing.to_owned(), source: source.into() }
}

/// refinery's errors, sorted by what the caller must do.
fn refused(set: Set, error: refinery_core::Error) -> MigrateError {
    let table = set.history_table();
    match error.kind() {
        Kind::DivergentVersion(applied, known) => MigrateError::History {
            what: format!("{table} has {applied} with another text than this version's {known}"),
            remedy: "run the version that applied it".into(),
        },
        Kind::MissingVersion(migration) => MigrateError::History {
            what: format!("{table} and this version disagree about {migration}"),
            remedy: "it is probably a newer version's: run that one".into(),
        },
        // Its text is ours by another word: "error applying migration V1__events".
        Kind::Connection(doing, _) => MigrateError::Database {
            doing: doing.trim_start_matches("error ").to_owned(),
            source: Cause(error).into(),
        },
        _ => MigrateError::Database {
            doing: format!("migrating the set {set}"),
            source: error.into(),
        },
    }
}

/// The cause below a refinery error. refinery prints that cause into its own text too, which would
/// say everything twice.
#[derive(Debug)]
struct Cause(refinery_core::Error);

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.source() {
            Some(cause) => write!(f, "{cause}"),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source().and_then(Error::source)
    }
}
