//! Partitions that were attached with rows in them: what was inserted before that is not in the stream.
//!
//! Rows that the newest snapshot shows were inserted before, for it does not show the partition: a person is asked
//! about them. Those that were moved there (their `xid` is not the transaction that wrote them) were published where
//! they came from; what was rewritten looks the same, so it is told. Of newer rows the stream itself says which it has
//! (`Streamed`).

use std::collections::{BTreeSet, HashSet};

use futures_util::{TryStreamExt as _, pin_mut};
use tokio_postgres::{Client, Row, error::SqlState};

use super::{
    count::in_words,
    sql::{NOW, full_xid, identifier, literal, written_after},
};
use crate::{
    core::{
        halt::Halt,
        leaves::Leaves,
        lsn::Lsn,
        progress::NotSentRecord,
        published::Published,
        streamed::{Doubtful, RowKey},
    },
    route::{Mapping, TableName, XID},
};

/// Rows that are counted.
const COUNTED_MAX: u32 = 100_000;
/// Newer rows of all partitions that are compared with the stream; beyond them, those alone that transaction ids tell to
/// be inserted before. Some 24 MB.
const COMPARED_MAX: usize = 1_000_000;
/// Rows of new partitions that are compared while the relay streams; more take a start, which has a session for it.
pub const GLANCED_MAX: usize = 10_000;
/// Rows that are named by their ids, and how long these may be.
const NAMED_MAX: usize = 100;
const NAMED_BYTES_MAX: usize = 64;

/// What is looked at, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Since<'a> {
    /// The tables' columns.
    pub mapping: &'a Mapping,
    /// Tables of which the column `xid` is the transaction that inserted the row.
    pub stamped: &'a [TableName],
    /// The partitions that there are.
    pub published: &'a Published,
    /// What was there before, as `pg_snapshot`.
    pub lower: &'a str,
    /// The partitions that it shows.
    pub leaves: &'a Leaves,
    /// All of `published` are known to be attached since.
    pub every: bool,
}

/// What was found in partitions that were attached since a snapshot.
#[derive(Debug, Default)]
pub struct Found {
    /// Rows of which a person decides.
    pub halt: Option<Halt>,
    /// Newer rows: the stream has them, or they were inserted before.
    pub newer: Vec<Doubtful>,
    /// There were more than were looked at.
    pub more: bool,
    /// Partitions with older rows that look moved, and what a person can do if they are not.
    pub moved: Vec<Halt>,
}

/// A partition, and what is asked of it.
struct Partition {
    oid: u32,
    name: String,
    root: String,
    /// Whether a row was written before it was attached, by transaction ids.
    before: String,
    /// The same, as a person types it.
    typed: String,
    /// Its rows among the root's: the relay may read that one, and need not read this.
    own: String,
    /// Whether its `xid` is the transaction that inserted the row.
    stamped: bool,
    columns: String,
}

/// Whether one was attached after the snapshot at all.
///
/// # Errors
/// The database's.
pub async fn any_attached_since(
    client: &Client,
    since: &Since<'_>,
) -> Result<bool, tokio_postgres::Error> {
    attached_since(client, since).await.map(|found| !found.is_empty())
}

/// Looks into the partitions that were attached after the snapshot. Of those that it shows, the stream has had what it
/// shows of them. Not more than `rows_max` newer rows are read.
///
/// # Errors
/// The database's.
pub async fn look_into(
    client: &Client,
    since: &Since<'_>,
    rows_max: Option<usize>,
) -> Result<Found, tokio_postgres::Error> {
    let mut found = Found::default();
    let known = since.leaves.oids();
    for partition in attached_since(client, since).await? {
        let looked = async {
            if let Some(rows_max) = rows_max
                && partition.exceeds(client, rows_max).await?
            {
                found.more = true;
                return Ok(());
            }
            if !known.contains(&partition.oid) {
                partition.older(client, since, &mut found).await?;
            }
            partition.newer(client, since, rows_max, &mut found).await
        };
        match looked.await {
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let which = partition.typed.clone();
                let halt = partition.in_doubt("it is not known how many", &which);
                found.halt.get_or_insert(halt);
            }
            looked => looked?,
        }
    }
    Ok(found)
}

/// Finds the rows that the stream has not sent, for a person and for progress, and the transactions that inserted them:
/// those that `missing` has.
///
/// # Errors
/// The database's.
pub async fn not_sent(
    client: &Client,
    since: &Since<'_>,
    missing: &HashSet<RowKey>,
) -> Result<(Vec<NotSentRecord>, BTreeSet<u64>), tokio_postgres::Error> {
    let (mut records, mut xids) = (Vec::new(), BTreeSet::new());
    let now = "select pg_catalog.pg_current_snapshot()::pg_catalog.text";
    let now: String = client.query_one(now, &[]).await?.try_get(0)?;
    for partition in attached_since(client, since).await? {
        let rows = client.query_raw(&partition.newer_rows(since, ""), NOTHING).await?;
        pin_mut!(rows);
        let (mut count, mut ids) = (0, Vec::new());
        while let Some(row) = rows.try_next().await? {
            let doubtful = partition.doubtful(&row)?;
            if missing.contains(&doubtful.key) {
                count += 1;
                xids.insert(doubtful.xid);
                if ids.len() <= NAMED_MAX {
                    ids.push(row.try_get::<_, String>(0)?);
                }
            }
        }
        if count == 0 {
            continue;
        }
        let id = identifier(since.mapping.id_column());
        let named = ids.len() <= NAMED_MAX && ids.iter().all(|id| id.len() <= NAMED_BYTES_MAX);
        let ids = ids.iter().map(|id| literal(id)).collect::<Vec<_>>().join(", ");
        let ids = named.then(|| format!("{id}::text in ({ids}) and "));
        let shown = |snapshot: &str| format!("pg_visible_in_snapshot(xid, {})", literal(snapshot));
        // Those that a person has moved through the stream are later ones.
        let which = match (partition.stamped, &ids) {
            (true, Some(_)) => shown(&now),
            (true, None) => format!("not {} and {}", shown(since.lower), shown(&now)),
            (false, _) => partition.typed.clone(),
        };
        let which = ids.unwrap_or_default() + &which;
        let Partition { oid, .. } = partition;
        records.push(NotSentRecord { partition: oid, rows: count, which });
    }
    Ok((records, xids))
}

/// What a person can do with rows that were not sent; `None` where they are there no more.
///
/// # Errors
/// The database's.
pub async fn still_there(
    client: &Client,
    since: &Since<'_>,
    record: &NotSentRecord,
) -> Result<Option<(String, Halt)>, tokio_postgres::Error> {
    let found = attached(client, since, true).await?;
    let Some(partition) = found.into_iter().find(|it| it.oid == record.partition) else {
        return Ok(None);
    };
    let any = format!("select exists (select from {} and {})", partition.rows(), record.which);
    if !client.query_one(&any, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let name = partition.name.clone();
    let rows = i64::try_from(record.rows).unwrap_or(i64::MAX);
    Ok(Some((name, partition.in_doubt(&in_words(rows), &record.which))))
}

const NOTHING: [&(dyn tokio_postgres::types::ToSql + Sync); 0] = [];

async fn attached_since(
    client: &Client,
    since: &Since<'_>,
) -> Result<Vec<Partition>, tokio_postgres::Error> {
    attached(client, since, since.every).await
}

/// Those that were attached since, or all of them. A snapshot shows subtransactions of an open transaction as ended, so
/// what is in it is told by the leaves.
async fn attached(
    client: &Client,
    since: &Since<'_>,
    all: bool,
) -> Result<Vec<Partition>, tokio_postgres::Error> {
    let Since { published, lower, leaves, .. } = since;
    let full = full_xid("i.xmin", NOW);
    let sql = format!(
        "select c.oid::pg_catalog.regclass::pg_catalog.text, \
             r.oid::pg_catalog.regclass::pg_catalog.text, \
             f.xid::pg_catalog.text, c.oid::pg_catalog.int8, \
             coalesce(pg_catalog.pg_get_partition_constraintdef(c.oid), 'true'), \
             n.nspname::pg_catalog.text, \
             (select pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by a.attnum) \
              from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 \
                 and not a.attisdropped and a.attgenerated = '' and a.attname <> '{XID}'), \
             i.cmin::pg_catalog.text, r.relname::pg_catalog.text \
         from pg_catalog.pg_inherits i \
         join pg_catalog.pg_class c on c.oid = i.inhrelid and c.relispartition \
             and not i.inhdetachpending \
         join pg_catalog.pg_class r on r.oid = pg_catalog.pg_partition_root(c.oid) \
         join pg_catalog.pg_namespace n on n.oid = r.relnamespace \
         cross join lateral (select {full}) as f (xid) \
         where c.oid::pg_catalog.int8 = any ($1::pg_catalog.int8[]) \
             and ({all} or {} or f.xid >= pg_catalog.pg_snapshot_xmin({}::pg_catalog.pg_snapshot) \
                 and f.xid < {NOW} and not c.oid::pg_catalog.int8 = any ($2::pg_catalog.int8[])) \
         order by 1",
        written_after("f.xid", lower),
        literal(lower)
    );
    let oids: Vec<i64> = published.attached.iter().map(|(oid, _)| i64::from(*oid)).collect();
    let known: Vec<i64> = leaves.oids().into_iter().map(i64::from).collect();
    let rows = client.query(&sql, &[&oids, &known]).await?;
    rows.iter().map(|row| Partition::read(row, since)).collect()
}

impl Partition {
    fn read(row: &Row, since: &Since<'_>) -> Result<Self, tokio_postgres::Error> {
        let (oid, bounds): (i64, &str) = (row.try_get(3)?, row.try_get(4)?);
        let (attached_by, command): (&str, &str) = (row.try_get(2)?, row.try_get(7)?);
        let (schema, table): (&str, &str) = (row.try_get(5)?, row.try_get(8)?);
        let version = full_xid("t.xmin", NOW);
        let short = attached_by.parse::<u64>().unwrap_or_default() % (1 << 32);
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
            typed: format!(
                "(age(xmin) > age('{short}'::xid) or xmin = '{short}' and cmin::text::int8 < {command})"
            ),
            // One that is partitioned itself has its rows below it. The bounds spare the other partitions a scan.
            own: format!(
                "t.tableoid = any (array(select p.relid::pg_catalog.oid \
                    from pg_catalog.pg_partition_tree('{oid}'::pg_catalog.regclass) p)) and ({bounds})"
            ),
            stamped: since.stamped.iter().any(|name| name.is(schema, table)),
            columns: row.try_get::<_, Option<String>>(6)?.unwrap_or_default(),
        })
    }

    fn rows(&self) -> String {
        format!("{} t where {}", self.root, self.own)
    }

    async fn exceeds(
        &self,
        client: &Client,
        rows_max: usize,
    ) -> Result<bool, tokio_postgres::Error> {
        let some = format!("select from {} limit {}", self.rows(), rows_max + 1);
        let count = format!("select pg_catalog.count(*) > {rows_max} from ({some}) r");
        client.query_one(&count, &[]).await?.try_get(0)
    }

    /// Those that the snapshot shows.
    async fn older(
        &self,
        client: &Client,
        since: &Since<'_>,
        found: &mut Found,
    ) -> Result<(), tokio_postgres::Error> {
        if !self.stamped {
            return Ok(());
        }
        let shown = format!("pg_visible_in_snapshot(xid, {})", literal(since.lower));
        // The halves of ids that are compared are near to one another, or the row is frozen, and old.
        let same = "xid::text::int8 % 4294967296 = xmin::text::int8";
        for (is_same, moved) in [(same.to_owned(), false), (format!("not {same}"), true)] {
            let which = format!("{is_same} and {shown}");
            let rows = self.count(client, since, !moved).await?;
            if rows == 0 {
                continue;
            }
            let halt = match moved {
                false => self.in_doubt(&in_words(rows), &which),
                true => self.look_moved(&in_words(rows), &which),
            };
            match moved {
                false => drop(found.halt.get_or_insert(halt)),
                true => found.moved.push(halt),
            }
        }
        Ok(())
    }

    /// Its rows that the snapshot shows: in the version in which they were inserted, or in another one.
    async fn count(
        &self,
        client: &Client,
        since: &Since<'_>,
        inserted: bool,
    ) -> Result<i64, tokio_postgres::Error> {
        let sql = format!(
            "select pg_catalog.count(*) from (select from {} and (t.{XID} = {}) = {inserted} \
             and pg_catalog.pg_visible_in_snapshot(t.{XID}, {}::pg_catalog.pg_snapshot) limit {})  r",
            self.rows(),
            full_xid("t.xmin", NOW),
            literal(since.lower),
            COUNTED_MAX + 1
        );
        client.query_one(&sql, &[]).await?.try_get(0)
    }

    /// Id, transaction, and whether that tells it to be inserted before, of each that the snapshot does not show.
    fn newer_rows(&self, since: &Since<'_>, and: &str) -> String {
        let id = format!("t.{}", identifier(since.mapping.id_column()));
        let before = &self.before;
        let (xid, before, newer) = match self.stamped {
            true => (
                format!("t.{XID}::pg_catalog.text"),
                format!("t.{XID} = {} and {before}", full_xid("t.xmin", NOW)),
                format!(
                    "not pg_catalog.pg_visible_in_snapshot(t.{XID}, {}::pg_catalog.pg_snapshot)",
                    literal(since.lower)
                ),
            ),
            // It is not known which rows are newer.
            false => ("'0'".to_owned(), "true".to_owned(), before.clone()),
        };
        format!(
            "select pg_catalog.concat({id}), {xid}, {before} from {} and {newer} {and}",
            self.rows()
        )
    }

    fn doubtful(&self, row: &Row) -> Result<Doubtful, tokio_postgres::Error> {
        let (id, xid): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        let xid: u64 = xid.parse().unwrap_or_default();
        let short = u32::try_from(xid % (1 << 32)).unwrap_or_default();
        let key = RowKey::new(id.as_bytes(), short);
        Ok(Doubtful { key, xid, before: row.try_get(2)? })
    }

    /// Those that it does not show.
    async fn newer(
        &self,
        client: &Client,
        since: &Since<'_>,
        rows_max: Option<usize>,
        found: &mut Found,
    ) -> Result<(), tokio_postgres::Error> {
        let rows_max = rows_max.unwrap_or(COMPARED_MAX);
        let room = rows_max.saturating_sub(found.newer.len());
        let limit = format!("limit {}", room + 1);
        let before = format!("and {} {limit}", self.before);
        for which in [limit, before] {
            let rows = client.query_raw(&self.newer_rows(since, &which), NOTHING).await?;
            pin_mut!(rows);
            let kept = found.newer.len();
            while let Some(row) = rows.try_next().await? {
                found.newer.push(self.doubtful(&row)?);
            }
            if found.newer.len() - kept <= room {
                return Ok(());
            }
            found.newer.truncate(kept);
        }
        found.more = true;
        Ok(())
    }

    /// What a person can do with rows that were inserted before it was attached.
    fn in_doubt(&self, rows: &str, which: &str) -> Halt {
        let name = &self.name;
        Halt::new(
            format!(
                "partition {name} was attached with rows that were inserted into it before ({rows}): \
                 they were not in the stream, and are published only if it was a partition then"
            ),
            format!(
                "to publish them, {}; if they are published, or to leave them out, run `outbox-relay resume --at \
                 progress`",
                self.statement(which)
            ),
        )
    }

    /// What a person can do with rows of which another version was inserted.
    fn look_moved(&self, rows: &str, which: &str) -> Halt {
        let name = &self.name;
        Halt::new(
            format!(
                "partition {name} was attached with rows ({rows}) that another transaction has written than the one \
                 in their column {XID}: they are taken for rows that were moved there, and were published where they \
                 came from"
            ),
            format!(
                "if instead they were inserted there before it was a partition, and then updated or rewritten, publish \
                 them: {}",
                self.statement(which)
            ),
        )
    }

    /// Moves rows through the stream.
    fn statement(&self, which: &str) -> String {
        let Partition { name, root, columns, .. } = self;
        format!(
            "`with rows as (delete from {name} where {which} returning *) insert into {root} ({columns}) select \
             {columns} from rows`"
        )
    }
}

/// Where the server's WAL ends by now; what was committed until then is sent soon.
///
/// # Errors
/// The database's.
pub async fn end_of_wal(client: &Client) -> Result<Lsn, tokio_postgres::Error> {
    // A transaction that changes nothing: its commit is flushed soon, with all before it.
    client.query_one("select pg_catalog.pg_current_xact_id()::pg_catalog.text", &[]).await?;
    let sql = "select (pg_catalog.pg_current_wal_insert_lsn() - '0/0')::pg_catalog.int8, \
                   pg_catalog.current_setting('wal_block_size')::pg_catalog.int8";
    let row = client.query_one(sql, &[]).await?;
    let (end, page_bytes): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok(Lsn::new(end.unsigned_abs()).before_page_header(page_bytes.unsigned_abs()))
}
