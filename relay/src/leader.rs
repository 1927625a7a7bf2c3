//! Who of several relays of one name is active: the one whose session holds an advisory lock.
//!
//! The lock lives and dies with the control session, through which the relay writes whatever it
//! writes to PostgreSQL; so a relay that was frozen and has lost its session can write nothing.
//! A leader queries on that session every second, which the server notes in `pg_stat_activity`:
//! this is its sign of life, by the database's clock and without a table of heartbeats. Kafka's
//! own fence is `sink`'s business.

use std::{fmt, time::Duration};

use tokio_postgres::{Client, Error, Row};

/// First key of the advisory lock: "outb". The second is a hash of the slot's name.
const LOCK_CLASS: i32 = 0x6F75_7462;

/// How long a process that was told to end may take, in milliseconds.
const TERMINATION_MS: i64 = 5_000;

/// Sessions that hold the lock of the slot `$2`, and how long each has been silent. A session that
/// the server works for is not silent; one whose activity is hidden (another role's, or
/// `track_activities` is off) has a silence of null.
const HOLDERS: &str = "
    select a.pid, a.application_name,
           case when a.query_start is null then null
                when a.state = 'active' and a.wait_event_type is distinct from 'Client' then 0
                else extract(epoch from
                         clock_timestamp() - greatest(a.query_start, a.state_change))::float8
           end as silent_seconds
      from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a using (pid)
     where l.locktype = 'advisory' and l.granted
       and l.database = (select oid from pg_catalog.pg_database where datname = current_database())
       and l.classid = $1::int4::oid and l.objid = hashtext($2)::bit(32)::int8::oid
       and l.objsubid = 2";

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
        write!(f, "pid {} ({})", self.pid, self.application)
    }
}

/// Tries to become the active relay for this slot.
///
/// # Errors
/// The session is broken.
pub(crate) async fn try_lead(client: &Client, slot: &str) -> Result<bool, Error> {
    let row = client
        .query_one("select pg_try_advisory_lock($1, hashtext($2))", &[&LOCK_CLASS, &slot])
        .await?;
    row.try_get(0)
}

/// A question for any connection: whether the session of process `pid` has a leader's lock on the
/// server and in the database that answers. Everybody is shown locks, whoever holds them.
pub(crate) fn is_held_by(pid: i32) -> String {
    format!(
        "select exists ( \
             select from pg_catalog.pg_locks l join pg_catalog.pg_database d on d.oid = l.database \
             where l.locktype = 'advisory' and l.granted and l.pid = {pid} \
                 and l.classid = {LOCK_CLASS} and d.datname = pg_catalog.current_database())"
    )
}

/// Who leads; `None` when the lock is free by now.
///
/// # Errors
/// The session is broken.
pub(crate) async fn holder(client: &Client, slot: &str) -> Result<Option<Holder>, Error> {
    let row = client.query_opt(HOLDERS, &[&LOCK_CLASS, &slot]).await?;
    row.as_ref().map(read_holder).transpose()
}

/// Ends the control session of a leader that has been silent for `timeout`, judged anew, by the
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
        "with holders as ({HOLDERS}), \
              silent as materialized (select * from holders where silent_seconds >= $3) \
         select *, pg_catalog.pg_terminate_backend(pid, $4) from silent"
    );
    let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
        [&LOCK_CLASS, &slot, &timeout.as_secs_f64(), &TERMINATION_MS];
    let row = client.query_opt(&sql, &parameters).await?;
    row.as_ref().map(read_holder).transpose()
}

/// Ends whatever still reads from the slot or is making it. Only for who holds the lock: then it
/// is what an older leader left behind. Returns the processes.
///
/// # Errors
/// The session is broken, or this role may not end the other's.
pub(crate) async fn evict(client: &Client, slot: &str) -> Result<Vec<i32>, Error> {
    let sql = "with stale as materialized ( \
                   select active_pid from pg_catalog.pg_replication_slots \
                    where slot_name::text = $1 and active_pid is not null) \
               select active_pid, pg_catalog.pg_terminate_backend(active_pid, $2) from stale";
    let rows = client.query(sql, &[&slot, &TERMINATION_MS]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

fn read_holder(row: &Row) -> Result<Holder, Error> {
    let silent_seconds: Option<f64> = row.try_get(2)?;
    Ok(Holder {
        pid: row.try_get(0)?,
        application: row.try_get(1)?,
        silent_for: silent_seconds.map(|seconds| Duration::from_secs_f64(seconds.max(0.0))),
    })
}
