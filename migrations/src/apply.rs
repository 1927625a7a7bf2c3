//! Brings a database up to date: one set, one migration after the other, each in a transaction of
//! its own, under a lock that lets a second caller wait for the first.

use std::error::Error;

use refinery_core::{Runner, error::Kind};
use tokio_postgres::{Client, error::SqlState};

use crate::{Set, former};

/// Key of the session's advisory lock: `outboxmg` in ASCII. One for all sets, since sets may meet
/// in one database and a migration takes moments.
pub(crate) const LOCK_KEY: i64 = 0x6F75_7462_6F78_6D67;

/// How long others may wait behind a migration that waits for them.
pub(crate) const LOCK_TIMEOUT: &str = "200ms";
/// Lets those through that have waited.
pub(crate) const PAUSE: &str = "select pg_sleep(0.2)";
/// Of one call: some minute.
pub(crate) const ATTEMPTS_MAX: u32 = 150;

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
#[non_exhaustive]
pub enum MigrateError {
    /// The database refused a statement or went away. What was applied before stays applied;
    /// correct the cause and run it again.
    #[error("{doing} failed")]
    Database {
        /// What was being done, with the migration's name.
        doing: String,
        /// The database's answer.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Somebody else has what is needed, for longer than is waited for. Nothing was changed.
    #[error("{what}; {remedy}")]
    Busy {
        /// What was not done, and who is in the way, where that is known.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// The history is not one that this version could have written, or what can't be recreated was
    /// dropped. Nothing was changed; a person must look.
    #[error("{what}; {remedy}")]
    History {
        /// Where history and files differ.
        what: String,
        /// What to do about it.
        remedy: String,
    },
}

/// Applies what `set` has and the database lacks, and returns it, oldest first; empty when the
/// database was up to date. Waits while another session is applying a set, and for some minute while
/// others use a table that is to be changed; no one waits behind it for more than a moment.
///
/// Needs a direct connection: a pooler that switches sessions between transactions breaks the lock.
/// Not cancel safe: dropped half-way, close the client's connection, which frees the lock.
///
/// # Errors
/// See [`MigrateError`].
pub async fn apply(client: &mut Client, set: Set) -> Result<Vec<Applied>, MigrateError> {
    let before = Settings::pin(client).await?;
    let outcome = apply_alone(client, set).await;
    // The session is the caller's.
    let put_back = before.put_back(client).await;
    let applied = outcome?;
    put_back?;
    for migration in &applied {
        tracing::info!(set = set.name(), version = migration.version, "migration applied");
    }
    Ok(applied)
}

/// What the caller's session had.
pub(crate) struct Settings {
    search_path: String,
    lock_timeout: String,
}

impl Settings {
    /// From now on names mean PostgreSQL's own: others may have put their own into whatever schema
    /// comes first otherwise.
    pub(crate) async fn pin(client: &Client) -> Result<Self, MigrateError> {
        let failed = |e| database("looking at the session's settings", e);
        let now = "select pg_catalog.current_setting('search_path'), \
                       pg_catalog.current_setting('lock_timeout')";
        let row = client.query_one(now, &[]).await.map_err(failed)?;
        let pin = "select pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)";
        client.execute(pin, &[]).await.map_err(failed)?;
        let setting = |column| row.try_get(column).map_err(failed);
        Ok(Settings { search_path: setting(0)?, lock_timeout: setting(1)? })
    }

    pub(crate) async fn put_back(self, client: &Client) -> Result<(), MigrateError> {
        let failed = |e| database("putting the session's settings back", e);
        let set = "select pg_catalog.set_config('search_path', $1, false), \
                       pg_catalog.set_config('lock_timeout', $2, false)";
        client
            .execute(set, &[&self.search_path, &self.lock_timeout])
            .await
            .map(drop)
            .map_err(failed)
    }
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
    let migrations = unapplied(set);
    former::adopt(client, set, &migrations).await.map_err(|e| {
        database(&format!("adopting what former versions wrote to {}", set.history_table()), e)
    })?;
    let mut runner = Runner::new(&migrations);
    runner.set_migration_table_name(set.history_table());
    run(client, set, &runner).await
}

/// A set's migrations, as refinery takes them.
pub(crate) fn unapplied(set: Set) -> Vec<refinery_core::Migration> {
    let of = |m: &crate::Migration| refinery_core::Migration::unapplied(&m.file_name(), m.sql);
    let all: Result<Vec<_>, _> = set.migrations().iter().map(of).collect();
    all.expect("file names of a set follow refinery's rule")
}

/// Applies them, again and again while others are at work in a table that is to be changed: whoever
/// waits for a table has everybody else wait behind, so each attempt waits for a moment only.
async fn run(client: &mut Client, set: Set, runner: &Runner) -> Result<Vec<Applied>, MigrateError> {
    let failed = |e| database("waiting for a table to be free", e);
    let wait = format!("select set_config('lock_timeout', '{LOCK_TIMEOUT}', false)");
    client.execute(&wait, &[]).await.map_err(failed)?;
    let mut applied = Vec::new();
    let mut attempts = 1;
    loop {
        let outcome = runner.run_async(client).await;
        let report = outcome.as_ref().map_or_else(refinery_core::Error::report, Some);
        applied.extend(
            report
                .iter()
                .flat_map(|report| report.applied_migrations())
                .map(|m| Applied { version: m.version(), name: m.name().to_owned() }),
        );
        match outcome {
            Ok(_) => return Ok(applied),
            Err(error) if attempts < ATTEMPTS_MAX && is_busy(&error) => {
                attempts += 1;
                client.execute(PAUSE, &[]).await.map_err(failed)?;
            }
            Err(error) => return Err(refused(set, error)),
        }
    }
}

/// Somebody else has a table in use.
fn is_busy(error: &refinery_core::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    cause.and_then(tokio_postgres::Error::code) == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

pub(crate) fn database(doing: &str, source: tokio_postgres::Error) -> MigrateError {
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
