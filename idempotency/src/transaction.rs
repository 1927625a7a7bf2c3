//! An open transaction on a pooled connection.
//!
//! Whoever opens it ends it: the handler's `Tx` has no way to, and one that is dropped before its
//! end takes its connection out of the pool. PostgreSQL answers COMMIT in a failed transaction with
//! a rollback and no error: the statement before COMMIT finds out whether it is failed, and whether
//! it is still there. A session that a handler has had is put back before anyone else gets it, in
//! the round trip of the end.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use deadpool_postgres::Object;
use futures_util::future;
use tokio_postgres::{Error, Row, Statement, error::SqlState, types::ToSql};

use crate::{
    error::{InboxError, Sort, ended_the_session, sort, state_of},
    fault::{Point, point, sessions_are_left},
    message::RawMessage,
    running::{Running, Waited},
    session::{Sessions, UNLOCK},
};

/// A failed transaction refuses the first of them, and so does a session that is in none; the second
/// is not run then.
const COMMIT: &str = "savepoint ended; commit";
/// What COMMIT would ask deferred constraints is asked while a savepoint can still be gone back to.
const COMMIT_ASKING: &str = "set constraints all immediate; savepoint ended; commit";

/// What a kept `Tx` still asks for must not be a transaction of its own, and its session not be idle
/// for as long as it is kept.
const CUT_OFF: &str = "rollback; set session authorization default; begin read only; \
     select pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())";

pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Begun and not ended yet; rolled back when dropped.
pub(crate) struct Open {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    /// Until it is dropped.
    client: Option<Object>,
    sessions: Arc<Sessions>,
    /// SQLSTATE of the last statement that failed.
    failed: Mutex<Option<String>>,
    /// A handler has had the session.
    lent: AtomicBool,
    /// A handler has ended the transaction.
    ended_by_handler: AtomicBool,
    /// Statements of a handler failed, and nothing can be asked since: they may have ended it before.
    doubtful: AtomicBool,
    /// The transaction is ended and the session as it was: others may have it.
    clean: AtomicBool,
    running: Running,
    /// It carried a large message. The driver keeps its buffers at the size that this took, for as long
    /// as the connection lasts.
    swollen: AtomicBool,
    /// A handler keeps it, perhaps for ever; another has its place in the pool.
    kept: AtomicBool,
    /// Where [`Open::back_to_savepoint`] goes back to. A name that nobody can guess: with a savepoint
    /// of the same name a handler would keep what is to be undone.
    savepoint: u128,
    /// Which transaction it is, once somebody has asked.
    id: OnceLock<String>,
}

impl Shared {
    pub(crate) fn client(&self) -> &Object {
        self.client.as_ref().expect("the connection is there until this is dropped")
    }

    pub(crate) async fn prepare(&self, sql: &str) -> Result<Statement, Error> {
        let asked = self.asks();
        asked.answered(self.client().prepare_cached(sql).await)
    }

    pub(crate) async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        let statement = self.prepare(sql).await?;
        let asked = self.asks();
        asked.answered(self.client().execute(&statement, params).await)
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
                // Other sessions have prepared the same statements as long ago.
                self.sessions.pool().manager().statement_caches.clear();
            }
        }
        result
    }

    pub(crate) fn handler_ended_it(&self) {
        if !self.ended_by_handler.swap(true, Ordering::Relaxed) {
            tracing::error!(
                consumer = self.sessions.consumer(),
                "a handler ended its transaction itself, by COMMIT or ROLLBACK among several \
                 statements: what it committed stays, and may be done again; look at its SQL"
            );
        }
    }

    /// Which transaction it is, if that was asked.
    pub(crate) fn known(&self) -> Option<String> {
        self.id.get().cloned()
    }

    /// Remembers which one it is; that stays so until it ends.
    pub(crate) fn is_known(&self, id: String) -> String {
        self.id.get_or_init(|| id).clone()
    }

    pub(crate) fn is_doubtful(&self) {
        self.doubtful.store(true, Ordering::Relaxed);
    }

    /// Waits for what the work has left running, or ends it.
    async fn finished(&self) -> Result<(), InboxError> {
        if self.running.none() {
            return Ok(());
        }
        // In a box, because it connects, and every transaction's future would have room for that.
        match Box::pin(self.running.behind(self.client(), self.sessions.pool(), "")).await {
            Waited::Answered => Ok(()),
            Waited::Cancelled | Waited::Never => Err(InboxError::Unfinished),
        }
    }

    /// As [`Shared::finished`], where nothing of it is kept anyway.
    ///
    /// # Errors
    /// It runs still.
    async fn ended_what_ran(&self) -> Result<(), InboxError> {
        match self.finished().await {
            Err(why) if !self.running.none() => Err(why),
            _ => Ok(()),
        }
    }

    /// Whether a handler has ended the transaction, which is rolled back by now if not.
    async fn was_ended(&self) -> Result<bool, Error> {
        const SQL: &str = "select pg_catalog.pg_xact_status($1::pg_catalog.text::pg_catalog.xid8) \
            operator(pg_catalog.=) 'committed'";
        if self.doubtful.load(Ordering::Relaxed)
            && let Some(id) = self.known()
        {
            let rows = self.query(SQL, &[&id]).await?;
            let committed =
                rows.first().map_or(Ok(None), |row| row.try_get::<_, Option<bool>>(0))?;
            if committed == Some(true) {
                self.handler_ended_it();
            }
        }
        Ok(self.ended_by_handler.load(Ordering::Relaxed))
    }

    /// Marks where [`Open::back_to_savepoint`] goes back to.
    fn savepoint(&self) -> String {
        format!("savepoint s{:032x}", self.savepoint)
    }

    fn failed(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the transaction with `sql`, and puts the session back behind it: one round trip.
    async fn end(&self, sql: &str) -> Result<(), Error> {
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
        if !*self.clean.get_mut() || *self.swollen.get_mut() {
            // Nobody knows what state it is in, or it takes too much memory. The server rolls back what
            // is open in it.
            drop(Object::take(client));
        }
    }
}

impl Open {
    /// Begins, and runs `sql` in the same round trip.
    pub(crate) async fn begin(
        sessions: &Arc<Sessions>,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<(Self, Vec<Row>), InboxError> {
        let open = Self::on_a_session(sessions).await?;
        let refused = |error| InboxError::of(doing, error);
        let statement = open.shared.prepare(sql).await.map_err(refused)?;
        open.shared.prepare(UNLOCK).await.map_err(refused)?;
        let client = open.shared.client();
        // In the order of their first polls, and `join` polls the left one first; the right one's is
        // prepared, or it would begin with the preparation.
        let (begun, rows) =
            future::join(client.batch_execute(sessions.begin()), client.query(&statement, params))
                .await;
        let (open, rows) = open.begun(doing, begun, rows).await?;
        open.shared.running.is_in(&rows);
        Ok((open, rows))
    }

    /// Begins, runs the first statement, sets the savepoint, and runs the second: one round trip.
    /// [`Open::back_to_savepoint`] undoes the second.
    pub(crate) async fn begin_marked(
        sessions: &Arc<Sessions>,
        doing: &'static str,
        [(before, of_before), (behind, of_behind)]: [(&str, Params<'_>); 2],
    ) -> Result<(Self, Vec<Row>, Vec<Row>), InboxError> {
        let open = Self::on_a_session(sessions).await?;
        let refused = |error| InboxError::of(doing, error);
        let before = open.shared.prepare(before).await.map_err(refused)?;
        let behind = open.shared.prepare(behind).await.map_err(refused)?;
        open.shared.prepare(UNLOCK).await.map_err(refused)?;
        let (client, savepoint) = (open.shared.client(), open.shared.savepoint());
        // Each refuses what comes behind it, and all are answered.
        let (begun, first, marked, second) = future::join4(
            client.batch_execute(sessions.begin()),
            client.query(&before, of_before),
            client.batch_execute(&savepoint),
            client.query(&behind, of_behind),
        )
        .await;
        let answers = match (first, marked, second) {
            (Ok(first), Ok(()), Ok(second)) => Ok((first, second)),
            (Err(why), _, _) | (_, Err(why), _) | (_, _, Err(why)) => Err(why),
        };
        let (open, (first, second)) = open.begun(doing, begun, answers).await?;
        open.shared.running.is_in(&first);
        Ok((open, first, second))
    }

    async fn on_a_session(sessions: &Arc<Sessions>) -> Result<Self, InboxError> {
        let client = sessions.get().await?;
        let shared = Shared {
            client: Some(client),
            sessions: Arc::clone(sessions),
            failed: Mutex::new(None),
            lent: AtomicBool::new(false),
            ended_by_handler: AtomicBool::new(false),
            doubtful: AtomicBool::new(false),
            clean: AtomicBool::new(false),
            running: Running::default(),
            swollen: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            savepoint: rand::random(),
            id: OnceLock::new(),
        };
        Ok(Open { shared: Arc::new(shared) })
    }

    async fn begun<T>(
        self,
        doing: &'static str,
        begun: Result<(), Error>,
        answers: Result<T, Error>,
    ) -> Result<(Self, T), InboxError> {
        let refused = |error| InboxError::of(doing, error);
        begun.map_err(|error| match error.code() {
            // What a standby says to READ WRITE.
            Some(&SqlState::FEATURE_NOT_SUPPORTED) => InboxError::Unavailable(error.into()),
            _ => refused(error),
        })?;
        match self.shared.seen(answers) {
            Ok(answers) => Ok((self, answers)),
            Err(error) => {
                // Others may have the session; why it failed is known.
                let _ended = self.rollback().await;
                Err(refused(error))
            }
        }
    }

    /// For a `Tx`: from now on a handler has had the session.
    pub(crate) fn lend(&self) -> Arc<Shared> {
        self.shared.lent.store(true, Ordering::Relaxed);
        Arc::clone(&self.shared)
    }

    /// A statement of the inbox's own; none after a handler has had the session, whose role and
    /// settings may be any.
    pub(crate) async fn query(
        &self,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, InboxError> {
        self.shared.query(sql, params).await.map_err(|error| InboxError::of(doing, error))
    }

    /// Whoever has the connection next gets a new one, if so much passed through this one.
    pub(crate) fn carries(&self, message: &RawMessage) {
        if message.is_large() {
            self.shared.swollen.store(true, Ordering::Relaxed);
        }
    }

    /// Undoes what was done since the savepoint: failures, role and settings included.
    pub(crate) async fn back_to_savepoint(&self) -> Result<(), InboxError> {
        self.shared.ended_what_ran().await?;
        let sql = format!("rollback to {}", self.shared.savepoint());
        match self.shared.client().batch_execute(&sql).await {
            Ok(()) => Ok(()),
            Err(error) if is_gone(&error) => Err(InboxError::Ended),
            Err(error) => Err(InboxError::of("going back to the savepoint", error)),
        }
    }

    /// Whether no `Tx` is kept, whatever the work has returned: nobody can make another.
    pub(crate) fn alone(&self) -> Result<(), InboxError> {
        if Arc::strong_count(&self.shared) > 1 { Err(InboxError::Escaped) } else { Ok(()) }
    }

    /// Commits, if all statements succeeded. Not cancel safe: dropped half-way, the outcome is
    /// unknown.
    pub(crate) async fn commit(self) -> Result<(), InboxError> {
        match self.try_commit(COMMIT).await {
            Err(error @ (InboxError::Escaped | InboxError::Ended | InboxError::Unfinished)) => {
                // The reason is known: what else is said about the end adds nothing.
                let _ended = self.rollback().await;
                Err(error)
            }
            done => done,
        }
    }

    /// As [`Open::commit`]. Where it fails, [`Open::back_to_savepoint`] may be possible.
    pub(crate) async fn commit_or_go_back(&self) -> Result<(), InboxError> {
        self.try_commit(COMMIT_ASKING).await
    }

    async fn try_commit(&self, sql: &str) -> Result<(), InboxError> {
        self.alone()?;
        if self.shared.ended_by_handler.load(Ordering::Relaxed) {
            return Err(InboxError::Ended);
        }
        self.shared.finished().await?;
        point(Point::Committing);
        match self.shared.end(sql).await {
            Ok(()) => Ok(()),
            Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => {
                let state = self.shared.failed().unwrap_or_else(|| state_of(&error));
                Err(InboxError::Aborted(state))
            }
            Err(error) if is_gone(&error) => {
                self.shared.handler_ended_it();
                Err(InboxError::Ended)
            }
            // The work took too long, and would again.
            Err(error) if ended_the_session(&error) => Err(InboxError::Uncommitted(error)),
            // So may one that is checked in C.
            Err(error) if sort(&error) == Sort::Doubt => Err(InboxError::Uncommitted(error)),
            // A deferred constraint speaks up here.
            Err(error) => Err(match InboxError::of("committing", error) {
                InboxError::Refused { source, .. } => InboxError::Uncommitted(source),
                other => other,
            }),
        }
    }

    /// Rolls back, and waits for it.
    ///
    /// # Errors
    /// Also where a `Tx` is kept, and where a handler has ended the transaction.
    pub(crate) async fn rollback(self) -> Result<(), InboxError> {
        if let Err(escaped) = self.alone() {
            let (client, pool) = (self.shared.client(), self.shared.sessions.pool());
            let _cut_off = Box::pin(self.shared.running.behind(client, pool, CUT_OFF)).await;
            if !self.shared.kept.swap(true, Ordering::Relaxed) {
                self.shared.sessions.add_a_place();
            }
            return Err(escaped);
        }
        self.shared.ended_what_ran().await?;
        let ended = self.shared.end("rollback").await;
        ended.map_err(|error| InboxError::of("rolling back", error))?;
        match self.shared.was_ended().await {
            Ok(true) => Err(InboxError::Ended),
            Ok(false) => Ok(()),
            Err(error) => Err(InboxError::of("asking what became of a transaction", error)),
        }
    }
}

/// No transaction is open any more.
fn is_gone(error: &Error) -> bool {
    error.code() == Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION)
}
