//! Under which number a consumer's messages are remembered.
//!
//! Its row in `inbox.consumers` says it. Whoever deletes that does not have the consumer forget: a number
//! that was deleted is noted (`inbox.losses`), comes back with its name, and is never another one's.

use std::sync::Arc;

use tokio_postgres::types::ToSql;

use crate::{error::InboxError, session::Sessions, transaction::Open};

const DOING: &str = "registering the consumer";
/// Whoever has deleted many rows has the numbers begin anew at most.
const NUMBERS_MAX: u32 = 10_000;

/// The number, and whether there is a row that says so; first where there is.
const FIND: &str = "select c.id, true as stands from inbox.consumers as c where c.name operator(pg_catalog.=) $1 \
    union all select l.consumer_id, false from inbox.losses as l \
    where l.what operator(pg_catalog.=) 'consumer' \
        and (l.lost operator(pg_catalog.->>) 'name'::pg_catalog.text) operator(pg_catalog.=) $1 \
    order by stands desc";
const PUT_BACK: &str =
    "insert into inbox.consumers (id, name) values ($1, $2) on conflict do nothing returning id";
const ADD: &str = "insert into inbox.consumers as c (name) values ($1) \
    on conflict (name) do update set name = c.name \
    returning id, exists (select from inbox.losses as l where l.what operator(pg_catalog.=) 'consumer' \
        and l.consumer_id operator(pg_catalog.=) c.id)";

/// Registers the name, and returns its number.
pub(crate) async fn number(sessions: &Arc<Sessions>) -> Result<i32, InboxError> {
    let refused = |error| InboxError::of(DOING, error);
    let name = sessions.repertoire().text(sessions.consumer());
    for _ in 0..NUMBERS_MAX {
        let (open, found) = Open::begin(sessions, DOING, FIND, &[&name]).await?;
        if let Some(row) = found.first() {
            let (id, stands): (i32, bool) =
                (row.try_get(0).map_err(refused)?, row.try_get(1).map_err(refused)?);
            open.rollback().await?;
            if !stands {
                put_back(sessions, id).await?;
            }
            return Ok(id);
        }
        let added = open.query(DOING, ADD, &[&name]).await?;
        let row = added.first().expect("an upsert returns its row");
        if !row.try_get::<_, bool>(1).map_err(refused)? {
            let id = row.try_get(0).map_err(refused)?;
            open.commit().await?;
            return Ok(id);
        }
        // Of another name that was deleted: the next one.
        open.rollback().await?;
    }
    Err(InboxError::Setting(
        "inbox.consumers gives numbers that are other consumers', whose rows were deleted; type, as the \
         owner of the schema inbox: select setval(pg_get_serial_sequence('inbox.consumers', 'id'), \
         max(consumer_id)) from inbox.losses"
            .into(),
    ))
}

/// That the row of an inbox that is open still says its number.
///
/// # Errors
/// [`InboxError::Setting`] where it says another one.
pub(crate) async fn stands(sessions: &Arc<Sessions>, id: i32) -> Result<(), InboxError> {
    match by_name(sessions).await? {
        Some(now) if now == id => Ok(()),
        Some(now) => Err(another(sessions.consumer(), id, now)),
        None => put_back(sessions, id).await,
    }
}

async fn by_name(sessions: &Arc<Sessions>) -> Result<Option<i32>, InboxError> {
    let find = "select id from inbox.consumers where name operator(pg_catalog.=) $1";
    let name = sessions.repertoire().text(sessions.consumer());
    let (open, found) = Open::begin(sessions, DOING, find, &[&name]).await?;
    open.rollback().await?;
    let id = found.first().map(|row| row.try_get(0)).transpose();
    id.map_err(|error| InboxError::of(DOING, error))
}

async fn put_back(sessions: &Arc<Sessions>, id: i32) -> Result<(), InboxError> {
    let consumer = sessions.consumer();
    let name = sessions.repertoire().text(consumer);
    let params: [&(dyn ToSql + Sync); 2] = [&id, &name];
    let (open, done) = Open::begin(sessions, DOING, PUT_BACK, &params).await?;
    open.commit().await?;
    if done.is_empty() {
        // Another process of this consumer was faster, or another consumer has the number.
        return match by_name(sessions).await? {
            Some(now) if now == id => Ok(()),
            Some(now) => Err(another(consumer, id, now)),
            None => Err(InboxError::Setting(format!(
                "the row of {consumer} in inbox.consumers was deleted, and another consumer has its number \
                 {id} by now, so the messages of one would count as the other's; stop both and restore \
                 inbox.consumers from a backup"
            ))),
        };
    }
    tracing::error!(
        consumer,
        id,
        "somebody has deleted the consumer's row in inbox.consumers; it is there again with its number, so \
         nothing is forgotten. To end a consumer, stop its instances first"
    );
    Ok(())
}

fn another(consumer: &str, id: i32, now: i32) -> InboxError {
    InboxError::Setting(format!(
        "inbox.consumers says that {consumer} has the number {now}, and its messages are remembered under {id}: \
         its row was deleted and made again, and messages that come again take effect again; stop all \
         instances and type, as the owner of the schema inbox: insert into inbox.messages select day, {id}, id \
         from inbox.messages where consumer_id = {now} on conflict do nothing; update inbox.consumers set id = \
         {id} where id = {now}"
    ))
}
