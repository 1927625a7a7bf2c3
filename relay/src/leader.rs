//! Who of several relays of one name is active: the one whose session holds an advisory lock.
//!
//! The lock lives and dies with the control session, through which the relay writes whatever it
//! writes to PostgreSQL; so a relay that was frozen and has lost its session can write nothing.
//! Kafka's own fence is `sink`'s business.

use tokio_postgres::Client;

/// First key of the advisory lock: "outb". The second is a hash of the slot's name.
const LOCK_CLASS: i32 = 0x6F75_7462;

/// Tries to become the active relay for this slot.
///
/// # Errors
/// The session is broken.
pub(crate) async fn try_lead(client: &Client, slot: &str) -> Result<bool, tokio_postgres::Error> {
    let row = client
        .query_one("select pg_try_advisory_lock($1, hashtext($2))", &[&LOCK_CLASS, &slot])
        .await?;
    row.try_get(0)
}

/// The process that leads, as the database sees it: `pid 4711 (outbox-relay orders)`.
///
/// # Errors
/// The session is broken.
pub(crate) async fn who_leads(
    client: &Client,
    slot: &str,
) -> Result<Option<String>, tokio_postgres::Error> {
    let row = client
        .query_opt(
            "select format('pid %s (%s)', a.pid, a.application_name)
               from pg_locks l join pg_stat_activity a using (pid)
              where l.locktype = 'advisory' and l.granted
                and l.database = (select oid from pg_database where datname = current_database())
                and l.classid = $1::int4::oid and l.objid = hashtext($2)::bit(32)::int8::oid
                and l.objsubid = 2
              limit 1",
            &[&LOCK_CLASS, &slot],
        )
        .await?;
    row.map(|row| row.try_get(0)).transpose()
}
