//! Partitions that were attached with rows in them: what was inserted before that is not in the stream.
//!
//! Rows that were moved there (their `xid` is not the transaction that wrote them) were published where
//! they came from, and don't count. Of the others a repair takes those that its snapshot does not show; of
//! older ones no one knows by now, so a person is asked.

use tokio_postgres::{Client, Row, error::SqlState};

use super::{
    count::in_words,
    sql::{NOW, full_xid, literal, written_after},
};
use crate::core::{halt::Halt, leaves::Leaves, published::Published};

/// What was found in partitions that were attached since a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub enum Attached {
    /// Nothing that was inserted before.
    Nothing,
    /// Rows that a repair after that snapshot takes: where, and what a person can do instead.
    Newer(String, Halt),
    /// Rows that it does not take.
    Older(Halt),
}

/// Rows that are counted.
const COUNTED_MAX: u32 = 100_000;
/// How many rows of a partition tell whether it was filled before it was attached: a heap is read from
/// its beginning.
const GLANCED_AT: u32 = 1_000;

/// A partition, and what is asked of it.
struct Partition {
    oid: u32,
    name: String,
    root: String,
    /// The full id of the transaction that attached it.
    attached_by: String,
    /// The command that did, in that transaction.
    command: String,
    /// Whether a row was written before that.
    before: String,
    /// Its rows among the root's: the relay may read that one, and need not read this.
    own: String,
    /// Whether it has `xid`.
    stamped: bool,
    columns: String,
}

/// Looks into the partitions in `published` that were attached after `lower`. Of those in `leaves`, which
/// were there at `lower`, the stream has had what that snapshot shows.
///
/// # Errors
/// The database's.
pub async fn since(
    client: &Client,
    published: &Published,
    lower: &str,
    leaves: &Leaves,
) -> Result<Attached, tokio_postgres::Error> {
    let mut newer = None;
    let found = attached_since(client, published, lower, leaves).await?;
    let leaves = leaves.oids();
    for partition in found {
        match look_into(client, &partition, lower).await {
            Ok((_, 0)) if leaves.contains(&partition.oid) => {}
            Ok((0, 0)) => {}
            Ok((older, rows)) if older == 0 || leaves.contains(&partition.oid) => {
                let known = leaves.contains(&partition.oid).then_some(lower);
                newer = Some(partition.in_doubt(&in_words(rows), known));
            }
            Ok((older, _)) => {
                return Ok(Attached::Older(partition.in_doubt(&in_words(older), None).1));
            }
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                newer = Some(partition.in_doubt("it is not known how many", None));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(newer.map_or(Attached::Nothing, |(name, halt)| Attached::Newer(name, halt)))
}

/// Whether a partition that is in `now` and was not in `before` may have been filled before it was
/// attached. A glance.
///
/// # Errors
/// The database's.
pub async fn filled(
    client: &Client,
    before: &Published,
    now: &Published,
) -> Result<bool, tokio_postgres::Error> {
    let attached = now.attached.iter().filter(|entry| !before.attached.contains(entry));
    let anew = Published { attached: attached.copied().collect(), ..now.clone() };
    if anew.attached.is_empty() {
        return Ok(false);
    }
    for partition in attached_since(client, &anew, "3:3:", &Leaves::default()).await? {
        for leaf in partition.leaves(client).await? {
            let glance = format!(
                "select coalesce(bool_or(r.before), false) \
                 from (select {} as before from {} t where {leaf} limit {GLANCED_AT}) r",
                partition.before, partition.root
            );
            match client.query_one(&glance, &[]).await {
                Ok(row) if !row.try_get::<_, bool>(0)? => {}
                Err(error) if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    return Err(error);
                }
                _ => return Ok(true),
            }
        }
    }
    Ok(false)
}

/// Whether one was attached after `lower`, which shows those in `leaves`, at all.
///
/// # Errors
/// The database's.
pub async fn any_attached_since(
    client: &Client,
    published: &Published,
    lower: &str,
    leaves: &Leaves,
) -> Result<bool, tokio_postgres::Error> {
    attached_since(client, published, lower, leaves).await.map(|found| !found.is_empty())
}

/// A snapshot shows subtransactions of an open transaction as ended, so what is in it is told by `leaves`.
async fn attached_since(
    client: &Client,
    published: &Published,
    lower: &str,
    leaves: &Leaves,
) -> Result<Vec<Partition>, tokio_postgres::Error> {
    let full = full_xid("i.xmin", NOW);
    let sql = format!(
        "select c.oid::pg_catalog.regclass::pg_catalog.text, \
             pg_catalog.pg_partition_root(c.oid)::pg_catalog.regclass::pg_catalog.text, \
             f.xid::pg_catalog.text, c.oid::pg_catalog.int8, \
             coalesce(pg_catalog.pg_get_partition_constraintdef(c.oid), 'true'), \
             exists (select from pg_catalog.pg_attribute a where a.attrelid = c.oid \
                 and a.attname = 'xid' and not a.attisdropped \
                 and a.atttypid = 'pg_catalog.xid8'::pg_catalog.regtype), \
             (select pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by a.attnum) \
              from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 \
                 and not a.attisdropped and a.attgenerated = '' and a.attname <> 'xid') \
             , i.cmin::pg_catalog.text \
         from pg_catalog.pg_inherits i \
         join pg_catalog.pg_class c on c.oid = i.inhrelid and c.relispartition \
             and not i.inhdetachpending \
         cross join lateral (select {full}) as f (xid) \
         where c.oid::pg_catalog.int8 = any ($1::pg_catalog.int8[]) \
             and ({} or f.xid >= pg_catalog.pg_snapshot_xmin({}::pg_catalog.pg_snapshot) and f.xid < {NOW} \
                 and not c.oid::pg_catalog.int8 = any ($2::pg_catalog.int8[]))",
        written_after("f.xid", lower),
        literal(lower)
    );
    let oids: Vec<i64> = published.attached.iter().map(|(oid, _)| i64::from(*oid)).collect();
    let known: Vec<i64> = leaves.oids().into_iter().map(i64::from).collect();
    client.query(&sql, &[&oids, &known]).await?.iter().map(Partition::read).collect()
}

impl Partition {
    fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let (oid, bounds): (i64, &str) = (row.try_get(3)?, row.try_get(4)?);
        let (attached_by, command): (String, &str) = (row.try_get(2)?, row.try_get(7)?);
        let version = full_xid("t.xmin", NOW);
        Ok(Partition {
            oid: u32::try_from(oid).unwrap_or_default(),
            name: row.try_get(0)?,
            root: row.try_get(1)?,
            // In one transaction its commands tell the order.
            before: format!(
                "({version} < '{attached_by}'::pg_catalog.xid8 or {version} = \
                 '{attached_by}'::pg_catalog.xid8 and t.cmin::pg_catalog.text::pg_catalog.int8 < \
                 {command})"
            ),
            command: command.to_owned(),
            attached_by,
            // One that is partitioned itself has its rows below it. The bounds spare the other partitions a scan.
            own: format!(
                "t.tableoid = any (array(select p.relid::pg_catalog.oid \
                    from pg_catalog.pg_partition_tree('{oid}'::pg_catalog.regclass) p)) and ({bounds})"
            ),
            stamped: row.try_get(5)?,
            columns: row.try_get::<_, Option<String>>(6)?.unwrap_or_default(),
        })
    }

    fn rows(&self) -> String {
        format!("{} t where {}", self.root, self.own)
    }

    /// The rows of each partition below it that has some, itself if it has: one that has many must not keep a glance
    /// from the others.
    async fn leaves(&self, client: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
        let sql = "select pg_catalog.format('t.tableoid = %s::pg_catalog.oid and (%s)', c.oid, \
                       coalesce(pg_catalog.pg_get_partition_constraintdef(c.oid), 'true')) \
                   from pg_catalog.pg_partition_tree($1::int8::pg_catalog.oid) p \
                   join pg_catalog.pg_class c on c.oid = p.relid where p.isleaf";
        let rows = client.query(sql, &[&i64::from(self.oid)]).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// Its name, and what a person can do with its rows. Those that `known` shows, a snapshot in which it was a partition,
    /// are published.
    fn in_doubt(self, rows: &str, known: Option<&str>) -> (String, Halt) {
        let Partition { name, root, attached_by, command, columns, .. } = self;
        let unknown = known.map_or_else(String::new, |known| {
            format!(" and not pg_visible_in_snapshot(xid, {})", literal(known))
        });
        let halt = Halt::new(
            format!(
                "partition {name} was attached with rows that were inserted into it before ({rows}): \
                 they were not in the stream, and are published only if it was a partition then"
            ),
            format!(
                "to publish them, `with rows as (delete from {name} where (xid < '{attached_by}' or xid = \
                 '{attached_by}' and cmin::text::int8 < {command}) and xid::text::int8 % 4294967296 = \
                 xmin::text::int8{unknown} returning *) insert into {root} ({columns}) select {columns} \
                 from rows`; if they are published, or to leave them out, run `outbox-relay resume --at \
                 progress`"
            ),
        );
        (name, halt)
    }
}

/// How many of its rows were inserted before it was attached: older than `lower`, and newer.
async fn look_into(
    client: &Client,
    partition: &Partition,
    lower: &str,
) -> Result<(i64, i64), tokio_postgres::Error> {
    // Without `xid` it is not known which rows were moved, nor which a repair would take.
    let (own, seen) = match partition.stamped {
        true => (
            format!("t.xid = {}", full_xid("t.xmin", NOW)),
            format!(
                "pg_catalog.pg_visible_in_snapshot(t.xid, {}::pg_catalog.pg_snapshot)",
                literal(lower)
            ),
        ),
        false => ("true".to_owned(), "false".to_owned()),
    };
    let sql = format!(
        "select pg_catalog.count(*) filter (where r.seen), \
                pg_catalog.count(*) filter (where not r.seen) \
         from (select {seen} as seen from {} and {} and {own} limit {}) r",
        partition.rows(),
        partition.before,
        COUNTED_MAX + 1
    );
    let row = client.query_one(&sql, &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
