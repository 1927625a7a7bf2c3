//! What a handler sees of its transaction: statements, and no way to end it.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt as _, TryStreamExt as _, pin_mut};
use tokio_postgres::{Error, Row, SimpleQueryMessage};
use uuid::Uuid;

use crate::{
    connection::{Params, Shared, WHICH},
    fault::{Point, point},
    sql::ends_a_transaction,
    transaction::Open,
};

/// The transaction that a message takes effect in: a handler may do anything in it but end it.
///
/// Roles, settings, temporary tables, locks, prepared statements: nothing of it reaches the next
/// message. A statement that fails fails the transaction, unless the handler goes back to a
/// savepoint of its own.
///
/// Statements are prepared once per connection and kept there, so pass values as parameters, never
/// in the text. Cancel safe: a dropped statement is rolled back with all others, or kept with them;
/// if it fails after it was dropped, nothing is kept. Where one still runs three seconds after the
/// handler has returned, it is cancelled, and the message has failed.
pub struct Tx {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Tx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx").finish_non_exhaustive()
    }
}

impl Open {
    /// For the handler.
    pub(crate) fn tx(&self) -> Tx {
        Tx { shared: self.lend() }
    }
}

impl Tx {
    /// Runs a statement and returns the number of rows that it changed.
    ///
    /// # Errors
    /// The database's. The transaction is failed then: return the error, or go back to a savepoint
    /// that was set before. What would end the transaction is refused with SQLSTATE 2D000.
    pub async fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64, Error> {
        self.admit(sql).await?;
        let client = self.shared.client();
        let run = |statement| async move { client.execute(&statement, params).await };
        self.shared.run(sql, run).await
    }

    /// Runs a query and returns all its rows.
    ///
    /// # Errors
    /// As [`Tx::execute`].
    pub async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, Error> {
        self.admit(sql).await?;
        let client = self.shared.client();
        self.shared
            .run(sql, |statement| async move { client.query(&statement, params).await })
            .await
    }

    /// Runs a query and returns its one row.
    ///
    /// # Errors
    /// As [`Tx::execute`]; also when it has no row or several, which fails nothing in the database.
    pub async fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row, Error> {
        self.admit(sql).await?;
        let client = self.shared.client();
        let run = |statement| async move { client.query_one(&statement, params).await };
        self.shared.run(sql, run).await
    }

    /// Runs a query and returns its row, if it has one.
    ///
    /// # Errors
    /// As [`Tx::query_one`].
    pub async fn query_opt(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>, Error> {
        self.admit(sql).await?;
        let client = self.shared.client();
        let run = |statement| async move { client.query_opt(&statement, params).await };
        self.shared.run(sql, run).await
    }

    /// Runs several statements, with semicolons between them and without parameters.
    ///
    /// # Errors
    /// As [`Tx::execute`]. Where one of them that is not the first ends the transaction, that is found
    /// afterwards: what it committed stays, and the message is not taken for handled.
    pub async fn batch_execute(&self, sql: &str) -> Result<(), Error> {
        if ends_a_transaction(sql) {
            return Err(self.refuse().await);
        }
        // Until the opposite is seen: this may be dropped on its way, and the statements run on.
        self.shared.is_doubtful(true);
        self.shared.is_sent(sql);
        let asked = self.shared.asks();
        let done = asked.answered(self.shared.client().batch_execute(sql).await);
        match (done, self.transaction().await) {
            (_, Ok(now)) if self.shared.known().as_ref() != Some(&now) => {
                self.shared.handler_ended_it();
                self.shared.undo_what_is_prepared().await?;
                Err(self.refuse().await)
            }
            (Err(error), Err(_)) => Err(error),
            (done, after) => {
                self.shared.is_doubtful(after.is_err());
                done
            }
        }
    }

    /// COPY … FROM STDIN: sends what it takes, in any pieces, and returns the number of rows.
    ///
    /// # Errors
    /// As [`Tx::execute`].
    pub async fn copy_in(
        &self,
        sql: &str,
        data: impl IntoIterator<Item = Bytes, IntoIter: Send> + Send,
    ) -> Result<u64, Error> {
        self.admit(sql).await?;
        let copied = async {
            let statement = self.shared.client().prepare(sql).await?;
            let sink = self.shared.client().copy_in(&statement).await?;
            pin_mut!(sink);
            for piece in data.into_iter() {
                sink.feed(piece).await?;
            }
            sink.finish().await
        };
        let asked = self.shared.asks();
        asked.answered(copied.await)
    }

    /// COPY … TO STDOUT: all that it gives.
    ///
    /// # Errors
    /// As [`Tx::execute`].
    pub async fn copy_out(&self, sql: &str) -> Result<Vec<u8>, Error> {
        self.admit(sql).await?;
        let copied = async {
            let statement = self.shared.client().prepare(sql).await?;
            let pieces = self.shared.client().copy_out(&statement).await?;
            let mut all = Vec::new();
            pin_mut!(pieces);
            while let Some(piece) = pieces.try_next().await? {
                all.extend_from_slice(&piece);
            }
            Ok(all)
        };
        let asked = self.shared.asks();
        asked.answered(copied.await)
    }

    /// Writes an event into the outbox of this database, in this transaction, and returns its id:
    /// it is published if and only if the message takes effect. Needs the migration set `outbox`
    /// and the writer's grants (`docs/ROLES.md`).
    ///
    /// # Errors
    /// As [`Tx::execute`]; SQLSTATE 22023 when the event can't be a record.
    pub async fn publish(&self, event: &Event<'_>) -> Result<Uuid, Error> {
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

    /// Whoever opened the transaction ends it, or the claim and the effect would not be one.
    async fn admit(&self, sql: &str) -> Result<(), Error> {
        if ends_a_transaction(sql) {
            return Err(self.refuse().await);
        }
        Ok(())
    }

    /// The server's own error, so that it is handled like any other: the transaction is failed.
    async fn refuse(&self) -> Error {
        const REFUSAL: &str = "do $$ begin raise exception using \
            errcode = 'invalid_transaction_termination', \
            message = 'a handler can not end its transaction: nothing of it would be known to be kept', \
            hint = 'Return Ok to commit and an error to roll back. A part can be undone with \
                savepoint and rollback to savepoint.'; end $$";
        let asked = self.shared.asks();
        let refused = asked.answered(self.shared.client().batch_execute(REFUSAL).await);
        refused.expect_err("the statement raises an error")
    }

    /// Which one this is, by the server.
    async fn transaction(&self) -> Result<String, Error> {
        let asked = self.shared.asks();
        let answer = asked.answered(self.shared.client().simple_query(WHICH).await)?;
        let row = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(ToOwned::to_owned),
            _ => None,
        };
        Ok(answer.iter().find_map(row).unwrap_or_default())
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
