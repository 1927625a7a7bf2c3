//! One partition that was attached: which of its rows a snapshot shows, and what is said of them.

use tokio_postgres::{Client, Row};

use super::{
    count::COUNTED_MAX,
    since::{Known, Since},
    sql::{NOW, full_xid, identifier, is_odd, literal, shown_name, written_after},
};
use crate::{
    core::{
        halt::Halt,
        progress::NotSentRecord,
        streamed::{Doubtful, RowKey},
    },
    route::XID,
};

/// Rows that are taken for published, and may not be.
#[derive(Debug)]
pub struct Taken {
    /// The table that the partition is one of.
    pub root: String,
    /// What they are taken for.
    pub reason: String,
    /// What a person can do if they are not that.
    pub remedy: String,
}

impl Taken {
    /// Logs it.
    pub fn tell(&self) {
        let Taken { reason, remedy, .. } = self;
        tracing::warn!(reason, remedy, "rows of a partition that was attached are not published");
    }
}

/// A partition, and what is asked of it.
pub(super) struct Partition {
    pub(super) oid: u32,
    pub(super) name: String,
    /// Whether that can't be typed.
    odd: bool,
    root: String,
    /// Whether a row was written before it was attached, by transaction ids; as a person types it.
    pub(super) before: String,
    /// Its rows among the root's: the relay may read that one, and need not read this.
    own: String,
    /// Whether its `xid` is the transaction that inserted the row.
    pub(super) stamped: bool,
    columns: String,
    /// Whether no relay has continued since it halted, as a person types it.
    still_halted: Option<String>,
}

/// The first transaction id that is still to come, as a person types it.
pub(super) const TO_COME: &str = "pg_snapshot_xmax(pg_current_snapshot())";

/// Which rows a snapshot shows by their column `xid`, as a person types it.
pub(super) fn shown(snapshot: &str) -> String {
    format!("pg_visible_in_snapshot({XID}, {})", literal(snapshot))
}

/// Those that were attached since, or all of them. A snapshot shows subtransactions of an open transaction as ended, so
/// what is in it is told by the leaves.
pub(super) async fn attached(
    client: &Client,
    since: &Since<'_>,
    all: bool,
) -> Result<Vec<Partition>, tokio_postgres::Error> {
    let Since { published, lower: (_, lower), leaves, .. } = since;
    let full = full_xid("i.xmin", NOW);
    let name = "c.oid::pg_catalog.regclass::pg_catalog.text";
    let bounds = "coalesce(pg_catalog.pg_get_partition_constraintdef(c.oid), 'true')";
    let sql = format!(
        "select c.oid::pg_catalog.int8 as oid, {name} as name, {odd} as odd, \
             r.oid::pg_catalog.regclass::pg_catalog.text as root, \
             n.nspname::pg_catalog.text as schema, r.relname::pg_catalog.text as table, \
             f.xid::pg_catalog.text as attached_by, i.cmin::pg_catalog.text as command, \
             case when {odd_bounds} then 'true' else {bounds} end as bounds, \
             (select pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by a.attnum) \
              from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attnum > 0 \
                 and not a.attisdropped and a.attgenerated = '' and a.attname <> '{XID}') as columns \
         from pg_catalog.pg_inherits i \
         join pg_catalog.pg_class c on c.oid = i.inhrelid and c.relispartition \
             and not i.inhdetachpending \
         join pg_catalog.pg_class r on r.oid = pg_catalog.pg_partition_root(c.oid) \
         join pg_catalog.pg_namespace n on n.oid = r.relnamespace \
         cross join lateral (select {full}) as f (xid) \
         where c.oid::pg_catalog.int8 = any ($1::pg_catalog.int8[]) \
             and ({all} or {} or f.xid >= pg_catalog.pg_snapshot_xmin({}::pg_catalog.pg_snapshot) \
                 and f.xid < {NOW} and not c.oid::pg_catalog.int8 = any ($2::pg_catalog.int8[])) \
         order by 2",
        written_after("f.xid", lower),
        literal(lower),
        name = shown_name(name),
        odd = is_odd(name),
        odd_bounds = is_odd(bounds),
    );
    let oids: Vec<i64> = published.attached.iter().map(|(oid, _)| i64::from(*oid)).collect();
    let known: Vec<i64> = leaves.oids().into_iter().map(i64::from).collect();
    let rows = client.query(&sql, &[&oids, &known]).await?;
    rows.iter().map(|row| Partition::read(row, since)).collect()
}

impl Partition {
    pub(super) fn read(row: &Row, since: &Since<'_>) -> Result<Self, tokio_postgres::Error> {
        let (oid, bounds): (i64, &str) = (row.try_get("oid")?, row.try_get("bounds")?);
        let (attached_by, command): (&str, &str) =
            (row.try_get("attached_by")?, row.try_get("command")?);
        let (schema, table): (&str, &str) = (row.try_get("schema")?, row.try_get("table")?);
        let short = attached_by.parse::<u64>().unwrap_or_default() % (1 << 32);
        Ok(Partition {
            oid: u32::try_from(oid).unwrap_or_default(),
            name: row.try_get("name")?,
            odd: row.try_get("odd")?,
            root: row.try_get("root")?,
            // In one transaction its commands tell the order.
            before: format!(
                "(age(xmin) > age('{short}'::xid) or xmin = '{short}' and cmin::text::int8 < {command})"
            ),
            // One that is partitioned itself has its rows below it. The bounds spare the other partitions a scan.
            own: format!(
                "t.tableoid = any (array(select p.relid::pg_catalog.oid \
                    from pg_catalog.pg_partition_tree('{oid}'::pg_catalog.regclass) p)) and ({bounds})"
            ),
            stamped: since.stamped.iter().any(|name| name.is(schema, table)),
            columns: row.try_get::<_, Option<String>>("columns")?.unwrap_or_default(),
            still_halted: since.slot.map(|slot| slot.unchanged()),
        })
    }

    pub(super) fn rows(&self) -> String {
        format!("{} t where {}", self.root, self.own)
    }

    pub(super) async fn exceeds(
        &self,
        client: &Client,
        rows_max: usize,
    ) -> Result<bool, tokio_postgres::Error> {
        let some = format!("select from {} limit {}", self.rows(), rows_max + 1);
        let count = format!("select pg_catalog.count(*) > {rows_max} from ({some}) r");
        client.query_one(&count, &[]).await?.try_get(0)
    }

    /// How many of its rows these are; counted up to [`COUNTED_MAX`] and one.
    pub(super) async fn count(
        &self,
        client: &Client,
        which: &str,
    ) -> Result<i64, tokio_postgres::Error> {
        let some = format!("select from {} and ({which}) limit {}", self.rows(), COUNTED_MAX + 1);
        let sql = format!("select pg_catalog.count(*) from ({some}) r");
        client.query_one(&sql, &[]).await?.try_get(0)
    }

    /// Which of its rows a snapshot does not show.
    pub(super) fn newer(&self, snapshot: &str) -> String {
        match self.stamped {
            // A transaction that is still to come is another cluster's, so its rows were copied.
            true => format!("not {} and {XID} < {TO_COME}", shown(snapshot)),
            false => written_after(&full_xid("xmin", NOW), snapshot),
        }
    }

    /// Which of its rows are compared with the stream.
    fn compared(&self, known: &Known<'_>) -> String {
        match (self.stamped, known.published) {
            (true, _) => self.newer(known.lower),
            // Without `xid` no one is asked about rows in between, so they are compared.
            (false, Some(published)) => self.newer(published),
            // It is not known which rows are older.
            (false, None) => format!("({} or {})", self.newer(known.lower), self.before),
        }
    }

    /// Id, transaction, and whether that tells it to be inserted before, of each that is compared with the stream.
    pub(super) fn doubtful_rows(&self, since: &Since<'_>, known: &Known<'_>, and: &str) -> String {
        let id = format!("t.{}", identifier(since.mapping.id_column()));
        let before = &self.before;
        let (xid, before) = match self.stamped {
            true => (
                format!("t.{XID}::pg_catalog.text"),
                format!("t.{XID} = {} and {before}", full_xid("t.xmin", NOW)),
            ),
            false => ("'0'".to_owned(), before.clone()),
        };
        format!(
            "select pg_catalog.concat({id}), {xid}, {before} from {} and {} {and}",
            self.rows(),
            self.compared(known)
        )
    }

    pub(super) fn doubtful(
        &self,
        known: &Known<'_>,
        row: &Row,
    ) -> Result<Doubtful, tokio_postgres::Error> {
        let (id, xid): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        let xid: u64 = xid.parse().unwrap_or_default();
        let short = u32::try_from(xid % (1 << 32)).unwrap_or_default();
        let (key, partition) = (RowKey::new(id.as_bytes(), short), self.oid);
        // Without a transaction there is nothing else to tell by.
        let certain = known.is_remembered || !self.stamped || row.try_get(2)?;
        Ok(Doubtful { key, partition, xid, certain })
    }

    /// Its newer rows that were inserted before it was attached, if the order of transaction ids is that of their commits.
    pub(super) fn told_by_ids(&self, known: &Known<'_>) -> NotSentRecord {
        let which = match self.stamped {
            true => format!("not {} and {}", shown(known.lower), self.before),
            false => self.before.clone(),
        };
        let rows = COUNTED_MAX.unsigned_abs() + 1;
        NotSentRecord { partition: self.oid, rows, which, exact: false }
    }

    /// What a person can do with rows that the stream has not sent. `exact`: these are all that the condition names.
    pub(super) fn in_doubt(&self, rows: &str, which: &str, exact: bool) -> Halt {
        let name = &self.name;
        let (sent, more) = match exact {
            true => ("they were not in the stream", ""),
            false => (
                "not all of them were in the stream, as far as is known",
                " (some may be published already, and come again, with their ids; a consumer with a watermark handles \
                 them again)",
            ),
        };
        Halt::new(
            format!(
                "partition {name} was attached with rows that were inserted into it before ({rows}): {sent}"
            ),
            format!(
                "to publish them{more}, {}; or, to leave them out, run `outbox-relay resume --at progress`",
                self.statement_while_halted(which)
            ),
        )
    }

    /// What a person can do with older rows that were inserted before it was attached.
    pub(super) fn unknown(&self, rows: &str, which: &str) -> Halt {
        let name = &self.name;
        Halt::new(
            format!(
                "partition {name} was attached with rows that are older ({rows}), and the relay does not know which of \
                 them are published: those that were inserted while it was a partition are, and those that were \
                 inserted before, or while it was detached, are not"
            ),
            format!(
                "to lose none, publish all of them (what is published already comes again, with its id, and a consumer \
                 with a watermark handles it again): {}; if all are published, or to leave them out, run \
                 `outbox-relay resume --at progress`",
                self.statement_while_halted(which)
            ),
        )
    }

    /// What a person can do with rows of which another version was inserted.
    pub(super) fn look_moved(&self, rows: &str, which: &str) -> Taken {
        let name = &self.name;
        Taken {
            root: self.root.clone(),
            reason: format!(
                "partition {name} was attached with rows ({rows}) that were last written by another transaction than \
                 the one in their column {XID}: the relay assumes that they were moved here, and were published before"
            ),
            remedy: format!(
                "if instead they were inserted here before it was a partition, and then updated or rewritten, publish \
                 them: {}",
                self.statement(which)
            ),
        }
    }

    /// What a person can do with rows that were sent as far as transaction ids tell.
    pub(super) fn taken_as_sent(&self, rows: &str, which: &str) -> Taken {
        let name = &self.name;
        Taken {
            root: self.root.clone(),
            reason: format!(
                "partition {name} was attached shortly before the relay was restarted: some of its rows ({rows}) are \
                 taken for published, because their transactions are older than the newest published event; whether \
                 they were inserted before it was attached is not known"
            ),
            remedy: format!(
                "look in their topics for them; if they are missing, publish them: {}",
                self.statement(which)
            ),
        }
    }

    /// Moves rows through the stream, unless a relay has continued meanwhile and published them itself.
    fn statement_while_halted(&self, which: &str) -> String {
        match &self.still_halted {
            None => self.statement(which),
            Some(still_halted) => format!(
                "{} (it moves none once the relay has continued)",
                self.statement(&format!("({which}) and {still_halted}"))
            ),
        }
    }

    /// Moves rows through the stream.
    fn statement(&self, which: &str) -> String {
        let Partition { oid, name, root, columns, .. } = self;
        let move_from = |name: &str| {
            format!(
                "`with rows as (delete from {name} where {which} returning *) insert into {root} ({columns}) overriding \
                 system value select {columns} from rows`"
            )
        };
        if !self.odd {
            return move_from(name);
        }
        // It can't be typed, and nor could a schema with such a name.
        let (schema, _) = name.rsplit_once('.').unwrap_or(("public", name));
        format!(
            "give it a name that can be typed, `do $$ begin execute format('alter table %s rename to partition_{oid}', \
             {oid}::regclass); end $$`; then {}",
            move_from(&format!("{schema}.partition_{oid}"))
        )
    }
}
