//! Whether the control session waits for a synchronous standby, and which: asked over a line of its own.
//!
//! All that comes behind that commit waits with it, above all what parks an event. A wait for a lock ends by
//! itself, and is named then (`locks`).

use std::{convert::Infallible, time::Duration};

use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use crate::{
    daemon::standbys,
    postgres::{
        conninfo::ConnectSettings,
        sql::{self, SqlSession},
    },
    state::Board,
};

/// The session is asked this often.
const INTERVAL: Duration = Duration::from_secs(1);
/// And is looked at when it has not answered for so long.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// For the look.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Looks again and again, and tells the board and the log. Cancel safe.
pub(in crate::daemon) async fn watch(
    settings: &ConnectSettings,
    session: &SqlSession,
    board: &Board,
) -> Infallible {
    loop {
        sleep(INTERVAL).await;
        let asked = timeout(ANSWER_MAX, session.client().simple_query("select")).await;
        let why = match asked {
            Ok(_answer) => None,
            Err(_elapsed) => timeout(LOOK_MAX, why(settings, session.pid())).await.ok().flatten(),
        };
        tell(board, why);
    }
}

/// The same of a leader that another relay waits for: the process may be gone, and its commit waits on, with
/// the lock.
pub(in crate::daemon) async fn look_at_leader(session: &SqlSession, pid: i32, board: &Board) {
    tell(board, of(session.client(), pid).await);
}

fn tell(board: &Board, why: Option<String>) {
    if board.stuck(why.clone()) {
        match why {
            Some(reason) => tracing::error!(reason, "a commit of the leader does not end"),
            None => tracing::info!("the leader's commit has ended"),
        }
    }
}

/// `None` where it waits for no standby, or that can't be asked.
async fn why(settings: &ConnectSettings, pid: i32) -> Option<String> {
    let look = sql::connect(settings, "outbox-relay what the relay waits for").await.ok()?;
    of(look.client(), pid).await
}

async fn of(client: &Client, pid: i32) -> Option<String> {
    let sql = "select from pg_catalog.pg_stat_get_activity($1) where wait_event = 'SyncRep'";
    client.query_opt(sql, &[&pid]).await.ok()??;
    standbys::look(client).await.ok()?.in_words()
}
