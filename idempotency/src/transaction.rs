//! An open transaction on a pooled connection, and [`Tx`], all that a handler sees of it.
//!
//! Whoever opens it ends it: the handler's `Tx` has no way to, and one that is dropped before its
//! end is rolled back before the connection is used again. PostgreSQL answers COMMIT in a failed
//! transaction with a rollback and no error: a statement that failed is remembered, and what fails
//! unseen, because nobody waited for its answer, is found by the statement before COMMIT.

use std::sync::{Arc, Mutex, PoisonError, atomic::AtomicBool, atomic::Ordering};

use deadpool_postgres::{Object, Pool};
use futures_util::{FutureExt as _, future};
use tokio_postgres::{Row, error::SqlState, types::ToSql};
use uuid::Uuid;

use crate::{
    error::{InboxError, ended_the_session, state_of},
    fault::{Point, point},
};

/// A second copy of a message must wait for the first and then see its row, which is what READ
/// COMMITTED does; the others answer with an error.
const BEGIN: &str = "begin isolation level read committed read write";
/// A failed transaction refuses the first of them, and the second is not run then.
const COMMIT: &str = "savepoint ended; commit";

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Begun and not ended yet; rolled back when dropped.
pub(crate) struct Open {
    shared: Arc<Shared>,
}

struct Shared {
    client: Object,
    /// SQLSTATE of the first statement that failed: nothing of this will be kept.
    failed: Mutex<Option<String>>,
    ended: AtomicBool,
}

/// The transaction that a message takes effect in: a handler may do anything in it but end it.
///
/// Statements are prepared once per connection and kept there, so pass values as parameters, never
/// in the text. Cancel safe: a dropped statement is rolled back with all others, or kept with them;
/// if it fails after it was dropped, nothing is kept.
pub struct Tx {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Tx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx").finish_non_exhaustive()
    }
}

impl Tx {
    /// Runs a statement and returns the number of rows that it changed.
    ///
    /// # Errors
    /// The database's. The transaction is failed then: return the error.
    pub async fn execute(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<u64, tokio_postgres::Error> {
        self.shared.execute(sql, params).await
    }

    /// Runs a query and returns all its rows.
    ///
    /// # Errors
    /// As [`Tx::execute`].
    pub async fn query(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.shared.query(sql, params).await
    }

    /// Runs a query and returns its one row.
    ///
    /// # Errors
    /// As [`Tx::execute`]; also when it has no row or several, which fails nothing in the database.
    pub async fn query_one(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Row, tokio_postgres::Error> {
        let statement = self.shared.prepare(sql).await?;
        self.shared.seen(self.shared.client.query_one(&statement, params).await)
    }

    /// Runs a query and returns its row, if it has one.
    ///
    /// # Errors
    /// As [`Tx::query_one`].
    pub async fn query_opt(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Option<Row>, tokio_postgres::Error> {
        let statement = self.shared.prepare(sql).await?;
        self.shared.seen(self.shared.client.query_opt(&statement, params).await)
    }

    /// Writes an event into the outbox of this database, in this transaction, and returns its id:
    /// it is published if and only if the message takes effect. Needs the migration set `outbox`
    /// and the writer's grants (`docs/ROLES.md`).
    ///
    /// # Errors
    /// As [`Tx::execute`]; SQLSTATE 22023 when the event can't be a record.
    pub async fn publish(&self, event: &Event<'_>) -> Result<Uuid, tokio_postgres::Error> {
        point(Point::Handling);
        let Event { topic, key, kind, payload, headers } = event;
        let row = self
            .query_one(
                "select outbox.publish(topic => $1, payload => $2, key => $3, type => $4, \
                 headers => $5)",
                &[topic, payload, key, kind, headers],
            )
            .await?;
        row.try_get(0)
    }
}

/// An event for [`Tx::publish`].
#[derive(Clone, Debug)]
pub struct Event<'a> {
    topic: &'a str,
    key: Option<&'a str>,
    kind: Option<&'a str>,
    payload: Option<serde_json::Value>,
    headers: serde_json::Value,
}

impl<'a> Event<'a> {
    /// An event without key, type and headers of its own.
    pub fn new(topic: &'a str, payload: serde_json::Value) -> Self {
        let headers = serde_json::Value::Object(serde_json::Map::new());
        Event { topic, key: None, kind: None, payload: Some(payload), headers }
    }

    /// An event without a payload: what a compacted topic takes for a deletion.
    pub fn tombstone(topic: &'a str) -> Self {
        Event { payload: None, ..Event::new(topic, serde_json::Value::Null) }
    }

    /// With a key: events of one key stay in order.
    #[must_use]
    pub fn key(mut self, key: &'a str) -> Self {
        self.key = Some(key);
        self
    }

    /// With a type.
    #[must_use]
    pub fn kind(mut self, kind: &'a str) -> Self {
        self.kind = Some(kind);
        self
    }

    /// With a header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Some(headers) = self.headers.as_object_mut() {
            headers.insert(name.to_owned(), value.into());
        }
        self
    }
}

impl Shared {
    async fn prepare(&self, sql: &str) -> Result<tokio_postgres::Statement, tokio_postgres::Error> {
        self.seen(self.client.prepare_cached(sql).await)
    }

    async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, tokio_postgres::Error> {
        let statement = self.prepare(sql).await?;
        self.seen(self.client.execute(&statement, params).await)
    }

    async fn query(
        &self,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let statement = self.prepare(sql).await?;
        self.seen(self.client.query(&statement, params).await)
    }

    /// Only the server's errors fail a transaction; the driver's own, such as a parameter of the
    /// wrong type or a second row, do not.
    fn seen<T>(
        &self,
        result: Result<T, tokio_postgres::Error>,
    ) -> Result<T, tokio_postgres::Error> {
        if let Err(error) = &result
            && error.code().is_some()
        {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| state_of(error));
        }
        result
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.ended.load(Ordering::Relaxed) {
            // The first poll hands the statement to the connection, which keeps it in order: it is
            // done before anything that the next user of the connection asks for.
            let _ = self.client.batch_execute("rollback").now_or_never();
        }
    }
}

impl Open {
    /// Begins, and runs `sql` in the same round trip.
    pub(crate) async fn begin(
        pool: &Pool,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<(Self, Vec<Row>), InboxError> {
        let client = pool.get().await.map_err(|error| InboxError::Unavailable(Box::new(error)))?;
        let refused = |error| InboxError::of(doing, error);
        let statement = client.prepare_cached(sql).await.map_err(refused)?;
        let shared = Shared { client, failed: Mutex::new(None), ended: AtomicBool::new(false) };
        let open = Open { shared: Arc::new(shared) };
        let client = &open.shared.client;
        // In the order of their first polls, and `join` polls the left one first.
        let (begun, rows) =
            future::join(client.batch_execute(BEGIN), client.query(&statement, params)).await;
        begun.map_err(|error| match error.code() {
            // What a standby says to READ WRITE.
            Some(&SqlState::FEATURE_NOT_SUPPORTED) => InboxError::Unavailable(error.into()),
            _ => refused(error),
        })?;
        Ok((open, rows.map_err(refused)?))
    }

    /// For the handler.
    pub(crate) fn tx(&self) -> Tx {
        Tx { shared: Arc::clone(&self.shared) }
    }

    /// A statement of the inbox's own.
    pub(crate) async fn query(
        &self,
        doing: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, InboxError> {
        self.shared.query(sql, params).await.map_err(|error| InboxError::of(doing, error))
    }

    /// Marks where [`Open::back_to_savepoint`] goes back to.
    pub(crate) async fn savepoint(&self) -> Result<(), InboxError> {
        let done = self.shared.client.batch_execute("savepoint work").await;
        done.map_err(|error| InboxError::of("setting a savepoint", error))
    }

    /// Undoes what was done since the savepoint, failures included.
    pub(crate) async fn back_to_savepoint(&self) -> Result<(), InboxError> {
        let done = self.shared.client.batch_execute("rollback to savepoint work").await;
        self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        done.map_err(|error| InboxError::of("going back to the savepoint", error))
    }

    /// Asks deferred constraints what they would say at the commit, leaves them as deferred as they
    /// were, and lets go of the savepoint.
    pub(crate) async fn keep(&self) -> Result<(), tokio_postgres::Error> {
        let sql = "savepoint checked; set constraints all immediate; \
                   rollback to savepoint checked; release savepoint work";
        self.shared.client.batch_execute(sql).await
    }

    /// Whether no [`Tx`] is kept, whatever the work has returned: nobody can make another.
    pub(crate) fn alone(&self) -> Result<(), InboxError> {
        if Arc::strong_count(&self.shared) > 1 { Err(InboxError::Escaped) } else { Ok(()) }
    }

    /// Whether the work left the transaction as it must: no statement failed, no [`Tx`] is kept.
    pub(crate) fn check(&self) -> Result<(), InboxError> {
        self.alone()?;
        let failed = self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().map_or(Ok(()), |state| Err(InboxError::Aborted(state.clone())))
    }

    /// Commits, unless [`Open::check`] finds something. Not cancel safe: dropped half-way, the
    /// outcome is unknown.
    pub(crate) async fn commit(self) -> Result<(), InboxError> {
        if let Err(error) = self.check() {
            self.rollback().await?;
            return Err(error);
        }
        point(Point::Committing);
        match self.shared.client.batch_execute(COMMIT).await {
            Ok(()) => {
                self.shared.ended.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => {
                Err(InboxError::Aborted(state_of(&error)))
            }
            // The work took too long, and would again.
            Err(error) if ended_the_session(&error) => Err(InboxError::Uncommitted(error)),
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
    /// Also where a [`Tx`] is kept.
    pub(crate) async fn rollback(self) -> Result<(), InboxError> {
        if let Err(escaped) = self.alone() {
            // What the kept one still asks for must not be a transaction of its own. The last to
            // be dropped rolls back.
            let ended = self.shared.client.batch_execute("rollback; begin read only").await;
            ended.map_err(|error| InboxError::of("ending the transaction", error))?;
            return Err(escaped);
        }
        let ended = self.shared.client.batch_execute("rollback").await;
        self.shared.ended.store(true, Ordering::Relaxed);
        ended.map_err(|error| InboxError::of("rolling back", error))
    }
}
