//! Who of several relays of one slot is active: the one whose claim stands in `outbox.leaders`, and
//! whose session holds the advisory lock that the claim names.
//!
//! The lock's key is drawn again by each leader, and only relays may write the table: whoever else
//! takes advisory locks, in whatever session, is not mistaken for a leader. The lock lives and dies
//! with the control session, through which the relay writes whatever it writes to PostgreSQL; so a
//! relay that was frozen and has lost its session can write nothing.
//! A leader queries on that session every second, which the server notes in `pg_stat_activity`:
//! this is its sign of life, by the database's clock and without a table of heartbeats. Kafka's
//! own fence is `sink`'s business.

use std::{fmt, time::Duration};

use tokio_postgres::{Client, Error, Row, SimpleQueryMessage, error::SqlState};

use crate::core::halt::Halt;

/// How long a process that was told to end may take, in milliseconds.
const TERMINATION_MS: i64 = 5_000;

/// Whether the claim `l` is a leader's: its session holds its lock. Locks, processes and logins are
/// shown to every role.
const LEADS: &str = "exists ( \
     select from pg_catalog.pg_locks k join pg_catalog.pg_stat_activity s using (pid) \
     where k.locktype = 'advisory' and k.granted and k.objsubid = 1 \
         and k.pid = l.pid and s.usesysid = l.login \
         and k.database = (select oid from pg_catalog.pg_database \
                           where datname = pg_catalog.current_database()) \
         and k.classid = ((l.key >> 32) & 4294967295)::pg_catalog.oid \
         and k.objid = (l.key & 4294967295)::pg_catalog.oid)";

/// The leader, and how long its session has been silent. One that the server works for is not
/// silent; one whose activity is hidden (another role's, or `track_activities` is off) has a silence
/// of null.
fn of_slot(slot: &str) -> String {
    format!(
        "select a.pid, a.application_name, \
                case when a.query_start is null then null \
                     when a.state = 'active' and a.wait_event_type is distinct from 'Client' then 0 \
                     else extract(epoch from pg_catalog.clock_timestamp() \
                              - greatest(a.query_start, a.state_change))::pg_catalog.float8 \
                end as silent_seconds \
         from outbox.leaders l join pg_catalog.pg_stat_activity a using (pid) \
         where l.slot = {} and {LEADS}",
        literal(slot)
    )
}

/// The relay that leads, as the database sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Holder {
    /// The server's process of its control session.
    pub(crate) pid: i32,
    application: String,
    /// Time since its last sign of life; `None` where this role is not shown it.
    pub(crate) silent_for: Option<Duration>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Any text, which is not to end the quotes here, or a statement's marks.
        write!(f, "pid {} (application '{}')", self.pid, self.application.replace(['\'', '`'], " "))
    }
}

/// Tries to become the active relay for this slot.
///
/// # Errors
/// The session is broken, or the table can't be used.
pub(crate) async fn try_lead(client: &Client, slot: &str) -> Result<bool, Error> {
    if holder(client, slot).await?.is_some() {
        return Ok(false);
    }
    let key: i64 = rand::random();
    let locked = client.query_one("select pg_catalog.pg_try_advisory_lock($1)", &[&key]).await?;
    if !locked.try_get(0)? {
        return Ok(false); // One key in 2^64 is somebody else's.
    }
    // Of two that claim at once, the second waits for the first, and then finds its lock. A claim
    // that is lost with a crash was worth nothing: so it need not wait for standbys.
    let claim = format!(
        "set local synchronous_commit = off; \
         insert into outbox.leaders as l (slot, key, pid, login) \
         select {}, {key}, pid, usesysid from pg_catalog.pg_stat_activity \
         where pid = pg_catalog.pg_backend_pid() \
         on conflict (slot) do update set key = excluded.key, pid = excluded.pid, \
             login = excluded.login, since = pg_catalog.clock_timestamp() \
         where not {LEADS} returning pid",
        literal(slot)
    );
    let answer = client.simple_query(&claim).await?;
    let leads = answer.iter().any(|m| matches!(m, SimpleQueryMessage::Row(_)));
    if !leads {
        client.execute("select pg_catalog.pg_advisory_unlock($1)", &[&key]).await?;
    }
    Ok(leads)
}

/// A question for any connection: whether the session of process `pid` leads this slot, on the
/// server and in the database that answers.
pub(crate) fn leads(slot: &str, pid: i32) -> String {
    let slot = literal(slot);
    format!(
        "select exists (select from outbox.leaders l where l.slot = {slot} and l.pid = {pid} \
         and {LEADS})"
    )
}

/// Who leads; `None` when no one does.
///
/// # Errors
/// The session is broken, or the table can't be used.
pub(crate) async fn holder(client: &Client, slot: &str) -> Result<Option<Holder>, Error> {
    let row = client.query_opt(&of_slot(slot), &[]).await?;
    row.as_ref().map(read_holder).transpose()
}

/// What a person must do about the table, where that is the reason for an error.
pub(crate) fn unusable(error: &Error) -> Option<Halt> {
    let missing = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    match error.code()? {
        code if missing.contains(code) => Some(Halt::new(
            "the table outbox.leaders, where the relay that leads is noted, is missing",
            "run `outbox-relay migrate` as the schema's owner, then grant what docs/ROLES.md lists",
        )),
        _ => None,
    }
}

/// Ends the control session of a leader that has been silent for `timeout`, judged again, by the
/// server, in the statement that ends it. Returns who was deposed, when its lock is free.
///
/// # Errors
/// The session is broken, or this role may not end the other's.
pub(crate) async fn depose(
    client: &Client,
    slot: &str,
    timeout: Duration,
) -> Result<Option<Holder>, Error> {
    // Materialised: a server may check the conditions of one WHERE in any order, and would end
    // innocent sessions first.
    let sql = format!(
        "with holders as ({}), \
              silent as materialized (select * from holders where silent_seconds >= $1) \
         select *, pg_catalog.pg_terminate_backend(pid, $2) from silent",
        of_slot(slot)
    );
    let row = client.query_opt(&sql, &[&timeout.as_secs_f64(), &TERMINATION_MS]).await?;
    row.as_ref().map(read_holder).transpose()
}

/// Ends whatever still reads from the slot or is making it. Only for who holds the lock: then it
/// is what an older leader left behind. A slot of that name in another database is another relay's.
/// Returns the processes that have ended; one that is frozen stays.
///
/// # Errors
/// The session is broken, or this role may not end the other's.
pub(crate) async fn evict(client: &Client, slot: &str) -> Result<Vec<i32>, Error> {
    let sql = "with stale as materialized ( \
                   select active_pid from pg_catalog.pg_replication_slots \
                    where slot_name::pg_catalog.text = $1 and active_pid is not null \
                        and database = pg_catalog.current_database()) \
               select active_pid from stale \
                where pg_catalog.pg_terminate_backend(active_pid, $2)";
    let rows = client.query(sql, &[&slot, &TERMINATION_MS]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// The relay of another name that streams from this slot now, or leads and will: as while it repairs. What only looks
/// at the slot, such as one that is halted for it, does not count.
///
/// # Errors
/// The database's.
pub(crate) async fn another_streams(
    client: &Client,
    slot: &str,
    relay: &str,
) -> Result<Option<Halt>, Error> {
    let sql = "select a.application_name, a.pid from pg_catalog.pg_replication_slots s \
               join pg_catalog.pg_stat_activity a on a.pid = s.active_pid \
               where s.slot_name::pg_catalog.text = $1 \
                   and s.database = pg_catalog.current_database()";
    let streams = match client.query_opt(sql, &[&slot]).await? {
        Some(row) => {
            Some((row.try_get::<_, Option<String>>(0)?.unwrap_or_default(), row.try_get(1)?))
        }
        None => None,
    };
    let leads = holder(client, slot).await?.map(|it| (it.application, it.pid));
    let sessions = [streams, leads].into_iter().flatten();
    let others = |(application, pid): (String, i32)| {
        another(&application, relay).map(|other| (other.to_owned(), pid))
    };
    Ok(sessions.filter_map(others).next().map(|(other, pid)| {
        Halt::new(
            format!(
                "slot {slot} is used by relay {other}, and each relay needs a slot of its own: relay {relay} \
                 publishes nothing"
            ),
            format!(
                "set postgres.slot to a name of its own, or remove the setting; or, if this is to be a standby \
                 of relay {other} or to take its place, set `name` to that. If relay {other} is not running any more, \
                 its session ends once the server notices, or by `select pg_terminate_backend({pid})` (as a superuser, \
                 or a role of pg_signal_backend)"
            ),
        )
    }))
}

/// The relay's name, if this is the session of a relay of another name. The server keeps 63 bytes.
fn another<'a>(application: &'a str, relay: &str) -> Option<&'a str> {
    let other = application.strip_prefix("outbox-relay ")?;
    let cut = relay.get(..other.len()).filter(|_| application.len() == 63);
    let is_relay = !other.is_empty() && !other.contains(' ');
    (is_relay && other != cut.unwrap_or(relay)).then_some(other)
}

fn literal(slot: &str) -> String {
    format!("'{}'", slot.replace('\'', "''"))
}

fn read_holder(row: &Row) -> Result<Holder, Error> {
    let silent_seconds: Option<f64> = row.try_get(2)?;
    Ok(Holder {
        pid: row.try_get(0)?,
        application: row.try_get::<_, Option<_>>(1)?.unwrap_or_default(),
        silent_for: silent_seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
    })
}

#[cfg(test)]
mod tests {
    use super::another;

    #[test]
    fn only_a_relay_of_another_name_is_another() {
        assert_eq!(another("outbox-relay app", "app_thief"), Some("app"));
        assert_eq!(another("outbox-relay app_thief", "app"), Some("app_thief"));
        for application in ["outbox-relay app", "outbox-relay", "outbox-relay ", "psql", ""] {
            assert_eq!(another(application, "app"), None, "{application}");
        }
        let long = "a".repeat(56);
        let shown: String = format!("outbox-relay {long}").chars().take(63).collect();
        assert_eq!(another(&shown, &long), None);
        assert!(another(&shown, &"b".repeat(56)).is_some());
    }
}
