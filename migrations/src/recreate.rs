//! Recreates what somebody has dropped of an inbox, by the migrations: each of their statements may be repeated.
//!
//! All of them run, in their order, since later ones replace functions of earlier ones. Meanwhile the inbox's upkeep is
//! locked out, and none of them runs it: that of an earlier version would recreate days that were forgotten, whose
//! messages would count as new.

use tokio_postgres::{Client, Error};

use crate::{
    MigrateError, Set,
    apply::Settings,
    grants::{Grant, INBOX_CONSUMER, lacking},
};

/// One upkeep at a time: the key of `inbox.maintain()`.
const LOCK: &str = "select pg_catalog.pg_advisory_xact_lock(8031453476610927988)";
/// How a migration runs it. Whoever has the lock has it for a second time as well.
const UPKEEP: &str = "perform inbox.maintain();";
/// What the consumer's role needs no right on.
const WITHOUT_GRANTS: [&str; 2] = ["inbox.upkeep", "function inbox.window()"];
/// Recreated with its default, it would have days dropped that are kept by now.
const RETENTION: &str = "update inbox.settings set retention_days = greatest(retention_days, \
    (select (statement_timestamp() at time zone 'utc')::date - w.oldest from inbox.window() as w))";
/// Messages wait without their lanes: no one would look for them.
const LANES: &str = "insert into inbox.parked_lanes (consumer_id, lane) \
    select distinct p.consumer_id, p.lane from inbox.parked p on conflict do nothing";

/// Recreates what was dropped of the set `inbox` after it was applied, and returns it. [`crate::apply`] comes first.
///
/// Not cancel safe, as [`crate::apply`].
///
/// # Errors
/// [`MigrateError::Database`], or [`MigrateError::History`] where what can't be recreated was dropped.
pub async fn recreate_inbox(client: &mut Client) -> Result<Vec<&'static str>, MigrateError> {
    let before = Settings::pin(client).await?;
    let outcome = recreate(client).await;
    // The session is the caller's.
    let put_back = before.put_back(client).await;
    let absent = outcome?;
    put_back?;
    Ok(absent)
}

async fn recreate(client: &mut Client) -> Result<Vec<&'static str>, MigrateError> {
    let failed = |error: Error| MigrateError::Database {
        doing: "recreating what was dropped; nothing was changed".to_owned(),
        source: error.into(),
    };
    let extra = WITHOUT_GRANTS.map(|object| Grant {
        right: if object.starts_with("function") { "execute" } else { "select" },
        object,
        serves: None,
    });
    let objects = [INBOX_CONSUMER, &extra].concat();
    let absent = lacking(client, &objects).await.map_err(failed)?.absent;
    if absent.is_empty() {
        return Ok(absent);
    }
    if absent.contains(&"inbox.consumers") {
        return Err(MigrateError::History {
            what: "inbox.consumers was dropped: it says whose messages the other tables remember, and another one \
                   would give one consumer's messages to another, so nothing was changed"
                .to_owned(),
            remedy: "stop the consumers, restore it from a backup, and run this command again".to_owned(),
        });
    }
    let transaction = client.transaction().await.map_err(failed)?;
    transaction.batch_execute(LOCK).await.map_err(failed)?;
    // Whoever waits for a table has everybody else wait behind.
    transaction.batch_execute("set local lock_timeout = '2s'").await.map_err(failed)?;
    for migration in Set::Inbox.migrations() {
        let sql = migration.sql.replace(UPKEEP, "null;");
        transaction.batch_execute(&sql).await.map_err(failed)?;
    }
    if absent.contains(&"inbox.settings") {
        transaction.batch_execute(RETENTION).await.map_err(failed)?;
    }
    if absent.contains(&"inbox.parked_lanes") {
        transaction.batch_execute(LANES).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)?;
    // The days of messages that was recreated without any.
    let visited = client.execute("select inbox.maintain()", &[]).await;
    visited.map_err(|error| MigrateError::Database {
        doing: "running inbox.maintain()".to_owned(),
        source: error.into(),
    })?;
    Ok(absent)
}

/// What that means for the messages, where something was recreated.
pub fn meaning(absent: &[&str]) -> String {
    let mut text = String::from("recreated, without the rows that were in it.");
    let any = |names: &[&str]| names.iter().any(|name| absent.contains(name));
    if any(&["inbox.messages", "inbox.watermarks", "inbox.applied"]) {
        text.push_str(
            " What it remembered is not known any more: a message that is delivered again takes effect again.",
        );
    }
    if any(&["inbox.parked", "inbox.dead_letters"]) {
        text.push_str(
            " Messages that were in it have had no effect, and are not read again by themselves: set the group's \
             offsets back to before the oldest of them; what took effect since is recognized.",
        );
    }
    text.push_str(
        " Now grant what docs/ROLES.md lists for inbox_consumer and outbox_operator, and start the consumers",
    );
    text
}
