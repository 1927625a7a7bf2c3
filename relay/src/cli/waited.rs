//! Whom a command waits for: a person at a terminal must not look at nothing.

use std::{pin::pin, time::Duration};

use tokio::time::sleep;

use super::output::eprint;
use crate::{
    core::printable,
    postgres::{conninfo::ConnectSettings, sql},
};

/// So long a command may take before it is looked what it waits for, and so often from then on.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Carries the command out, whose session is the server's process `pid`, and names whoever holds what that
/// waits for, each once.
pub(super) async fn named<T>(
    settings: &ConnectSettings,
    pid: i32,
    command: impl Future<Output = T>,
) -> T {
    let mut command = pin!(command);
    let mut said = Vec::new();
    let look = async {
        loop {
            sleep(LOOK_EVERY).await;
            for (holder, line) in holders(settings, pid).await.unwrap_or_default() {
                if !said.contains(&holder) {
                    said.push(holder);
                    eprint(&printable::line(&line));
                }
            }
        }
    };
    tokio::select! {
        result = &mut command => result,
        never = look => never,
    }
}

/// The processes that block it, with what to say of each. Asked over a line of its own; what can't be asked
/// is not said.
async fn holders(settings: &ConnectSettings, pid: i32) -> Option<Vec<(i32, String)>> {
    let session = sql::connect(settings, "outbox-relay whom a command waits for").await.ok()?;
    let query = "select b.pid, coalesce(nullif(a.application_name, ''), a.usename::text, 'unknown'), \
                     coalesce(a.state, 'unknown'), \
                     coalesce(pg_catalog.date_trunc('second', a.xact_start)::text, 'unknown') \
                 from pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) as b (pid) \
                 left join pg_catalog.pg_stat_activity a on a.pid operator(pg_catalog.=) b.pid";
    let rows = session.client().query(query, &[&pid]).await.ok()?;
    let line = |row: &tokio_postgres::Row| {
        let holder: i32 = row.try_get(0).ok()?;
        let (who, state, since): (String, String, String) =
            (row.try_get(1).ok()?, row.try_get(2).ok()?, row.try_get(3).ok()?);
        let line = match holder {
            0 => "waiting for a lock of a prepared transaction: `select * from pg_prepared_xacts` lists \
                  them"
            .to_owned(),
            _ => format!(
                "waiting for a lock that process {holder} has or waits for first ({who}, {state}, its \
                 transaction began {since}). Nothing is changed until it is gone; to end it: `select \
                 pg_terminate_backend({holder})`"
            ),
        };
        Some((holder, line))
    };
    Some(rows.iter().filter_map(line).collect())
}
