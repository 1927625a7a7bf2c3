//! Whom a command waits for: a person at a terminal must not look at nothing.

use std::{pin::pin, time::Duration};

use tokio::time::sleep;

use super::output::eprint;
use crate::{
    core::printable,
    postgres::{
        conninfo::ConnectSettings,
        holders::{self, Holder},
        sql,
    },
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
            for holder in holders_of(settings, pid).await.unwrap_or_default() {
                if !said.contains(&holder) {
                    eprint(&printable::line(&holder.in_the_way_of_a_command()));
                    said.push(holder);
                }
            }
        }
    };
    tokio::select! {
        result = &mut command => result,
        never = look => never,
    }
}

/// Who blocks it. Asked over a line of its own; what can't be asked is not said.
async fn holders_of(settings: &ConnectSettings, pid: i32) -> Option<Vec<Holder>> {
    let session = sql::connect(settings, "outbox-relay whom a command waits for").await.ok()?;
    holders::of(session.client(), pid).await.ok()
}
