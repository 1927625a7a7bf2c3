//! Partitions that were attached with rows in them: what was inserted before that is not in the stream.
//!
//! Rows that the newest snapshot shows were inserted before, for it does not show the partition: a person is asked
//! about them. Those that were moved there (their `xid` is not the transaction that wrote them) were published where
//! they came from; what was rewritten looks the same, so it is told. Of newer rows the stream itself says which it has
//! (`Streamed`).

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{TryStreamExt as _, pin_mut};
use tokio_postgres::{Client, error::SqlState};

use super::{
    count::in_words,
    partition::{Partition, TO_COME, Taken, attached, shown},
    since::{Known, Since},
    sql::{identifier, literal},
};
use crate::core::{
    halt::Halt,
    lsn::Lsn,
    progress::NotSentRecord,
    snapshot,
    streamed::{Awaited, Doubtful},
};

/// Newer rows of all partitions that are compared with the stream; beyond them, those alone that transaction ids tell to
/// be inserted before. Some 24 MB.
const COMPARED_MAX: usize = 1_000_000;
/// Rows of new partitions that are compared while the relay streams; more take a start, which has a session for it.
pub const GLANCED_MAX: usize = 10_000;
/// Rows that are named by their ids, and how long these may be.
const NAMED_MAX: usize = 100;
const NAMED_BYTES_MAX: usize = 40;
const SNAPSHOT_BYTES_MAX: usize = 800;

const NOTHING: [&(dyn tokio_postgres::types::ToSql + Sync); 0] = [];

/// What was found in partitions that were attached since a snapshot.
#[derive(Debug, Default)]
pub struct Found {
    /// Rows of which a person decides.
    pub halt: Option<Halt>,
    /// Newer rows: the stream has them, or they were inserted before.
    pub newer: Vec<Doubtful>,
    /// Partitions with more rows than were looked at: those rows that transaction ids tell to be inserted before.
    pub more: Vec<NotSentRecord>,
    /// Partitions with older rows that look moved.
    pub moved: Vec<Taken>,
    /// The partitions that were looked at, each with the snapshot that does not show the newer rows.
    pub partitions: BTreeMap<u32, String>,
}

/// Whether one was attached after the snapshot at all.
///
/// # Errors
/// The database's.
pub async fn any_attached_since(
    client: &Client,
    since: &Since<'_>,
) -> Result<bool, tokio_postgres::Error> {
    attached(client, since, since.every).await.map(|found| !found.is_empty())
}

/// Looks into the partitions that were attached after the snapshot. Of those that were partitions before, the stream has
/// had what a snapshot of then shows of them. Not more than `rows_max` newer rows are read.
///
/// # Errors
/// The database's.
pub async fn look_into(
    client: &Client,
    since: &Since<'_>,
    rows_max: Option<usize>,
) -> Result<Found, tokio_postgres::Error> {
    let mut found = Found::default();
    for partition in attached(client, since, since.every).await? {
        let known = since.known(partition.oid);
        found.partitions.insert(partition.oid, known.lower.to_owned());
        let looked = async {
            if let Some(rows_max) = rows_max
                && partition.exceeds(client, rows_max).await?
            {
                found.more.push(partition.told_by_ids(&known));
                return Ok(());
            }
            older(client, &known, &partition, &mut found).await?;
            newer(client, since, (&partition, &known), rows_max, &mut found).await
        };
        match looked.await {
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let which = partition.before.clone();
                let halt = partition.unknown("it is not known how many", &which);
                found.halt.get_or_insert(halt);
            }
            looked => looked?,
        }
    }
    Ok(found)
}

/// Those that are not compared, and were not there when it was a partition.
async fn older(
    client: &Client,
    known: &Known<'_>,
    partition: &Partition,
    found: &mut Found,
) -> Result<(), tokio_postgres::Error> {
    if !partition.stamped || known.published == Some(known.lower) {
        return Ok(());
    }
    let mut older = shown(known.lower);
    if let Some(published) = known.published {
        older = format!("{older} and not {}", shown(published));
    }
    // The halves of ids that are compared are near to one another, or the row is frozen, and old.
    let same = "xid::text::int8 % 4294967296 = xmin::text::int8";
    let copied = match known.published {
        None => format!("(not {same} and {older} or xid >= {TO_COME})"),
        Some(_) => format!("not {same} and {older}"),
    };
    for (which, moved) in [(format!("{same} and {older}"), false), (copied, true)] {
        let rows = partition.count(client, &which).await?;
        if rows == 0 {
            continue;
        }
        let rows = in_words(rows);
        match moved {
            false => drop(found.halt.get_or_insert(partition.unknown(&rows, &which))),
            true => found.moved.push(partition.look_moved(&rows, &which)),
        }
    }
    Ok(())
}

/// Those that are compared.
async fn newer(
    client: &Client,
    since: &Since<'_>,
    (partition, known): (&Partition, &Known<'_>),
    rows_max: Option<usize>,
    found: &mut Found,
) -> Result<(), tokio_postgres::Error> {
    let rows_max = rows_max.unwrap_or(COMPARED_MAX);
    let room = rows_max.saturating_sub(found.newer.len());
    let limit = format!("limit {}", room + 1);
    let before = format!("and {} {limit}", partition.before);
    for which in [limit, before] {
        let rows = partition.doubtful_rows(since, known, &which);
        let rows = client.query_raw(&rows, NOTHING).await?;
        pin_mut!(rows);
        let kept = found.newer.len();
        while let Some(row) = rows.try_next().await? {
            found.newer.push(partition.doubtful(known, &row)?);
        }
        if found.newer.len() - kept <= room {
            return Ok(());
        }
        found.newer.truncate(kept);
    }
    found.more.push(partition.told_by_ids(known));
    Ok(())
}

/// What is said of rows that are taken as sent, though not all is remembered: how many of each partition. No transaction
/// above `published` was published.
///
/// # Errors
/// The database's.
pub async fn taken_as_sent(
    client: &Client,
    since: &Since<'_>,
    counts: &BTreeMap<u32, u64>,
    published: u64,
) -> Result<Vec<Taken>, tokio_postgres::Error> {
    let mut told = Vec::new();
    if counts.is_empty() {
        return Ok(told);
    }
    for partition in attached(client, since, true).await? {
        let Some(rows) = counts.get(&partition.oid) else { continue };
        let lower = shown(since.known(partition.oid).lower);
        let which = format!("not {lower} and xid <= '{published}'");
        let rows = in_words(i64::try_from(*rows).unwrap_or(i64::MAX));
        told.push(partition.taken_as_sent(&rows, &which));
    }
    Ok(told)
}

/// Finds the rows that the stream has not sent, for a person and for progress, and the transactions that inserted them:
/// those that `missing` has.
///
/// # Errors
/// The database's.
pub async fn not_sent(
    client: &Client,
    since: &Since<'_>,
    missing: &Awaited,
) -> Result<(Vec<NotSentRecord>, BTreeSet<u64>), tokio_postgres::Error> {
    let (mut records, mut xids) = (Vec::new(), BTreeSet::new());
    let now = "select pg_catalog.pg_current_snapshot()::pg_catalog.text";
    let now: String = client.query_one(now, &[]).await?.try_get(0)?;
    let now = snapshot::end(&now).unwrap_or(u64::MAX);
    for partition in attached(client, since, true).await? {
        let Some(lower) = missing.partitions.get(&partition.oid) else { continue };
        let known = Known { lower, ..since.known(partition.oid) };
        let rows = partition.doubtful_rows(since, &known, "");
        let rows = client.query_raw(&rows, NOTHING).await?;
        pin_mut!(rows);
        let mut found = Missing::default();
        while let Some(row) = rows.try_next().await? {
            let doubtful = partition.doubtful(&known, &row)?;
            match missing.rows.contains(&doubtful.key) {
                true => found.add(doubtful.xid, row.try_get(0)?),
                false => drop(found.others.insert(doubtful.xid)),
            }
        }
        if found.rows == 0 {
            continue;
        }
        let which = found.condition(&partition, since.mapping.id_column(), lower, now);
        let (rows, partition_oid) = (found.rows, partition.oid);
        let alone = partition.count(client, &which).await? == i64::try_from(rows).unwrap_or(0);
        // Without `xid` a row that was sent before all is remembered looks like one that was not.
        let exact = alone && (partition.stamped || since.known(partition.oid).is_whole());
        records.push(NotSentRecord { partition: partition_oid, rows, which, exact });
        if partition.stamped {
            xids.append(&mut found.own);
        }
    }
    Ok((records, xids))
}

/// Rows of one partition that the stream has not sent.
#[derive(Default)]
struct Missing {
    rows: u64,
    /// The first of their ids.
    ids: Vec<String>,
    /// The transactions that inserted them, and those that inserted the partition's other rows.
    own: BTreeSet<u64>,
    others: BTreeSet<u64>,
}

impl Missing {
    fn add(&mut self, xid: u64, id: &str) {
        self.rows += 1;
        self.own.insert(xid);
        if self.ids.len() <= NAMED_MAX {
            self.ids.push(id.to_owned());
        }
    }

    /// Which rows these are, as a person types it, in some 7 KB at most: exactly, where there is a short way to say so.
    /// Those that somebody moves through the stream get transactions from `now` on.
    fn condition(&self, partition: &Partition, id: &str, lower: &str, now: u64) -> String {
        let is_short = |id: &String| {
            id.len() <= NAMED_BYTES_MAX && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let named = self.ids.len() <= NAMED_MAX && self.ids.iter().all(is_short);
        let ids = self.ids.iter().map(|id| literal(id)).collect::<Vec<_>>().join(", ");
        let ids = format!("{}::text in ({ids})", identifier(id));
        if !partition.stamped {
            return match named {
                true => format!("{ids} and age(xmin) > age('{}'::xid)", now % (1 << 32)),
                false => partition.before.clone(),
            };
        }
        let range = match (self.own.first(), self.own.last()) {
            (Some(first), Some(last)) => *first..=*last,
            _ => 0..=0,
        };
        let between: BTreeSet<u64> = self.others.range(range.clone()).copied().collect();
        let apart = self.own.is_disjoint(&between);
        if apart && self.own.len() <= NAMED_MAX {
            return format!("xid in ({})", listed(&self.own));
        }
        if apart && between.len() <= NAMED_MAX {
            let within = format!("xid between '{}' and '{}'", range.start(), range.end());
            return match between.is_empty() {
                true => within,
                false => format!("{within} and xid not in ({})", listed(&between)),
            };
        }
        if named {
            return format!("{ids} and xid in ({})", listed(&self.own));
        }
        let lower = snapshot::cut(lower, SNAPSHOT_BYTES_MAX).unwrap_or_default();
        format!("not {} and xid < '{now}'", shown(&lower))
    }
}

fn listed(xids: &BTreeSet<u64>) -> String {
    xids.iter().map(|xid| format!("'{xid}'")).collect::<Vec<_>>().join(", ")
}

/// What a person can do with rows that were not sent; `None` where they are there no more.
///
/// # Errors
/// The database's.
pub async fn unmoved(
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
    Ok(Some((name, partition.in_doubt(&in_words(rows), &record.which, record.exact))))
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
