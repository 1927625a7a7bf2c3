//! An open transaction on a pooled connection.
//!
//! Whoever opens it ends it: the handler's `Tx` has no way to, and one that is dropped before its
//! end takes its connection out of the pool. PostgreSQL answers COMMIT in a failed transaction with
//! a rollback and no error: the statement before COMMIT finds out whether it is failed, and whether
//! it is still there. A session that a handler has had is put back before anyone else gets it, in
//! the round trip of the end.

use std::sync::{Arc, atomic::Ordering};

use futures_util::future;
use tokio_postgres::{Error, Row, error::SqlState};

use crate::{
    connection::{Params, Shared},
    error::{InboxError, Sort, ended_the_session, sort, state_of},
    fault::{Point, point},
    message::RawMessage,
    session::{Sessions, UNLOCK},
};

/// A failed transaction refuses the first of them, and so does a session that is in none; the second
/// is not run then.
const COMMIT: &str = "savepoint ended; commit";
/// What COMMIT would ask deferred constraints is asked while a savepoint can still be gone back to.
const COMMIT_ASKING: &str = "set constraints all immediate; savepoint ended; commit";

/// What a kept `Tx` still asks for must not be a transaction of its own, and its session not be idle
/// for as long as it is kept.
const CUT_OFF: &str = "set session authorization default; begin read only; \
     select pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())";

/// Begun and not ended yet; rolled back when dropped.
pub(crate) struct Open {
    shared: Arc<Shared>,
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
        open.shared.begun_in(&rows);
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
        open.shared.begun_in(&first);
        Ok((open, first, second))
    }

    async fn on_a_session(sessions: &Arc<Sessions>) -> Result<Self, InboxError> {
        let client = sessions.get().await?;
        let shared = Shared::of(client, Arc::clone(sessions));
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
            self.shared.spent.store(true, Ordering::Relaxed);
        }
    }

    /// As [`Shared::had_a_misfit`].
    pub(crate) fn had_a_misfit(&self) -> bool {
        self.shared.had_a_misfit()
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

    /// Which transaction it was begun as, if a handler may have ended it: by statements of its own, or by a `Tx`
    /// that it keeps. If that has committed, a handler did it: `None` where it may have been [`Open::commit`].
    pub(crate) fn transaction(&self) -> Option<String> {
        let ours = self.shared.commit_unknown.load(Ordering::Relaxed);
        let doubtful = self.shared.may_be_ended() || self.alone().is_err();
        self.shared.known().filter(|_| doubtful && !ours)
    }

    /// Whether another transaction has committed, as far as the server knows.
    pub(crate) async fn has_committed(&self, id: &str) -> Result<bool, InboxError> {
        const DOING: &str = "asking what became of a transaction";
        self.shared.has_committed(id).await.map_err(|error| InboxError::of(DOING, error))
    }

    /// Whether no `Tx` is kept, whatever the work has returned: nobody can make another.
    pub(crate) fn alone(&self) -> Result<(), InboxError> {
        if Arc::strong_count(&self.shared) > 1 { Err(InboxError::Escaped) } else { Ok(()) }
    }

    /// Commits, if all statements succeeded. Not cancel safe: dropped half-way, the outcome is
    /// unknown.
    pub(crate) async fn commit(self) -> Result<(), InboxError> {
        match self.try_commit(COMMIT).await {
            Err(
                error @ (InboxError::Escaped
                | InboxError::Ended
                | InboxError::Unfinished
                | InboxError::Aborted(_)),
            ) => match self.rollback().await {
                // Before the statement that failed; that is told only now.
                Err(ended @ InboxError::Ended) => Err(ended),
                // The reason is known: what else is said about the end adds nothing.
                _ => Err(error),
            },
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
        if self.shared.is_another().await {
            self.shared.handler_ended_it();
            return Err(InboxError::Ended);
        }
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
            // The work took too long, and would again: also where a deferred trigger takes longer than a statement may.
            Err(error)
                if ended_the_session(&error) || error.code() == Some(&SqlState::QUERY_CANCELED) =>
            {
                Err(InboxError::Uncommitted(error))
            }
            // So may one that is checked in C. And COMMIT needs nothing that was prepared: where a statement is
            // missed, it is one of a deferred trigger.
            Err(error) if matches!(sort(&error), Sort::Doubt | Sort::Session) => {
                Err(InboxError::Uncommitted(error))
            }
            // A deferred constraint speaks up here.
            Err(error) => Err(match InboxError::of("committing", error) {
                InboxError::Refused { source, .. } => InboxError::Uncommitted(source),
                unavailable @ InboxError::Unavailable(_) => {
                    self.shared.commit_unknown.store(true, Ordering::Relaxed);
                    unavailable
                }
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
            self.cut_off("rollback").await;
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

/// Where a `Tx` is kept.
impl Open {
    /// Undoes what was done since the savepoint, commits one statement instead, and ends the session. Returns
    /// whether that is known to be committed: then no one had ended the transaction before.
    pub(crate) async fn cut_off_with(&self, statement: &str) -> bool {
        let ours = format!("rollback to {}; {statement}; commit", self.shared.savepoint());
        let is_ours = self.cut_off(&ours).await >= 3;
        if !is_ours {
            // It was refused, as after an end by whoever keeps it.
            self.cut_off("rollback").await;
        }
        is_ours
    }

    /// Sent as one: nothing that is still asked for comes in between. Returns how many of its statements are
    /// known to have succeeded.
    async fn cut_off(&self, end: &str) -> usize {
        let (client, pool) = (self.shared.client(), self.shared.sessions.pool());
        let sql = format!("{end}; {CUT_OFF}");
        let (_, succeeded) = Box::pin(self.shared.running.behind(client, pool, &sql)).await;
        if !self.shared.kept.swap(true, Ordering::Relaxed) {
            self.shared.sessions.add_a_place();
        }
        succeeded
    }
}

/// No transaction is open any more.
fn is_gone(error: &Error) -> bool {
    error.code() == Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION)
}
