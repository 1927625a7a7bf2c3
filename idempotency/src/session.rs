//! What a database session is like when a message begins in it, and how it is put back afterwards.
//!
//! The sessions are the user's, and a handler may change all of a session: role, settings,
//! temporary tables, prepared statements, locks, notifications. So what a promise rests on is set
//! again in each transaction, and what a handler may have left is cleared behind it, back to what
//! the session had when the inbox was opened. What can't be set by the consumer's role is refused
//! there.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use deadpool_postgres::{Object, Pool, PoolError};
use futures_util::future;
use outbox_migrations::grants;
use tokio_postgres::{error::SqlState, types::ToSql};

use crate::{error::InboxError, guard, repertoire::Repertoire};

/// Which transactions messages take effect in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// A second copy of a message waits for the first, and is a duplicate then.
    #[default]
    ReadCommitted,
    /// One snapshot for the whole handler. Where transactions collide, the message is run again.
    RepeatableRead,
    /// As if the messages were handled one after the other. Collisions are run again.
    Serializable,
}

impl Isolation {
    const fn sql(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "read committed",
            Isolation::RepeatableRead => "repeatable read",
            Isolation::Serializable => "serializable",
        }
    }
}

/// A pool, and the words that begin a transaction in one of its sessions and tidy up behind it.
#[derive(Clone)]
pub(crate) struct Sessions {
    pool: Pool,
    consumer: String,
    /// Of commits; `off` would acknowledge messages whose effects a crash of the server undoes.
    durability: String,
    isolation: Isolation,
    /// The role's `statement_timeout`; 0 for none.
    statement_ms: i32,
    limit: Option<Duration>,
    begin: String,
    clear: String,
    repertoire: Repertoire,
    wary_until: Arc<Mutex<Option<Instant>>>,
}

/// For how long no handler's statement is taken for what the same text was before, once it was not.
const WARY: Duration = Duration::from_secs(60);

/// What the settings are; the fifth column puts back what was set in the session itself, by a hook of
/// the pool: `reset all` would lose it.
const LOOK: &str = "select pg_catalog.current_setting('synchronous_commit'), \
        pg_catalog.current_setting('session_replication_role'), \
        pg_catalog.current_setting('idle_in_transaction_session_timeout'), \
        current_user::pg_catalog.text, \
        pg_catalog.concat_ws('; ', \
            pg_catalog.format('close all; set session authorization %L; reset all; unlisten *; \
                discard temp; discard sequences', session_user), \
            (select pg_catalog.string_agg(pg_catalog.format( \
                    'select pg_catalog.set_config(%L, %L, false)', s.name, s.setting), '; ') \
                from pg_catalog.pg_settings as s where s.source operator(pg_catalog.=) 'session'), \
            pg_catalog.format('set role %L', pg_catalog.current_setting('role'))), \
        (select s.setting::pg_catalog.int4 from pg_catalog.pg_settings as s \
            where s.name operator(pg_catalog.=) 'statement_timeout'), \
        pg_catalog.current_setting('server_encoding')";

/// Why there is no first session. A wrong password, role or database does not pass by waiting.
fn unopened(error: PoolError) -> InboxError {
    const WRONG: [SqlState; 3] = [
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        SqlState::UNDEFINED_DATABASE,
    ];
    match error {
        PoolError::Backend(source) if source.code().is_some_and(|code| WRONG.contains(code)) => {
            InboxError::Refused {
                doing: "connecting to the consumer's database",
                remedy: "the server rejected the connection, and nothing was consumed; correct the user, password or \
                         database in the configuration of the pool"
                    .into(),
                source,
            }
        }
        error => InboxError::Unavailable(Box::new(error)),
    }
}

impl Sessions {
    /// Looks at what a session of the pool is like.
    ///
    /// # Errors
    /// [`InboxError::Setting`] where one weakens a promise and the role may not change it.
    pub(crate) async fn open(pool: Pool, consumer: &str) -> Result<Self, InboxError> {
        let refused = |error| InboxError::of("looking at the session's settings", error);
        let client = pool.get().await.map_err(unopened)?;
        let rows = client.query_typed(LOOK, &[]).await.map_err(refused)?;
        let row = rows.first().expect("a query without a table returns one row");
        let text = |n| row.try_get::<_, &str>(n).map_err(refused);
        let (role, replication, idle) = (text(3)?, text(1)?, text(2)?);
        if !["origin", "local"].contains(&replication) {
            return Err(InboxError::Setting(format!(
                "session_replication_role is {replication}, so foreign keys and triggers are off and \
                 effects would be stored that the database must refuse; type, as a superuser: alter \
                 role {role} reset session_replication_role, or, if it is set for the whole server: alter \
                 system reset session_replication_role, and select pg_reload_conf()"
            )));
        }
        guard::look(&client).await?;
        if idle == "0" {
            tracing::warn!(
                consumer,
                "idle_in_transaction_session_timeout is off: a process that freezes in the middle of \
                 a message holds up that message's key until it ends; type: alter role {role} set \
                 idle_in_transaction_session_timeout = '60s'"
            );
        }
        let durability = match text(0)? {
            "off" => "on",
            waits => waits,
        };
        let (durability, clear) = (durability.to_owned(), text(4)?.to_owned());
        let repertoire = Repertoire::of(text(6)?);
        drop(client);
        let statement_ms = row.try_get(5).map_err(refused)?;
        let sessions = Sessions {
            pool,
            consumer: consumer.to_owned(),
            isolation: Isolation::default(),
            durability,
            statement_ms,
            limit: None,
            begin: String::new(),
            clear,
            repertoire,
            wary_until: Arc::default(),
        };
        Ok(sessions.settled())
    }

    /// The same, with another isolation level.
    pub(crate) fn with_isolation(&self, isolation: Isolation) -> Self {
        Sessions { isolation, ..self.clone() }.settled()
    }

    /// The same, with a limit to a statement's time, where the role's own is not shorter.
    pub(crate) fn with_limit(&self, limit: Duration) -> Self {
        Sessions { limit: Some(limit), ..self.clone() }.settled()
    }

    fn settled(self) -> Self {
        let Sessions { isolation, durability, statement_ms, limit, .. } = &self;
        let mut begin = format!(
            "begin isolation level {} read write not deferrable; \
             set local synchronous_commit = {durability}",
            isolation.sql()
        );
        if let Some(limit) = limit {
            let ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).max(1);
            if *statement_ms == 0 || ms < *statement_ms {
                begin.push_str(&format!("; set local statement_timeout = {ms}"));
            }
        }
        Sessions { begin, ..self }
    }

    pub(crate) async fn get(&self) -> Result<Object, InboxError> {
        self.pool.get().await.map_err(|error| InboxError::Unavailable(Box::new(error)))
    }

    /// Runs statements as a transaction of their own, READ COMMITTED, so each sees what others have committed before
    /// it; all in one round trip. Returns how many rows the first had. A crash may undo them: they say nothing of a
    /// message.
    pub(crate) async fn run_alone(
        &self,
        doing: &'static str,
        statements: &[&str],
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, InboxError> {
        const BEGIN: &str = "begin isolation level read committed read write; \
            set local synchronous_commit = off";
        let client = self.get().await?;
        let run = async {
            let prepare = statements.iter().map(|sql| client.prepare_cached(sql));
            let prepared = future::try_join_all(prepare).await?;
            let all = prepared.iter().map(|statement| client.execute(statement, params));
            let (begun, rows, done) = future::join3(
                client.batch_execute(BEGIN),
                future::try_join_all(all),
                client.batch_execute("commit"),
            )
            .await;
            begun?;
            let rows = rows?;
            done?;
            Ok(rows.first().copied().unwrap_or_default())
        };
        let done = run.await;
        if done.is_err() {
            // It may have one open.
            drop(Object::take(client));
        }
        done.map_err(|error| InboxError::of(doing, error))
    }

    /// Whether those who add to a key wait for whoever has taken it up.
    pub(crate) fn wait_for_lanes(&self) -> bool {
        self.isolation == Isolation::Serializable
    }

    /// As [`explained`].
    pub(crate) async fn explained(&self, error: InboxError) -> InboxError {
        explained(&self.pool, error).await
    }

    /// What its database can hold.
    pub(crate) fn repertoire(&self) -> Repertoire {
        self.repertoire
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Has all statements prepared anew, with new plans, in every session.
    pub(crate) fn prepare_anew(&self) {
        self.pool.manager().statement_caches.clear();
    }

    /// One text of a handler's has meant different things to two messages, as where a function of the database has
    /// changed the search path. For a while each message has its statements prepared anew.
    pub(crate) fn be_wary(&self) {
        let until = Instant::now() + WARY;
        *self.wary_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    pub(crate) fn are_wary(&self) -> bool {
        let until = *self.wary_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// For a connection that somebody keeps: all others would wait for it.
    pub(crate) fn add_a_place(&self) {
        self.resize(|places| places + 1);
    }

    /// It is back.
    pub(crate) fn take_a_place(&self) {
        self.resize(|places| places.saturating_sub(1));
    }

    fn resize(&self, change: impl Fn(usize) -> usize) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        self.pool.resize(change(self.pool.status().max_size));
    }

    pub(crate) fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Begins a transaction.
    pub(crate) fn begin(&self) -> &str {
        &self.begin
    }

    /// Puts a session back, outside of a transaction. [`UNLOCK`] comes after it.
    pub(crate) fn clear(&self) -> &str {
        &self.clear
    }
}

/// A refusal for the lack of a right, with the role, the right and the statement that gives it.
pub(crate) async fn explained(pool: &Pool, error: InboxError) -> InboxError {
    let InboxError::Refused { doing, source, .. } = &error else { return error };
    if source.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return error;
    }
    let doing = *doing;
    let Ok(client) = pool.get().await else { return error };
    match grants::lacking(&client, grants::INBOX_CONSUMER).await {
        Ok(lacking) if !lacking.is_empty() => {
            let (role, rights) = (&lacking.role, lacking.rights());
            let remedy = format!(
                "the role {role} lacks {rights}; nothing was changed. Type, as the owner of the schema \
                 inbox: {lacking}"
            );
            match error {
                InboxError::Refused { source, .. } => {
                    InboxError::Refused { doing, remedy: remedy.into(), source }
                }
                other => other,
            }
        }
        _ => error,
    }
}

/// The rest of [`Sessions::clear`], by a prepared statement, which costs a tenth: lets go of the
/// session's advisory locks, and says whether it has statements of somebody's PREPARE, which can't
/// be told from the driver's when they are dropped.
pub(crate) const UNLOCK: &str = "select pg_catalog.pg_advisory_unlock_all(), \
     exists (select from pg_catalog.pg_prepared_statements where from_sql)";
