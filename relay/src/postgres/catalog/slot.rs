//! What the server says about slots, publications, tables and itself, over SQL.
//!
//! Small queries that start-up and `check` share; what they mean for the relay is decided there.
//! The catalogs grow columns with each release (`rows`).

use std::fmt;

use serde::Deserialize;
use tokio_postgres::Client;

use super::{error::InspectError, rows::rows};
use crate::{
    core::lsn::Lsn,
    postgres::{holders, literal::literal},
};

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SlotState {
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// `logical` or `physical`.
    pub slot_type: String,
    /// The database that a logical slot belongs to.
    pub database: Option<String>,
    /// Whether something streams from it now.
    pub active: bool,
    /// Which process.
    pub active_pid: Option<i32>,
    /// The oldest WAL that is kept for it.
    pub restart_lsn: Option<Lsn>,
    /// How far its reader has confirmed.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Bytes that may still be written before the slot can be lost; `None` without a limit.
    pub safe_wal_size: Option<i64>,
    /// Whether two-phase commits are decoded when prepared.
    #[serde(default)]
    pub two_phase: bool,
    /// From 16: whether recovery on a standby has invalidated it.
    pub conflicting: Option<bool>,
    /// From 17: why it can't be used any more; `None` while it can.
    pub invalidation_reason: Option<String>,
    /// From 17: whether standbys take it over.
    pub failover: Option<bool>,
}

/// A row of `pg_publication` with its tables.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PublicationState {
    /// Which kinds of change are published.
    #[serde(rename = "pubinsert")]
    pub insert: bool,
    /// Updates are published.
    #[serde(rename = "pubupdate")]
    pub update: bool,
    /// Deletes are published.
    #[serde(rename = "pubdelete")]
    pub delete: bool,
    /// Truncates are published.
    #[serde(rename = "pubtruncate")]
    pub truncate: bool,
    /// Changes of partitions come under the root's name.
    #[serde(rename = "pubviaroot")]
    pub via_root: bool,
    /// `FOR ALL TABLES`.
    #[serde(rename = "puballtables")]
    pub all_tables: bool,
    /// From 18: which generated columns are published, `n` none or `s` stored; before, none are.
    #[serde(rename = "pubgencols")]
    pub generated: Option<String>,
    /// By schema and name; leaf partitions are listed where `via_root` is off.
    #[serde(default)]
    pub tables: Vec<PublishedTable>,
}

/// A row of `pg_publication_tables`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct PublishedTable {
    /// Schema.
    #[serde(rename = "schemaname")]
    pub schema: String,
    /// Name.
    #[serde(rename = "tablename")]
    pub table: String,
    /// From 15: the columns that are published, all of them without a column list.
    #[serde(rename = "attnames")]
    pub columns: Option<Vec<String>>,
    /// From 15: only rows for which this expression holds are published.
    #[serde(rename = "rowfilter")]
    pub row_filter: Option<String>,
}

/// What the server and the role are able to do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Capacity {
    /// Such as 150004.
    pub server_version_num: u32,
    /// Must be `logical`.
    pub wal_level: String,
    /// Limit on slots of any kind.
    pub max_replication_slots: i64,
    /// Slots there are now.
    pub replication_slots: i64,
    /// Limit on processes that send WAL.
    pub max_wal_senders: i64,
    /// Those there are now.
    pub wal_senders: i64,
    /// The limit, in MiB, on WAL kept for slots; -1 for none.
    pub max_slot_wal_keep_size_mb: i64,
    /// From 18: a slot without a reader for so long is invalidated; 0 for never.
    pub idle_slot_timeout_seconds: Option<i64>,
    /// Whether the server notes what this role's sessions do.
    pub track_activities: bool,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// Whether the role may replicate: REPLICATION, superuser, or a cloud's own grant for it.
    pub may_replicate: bool,
}

/// A transaction that has written and is still open: making a slot waits for its end.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OpenTransaction {
    /// The server's process; `None` for a prepared transaction, which has none.
    pub pid: Option<i32>,
    /// The global identifier of a prepared transaction, as a literal of SQL.
    pub prepared: Option<String>,
    /// Seconds since its begin, where the role may see it.
    pub age_seconds: Option<f64>,
    /// `application_name`.
    pub application: Option<String>,
    /// How many transaction ids were assigned since its own.
    pub xid_age: i64,
    /// The role that runs it.
    pub user: Option<String>,
    /// Its database.
    pub database: Option<String>,
}

impl SlotState {
    /// Its WAL is gone, or the server has given it up: it will never stream again.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
            || self.invalidation_reason.is_some()
            || self.conflicting == Some(true)
    }
}

impl fmt::Display for OpenTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.prepared, self.pid) {
            (Some(gid), _) => write!(f, "the prepared transaction {gid}")?,
            (None, Some(pid)) => write!(f, "pid {pid}")?,
            (None, None) => f.write_str("a transaction")?,
        }
        if let Some(application) = &self.application {
            write!(f, " ({})", holders::application(application))?;
        }
        if let Some(seconds) = self.age_seconds {
            write!(f, ", open for {seconds:.0} s")?;
        }
        Ok(())
    }
}

impl OpenTransaction {
    /// The statement that ends it, and who may use it where.
    pub fn ends(&self) -> String {
        let unknown = || "its owner".to_owned();
        match (&self.prepared, self.pid) {
            (Some(gid), _) => holders::rollback(
                gid,
                &self.user.clone().unwrap_or_else(unknown),
                self.database.as_deref(),
            ),
            (None, Some(pid)) => format!("`select pg_terminate_backend({pid})`"),
            (None, None) => "see pg_stat_activity".to_owned(),
        }
    }
}

/// Those that have been open for longest, each with what ends it, and how many more there are.
pub fn in_words(open: &[OpenTransaction]) -> String {
    const NAMED_MAX: usize = 5;
    let named = open.iter().take(NAMED_MAX).map(|it| format!("{it}; to end it: {}", it.ends()));
    let named = named.collect::<Vec<_>>().join("; ");
    match open.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named}; and {more} more"),
    }
}

/// A slot that no one reads from, and that keeps WAL all the same.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct IdleSlot {
    /// Its name.
    pub name: String,
    /// Of a logical one.
    pub database: Option<String>,
    /// WAL that the server keeps for it.
    pub retained_bytes: i64,
}

/// Slots other than `ours` that are not active, those that keep most first. Not on a standby.
///
/// # Errors
/// [`InspectError`].
pub async fn idle_slots(client: &Client, ours: &str) -> Result<Vec<IdleSlot>, InspectError> {
    let sql = "select jsonb_build_object('name', slot_name, 'database', database, \
                   'retained_bytes', pg_catalog.pg_wal_lsn_diff( \
                       pg_catalog.pg_current_wal_lsn(), restart_lsn)::bigint)::text \
               from pg_catalog.pg_replication_slots \
               where not active and not temporary and restart_lsn is not null \
                 and slot_name::text <> $1 \
               order by restart_lsn";
    rows(client, "pg_replication_slots", sql, &[&ours]).await
}

/// Looks a slot up; `None` when there is none of that name.
///
/// # Errors
/// [`InspectError`].
pub async fn inspect(client: &Client, slot: &str) -> Result<Option<SlotState>, InspectError> {
    let sql = "select to_jsonb(s)::text from pg_catalog.pg_replication_slots s \
               where slot_name::text = $1";
    Ok(rows(client, "pg_replication_slots", sql, &[&slot]).await?.pop())
}

/// Looks a publication up; `None` when there is none of that name in this database.
///
/// # Errors
/// [`InspectError`].
pub async fn inspect_publication(
    client: &Client,
    publication: &str,
) -> Result<Option<PublicationState>, InspectError> {
    let sql = "select (to_jsonb(p) || jsonb_build_object('tables', coalesce(( \
                   select jsonb_agg(to_jsonb(t) order by t.schemaname, t.tablename) \
                   from pg_catalog.pg_publication_tables t where t.pubname = p.pubname \
               ), '[]')))::text \
               from pg_catalog.pg_publication p where p.pubname::text = $1";
    Ok(rows(client, "pg_publication", sql, &[&publication]).await?.pop())
}

/// Reads the settings and counts that decide whether the relay can run.
///
/// # Errors
/// [`InspectError`].
pub async fn capacity(client: &Client) -> Result<Capacity, InspectError> {
    let sql = "select jsonb_build_object( \
            'server_version_num', current_setting('server_version_num')::int, \
            'wal_level', current_setting('wal_level'), \
            'max_replication_slots', current_setting('max_replication_slots')::int, \
            'replication_slots', (select count(*) from pg_catalog.pg_replication_slots), \
            'max_wal_senders', current_setting('max_wal_senders')::int, \
            'wal_senders', (select count(*) from pg_catalog.pg_stat_get_wal_senders()), \
            'max_slot_wal_keep_size_mb', (select setting::bigint from pg_catalog.pg_settings \
                where name = 'max_slot_wal_keep_size'), \
            'idle_slot_timeout_seconds', (select setting::bigint from pg_catalog.pg_settings \
                where name = 'idle_replication_slot_timeout'), \
            'track_activities', current_setting('track_activities')::bool, \
            'in_recovery', pg_catalog.pg_is_in_recovery(), \
            'may_replicate', (select rolreplication or rolsuper from pg_catalog.pg_roles \
                where rolname = session_user) \
                or exists (select from pg_catalog.pg_roles where rolname = 'rds_replication' \
                    and pg_catalog.pg_has_role(session_user, oid, 'member')))::text";
    let mut found = rows(client, "the server's settings", sql, &[]).await?;
    found.pop().ok_or_else(|| InspectError::Shape {
        what: "the server's settings",
        source: <serde_json::Error as serde::de::Error>::custom("no row"),
    })
}

/// The transactions that making a slot waits for, oldest first: those of every database, for
/// the slot's snapshot needs all of them. The asking session itself is left out.
///
/// # Errors
/// [`InspectError`].
pub async fn writers_waited_for(client: &Client) -> Result<Vec<OpenTransaction>, InspectError> {
    let sql = "select jsonb_build_object('pid', pid, \
                   'age_seconds', extract(epoch from clock_timestamp() - xact_start), \
                   'application', nullif(application_name, ''), \
                   'xid_age', pg_catalog.age(backend_xid), \
                   'user', usename, 'database', datname)::text \
               from (select pid, xact_start, application_name, usename, datname, backend_xid \
                     from pg_catalog.pg_stat_activity \
                     where backend_xid is not null and pid <> pg_catalog.pg_backend_pid()) a \
               union all \
               select jsonb_build_object('prepared', gid, \
                   'age_seconds', extract(epoch from clock_timestamp() - prepared), \
                   'xid_age', pg_catalog.age(transaction), \
                   'user', owner, 'database', database)::text \
               from pg_catalog.pg_prepared_xacts";
    let mut found: Vec<OpenTransaction> = rows(client, "open transactions", sql, &[]).await?;
    for it in &mut found {
        it.prepared = it.prepared.as_deref().map(literal);
    }
    let age = |transaction: &OpenTransaction| transaction.age_seconds.unwrap_or(0.0);
    found.sort_by(|a, b| age(b).total_cmp(&age(a)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use crate::postgres::catalog::slot::*;

    #[test]
    fn what_a_session_calls_itself_can_not_be_read_as_advice() {
        let application = "x), so run `outbox-relay resume --at now --yes`; (or";
        let waits = OpenTransaction {
            pid: Some(7),
            prepared: None,
            age_seconds: Some(3.0),
            application: Some(application.to_owned()),
            xid_age: 1,
            user: None,
            database: None,
        };
        let told = r"pid 7 (application E'x), so run \x60outbox-relay resume --at now --yes\x60; (or'), open for 3 s";
        assert_eq!(waits.to_string(), told);
    }

    #[test]
    fn slots_of_every_version_are_read() {
        let old = r#"{"slot_name":"s","plugin":"pgoutput","slot_type":"logical","datoid":5,
            "database":"app","temporary":false,"active":true,"active_pid":7,"xmin":null,
            "catalog_xmin":"750","restart_lsn":"0/10","confirmed_flush_lsn":"1/20",
            "wal_status":"reserved","safe_wal_size":null,"two_phase":false}"#;
        let slot: SlotState = serde_json::from_str(old).expect("14");
        assert_eq!(
            (slot.confirmed_flush_lsn, slot.active_pid),
            (Some(Lsn::new(0x1_0000_0020)), Some(7))
        );
        assert_eq!((slot.invalidation_reason, slot.failover), (None, None));
        let new = r#"{"slot_name":"s","plugin":"pgoutput","slot_type":"logical","database":"app",
            "active":false,"active_pid":null,"restart_lsn":null,"confirmed_flush_lsn":"1/20",
            "wal_status":"lost","safe_wal_size":1,"two_phase":false,"two_phase_at":null,
            "inactive_since":"x","conflicting":false,"invalidation_reason":"wal_removed",
            "failover":true,"synced":false}"#;
        let slot: SlotState = serde_json::from_str(new).expect("18");
        assert_eq!(slot.invalidation_reason.as_deref(), Some("wal_removed"));
        assert_eq!((slot.restart_lsn, slot.failover), (None, Some(true)));
    }
}
