//! What a position does not tell is looked up by its id: in rows, and among the ids of what was taken by
//! position. What is neither known nor newer than all that was forgotten, no one can tell.

use std::collections::HashSet;

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::{
    error::InboxError,
    inbox::{CLAIM_BATCH, Inbox},
    message::RawMessage,
    message_id::Day,
    remembered,
    transaction::Open,
};

/// Of messages that were looked up.
pub(super) struct Found<'a> {
    /// The ids of those that are new; they are claimed.
    pub(super) new: HashSet<Uuid>,
    /// Those that may have been taken over and forgotten.
    pub(super) outside: Vec<&'a RawMessage>,
}

/// Looks messages of one partition up, with a statement or two for all of them, and none for none.
pub(super) async fn look_up<'a>(
    open: &Open,
    inbox: &Inbox,
    unclear: Vec<&'a RawMessage>,
) -> Result<Found<'a>, InboxError> {
    // Without a key, each earlier copy had its row too. Others may have come by position.
    let (keyless, keyed): (Vec<&RawMessage>, Vec<&RawMessage>) =
        unclear.into_iter().partition(|message| message.key.is_none());
    let mut new: HashSet<Uuid> = HashSet::new();
    new.extend(claim_rows(open, inbox, &keyless).await?);
    new.extend(claim_by_id(open, inbox, &keyed).await?);
    // Asked after that, since ids may be forgotten meanwhile. Those that are old stay claimed: a
    // further copy is a duplicate.
    let claimed: Vec<&RawMessage> =
        keyed.into_iter().filter(|message| new.contains(&message.id.uuid())).collect();
    let old = forgotten(open, inbox, &claimed).await?;
    let outside = claimed.into_iter().filter(|message| old.contains(&message.id.uuid()));
    let outside = outside.filter(|message| new.remove(&message.id.uuid())).collect();
    Ok(Found { new, outside })
}

/// Of messages that always had a row each, the ids of those that are new; they are claimed.
pub(super) async fn claim_rows(
    open: &Open,
    inbox: &Inbox,
    messages: &[&RawMessage],
) -> Result<Vec<Uuid>, InboxError> {
    const DOING: &str = "claiming messages without a key";
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = messages.iter().map(|message| message.id.uuid()).collect();
    let days: Vec<Day> = messages.iter().map(|message| message.id.day()).collect();
    let params: [&(dyn ToSql + Sync); 3] = [&inbox.consumer_id(), &ids, &days];
    let rows = open.query(DOING, CLAIM_BATCH, &params).await?;
    if rows.len() < ids.len() {
        remembered::are_there(open, inbox.consumer_id(), &ids, &days).await?;
    }
    let ids: Result<_, _> = rows.iter().map(|row| row.try_get(0)).collect();
    ids.map_err(|error| InboxError::of(DOING, error))
}

/// Of messages whose positions say nothing, the ids of those that are new; they are claimed.
async fn claim_by_id(
    open: &Open,
    inbox: &Inbox,
    messages: &[&RawMessage],
) -> Result<Vec<Uuid>, InboxError> {
    let Some(first) = messages.first() else { return Ok(Vec::new()) };
    let sql = "select inbox.claim_by_id($1, $2, $3, $4, $5)";
    let ids: Vec<Uuid> = messages.iter().map(|message| message.id.uuid()).collect();
    let days: Vec<Day> = messages.iter().map(|message| message.id.day()).collect();
    let partition = first.source.partition;
    let topic = inbox.repertoire().text(&first.source.topic);
    let params: [&(dyn ToSql + Sync); 5] = [&inbox.consumer_id(), &topic, &partition, &ids, &days];
    let rows = open.query("claiming by id", sql, &params).await?;
    let ids: Result<_, _> = rows.iter().map(|row| row.try_get(0)).collect();
    ids.map_err(|error| InboxError::of("claiming by id", error))
}

/// Of messages that were claimed by their ids, those that may have been taken over and forgotten: they
/// are no newer than others that were.
async fn forgotten(
    open: &Open,
    inbox: &Inbox,
    messages: &[&RawMessage],
) -> Result<Vec<Uuid>, InboxError> {
    const DOING: &str = "looking how far ids are forgotten";
    let Some(first) = messages.first() else { return Ok(Vec::new()) };
    let sql = "select m.id from unnest($4::pg_catalog.uuid[], $5::pg_catalog.float8[]) as m (id, own) \
               where pg_catalog.to_timestamp(m.own) operator(pg_catalog.<=) ( \
                   select pg_catalog.max(a.newest) from inbox.applied as a \
                   where a.consumer_id operator(pg_catalog.=) $1 \
                       and a.topic operator(pg_catalog.=) $2 \
                       and a.partition operator(pg_catalog.=) $3 \
                       and pg_catalog.cardinality(a.ids) operator(pg_catalog.=) 0)";
    let ids: Vec<Uuid> = messages.iter().map(|message| message.id.uuid()).collect();
    let own: Vec<f64> =
        messages.iter().map(|message| message.id.own_seconds().unwrap_or_default()).collect();
    let topic = inbox.repertoire().text(&first.source.topic);
    let params: [&(dyn ToSql + Sync); 5] =
        [&inbox.consumer_id(), &topic, &first.source.partition, &ids, &own];
    let rows = open.query(DOING, sql, &params).await?;
    let ids: Result<_, _> = rows.iter().map(|row| row.try_get(0)).collect();
    ids.map_err(|error| InboxError::of(DOING, error))
}
