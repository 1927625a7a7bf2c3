//! Deletes what is kept as history and has grown old: `retention.keep_dead_letters`.
//!
//! The leader does it, some rows at a time, on the session that holds its lock. That it can't is
//! said, and disturbs nothing else.

use std::{convert::Infallible, time::Duration};

use outbox_migrations::grants::{RELAY, lacking};
use tokio::time::sleep;
use tokio_postgres::error::SqlState;

use crate::{dead_letter::history::History, postgres::sql::SqlSession, state::Board};

/// Between two looks; one costs a step into an index where nothing is old.
const INTERVAL: Duration = Duration::from_secs(60);
/// Between two statements, for what else uses the session and the disk.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks again and again, for ever. `None` keeps everything. Cancel safe: each statement is whole.
pub(in crate::daemon) async fn watch(
    session: &SqlSession,
    history: Option<History>,
    board: &Board,
) -> Infallible {
    let Some(history) = history else { return std::future::pending().await };
    let mut said = None;
    loop {
        match delete_all(session, &history, board).await {
            Ok(0) => said = None,
            Ok(count) => {
                said = None;
                let keep = humantime::format_duration(history.keep);
                tracing::info!(count, %keep, "deleted released and discarded dead letters that are older than retention.keep_dead_letters");
            }
            Err(error) => tell(session, &error, &mut said).await,
        }
        sleep(INTERVAL).await;
    }
}

async fn delete_all(
    session: &SqlSession,
    history: &History,
    board: &Board,
) -> Result<u64, tokio_postgres::Error> {
    let mut all = 0;
    loop {
        match history.delete_some(session.client(), board.repaired_from()).await? {
            0 => return Ok(all),
            count => {
                all += count;
                board.metrics().dead_letters_deleted(count);
            }
        }
        sleep(PAUSE).await;
    }
}

/// Once for each thing that the database says. That the session has ended is seen by others.
async fn tell(session: &SqlSession, error: &tokio_postgres::Error, said: &mut Option<String>) {
    let Some(answer) = error.as_db_error() else { return };
    let error = answer.to_string();
    if said.as_ref() == Some(&error) {
        return;
    }
    let what = "old history of parked events can't be deleted: it is kept, and grows";
    let remedy = match answer.code() {
        code if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            let lacking = lacking(session.client(), RELAY).await;
            lacking.ok().filter(|lacking| !lacking.is_empty()).map(|lacking| lacking.to_string())
        }
        _ => None,
    };
    match remedy {
        Some(remedy) => tracing::warn!(error, remedy, "{what}"),
        None => tracing::warn!(error, "{what}"),
    }
    *said = Some(error);
}
