//! The control session's work while the relay streams: snapshots for a later repair, and a pulse.
//!
//! A server that does not answer here for long is gone, whatever the replication socket says; the
//! walsender alone may be silent for good reason while it decodes a huge foreign transaction.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{lsn::Lsn, postgres::sql::SqlSession, progress::SnapshotRecord};

/// A snapshot is taken this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// A server that has not answered for this long is gone.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The control session has ended: start again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    /// The session broke.
    #[error("the control session broke")]
    Broken(#[from] tokio_postgres::Error),
    /// The server does not answer.
    #[error("no answer on the control session for {} s", ANSWER_MAX.as_secs())]
    Silent,
    /// The server's words could not be understood.
    #[error("the server's position could not be read")]
    Lsn(#[from] crate::lsn::ParseLsnError),
}

/// Takes a snapshot, and then the WAL position that delivery must pass before the snapshot counts:
/// in this order, so that whatever the snapshot shows as committed starts before that position.
///
/// # Errors
/// [`ControlError`]; the session is of no more use.
pub(super) async fn take_snapshot(session: &SqlSession) -> Result<SnapshotRecord, ControlError> {
    let snapshot = session.client().query_one("select pg_current_snapshot()::text", &[]);
    let snapshot: String = bounded(snapshot).await?.try_get(0)?;
    let position = session.client().query_one(
        "select pg_current_wal_insert_lsn()::text, \
                (extract(epoch from clock_timestamp()) * 1000)::int8",
        &[],
    );
    let row = bounded(position).await?;
    let lsn: Lsn = row.try_get::<_, &str>(0)?.parse()?;
    Ok(SnapshotRecord { lsn, taken_ms: row.try_get(1)?, snapshot })
}

/// Takes snapshots until told to stop. One that finds no room is dropped.
///
/// # Errors
/// [`ControlError`]; the relay starts again from the first step.
pub(super) async fn run(
    session: &SqlSession,
    snapshots: mpsc::Sender<SnapshotRecord>,
    stop: CancellationToken,
) -> Result<(), ControlError> {
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        // A queue that is full waits for a delivery; the pulse is needed all the same.
        let snapshot = take_snapshot(session).await?;
        let _ = snapshots.try_send(snapshot);
    }
}

async fn bounded<T>(
    query: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, ControlError> {
    Ok(timeout(ANSWER_MAX, query).await.map_err(|_elapsed| ControlError::Silent)??)
}
