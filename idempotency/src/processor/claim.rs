//! The statements that begin a transaction with its claims, in the round trip of BEGIN.

use std::collections::HashSet;

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use crate::{
    error::InboxError,
    inbox::Inbox,
    message::RawMessage,
    message_id::{Day, MessageId},
    remembered,
    transaction::Open,
};

/// The transaction, the ids of what is new, and the lanes that are parked.
pub(super) type Claimed = (Open, HashSet<Uuid>, HashSet<Uuid>);

/// A row for each message.
pub(super) async fn rows(
    inbox: &Inbox,
    messages: &[&RawMessage],
    lanes: &[Uuid],
) -> Result<Claimed, InboxError> {
    const DOING: &str = "claiming messages";
    let consumer = inbox.consumer_id();
    if let ([message], [lane]) = (messages, lanes) {
        return row(inbox, message.id, *lane).await;
    }
    let sql = "select claimed, parked, pg_catalog.pg_backend_pid() as backend, \
                   pg_catalog.pg_current_xact_id()::pg_catalog.text as transaction \
               from inbox.claim_batch($1, $2, $3, $4)";
    let ids: Vec<Uuid> = messages.iter().map(|message| message.id.uuid()).collect();
    let days: Vec<Day> = messages.iter().map(|message| message.id.day()).collect();
    let params: [&(dyn ToSql + Sync); 4] = [&consumer, &ids, &days, &lanes];
    let (open, rows) = Open::begin(inbox.sessions(), DOING, sql, &params).await?;
    let column = |n| -> Result<HashSet<Uuid>, InboxError> {
        let ids: Vec<Uuid> =
            rows.first().map_or(Ok(Vec::new()), |row| row.try_get(n)).map_err(read)?;
        Ok(ids.into_iter().collect())
    };
    let (claimed, parked) = (column(0)?, column(1)?);
    if claimed.len() < ids.len() {
        remembered::are_there(&open, inbox.consumer_id(), &ids, &days).await?;
    }
    Ok((open, claimed, parked))
}

/// One message, in one statement: a function that does it in two costs as much again.
///
/// Its snapshot is older than the end of a copy that it waited for. That copy can't have parked the
/// lane unseen: had it committed, this one is a duplicate. Nor can an earlier message of the lane,
/// since whoever brings this one has been through those. Of a batch neither is so.
async fn row(inbox: &Inbox, id: MessageId, lane: Uuid) -> Result<Claimed, InboxError> {
    const DOING: &str = "claiming a message";
    let sql = "insert into inbox.messages (consumer_id, id, day) \
               values ($1, $2, $3) on conflict do nothing \
               returning exists (select from inbox.parked_lanes \
                   where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $4), \
                   pg_catalog.pg_backend_pid() as backend, \
                   pg_catalog.pg_current_xact_id()::pg_catalog.text as transaction";
    let (consumer, uuid, day) = (inbox.consumer_id(), id.uuid(), id.day());
    let params: [&(dyn ToSql + Sync); 4] = [&consumer, &uuid, &day, &lane];
    let (open, rows) = Open::begin(inbox.sessions(), DOING, sql, &params).await?;
    let Some(row) = rows.first() else {
        remembered::are_there(&open, inbox.consumer_id(), &[uuid], &[day]).await?;
        return Ok((open, HashSet::new(), HashSet::new()));
    };
    let mut parked = HashSet::new();
    if row.try_get(0).map_err(read)? {
        // It may be free since.
        let sql = format!(
            "select from inbox.parked_lanes \
             where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2 {}",
            keeping(inbox)
        );
        let rows = open.query(DOING, &sql, &[&consumer, &lane]).await?;
        parked.extend(rows.first().map(|_| lane));
    }
    Ok((open, HashSet::from([uuid]), parked))
}

/// Without remembering: all are new.
pub(super) async fn nothing(
    inbox: &Inbox,
    messages: &[&RawMessage],
    lanes: &[Uuid],
) -> Result<Claimed, InboxError> {
    let sql = format!(
        "select array(select lane from inbox.parked_lanes \
             where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) any ($2) \
             order by lane {}), pg_catalog.pg_backend_pid() as backend, \
             pg_catalog.pg_current_xact_id()::pg_catalog.text as transaction",
        keeping(inbox)
    );
    let params: [&(dyn ToSql + Sync); 2] = [&inbox.consumer_id(), &lanes];
    let (open, rows) =
        Open::begin(inbox.sessions(), "looking for parked keys", &sql, &params).await?;
    let row = rows.first().expect("a query without a table returns one row");
    let parked: Vec<Uuid> = row.try_get(0).map_err(read)?;
    let claimed = messages.iter().map(|message| message.id.uuid()).collect();
    Ok((open, claimed, parked.into_iter().collect()))
}

/// The lock by which lanes are kept from being freed until the end of the transaction. It lets others take them up, but
/// under SERIALIZABLE, where whoever does not wait makes the other fail.
fn keeping(inbox: &Inbox) -> &'static str {
    if inbox.sessions().wait_for_lanes() { "for update" } else { "for key share" }
}

fn read(error: tokio_postgres::Error) -> InboxError {
    InboxError::of("reading what was claimed", error)
}
