//! How much is parked: for the board and for progress, whatever else the relay is at.

use tokio_postgres::{
    Client, Error,
    types::{PgLsn, ToSql},
};
use uuid::Uuid;

use super::notice::REASON;
use crate::core::progress::{PARKED_IDS_MAX, ParkedId, ParkedRecord};

/// Events that one statement counts: what parks and releases shares the session, and waits for no more
/// than one of them.
const COUNTED_AT_A_TIME: i64 = 20_000;

/// Counts, over the index of what is parked, some at a time. Two events of one position, as they can come to be
/// where a cluster was promoted, may count as one.
///
/// # Errors
/// The table can't be read, or the session is broken.
pub async fn count(client: &Client, relay: &str) -> Result<ParkedRecord, Error> {
    loop {
        let mut counted = ParkedRecord { table: which_table(client).await?, ..Default::default() };
        // Dropped and made again meanwhile: these would be numbers of neither.
        if count_lanes(client, relay, &mut counted).await?
            && count_alone(client, relay, &mut counted).await?
        {
            let notices = notices(client, relay).await?;
            counted.events = counted.events.saturating_sub(notices);
            // After the counts: what is counted has its id here, and what was parked since is counted by it.
            if newest_ids(client, relay, &mut counted).await? {
                counted.events = counted.events.max(counted.ids.len() as u64);
                return Ok(counted);
            }
        }
    }
}

/// Which table it is.
///
/// # Errors
/// There is none, or the session is broken.
pub async fn which_table(client: &Client) -> Result<u32, Error> {
    client.query_one("select 'outbox.dead_letters'::regclass::oid", &[]).await?.try_get(0)
}

/// Rows that are no events. Some at the most, and found by their place, which no event has that was streamed.
async fn notices(client: &Client, relay: &str) -> Result<u64, Error> {
    let sql = "select count(*) from outbox.dead_letters \
               where relay = $1 and commit_lsn = '0/0' and reason = $2 and state in ('parked', 'releasing')";
    let row = client.query_one(sql, &[&relay, &REASON]).await?;
    Ok(row.try_get::<_, i64>(0)?.unsigned_abs())
}

/// Which of the events the table has no row of, whatever became of them there. Another event may have the same id,
/// as [`ParkedId::is`] tells them apart.
///
/// # Errors
/// As [`count`].
pub async fn absent(
    client: &Client,
    relay: &str,
    ids: &[ParkedId],
) -> Result<Vec<ParkedId>, Error> {
    // As the unique index has it where the place is known; else by the id's own index.
    let sql = "select a.n::int8 from unnest($2::text[], $3::pg_lsn[], $4::int8[], $5::text[]) \
                   with ordinality a (event, commit_lsn, ordinal, xid, n) \
               where case when a.commit_lsn is null \
                   then not exists (select from outbox.dead_letters d \
                       where d.relay = $1 and d.event_id = a.event) \
                   else not exists (select from outbox.dead_letters d \
                       where d.relay = $1 and d.commit_lsn = a.commit_lsn and d.ordinal = a.ordinal \
                           and hashtextextended(coalesce(d.event_id, ''), 0) = hashtextextended(a.event, 0)) \
                       and not exists (select from outbox.dead_letters d \
                           where d.relay = $1 and d.event_id = a.event and d.xid = a.xid::xid) \
               end order by a.n";
    let events: Vec<&str> = ids.iter().map(|id| id.id.as_str()).collect();
    let place = |id: &ParkedId| {
        id.place.and_then(|place| Some((place, i64::try_from(place.ordinal).ok()?)))
    };
    let commits: Vec<Option<PgLsn>> =
        ids.iter().map(|id| place(id).map(|(place, _)| PgLsn::from(place.commit.get()))).collect();
    let ordinals: Vec<Option<i64>> =
        ids.iter().map(|id| place(id).map(|(_, ordinal)| ordinal)).collect();
    let xids: Vec<Option<String>> =
        ids.iter().map(|id| id.xid.map(|xid| xid.to_string())).collect();
    let rows = client.query(sql, &[&relay, &events, &commits, &ordinals, &xids]).await?;
    let numbers = rows.iter().map(|row| row.try_get::<_, i64>(0)).collect::<Result<Vec<_>, _>>()?;
    let nth = |n: i64| ids.get(usize::try_from(n).ok()?.checked_sub(1)?).cloned();
    Ok(numbers.into_iter().filter_map(nth).collect())
}

/// Adds ids that can be typed between quotes; of others there is only the number. `false` when it is another
/// table.
async fn newest_ids(
    client: &Client,
    relay: &str,
    counted: &mut ParkedRecord,
) -> Result<bool, Error> {
    let sql = format!(
        "select 'outbox.dead_letters'::regclass::oid, \
             array(select event_id || '@' || commit_lsn || ':' || ordinal \
                       || coalesce('@' || xid::text, '') from outbox.dead_letters \
                   where relay = $1 and state in ('parked', 'releasing') \
                       and event_id ~ '^[0-9A-Za-z_.:-]{{1,64}}$' \
                   order by id desc limit {PARKED_IDS_MAX})"
    );
    let row = client.query_one(&sql, &[&relay]).await?;
    let ids: Vec<String> = row.try_get(1)?;
    counted.ids = ids.into_iter().filter_map(|id| ParkedId::try_from(id).ok()).collect();
    Ok(row.try_get::<_, u32>(0)? == counted.table)
}

/// Adds events that have lanes, and these. `false` when it is another table.
async fn count_lanes(
    client: &Client,
    relay: &str,
    counted: &mut ParkedRecord,
) -> Result<bool, Error> {
    let sql = "with p as materialized ( \
                   select lane, commit_lsn, ordinal from outbox.dead_letters \
                   where relay = $1 and state in ('parked', 'releasing') \
                       and (lane, commit_lsn, ordinal) > ($2, $3, $4) \
                   order by relay, lane, commit_lsn, ordinal limit $5) \
               select 'outbox.dead_letters'::regclass::oid, (select count(*) from p), \
                   (select count(distinct lane) from p where lane <> $2), \
                   last.lane, last.commit_lsn, last.ordinal \
               from (select) one left join (select * from p \
                   order by lane desc, commit_lsn desc, ordinal desc limit 1) last on true";
    let (mut lane, mut commit, mut ordinal) = (Uuid::nil(), PgLsn::from(0), -1_i64);
    loop {
        let piece: [&(dyn ToSql + Sync); 5] =
            [&relay, &lane, &commit, &ordinal, &COUNTED_AT_A_TIME];
        let row = client.query_one(sql, &piece).await?;
        if row.try_get::<_, u32>(0)? != counted.table {
            return Ok(false);
        }
        let events: i64 = row.try_get(1)?;
        counted.events += events.unsigned_abs();
        counted.lanes += row.try_get::<_, i64>(2)?.unsigned_abs();
        if events < COUNTED_AT_A_TIME {
            return Ok(true);
        }
        (lane, commit, ordinal) = (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
    }
}

/// Adds events that stand alone, which are behind all lanes in the index. `false` when it is another table.
async fn count_alone(
    client: &Client,
    relay: &str,
    counted: &mut ParkedRecord,
) -> Result<bool, Error> {
    let sql = "with p as materialized ( \
                   select commit_lsn, ordinal from outbox.dead_letters \
                   where relay = $1 and state in ('parked', 'releasing') and lane is null \
                       and (commit_lsn, ordinal) > ($2, $3) \
                   order by relay, lane, commit_lsn, ordinal limit $4) \
               select 'outbox.dead_letters'::regclass::oid, (select count(*) from p), \
                   last.commit_lsn, last.ordinal \
               from (select) one left join (select * from p \
                   order by commit_lsn desc, ordinal desc limit 1) last on true";
    let (mut commit, mut ordinal) = (PgLsn::from(0), -1_i64);
    loop {
        let piece: [&(dyn ToSql + Sync); 4] = [&relay, &commit, &ordinal, &COUNTED_AT_A_TIME];
        let row = client.query_one(sql, &piece).await?;
        if row.try_get::<_, u32>(0)? != counted.table {
            return Ok(false);
        }
        let events: i64 = row.try_get(1)?;
        counted.events += events.unsigned_abs();
        if events < COUNTED_AT_A_TIME {
            return Ok(true);
        }
        (commit, ordinal) = (row.try_get(2)?, row.try_get(3)?);
    }
}
