//! The control session's work while the relay leads: a pulse, what the board is to know whatever
//! the relay is at, and snapshots for a later repair.
//!
//! The session holds the leader's lock, and each of its queries is the sign of life that standbys
//! look for (`leader`). A server that does not answer here for long is gone, whatever the
//! replication socket says; the walsender alone may be silent for good reason while it decodes a
//! huge foreign transaction.

use std::{convert::Infallible, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_postgres::SimpleQueryMessage;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Board,
    config::Config,
    dead_letter::{self, Parked},
    lsn::Lsn,
    postgres::sql::{SessionLost, SqlSession},
    progress::SnapshotRecord,
};

/// A query runs this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// What is parked is counted this often, or more rarely: its share of the time is at most one in
/// [`COUNT_SHARE`].
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
const COUNT_SHARE: u32 = 30;
/// For the first look of an attempt.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(2);
/// A server that has not answered for this long is gone.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The control session has ended: start again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    /// The session broke.
    #[error("the control session broke")]
    Broken(#[from] tokio_postgres::Error),
    /// The server does not answer.
    #[error("no answer on the control session for {} s", .0.as_secs())]
    Silent(Duration),
    /// The server's words could not be understood.
    #[error("the server's position could not be read")]
    Lsn(#[from] crate::lsn::ParseLsnError),
}

/// Shows that this relay is alive while a start or a repair takes its time, and tells the board how
/// far the server and the slot are meanwhile. Returns when the session has ended; the start's own
/// statements say what else goes wrong, and may well keep this one waiting.
pub(super) async fn pulse(session: &SqlSession, config: &Config, board: &Board) -> SessionLost {
    let beat = async {
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // Within a transaction of the start that has failed this fails as well, and was seen.
            let _ = look(session, &config.postgres.slot, board).await;
        }
    };
    tokio::select! {
        lost = session.closed() => lost,
        never = beat => never,
        never = watch_parked(session, &config.name, board) => match never {},
    }
}

/// Tells the board where the server's WAL ends and how far the slot is confirmed, before anything
/// else is tried: a start that halts or waits for a broker must not look as if nothing waited.
pub(super) async fn first_look(session: &SqlSession, config: &Config, board: &Board) {
    let looks = async {
        let _ = look(session, &config.postgres.slot, board).await;
        let _ = count_parked(session, &config.name, board).await;
    };
    // Whatever is wrong with the session, the start will say so.
    let _ = timeout(FIRST_LOOK_MAX, looks).await;
}

async fn look(session: &SqlSession, slot: &str, board: &Board) -> Result<(), ControlError> {
    // A simple query, so that it takes one round trip. A slot's name has no quote in it.
    let sql = format!(
        "select case when pg_catalog.pg_is_in_recovery() then null \
                     else pg_catalog.pg_current_wal_flush_lsn() end, \
                (select confirmed_flush_lsn from pg_catalog.pg_replication_slots \
                  where slot_name operator(pg_catalog.=) '{slot}')"
    );
    for message in session.client().simple_query(&sql).await? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        if let Some(end) = row.try_get(0)? {
            board.server_wal_end(end.parse()?);
        }
        if let Some(confirmed) = row.try_get(1)? {
            board.confirmed(confirmed.parse()?);
        }
    }
    Ok(())
}

/// Counts what is parked, again and again, at a small share of the server's time. Ends by being
/// dropped only, at any time.
pub(super) async fn watch_parked(session: &SqlSession, relay: &str, board: &Board) -> Infallible {
    loop {
        let begun = Instant::now();
        if count_parked(session, relay, board).await.is_err() {
            // What reads the table for its work says why. To ask again would be harmful: it would
            // break a transaction that shares this session.
            std::future::pending::<()>().await;
        }
        sleep(COUNT_INTERVAL.max(begun.elapsed() * COUNT_SHARE)).await;
    }
}

async fn count_parked(
    session: &SqlSession,
    relay: &str,
    board: &Board,
) -> Result<(), tokio_postgres::Error> {
    let Parked { lanes, events } = dead_letter::count(session.client(), relay).await?;
    board.parked_events(events);
    if !board.streams() {
        board.parked_lanes(usize::try_from(lanes).unwrap_or(usize::MAX));
    }
    Ok(())
}

/// Takes a snapshot, and then the WAL position that delivery must pass before the snapshot counts:
/// in this order, so that whatever the snapshot shows as committed starts before that position.
/// Also where the WAL ends that the server can send.
async fn take_snapshot(session: &SqlSession) -> Result<(SnapshotRecord, Lsn), ControlError> {
    let snapshot = session.client().query_one("select pg_current_snapshot()::text", &[]);
    let snapshot: String = snapshot.await?.try_get(0)?;
    let position = session.client().query_one(
        "select pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text, \
                (extract(epoch from clock_timestamp()) * 1000)::int8",
        &[],
    );
    let row = position.await?;
    let lsn: Lsn = row.try_get::<_, &str>(0)?.parse()?;
    let wal_end: Lsn = row.try_get::<_, &str>(1)?.parse()?;
    Ok((SnapshotRecord { lsn, taken_ms: row.try_get(2)?, snapshot }, wal_end))
}

/// Takes snapshots until told to stop. One that finds no room is dropped. Gives up before
/// standbys do: after `leader_timeout` without an answer they may have deposed this relay.
///
/// # Errors
/// [`ControlError`]; the relay starts again from the first step.
pub(super) async fn run(
    session: &SqlSession,
    snapshots: mpsc::Sender<SnapshotRecord>,
    board: &Board,
    leader_timeout: Duration,
    stop: CancellationToken,
) -> Result<(), ControlError> {
    let answer_max = ANSWER_MAX.min(leader_timeout);
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let taken = timeout(answer_max, take_snapshot(session)).await;
        let (snapshot, wal_end) = taken.map_err(|_elapsed| ControlError::Silent(answer_max))??;
        board.server_wal_end(wal_end);
        // A queue that is full waits for a delivery; the pulse is needed all the same.
        let _ = snapshots.try_send(snapshot);
    }
}
