//! Who holds what somebody waits for, and what to type to end it: a session, or a prepared transaction, which
//! has no session. Used by the relay, `check` and the operators' commands.

use tokio_postgres::{Client, Error, Row};

use super::literal::literal;

/// Prepared transactions with the locks that each has. What is asked of a lock is asked as `l`. Locks name
/// no prepared transaction, but each of these holds one on its own id.
const PREPARED: &str = "pg_catalog.pg_locks l \
     join pg_catalog.pg_locks own on own.pid is null and own.locktype = 'transactionid' \
         and own.virtualtransaction = l.virtualtransaction \
     join pg_catalog.pg_prepared_xacts p on p.transaction = own.transactionid";

/// Holds what somebody waits for, or waits for it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    who: Who,
    /// The table, where that is known.
    table: Option<String>,
    /// It waits to lock the table alone, and whoever comes later waits behind it: for these processes.
    behind: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Session {
        pid: i32,
        /// The role, and in quotes `application_name`.
        name: String,
        state: String,
        since: String,
    },
    Prepared {
        /// As a literal of SQL.
        gid: String,
        owner: String,
        since: String,
    },
}

impl Holder {
    /// Whom an operator's command waits for.
    pub(crate) fn in_the_way_of_a_command(&self) -> String {
        let ends = self.ends();
        match &self.who {
            Who::Session { pid, name, state, since } => format!(
                "waiting for a lock that process {pid} has or waits for first ({name}, {state}, its \
                 transaction began {since}). Nothing is changed until it is gone; to end it: {ends}"
            ),
            Who::Prepared { gid, owner, since } => format!(
                "waiting for a lock of the prepared transaction {gid} ({owner}, prepared {since}). Nothing \
                 is changed until it is gone; to end it: {ends}"
            ),
        }
    }

    /// With what is held, where that is known.
    pub(crate) fn in_words(&self) -> String {
        let holds = match (&self.table, &self.behind) {
            (Some(table), Some(behind)) => format!(
                "waits to lock {table}, which keeps others out as if it had the lock; it waits for {behind}"
            ),
            (Some(table), None) => format!("holds {table}"),
            (None, _) => "is in the way".to_owned(),
        };
        let ends = self.ends();
        match &self.who {
            Who::Session { pid, name, .. } => {
                format!("process {pid} ({name}) {holds}; to end it: {ends}")
            }
            Who::Prepared { gid, owner, since } => format!(
                "the prepared transaction {gid} ({owner}, prepared {since}) {holds}; to end it: {ends}"
            ),
        }
    }

    fn ends(&self) -> String {
        match &self.who {
            Who::Session { pid, .. } => format!("`select pg_terminate_backend({pid})`"),
            Who::Prepared { gid, owner, .. } => rollback(gid, owner, None),
        }
    }
}

/// What ends a prepared transaction; `gid` is a literal of SQL. In the session's own database, or this one.
pub(crate) fn rollback(gid: &str, owner: &str, database: Option<&str>) -> String {
    let place = database.map_or_else(String::new, |it| format!(", in the database {it}"));
    format!("`rollback prepared {gid}`, as {owner} or a superuser{place}")
}

/// Whom the server's process `pid` waits for a lock of.
///
/// # Errors
/// The session is broken.
pub(crate) async fn of(client: &Client, pid: i32) -> Result<Vec<Holder>, Error> {
    let name = name();
    let sql = format!(
        "select b.pid, {name}, coalesce(a.state, 'unknown'), \
             coalesce(pg_catalog.date_trunc('second', a.xact_start)::text, 'unknown'), null::text, null::text \
         from pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) as b (pid) \
         left join pg_catalog.pg_stat_activity a on a.pid = b.pid where b.pid <> 0 \
         union \
         select null, p.owner::text, p.gid, \
             pg_catalog.date_trunc('second', p.prepared)::text, null, null \
         from {PREPARED} join pg_catalog.pg_locks w on w.locktype = l.locktype \
             and (w.database, w.relation, w.page, w.tuple, w.virtualxid, w.transactionid, w.classid, \
                  w.objid, w.objsubid) is not distinct from \
                 (l.database, l.relation, l.page, l.tuple, l.virtualxid, l.transactionid, l.classid, \
                  l.objid, l.objsubid) \
         where w.pid = $1 and not w.granted and l.pid is null and l.granted \
             and 0 = any (pg_catalog.pg_blocking_pids($1))"
    );
    client.query(&sql, &[&pid]).await?.iter().map(read).collect()
}

/// Who holds which table of this database so that it can't be written or even read, or waits for such a lock, or holds
/// rows of the relay's own tables. Those first, then tables that this role may read, for anyone may have tables by the hundred.
pub(crate) async fn of_tables(client: &Client) -> String {
    let held = held(client, "true").await.unwrap_or_default();
    match held.is_empty() {
        true => "who holds it is in pg_locks".to_owned(),
        false => held.join(", "),
    }
}

/// The same of the relay's own tables, where it keeps writers or the relay out, and lasts longer than a statement. Of a
/// session of another role only who monitors is told when it began.
///
/// # Errors
/// The session is broken.
pub(crate) async fn long(client: &Client) -> Result<Vec<String>, Error> {
    let which = format!(
        "l.place = 0 and l.mode in {KEEP_OUT} \
             and coalesce(l.waitstart, a.xact_start, '-infinity') \
                 < pg_catalog.clock_timestamp() - interval '2 s'"
    );
    held(client, &which).await
}

/// Modes in which a table can't be written.
const KEEP_OUT: &str =
    "('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')";

/// At most three. `which` is of `l`, a lock, and of `a`, its session or the prepared transaction's NULL.
async fn held(client: &Client, which: &str) -> Result<Vec<String>, Error> {
    let name = name();
    let prepared = which.replace("a.xact_start", "null::timestamptz");
    let sql = format!(
        "with held as (select l.*, case \
                 when c.relnamespace = pg_catalog.to_regnamespace('outbox')::pg_catalog.oid then 0 \
                 when pg_catalog.has_table_privilege( \
                     coalesce(pg_catalog.pg_partition_root(c.oid), c.oid), 'select') then 1 \
                 else 2 end as place \
             from pg_catalog.pg_locks l \
                 join pg_catalog.pg_class c on c.oid = l.relation and c.relpersistence <> 't' \
             where l.locktype = 'relation' and (l.granted or l.mode in {KEEP_OUT}) \
                 and l.pid is distinct from pg_catalog.pg_backend_pid() \
                 and l.database = (select oid from pg_catalog.pg_database \
                                   where datname = pg_catalog.current_database()) \
                 and (l.relation >= 16384 or l.mode = 'AccessExclusiveLock' \
                     and c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace) \
                 and (l.mode in {KEEP_OUT} \
                     or l.mode in ('RowShareLock', 'RowExclusiveLock') and l.relation in ( \
                         pg_catalog.to_regclass('outbox.dead_letters'), \
                         pg_catalog.to_regclass('outbox.leaders'), \
                         pg_catalog.to_regclass('outbox.relay_keys')))) \
         select a.pid, {name}, '', '', l.relation::pg_catalog.regclass::text, case when not l.granted then \
             coalesce((select 'process ' || pg_catalog.string_agg(b.pid::text, ' and process ') \
                 from pg_catalog.unnest(pg_catalog.pg_blocking_pids(l.pid)) b (pid) where b.pid <> 0), \
                 'a prepared transaction') end, l.place \
         from held l left join pg_catalog.pg_stat_activity a on a.pid = l.pid \
         where l.pid is not null and {which} \
         union \
         select null, p.owner::text, p.gid, \
             pg_catalog.date_trunc('second', p.prepared)::text, \
             l.relation::pg_catalog.regclass::text, null, l.place \
         from {} where l.pid is null and l.granted and {prepared} \
         order by 7, 1, 3 limit 3",
        PREPARED.replacen("pg_catalog.pg_locks l", "held l", 1)
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.iter().filter_map(|row| Some(read(row).ok()?.in_words())).collect())
}

/// What a session of `pg_stat_activity` calls itself, in words: any text, so it is quoted, and is not to end a statement's
/// marks. Null where it has no name.
pub(crate) const APPLICATION: &str = "'application ' || pg_catalog.quote_literal( \
     pg_catalog.translate(nullif(application_name, ''), '`', ' '))";

/// The same of a name that was read.
pub(crate) fn application(name: &str) -> String {
    format!("application {}", literal(name))
}

/// Of a session of `pg_stat_activity`: its role, and what it calls itself.
fn name() -> String {
    format!(
        "pg_catalog.concat_ws(', ', coalesce(pg_catalog.quote_ident(a.usename), 'unknown'), {})",
        APPLICATION.replace("application_name", "a.application_name")
    )
}

/// A process, its name, state and begin; or none, and a prepared transaction's owner, id and begin.
fn read(row: &Row) -> Result<Holder, Error> {
    let (name, third, since) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    let who = match row.try_get(0)? {
        Some(pid) => Who::Session { pid, name, state: third, since },
        None => Who::Prepared { gid: literal(&third), owner: name, since },
    };
    Ok(Holder { who, table: row.try_get(4)?, behind: row.try_get(5)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prepared_transaction_is_named_with_what_ends_it_as_a_session_is() {
        let prepared = Who::Prepared {
            gid: "'it''s'".to_owned(),
            owner: "app".to_owned(),
            since: "noon".to_owned(),
        };
        let mut holder =
            Holder { who: prepared, table: Some("outbox.dead_letters".to_owned()), behind: None };
        let told = holder.in_words();
        assert!(told.contains("holds outbox.dead_letters"), "{told}");
        assert!(told.contains("`rollback prepared 'it''s'`, as app or a superuser"), "{told}");
        assert!(holder.in_the_way_of_a_command().contains("`rollback prepared 'it''s'`"));
        let (name, state, since) = ("psql".to_owned(), "idle".to_owned(), "noon".to_owned());
        holder.who = Who::Session { pid: 7, name, state, since };
        let told = holder.in_words();
        assert!(told.contains("process 7 (psql) holds outbox.dead_letters"), "{told}");
        assert!(holder.in_the_way_of_a_command().contains("`select pg_terminate_backend(7)`"));
        holder.behind = Some("process 8".to_owned());
        let told = holder.in_words();
        assert!(
            told.contains("waits to lock outbox.dead_letters") && told.contains("process 8;"),
            "{told}"
        );
    }
}
