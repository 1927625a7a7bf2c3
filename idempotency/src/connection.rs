//! The connection of an open transaction, which its handler has as well, and what is known about it.
//!
//! It has no way to begin or to commit: `transaction` does that. What was asked and not answered, what failed,
//! and whether a handler has had the session, decide what becomes of the connection when both have let go of
//! it: it goes back to the pool as it was, or it is closed.

use std::{
    error::Error as _,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use deadpool_postgres::Object;
use futures_util::future;
use tokio_postgres::{
    Error, Row, Statement,
    types::{ToSql, WrongType},
};

use crate::{
    error::{InboxError, Sort, chain, sort, state_of},
    fault::sessions_are_left,
    running::{Running, Waited},
    session::{Sessions, UNLOCK},
    sql,
};

/// Whether the transaction `$1` has committed. What the server has not begun yet, as after a failover that lost
/// it, can't be asked for.
pub(crate) const HAS_COMMITTED: &str = "coalesce( \
    case when $1::pg_catalog.text::pg_catalog.xid8 operator(pg_catalog.<) \
            pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) \
        then pg_catalog.pg_xact_status($1::pg_catalog.text::pg_catalog.xid8) end \
    operator(pg_catalog.=) 'committed', false)";

/// Which transaction this is.
pub(crate) const WHICH: &str = "select pg_catalog.pg_current_xact_id()::pg_catalog.text";

/// Most statements that a session keeps prepared: who writes values into the text has a new one for each message.
const STATEMENTS_MAX: usize = 300;

/// A handler's statement, and whether it was prepared just now.
struct Prepared {
    statement: Statement,
    is_new: bool,
}

pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Of one transaction.
pub(crate) struct Shared {
    /// Until it is dropped.
    client: Option<Object>,
    pub(crate) sessions: Arc<Sessions>,
    /// SQLSTATE of the last statement that failed.
    failed: Mutex<Option<String>>,
    /// A handler has had the session.
    pub(crate) lent: AtomicBool,
    /// A handler has ended the transaction.
    pub(crate) ended_by_handler: AtomicBool,
    /// Statements of a handler run, or have failed and nothing can be asked since: they may have ended it.
    doubtful: AtomicBool,
    /// COMMIT was sent, and what became of it is not known.
    pub(crate) commit_unknown: AtomicBool,
    /// The transaction is ended and the session as it was: others may have it.
    clean: AtomicBool,
    pub(crate) running: Running,
    /// No one else is to have the connection: it carried a large message, and the driver keeps its buffers at the
    /// size that this took; or the server knows less of what was prepared than the driver does.
    pub(crate) spent: AtomicBool,
    /// From here on a statement of the handler may mean other tables or types than the same text did before.
    names_differ: AtomicBool,
    /// A parameter did not fit a statement that was prepared for an earlier message.
    misfit: AtomicBool,
    /// A handler keeps it, perhaps for ever; another has its place in the pool.
    pub(crate) kept: AtomicBool,
    /// Where `Open::back_to_savepoint` goes back to. A name that no one can guess: with a savepoint
    /// of the same name a handler would keep what is to be undone.
    savepoint: u128,
    /// Which transaction it is. The first statement of each that a handler gets asks for it: later may be too late,
    /// since what a handler sends first may end it, and its answer never be seen.
    id: OnceLock<String>,
}

impl Shared {
    pub(crate) fn of(client: Object, sessions: Arc<Sessions>) -> Self {
        Shared {
            client: Some(client),
            sessions,
            failed: Mutex::new(None),
            lent: AtomicBool::new(false),
            ended_by_handler: AtomicBool::new(false),
            doubtful: AtomicBool::new(false),
            commit_unknown: AtomicBool::new(false),
            clean: AtomicBool::new(false),
            running: Running::default(),
            spent: AtomicBool::new(false),
            names_differ: AtomicBool::new(false),
            misfit: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            savepoint: rand::random(),
            id: OnceLock::new(),
        }
    }

    pub(crate) fn client(&self) -> &Object {
        self.client.as_ref().expect("the connection is there until this is dropped")
    }

    /// A statement of the inbox's own. Once a handler has had the session, the server may have forgotten what was
    /// prepared before.
    pub(crate) async fn prepare(&self, sql: &str) -> Result<Statement, Error> {
        let asked = self.asks();
        let statement = match self.lent.load(Ordering::Relaxed) {
            true => self.client().prepare(sql).await,
            false => self.client().prepare_cached(sql).await,
        };
        asked.answered(statement)
    }

    /// A statement of the handler's. It is prepared once per connection, unless its names may mean something else
    /// now: the types of its parameters are asked for when it is prepared, and never again.
    async fn prepare_for_handler(&self, sql: &str) -> Result<Prepared, Error> {
        let asked = self.asks();
        let client = self.client();
        let is_new = self.names_differ.load(Ordering::Relaxed) || self.sessions.are_wary();
        self.is_sent(sql);
        if client.statement_cache.size() >= STATEMENTS_MAX {
            client.statement_cache.clear();
        }
        let statement = match is_new {
            true => client.prepare(sql).await,
            false => client.prepare_cached(sql).await,
        };
        Ok(Prepared { statement: asked.answered(statement)?, is_new })
    }

    /// Runs a statement of the handler's, prepared.
    pub(crate) async fn run<T, F>(
        &self,
        sql: &str,
        run: impl FnOnce(Statement) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let Prepared { statement, is_new } = self.prepare_for_handler(sql).await?;
        let asked = self.asks();
        let done = asked.answered(run(statement).await);
        if let Err(error) = &done
            && !is_new
            && error.source().is_some_and(|source| source.is::<WrongType>())
        {
            self.misfit.store(true, Ordering::Relaxed);
            self.sessions.be_wary();
        }
        done
    }

    /// Whether the handler is to be called again, with all its statements prepared anew.
    pub(crate) fn had_a_misfit(&self) -> bool {
        self.misfit.load(Ordering::Relaxed)
    }

    /// What a handler is about to send, as far as that matters for what is sent later.
    pub(crate) fn is_sent(&self, sql: &str) {
        let effects = sql::effects(sql);
        if effects.changes_names {
            self.names_differ.store(true, Ordering::Relaxed);
        }
        if effects.forgets_what_is_prepared {
            self.names_differ.store(true, Ordering::Relaxed);
            self.spent.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        let statement = self.prepare(sql).await?;
        let asked = self.asks();
        asked.answered(self.client().query(&statement, params).await)
    }

    /// A statement that is sent now, until it is answered; where its future is dropped before,
    /// [`Shared::finished`] knows. No future around the statement's, which would be twice as large.
    pub(crate) fn asks(&self) -> Asked<'_> {
        self.running.asks();
        Asked(self)
    }

    /// Remembers what the server refused, to say so if the transaction turns out to be failed; the
    /// driver's own errors, such as a parameter of the wrong type or a second row, fail nothing.
    pub(crate) fn seen<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &result
            && error.code().is_some()
        {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(state_of(error));
            if sort(error) == Sort::Session {
                // Other sessions have prepared the same statements as long ago. What the driver has prepared for
                // itself it forgets with the connection alone.
                self.sessions.prepare_anew();
                self.spent.store(true, Ordering::Relaxed);
            }
        }
        result
    }

    pub(crate) fn handler_ended_it(&self) {
        if !self.ended_by_handler.swap(true, Ordering::Relaxed) {
            tracing::error!(
                consumer = self.sessions.consumer(),
                "a handler ended its transaction itself, by COMMIT, ROLLBACK or PREPARE TRANSACTION \
                 among several statements: what it committed stays, and may be done again; look at its \
                 SQL"
            );
        }
    }

    /// What the first statement of a transaction has told, in the columns `backend` and `transaction`.
    pub(crate) fn begun_in(&self, rows: &[Row]) {
        let Some(row) = rows.first() else { return };
        if let Ok(backend) = row.try_get("backend") {
            self.running.is_in(backend);
        }
        if let Ok(id) = row.try_get("transaction") {
            self.id.get_or_init(|| id);
        }
    }

    /// Which transaction it is, if that was asked.
    pub(crate) fn known(&self) -> Option<String> {
        self.id.get().cloned()
    }

    /// Whether a handler has ended it, or may have.
    pub(crate) fn may_be_ended(&self) -> bool {
        self.doubtful.load(Ordering::Relaxed) || self.ended_by_handler.load(Ordering::Relaxed)
    }

    pub(crate) fn is_doubtful(&self, doubtful: bool) {
        self.doubtful.store(doubtful, Ordering::Relaxed);
    }

    /// Waits for what the work has left running, or ends it.
    pub(crate) async fn finished(&self) -> Result<(), InboxError> {
        if self.running.none() {
            return Ok(());
        }
        // In a box, because it connects, and every transaction's future would have room for that.
        match Box::pin(self.running.behind(self.client(), self.sessions.pool(), "")).await.0 {
            Waited::Answered => Ok(()),
            Waited::Cancelled | Waited::Never => Err(InboxError::Unfinished),
        }
    }

    /// As [`Shared::finished`], where nothing of it is kept anyway.
    ///
    /// # Errors
    /// It runs still.
    pub(crate) async fn ended_what_ran(&self) -> Result<(), InboxError> {
        match self.finished().await {
            Err(why) if !self.running.none() => Err(why),
            _ => Ok(()),
        }
    }

    /// Whether a handler has ended the transaction, which is rolled back by now if not.
    pub(crate) async fn was_ended(&self) -> Result<bool, Error> {
        if self.doubtful.load(Ordering::Relaxed)
            && let Some(id) = self.known()
            && (self.has_committed(&id).await? || self.undo_what_is_prepared().await?)
        {
            self.handler_ended_it();
        }
        Ok(self.ended_by_handler.load(Ordering::Relaxed))
    }

    /// Whether a handler has begun another one, by statements that it did not wait for. In one that has failed
    /// nothing can be asked, and then nothing is kept.
    pub(crate) async fn is_another(&self) -> bool {
        let Some(id) = self.known().filter(|_| self.doubtful.load(Ordering::Relaxed)) else {
            return false;
        };
        let rows = self.query(WHICH, &[]).await.unwrap_or_default();
        rows.first().is_some_and(|row| row.try_get::<_, String>(0).is_ok_and(|now| now != id))
    }

    /// Whether this server has committed the transaction, as far as it knows.
    pub(crate) async fn has_committed(&self, id: &str) -> Result<bool, Error> {
        let rows = self.query(&format!("select {HAS_COMMITTED}"), &[&id]).await?;
        rows.first().map_or(Ok(false), |row| row.try_get(0))
    }

    /// Rolls the transaction back that a handler has prepared for whoever commits it later, and says whether
    /// there was one: it would keep the message's key, and all else that it has locked, until then.
    pub(crate) async fn undo_what_is_prepared(&self) -> Result<bool, Error> {
        const PREPARED: &str = "select pg_catalog.format('rollback prepared %L', gid) \
            from pg_catalog.pg_prepared_xacts \
            where transaction operator(pg_catalog.=) \
                    $1::pg_catalog.text::pg_catalog.xid8::pg_catalog.xid \
                and database operator(pg_catalog.=) pg_catalog.current_database()";
        let Some(id) = self.known() else { return Ok(false) };
        let rows = self.query(PREPARED, &[&id]).await?;
        let Some(undo) = rows.first().map(|row| row.try_get::<_, String>(0)).transpose()? else {
            return Ok(false);
        };
        // A transaction that the handler has begun since is in its way.
        for sql in ["rollback", &undo] {
            let asked = self.asks();
            if let Err(error) = asked.answered(self.client().batch_execute(sql).await) {
                tracing::error!(
                    consumer = self.sessions.consumer(),
                    error = chain(&error),
                    "a handler has prepared its transaction, and that could not be rolled back: its \
                     message's key waits for it. Type, as its owner or a superuser, in this database: \
                     {undo}"
                );
                break;
            }
        }
        Ok(true)
    }

    /// Marks where `Open::back_to_savepoint` goes back to.
    pub(crate) fn savepoint(&self) -> String {
        format!("savepoint s{:032x}", self.savepoint)
    }

    pub(crate) fn failed(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the transaction with `sql`, and puts the session back behind it: one round trip.
    pub(crate) async fn end(&self, sql: &str) -> Result<(), Error> {
        if !self.lent.load(Ordering::Relaxed) || sessions_are_left() {
            let ended = self.client().batch_execute(sql).await;
            self.clean.store(ended.is_ok(), Ordering::Relaxed);
            return ended;
        }
        let put_back = async {
            // Prepared before the handler got the session, so nothing is asked here but to run it.
            let unlock = self.client().prepare_cached(UNLOCK).await?;
            let clear = self.client().batch_execute(self.sessions.clear());
            let (cleared, left) = future::join(clear, self.client().query(&unlock, &[])).await;
            cleared?;
            left?.first().map_or(Ok(true), |row| row.try_get::<_, bool>(1))
        };
        let (ended, left) = future::join(self.client().batch_execute(sql), put_back).await;
        let put_back = matches!(left, Ok(false));
        self.clean.store(ended.is_ok() && put_back, Ordering::Relaxed);
        ended
    }
}

/// See [`Shared::asks`].
pub(crate) struct Asked<'a>(&'a Shared);

impl Asked<'_> {
    pub(crate) fn answered<T>(self, answer: Result<T, Error>) -> Result<T, Error> {
        self.0.running.is_told();
        self.0.seen(answer)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        if *self.kept.get_mut() {
            self.sessions.take_a_place();
        }
        if !*self.clean.get_mut() || *self.spent.get_mut() {
            // No one knows what state it is in, or it takes too much memory. The server rolls back what
            // is open in it.
            drop(Object::take(client));
        }
    }
}
