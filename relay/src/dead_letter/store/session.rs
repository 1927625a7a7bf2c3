//! The relay's session, as the table's statements use it.

use std::{sync::Arc, time::Duration};

use tokio_postgres::{Row, types::ToSql};

use super::recognised::Found;
use crate::{
    dead_letter::{answer::sorted, error::DeadLetterError, headers::Repertoire},
    postgres::sql::SqlSession,
    route::Origin,
};

/// All such waiting until everything is visible again. A transaction that waits for a standby is in
/// the stream long before it is visible, and any role may let one announce something.
pub(super) const VISIBLE_MAX: Duration = Duration::from_secs(1);

/// The table, for one relay.
#[derive(Debug)]
pub struct Store {
    pub(super) session: Arc<SqlSession>,
    pub(super) relay: String,
    pub(super) origin: Origin,
    pub(super) repertoire: Repertoire,
    /// How long it waits, still, for what is not visible.
    pub(super) patience: Duration,
    /// Of the repair that goes before the stream.
    pub(super) found: Found,
    /// Whether the next id that the table has is behind its rows.
    pub(super) gives_ids: bool,
}

impl Store {
    /// Looks whether the table can be used. `session` is the one that holds the leader's lock.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn open(
        session: Arc<SqlSession>,
        relay: &str,
        origin: Origin,
    ) -> Result<Self, DeadLetterError> {
        let encoding = session.client().query_one(Repertoire::QUERY, &[]).await;
        let encoding = encoding.map_err(|e| sorted("asking for the server's encoding", e))?;
        let repertoire = Repertoire::of(encoding.get(0));
        let relay = relay.to_owned();
        let (patience, found, gives_ids) = (VISIBLE_MAX, Found::default(), false);
        let mut store = Store { session, relay, origin, repertoire, patience, found, gives_ids };
        store.adopt().await?;
        Ok(store)
    }

    pub(super) async fn execute(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DeadLetterError> {
        self.session.client().execute(sql, parameters).await.map_err(|e| sorted(doing, e))
    }

    pub(super) async fn query(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, DeadLetterError> {
        self.session.client().query(sql, parameters).await.map_err(|e| sorted(doing, e))
    }
}
