//! Progress in the app's database, for sinks that can keep none: the table `outbox.progress`.
//!
//! It is written through the session that holds the leader's lock, and through no other: a relay that
//! was replaced has lost that session, and can store nothing. That is the fence. Rows are added and
//! not changed: behind a transaction that stays open for long, each change of one row would have to
//! pass over all of its former versions. Older rows are deleted now and then.

use std::sync::Arc;

use bytes::Bytes;
use tokio_postgres::error::SqlState;

use super::{ProgressStore, SinkError, Stored, StoredProgress, unavailable};
use crate::{
    core::progress_home::ProgressHome,
    fault::{self, Point},
    postgres::sql::SqlSession,
};

/// Rows between two deletions of what is older.
const KEPT: i64 = 1_000;

const READ: &str = "select record from outbox.progress where relay operator(pg_catalog.=) $1 \
                    order by seq desc limit 1";
/// One relay writes at a time, so the next number is known; a sequence is not copied with the rows where a
/// database is moved, and would number what is stored behind what is there.
const STORE: &str = "insert into outbox.progress (relay, seq, record) overriding system value \
                     select $1::pg_catalog.text, \
                         coalesce(pg_catalog.max(seq), 0) operator(pg_catalog.+) 1, $2::pg_catalog.bytea \
                     from outbox.progress where relay operator(pg_catalog.=) $1 \
                     returning seq, relay operator(pg_catalog.=) $1::pg_catalog.text \
                         and record operator(pg_catalog.=) $2::pg_catalog.bytea";
/// A few at a time: the leader's sign of life waits behind it.
const FORGET: &str = "delete from outbox.progress where relay operator(pg_catalog.=) $1 and seq in ( \
                          select seq from outbox.progress where relay operator(pg_catalog.=) $1 \
                              and seq operator(pg_catalog.<) $2 order by seq limit 2000)";

/// What a person can do there.
pub fn home() -> ProgressHome {
    ProgressHome {
        name: "outbox.progress".into(),
        guard: "let the relay's role alone write to outbox.progress".into(),
        empty: "delete the relay's rows of outbox.progress".into(),
        is_outside: false,
        has_events: false,
    }
}

/// One relay's rows of the table.
#[derive(Debug)]
pub struct ProgressTable {
    session: Arc<SqlSession>,
    relay: String,
}

impl ProgressTable {
    /// `session` is the one that holds the leader's lock, or will.
    pub fn new(session: Arc<SqlSession>, relay: &str) -> Self {
        ProgressTable { session, relay: relay.to_owned() }
    }

    async fn newest(&self) -> Result<StoredProgress, SinkError> {
        let row = self.session.client().query_opt(READ, &[&self.relay]).await;
        let record: Option<Vec<u8>> = row
            .and_then(|row| row.map(|row| row.try_get(0)).transpose())
            .map_err(|error| sorted("reading progress", error))?;
        Ok(StoredProgress { own: record.map(Bytes::from), stranger: None })
    }
}

impl ProgressStore for ProgressTable {
    async fn peek(&mut self) -> Result<StoredProgress, SinkError> {
        self.newest().await
    }

    /// Whoever holds the lock is the only one whose session can store.
    async fn fence(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn read(&mut self) -> Result<StoredProgress, SinkError> {
        self.newest().await
    }

    async fn store(&mut self, progress: Bytes) -> Result<Stored, SinkError> {
        const DOING: &str = "storing progress";
        let client = self.session.client();
        // By the session's settings (`pins`) it is durable when this returns.
        let row = client.query_opt(STORE, &[&self.relay, &&*progress]).await;
        let stored = row.and_then(|row| {
            row.map(|row| Ok::<(i64, bool), _>((row.try_get(0)?, row.try_get(1)?))).transpose()
        });
        let Some((newest, true)) = stored.map_err(|error| sorted(DOING, error))? else {
            return Err(kept_out());
        };
        fault::point(Point::ProgressInTable);
        if newest % KEPT == 0 {
            let forgotten = client.execute(FORGET, &[&self.relay, &newest]).await;
            forgotten.map_err(|error| sorted("deleting older progress", error))?;
        }
        Ok(Stored(()))
    }
}

/// By a trigger or a rule.
fn kept_out() -> SinkError {
    SinkError::Misconfigured {
        what: "the relay's progress is not in outbox.progress as it was sent: a trigger before each \
               row, or a rule, keeps it out or changes it; nothing more is published until it is stored"
            .into(),
        remedy: "drop that trigger or rule; `outbox-relay check` names it with its statement".into(),
    }
}

fn sorted(doing: &str, error: tokio_postgres::Error) -> SinkError {
    let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    match error.code() {
        Some(code) if missing.contains(code) => SinkError::Misconfigured {
            what: "the table outbox.progress, where the relay keeps its progress, is missing; \
                   nothing is published until it is there"
                .into(),
            remedy: "run `outbox-relay migrate` as the schema's owner, then grant what \
                     docs/ROLES.md lists"
                .into(),
        },
        // By a rule in place of the insert, which returns nothing.
        Some(&SqlState::FEATURE_NOT_SUPPORTED) => kept_out(),
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => SinkError::Misconfigured {
            what: "the relay's role may not use outbox.progress, where the relay keeps its \
                   progress; nothing is published until it may"
                .into(),
            remedy: "`grant select, insert, delete on outbox.progress to` the relay's role".into(),
        },
        _ => unavailable(doing, error),
    }
}
