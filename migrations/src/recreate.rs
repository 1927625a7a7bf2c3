//! Recreates what somebody has dropped of an inbox, by the migrations: each of their statements may be repeated.
//!
//! All of them run, in their order, since later ones replace functions of earlier ones. Meanwhile the inbox's upkeep is
//! locked out, and none of them runs it: that of an earlier version would recreate days that were forgotten, whose
//! messages would count as new.

use tokio_postgres::{Client, Error, error::SqlState};

use crate::{
    MigrateError, Set,
    apply::Settings,
    grants::{Grant, INBOX_CONSUMER, lacking},
};

/// One upkeep at a time: the key of `inbox.maintain()`.
const LOCK: &str = "select pg_catalog.pg_advisory_xact_lock(8031453476610927988)";
/// For that. Another one that recreates takes a second or two.
const LOCK_SECONDS: u32 = 5;
/// How a migration runs it. Whoever has the lock has it for a second time as well.
const UPKEEP: &str = "perform inbox.maintain();";
/// What the consumer's role needs no right on.
const WITHOUT_GRANTS: [&str; 3] = ["inbox.upkeep", "inbox.days", "function inbox.window()"];
/// Recreated with its default, it would have days dropped that are kept by now.
const RETENTION: &str = "update inbox.settings set retention_days = greatest(retention_days, \
    (select (statement_timestamp() at time zone 'utc')::date - w.oldest from inbox.window() as w))";
/// Messages wait without their lanes: no one would look for them.
const LANES: &str = "insert into inbox.parked_lanes (consumer_id, lane) \
    select distinct p.consumer_id, p.lane from inbox.parked p on conflict do nothing";

/// Recreates what was dropped of the set `inbox` after it was applied, and returns it. [`crate::apply`] comes first.
/// Of several at the same time one recreates it, and the others find it there and return nothing.
///
/// Not cancel safe, as [`crate::apply`].
///
/// # Errors
/// [`MigrateError::Database`], [`MigrateError::Busy`] where somebody else is at work in the inbox for long, or
/// [`MigrateError::History`] where what can't be recreated was dropped.
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
    // Each start of a consumer asks, and waits for no one where all is there.
    if absent(client).await.map_err(failed)?.is_empty() {
        return Ok(Vec::new());
    }
    let transaction = client.transaction().await.map_err(failed)?;
    let limit = format!("set local lock_timeout = '{LOCK_SECONDS}s'");
    transaction.batch_execute(&limit).await.map_err(failed)?;
    if let Err(error) = transaction.batch_execute(LOCK).await {
        transaction.rollback().await.map_err(failed)?;
        return Err(if is_busy(&error) { held(client).await } else { failed(error) });
    }
    // Whoever waits for a table has everybody else wait behind.
    transaction.batch_execute("set local lock_timeout = '2s'").await.map_err(failed)?;
    // Another one may have done it until we had the lock.
    let absent = absent(transaction.client()).await.map_err(failed)?;
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
    for migration in Set::Inbox.migrations() {
        let sql = migration.sql.replace(UPKEEP, "null;");
        transaction.batch_execute(&sql).await.map_err(in_use)?;
    }
    if absent.contains(&"inbox.settings") {
        transaction.batch_execute(RETENTION).await.map_err(in_use)?;
    }
    if absent.contains(&"inbox.parked_lanes") {
        transaction.batch_execute(LANES).await.map_err(in_use)?;
    }
    // The days of messages that was recreated without any. Still under the lock: it passes over what another one does.
    transaction.batch_execute("select inbox.maintain()").await.map_err(in_use)?;
    transaction.commit().await.map_err(failed)?;
    Ok(absent)
}

/// What of the inbox is not there.
async fn absent(client: &Client) -> Result<Vec<&'static str>, Error> {
    let extra = WITHOUT_GRANTS.map(|object| Grant {
        right: if object.starts_with("function") { "execute" } else { "select" },
        object,
        serves: None,
    });
    Ok(lacking(client, &[INBOX_CONSUMER, &extra].concat()).await?.absent)
}

fn failed(error: Error) -> MigrateError {
    MigrateError::Database {
        doing: "recreating what was dropped; nothing was changed".to_owned(),
        source: error.into(),
    }
}

fn is_busy(error: &Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// As [`failed`], of a statement that waits for tables.
fn in_use(error: Error) -> MigrateError {
    if !is_busy(&error) {
        return failed(error);
    }
    MigrateError::Busy {
        what: "a table of the inbox was in use for 2 s, so what was dropped is not recreated; nothing was changed"
            .to_owned(),
        remedy: "run this command again, or stop the consumers before".to_owned(),
    }
}

/// Who has the lock of the upkeep.
async fn held(client: &Client) -> MigrateError {
    // What a role may not know of others is null.
    let sql = "select a.pid, concat_ws(', ', 'role ' || a.usename::text, \
                   'application ' || nullif(a.application_name, ''), a.state, \
                   'in a transaction since ' || to_char(a.xact_start at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS') || ' UTC') \
               from pg_locks as l join pg_stat_activity as a on a.pid = l.pid \
               where l.locktype = 'advisory' and l.granted and l.classid = 1869968482::oid \
                   and l.objid = 1870163316::oid and l.objsubid = 1 \
                   and l.database = (select d.oid from pg_database as d where d.datname = current_database())";
    let rows = client.query(sql, &[]).await.unwrap_or_default();
    let holder = rows
        .first()
        .and_then(|row| Some((row.try_get::<_, i32>(0).ok()?, row.try_get::<_, String>(1).ok()?)));
    let what = format!(
        "what was dropped of the inbox is not recreated, since the lock of inbox.maintain() was not free for \
         {LOCK_SECONDS} s; nothing was changed"
    );
    match holder {
        Some((pid, who)) => MigrateError::Busy {
            what: format!("{what}; session {pid} has it ({who})"),
            remedy: format!(
                "run this command again; if that session still has it, end it: select pg_terminate_backend({pid})"
            ),
        },
        None => MigrateError::Busy { what, remedy: "run this command again".to_owned() },
    }
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
    if any(&["inbox.watermarks"]) {
        text.push_str(
            " Before that, a consumer with a watermark stops, and says what to type: how far it had come is not known.",
        );
    }
    if any(&["inbox.parked", "inbox.dead_letters"]) {
        text.push_str(
            " Messages that were in it have had no effect, and it had the only copy: restore its rows from a backup. \
             Without one, they take effect only together with all other messages since the day of the oldest of them, \
             which then take effect once more. If that is wanted, type, as the owner of the schema inbox, with the \
             consumer's id in inbox.consumers: delete from inbox.messages where consumer_id = <id> and day >= '<day>'; \
             delete from inbox.applied where consumer_id = <id>; update inbox.watermarks set position = null, before = \
             null, next_offset = 0, topic_id = null where consumer_id = <id>. Then set the group's offsets back to \
             before that day. Setting the group's offsets back alone brings back none of them, but with Dedup::Off.",
        );
    }
    text.push_str(
        " Now grant what docs/ROLES.md lists for inbox_consumer and outbox_operator, and start the consumers",
    );
    text
}
