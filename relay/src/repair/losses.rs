//! Whether what a repair is to read may be gone, or be another cluster's.
//!
//! Only what is as durable as the rows themselves counts: the account that the migration's triggers
//! keep of deleted rows, and the catalog. Where nothing is known, rows may be gone.

use outbox_migrations::grants::{RELAY, lacking};
use tokio_postgres::{Client, error::SqlState};

use super::{
    sql::{full_xid, literal, shown_name, written_after},
    tables::Table,
};
use crate::{
    core::{halt::Halt, leaves::Leaves},
    rights,
};

/// Looks whether what is to be read is what was committed: rows that are gone, or that carry
/// another cluster's transaction ids, would be skipped without a trace. `rows_kept` is the operator's word that none is
/// deleted before it is published. `leaves` are the partitions that were there at `lower`.
///
/// # Errors
/// The database's.
pub async fn complete(
    client: &Client,
    tables: &[Table],
    lower: Option<&str>,
    leaves: &Leaves,
    rows_kept: bool,
) -> Result<Result<(), Halt>, tokio_postgres::Error> {
    for table in tables {
        let found = match lower {
            None => super::filled::of_this_cluster(client, table).await?,
            Some(_) if rows_kept => None,
            Some(lower) => gone(client, table, lower, leaves, Published::ToSnapshot).await?,
        };
        if let Some(halt) = found {
            return Ok(Err(halt));
        }
    }
    let vanished = match rows_kept {
        true => None,
        false => vanished(client, tables, lower, leaves).await?,
    };
    Ok(vanished.map_or(Ok(()), Err))
}

/// Which of the rows are known to be published.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Published {
    /// Those that the snapshot shows.
    ToSnapshot,
    /// None for certain: it shows what a first start is to publish.
    Unknown,
}

/// Whether anybody would know of rows that are deleted.
///
/// # Errors
/// [`Halt`] with what would make it known.
pub fn accounted_for(table: &Table) -> Result<(), Halt> {
    if table.noted {
        return Ok(());
    }
    let name = &table.name;
    let from_now_on = if name.is("outbox", "events") {
        "to have them recorded from now on, run `outbox-relay migrate` as the schema's owner"
            .to_owned()
    } else {
        format!("to have them recorded from now on, `select outbox.note_deletions('{name}')`")
    };
    Err(Halt::new(
        format!(
            "no trigger records each deletion from {name}, so rows may have been deleted before they were \
             published"
        ),
        format!(
            "if no row of it is deleted before the relay has published it, set outbox.rows_kept = \
             true and restart the relay; {from_now_on}"
        ),
    ))
}

/// Why rows that `lower` does not show may be gone; the newest of those that are there don't matter.
pub(super) async fn gone(
    client: &Client,
    table: &Table,
    lower: &str,
    leaves: &Leaves,
    published: Published,
) -> Result<Option<Halt>, tokio_postgres::Error> {
    const REMEDY: &str = "to publish all that is still in the table, set outbox.rows_kept = true, \
                          restart the relay, and take the setting out again afterwards: rows that \
                          were deleted before they were published are lost";
    if let Err(halt) = accounted_for(table) {
        return Ok(Some(halt));
    }
    let (name, snapshot) = (&table.name, literal(lower));
    let unknown = published == Published::Unknown;
    // A deletion that the snapshot shows took rows that it shows as well. Before migration V11 a note
    // may stand for later ones.
    let noted = format!(
        "select d.newest::pg_catalog.text, \
                pg_catalog.pg_snapshot_xmin({snapshot}::pg_catalog.pg_snapshot)::pg_catalog.text \
         from outbox.deletions d \
         cross join lateral (select pg_catalog.to_jsonb(d)) as j (note) \
         cross join lateral (select coalesce( \
             (j.note ->> 'merged')::pg_catalog.xid8, d.writer)) as w (xid) \
         cross join lateral (select \
             d.newest >= pg_catalog.pg_snapshot_xmin({snapshot}::pg_catalog.pg_snapshot), {}) as n (late, since) \
         where (n.late or {unknown} and n.since) \
             and (n.since or not pg_catalog.jsonb_exists(j.note, 'merged')) \
         order by d.newest desc limit 1",
        written_after("w.xid", lower)
    );
    match client.query_opt(&noted, &[]).await {
        Ok(None) => {}
        Ok(Some(row)) => {
            let (newest, until): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
            let known = match unknown {
                true => "and it is not known which of them were published by then".to_owned(),
                false => {
                    format!("and only what was written before {until} is known to be published")
                }
            };
            let reason = format!(
                "rows of {name} were deleted that may be unpublished: they are of transactions up to {newest}, \
                 {known}"
            );
            return Ok(Some(Halt::new(reason, REMEDY)));
        }
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let why = "so it is not known whether rows were deleted that were not published";
            let mut lacking = lacking(client, RELAY).await?;
            lacking.grants.retain(|grant| grant.object == "outbox.deletions");
            return rights::halt(&lacking, why).map_or(Err(error), |halt| Ok(Some(halt)));
        }
        Err(error) => return Err(error),
    }
    let oids: Vec<i64> = leaves.oids().into_iter().map(i64::from).collect();
    if let Some(row) = client.query_opt(&interrupted(table, lower), &[&oids]).await? {
        let relation: &str = row.try_get(0)?;
        let reason = format!(
            "the triggers that keep account of rows deleted from {relation} were changed since, and \
             rows that were not published may have been deleted meanwhile"
        );
        return Ok(Some(Halt::new(reason, REMEDY)));
    }
    if client.query_one(&emptied(table, lower), &[]).await?.try_get(0)? {
        let reason = format!(
            "the account of deleted rows, outbox.deletions, was emptied or recreated since: rows of \
             {name} that were not published may have been deleted"
        );
        return Ok(Some(Halt::new(reason, REMEDY)));
    }
    Ok(truncated(client, table, lower, &oids).await?.map(|leaf| {
        let reason =
            format!("{leaf} was truncated since, or was rewritten and has no older row left: rows of it that were not published may be gone");
        Halt::new(reason, REMEDY)
    }))
}

/// Whether a catalog row was.
fn newer(row: &str, lower: &str) -> String {
    let snapshot = format!("{}::pg_catalog.pg_snapshot", literal(lower));
    let full =
        full_xid(&format!("{row}.xmin"), &format!("pg_catalog.pg_snapshot_xmax({snapshot})"));
    written_after(&full, lower)
}

/// Whether a relation's catalog rows are all newer than the snapshot, though it was there then: pg_upgrade
/// has written them, and they say nothing of what was done. Those of system columns never change.
fn restored(oid: &str, lower: &str) -> String {
    format!(
        "exists (select from pg_catalog.pg_attribute a \
         where a.attrelid = {oid} and a.attname = 'tableoid' and {})",
        newer("a", lower)
    )
}

/// Whether the account itself is another than it was, or has been emptied with TRUNCATE: what it said is
/// not known any more. VACUUM FULL gives it a new file as well, and leaves rows that are older than that.
fn emptied(table: &Table, lower: &str) -> String {
    let name = literal(&table.sql_name());
    let near = format!("pg_catalog.pg_snapshot_xmax({}::pg_catalog.pg_snapshot)", literal(lower));
    let made_anew = restored("c.oid", lower);
    format!(
        "select exists (select from pg_catalog.pg_class c \
         where c.oid = 'outbox.deletions'::pg_catalog.regclass and ( \
             ({made_anew} and not {}) \
             or (c.relfilenode <> c.oid and {} and not {made_anew} and not exists ( \
                 select from outbox.deletions d where {} < {}))))",
        restored(&format!("{name}::pg_catalog.regclass"), lower),
        newer("c", lower),
        full_xid("d.xmin", &near),
        full_xid("c.xmin", &near)
    )
}

/// Triggers that were off for a while are on again, in a catalog row of their own. Those of partitions that
/// were made or attached since are new anyway.
fn interrupted(table: &Table, lower: &str) -> String {
    let name = literal(&table.sql_name());
    format!(
        "select g.tgrelid::pg_catalog.regclass::pg_catalog.text from pg_catalog.pg_trigger g \
         join pg_catalog.pg_proc f on f.oid = g.tgfoid \
         join pg_catalog.pg_namespace m on m.oid = f.pronamespace \
         where m.nspname = 'outbox' and f.proname = 'note_deletion' and {} and not {} \
             and (g.tgrelid = {name}::pg_catalog.regclass \
                 or (g.tgrelid::pg_catalog.int8 = any ($1::pg_catalog.int8[]) and not exists ( \
                     select from pg_catalog.pg_inherits i where i.inhrelid = g.tgrelid and {}))) \
         limit 1",
        newer("g", lower),
        restored("g.tgrelid", lower),
        newer("i", lower)
    )
}

/// A partition that is gone took its rows with it, and no trigger fires; nor does one for what is deleted while it is
/// detached. One that a DETACH CONCURRENTLY has begun to detach, or that another table has, is detached.
pub(super) async fn vanished(
    client: &Client,
    tables: &[Table],
    lower: Option<&str>,
    leaves: &Leaves,
) -> Result<Option<Halt>, tokio_postgres::Error> {
    let oids: Vec<i64> = leaves.oids().into_iter().map(i64::from).collect();
    let Some(lower) = lower.filter(|_| !oids.is_empty()) else { return Ok(None) };
    let roots = tables.iter().map(|table| {
        let name = format!("{}::pg_catalog.regclass", literal(&table.sql_name()));
        format!("coalesce(pg_catalog.pg_partition_root({name}), {name})")
    });
    let sql = format!(
        "select v.oid::text, v.name, v.gone from ( \
             select o.oid, {name} as name, \
                 case when c.relispartition \
                     then not pg_catalog.pg_partition_root(c.oid) = any (array[{}]) \
                     else not exists (select from pg_catalog.pg_inherits i where i.inhrelid = c.oid) \
                 end as gone, \
                 exists (select from pg_catalog.pg_inherits i where i.inhrelid = c.oid and {}) \
                     and not {} as anew \
             from unnest($1::int8[]) as o (oid) \
             left join pg_catalog.pg_class c on c.oid = o.oid::pg_catalog.oid) as v \
         where v.gone or v.anew order by v.name nulls first, v.gone desc limit 1",
        roots.collect::<Vec<_>>().join(", "),
        newer("i", lower),
        restored("c.oid", lower),
        name = shown_name("c.oid::pg_catalog.regclass::pg_catalog.text"),
    );
    let Some(row) = client.query_opt(&sql, &[&oids]).await? else { return Ok(None) };
    let gone: bool = row.try_get(2)?;
    Ok(Some(match row.try_get::<_, Option<String>>(1)? {
        Some(name) if gone => Halt::new(
            format!("partition {name} was detached since: rows of it may be unpublished"),
            format!(
                "attach {name} again; then, if no row of it was deleted meanwhile, or all of them were \
                 published before, {KEPT}"
            ),
        ),
        Some(name) => Halt::new(
            format!(
                "partition {name} was detached for a while since: no one has recorded whether rows of it were \
                 deleted meanwhile that may be unpublished"
            ),
            format!("if none was deleted, {KEPT}"),
        ),
        None => Halt::new(
            format!(
                "a partition (OID {}) was dropped since: rows of it that were not published are gone",
                row.try_get::<_, &str>(0)?
            ),
            format!("if all of them were published before, {KEPT}"),
        ),
    }))
}

const KEPT: &str =
    "set outbox.rows_kept = true and restart the relay, which publishes what is there";

/// A relation that was truncated, as far as can be known. TRUNCATE gives it a new file, and so do VACUUM
/// FULL and an ALTER TABLE that rewrites the rows; but these leave rows: with the version that they had, or,
/// after an ALTER TABLE, which recreates the TOAST table, with their `xid`. `leaves` were there at `lower`; a
/// partition that was not has no such rows.
async fn truncated(
    client: &Client,
    table: &Table,
    lower: &str,
    leaves: &[i64],
) -> Result<Option<String>, tokio_postgres::Error> {
    let snapshot = format!("{}::pg_catalog.pg_snapshot", literal(lower));
    let visible = |xid: &str| format!("pg_catalog.pg_visible_in_snapshot({xid}, {snapshot})");
    let full = |row: &str| {
        full_xid(&format!("{row}.xmin"), &format!("pg_catalog.pg_snapshot_xmax({snapshot})"))
    };
    // The first file has the number of its OID.
    let new_file =
        |row: &str| format!("({row}.relfilenode <> {row}.oid and {})", newer(row, lower));
    let (name, heap, toast) = (literal(&table.sql_name()), new_file("c"), new_file("f"));
    let candidates = format!(
        "select c.oid::pg_catalog.regclass::pg_catalog.text, c.oid::pg_catalog.int8, \
             coalesce(pg_catalog.pg_get_partition_constraintdef(c.oid), 'true'), \
             coalesce(f.relfilenode = f.oid, false), not c.relispartition \
         from pg_catalog.pg_class c left join pg_catalog.pg_class f on f.oid = c.reltoastrelid \
         where c.relkind = 'r' and ({heap} or coalesce({toast}, false)) and not {} and c.oid in ( \
             select {name}::pg_catalog.regclass \
             union select relid from pg_catalog.pg_partition_tree({name}))",
        restored("c.oid", lower)
    );
    for row in client.query(&candidates, &[]).await? {
        let (leaf, oid): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        let (bounds, rewritten): (&str, bool) = (row.try_get(2)?, row.try_get(3)?);
        if rewritten && !leaves.contains(&oid) && !row.try_get::<_, bool>(4)? {
            continue;
        }
        let mut kept = visible(&full("t"));
        if rewritten {
            kept = format!("({kept} or {})", visible("t.xid"));
        }
        let any = format!(
            "select exists (select from {} t where t.tableoid = '{oid}'::pg_catalog.oid \
             and ({bounds}) and {kept})",
            table.from()
        );
        if !client.query_one(&any, &[]).await?.try_get::<_, bool>(0)? {
            return Ok(Some(leaf));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    /// As [`super::full_xid`] computes it.
    fn full(xid: u32, near: i64) -> i64 {
        let (short, span) = (i64::from(xid), 1_i64 << 32);
        (near + (short - near % span + 6_442_450_944) % span - (1 << 31)).max(3)
    }

    #[test]
    fn an_xid_without_epoch_is_the_one_nearest_to_a_full_one() {
        let epoch = 1_i64 << 32;
        for (xid, near, expected) in [
            (1000, 1005, 1000),
            (1010, 1005, 1010),
            (7, epoch + 9, epoch + 7),
            (u32::MAX, epoch + 9, epoch - 1),
            (5, 3 * epoch - 2, 3 * epoch + 5),
            (2_147_483_000, 3, 2_147_483_000),
        ] {
            assert_eq!(full(xid, near), expected, "{xid} near {near}");
        }
    }
}
