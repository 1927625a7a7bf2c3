//! What was announced and has not had its effect, announced once more by the relay: the first
//! announcement may be in WAL that is lost.

use tokio_postgres::types::{Json, PgLsn};
use uuid::Uuid;

use super::{answer::sorted, error::DeadLetterError, message::Message};
use crate::{core::lsn::Lsn, postgres::sql::SqlSession};

/// Releases that are announced again at a time.
const WAITING_MAX: i64 = 1_000;

/// Releases and discards of the relay that have not had their effect, oldest first; as many as one
/// look may find. Their ids grow with time.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn waiting(session: &SqlSession, relay: &str) -> Result<Vec<Uuid>, DeadLetterError> {
    // From one to the next by the index: one of them may have a million rows.
    let query = "with recursive r (id) as ( \
                     (select release_id from outbox.dead_letters where relay = $1 \
                          and state in ('releasing', 'discarded') and release_id is not null \
                      order by release_id limit 1) \
                     union all \
                     select (select release_id from outbox.dead_letters where relay = $1 \
                                 and state in ('releasing', 'discarded') and release_id > r.id \
                             order by release_id limit 1) \
                     from r where r.id is not null) \
                 select id from r where id is not null limit $2";
    let rows = session.client().query(query, &[&relay, &WAITING_MAX]).await;
    let rows = rows.map_err(|e| sorted("looking for releases that wait", e))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Where the WAL that is flushed ends.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn wal_end(session: &SqlSession) -> Result<Lsn, DeadLetterError> {
    let query = "select pg_catalog.pg_current_wal_flush_lsn()";
    let row = session.client().query_one(query, &[]).await;
    let row = row.map_err(|e| sorted("reading the end of the WAL", e))?;
    Ok(Lsn::new(row.get::<_, PgLsn>(0).into()))
}

/// Announces a release once more. A transaction each: places within one begin behind those of the
/// release before, of which a later start may know nothing any more.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn announce(
    session: &SqlSession,
    relay: &str,
    release: Uuid,
) -> Result<(), DeadLetterError> {
    let message = Message { relay: relay.to_owned(), release };
    let query = "select pg_catalog.pg_logical_emit_message(true, 'outbox', $1::jsonb::text)";
    let emitted = session.client().query(query, &[&Json(message)]).await;
    emitted.map(drop).map_err(|e| sorted("announcing a release again", e))
}
