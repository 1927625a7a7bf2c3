//! Recreates what somebody has dropped of an inbox, by the migrations: each of their statements may be repeated.
//!
//! All of them run, in their order, since later ones replace functions of earlier ones. Meanwhile the inbox's upkeep is
//! locked out: that of an earlier version would recreate days that were forgotten, whose messages would count as new.

use anyhow::{Context as _, bail};
use outbox_migrations::{
    Set,
    grants::{Grant, INBOX_CONSUMER, lacking},
};
use tokio_postgres::Client;

const DOING: &str = "recreating what was dropped; nothing was changed";
/// One upkeep at a time: the key of `inbox.maintain()`.
const UPKEEP: i64 = 8_031_453_476_610_927_988;
/// What the consumer's role needs no right on.
const WITHOUT_GRANTS: [&str; 2] = ["inbox.upkeep", "function inbox.window()"];
/// Recreated with its default, it would have days dropped that are kept by now.
const RETENTION: &str = "update inbox.settings set retention_days = greatest(retention_days, \
    (select (statement_timestamp() at time zone 'utc')::date - w.oldest from inbox.window() as w))";
/// Messages wait without their lanes: no one would look for them.
const LANES: &str = "insert into inbox.parked_lanes (consumer_id, lane) \
    select distinct p.consumer_id, p.lane from inbox.parked p on conflict do nothing";

/// What was dropped and is there again. `other` is a further session of the same database.
///
/// # Errors
/// The database's; or what can't be recreated was dropped.
pub(super) async fn recreate(
    client: &mut Client,
    other: &Client,
) -> anyhow::Result<Vec<&'static str>> {
    let extra = WITHOUT_GRANTS.map(|object| Grant {
        right: if object.starts_with("function") { "execute" } else { "select" },
        object,
        serves: None,
    });
    let objects = [INBOX_CONSUMER, &extra].concat();
    let absent = lacking(client, &objects).await.context("looking for what is missing")?.absent;
    if absent.is_empty() {
        return Ok(absent);
    }
    if absent.contains(&"inbox.consumers") {
        bail!(
            "inbox.consumers was dropped: it says whose messages the other tables remember, and another one would \
             give one consumer's messages to another, so nothing was changed; stop the consumers, restore it from a \
             backup, and run this command again"
        );
    }
    other.execute("select pg_catalog.pg_advisory_lock($1)", &[&UPKEEP]).await.context(DOING)?;
    let transaction = client.transaction().await.context(DOING)?;
    transaction.batch_execute("set local lock_timeout = '2s'").await.context(DOING)?;
    for migration in Set::Inbox.migrations() {
        transaction.batch_execute(migration.sql).await.context(DOING)?;
    }
    if absent.contains(&"inbox.settings") {
        transaction.batch_execute(RETENTION).await.context(DOING)?;
    }
    if absent.contains(&"inbox.parked_lanes") {
        transaction.batch_execute(LANES).await.context(DOING)?;
    }
    transaction.commit().await.context(DOING)?;
    other.execute("select pg_catalog.pg_advisory_unlock($1)", &[&UPKEEP]).await.context(DOING)?;
    // The days of messages that was recreated without any.
    client.execute("select inbox.maintain()", &[]).await.context("running inbox.maintain()")?;
    Ok(absent)
}

/// What it means for the messages.
pub(super) fn meaning(absent: &[&str]) -> String {
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
