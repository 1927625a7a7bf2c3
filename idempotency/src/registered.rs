//! Under which number a consumer's messages are remembered.
//!
//! Its row in `inbox.consumers` says it. Whoever deletes that does not have the consumer forget: a number
//! that was deleted is noted (`inbox.losses`), comes back with its name, and is never another one's.

use std::sync::Arc;

use tokio_postgres::types::ToSql;

use crate::{error::InboxError, session::Sessions, transaction::Open};

const DOING: &str = "registering the consumer";
/// Others that register at the same time may be faster.
const TRIES_MAX: u32 = 100;
/// A name is in a unique index, and in each line of the log.
const NAME_BYTES_MAX: usize = 1_000;

/// The number, and whether there is a row that says so; first where there is.
const FIND: &str = "select c.id, true as stands, c.created_at as since from inbox.consumers as c \
        where c.name operator(pg_catalog.=) $1 \
    union all select l.consumer_id, false, l.noted_at from inbox.losses as l \
    where l.what operator(pg_catalog.=) 'consumer' \
        and (l.lost operator(pg_catalog.->>) 'name'::pg_catalog.text) operator(pg_catalog.=) $1 \
    order by stands desc, since desc";
const PUT_BACK: &str =
    "insert into inbox.consumers (id, name) values ($1, $2) on conflict do nothing returning id";
/// Whether this role may read what only consumers with a watermark have.
const READABLE: &str = "select coalesce( \
    pg_catalog.has_table_privilege(pg_catalog.to_regclass('inbox.watermarks'), 'select') \
    and pg_catalog.has_table_privilege(pg_catalog.to_regclass('inbox.applied'), 'select'), false)";
/// Numbers of messages that neither a row in `inbox.consumers` nor a note gives a name.
const NAMELESS: &str = "with recursive ids as ( \
        select (select pg_catalog.min(m.consumer_id) from inbox.messages as m) as id \
        union all \
        select (select pg_catalog.min(m.consumer_id) from inbox.messages as m \
            where m.consumer_id operator(pg_catalog.>) i.id) \
        from ids as i where i.id is not null) \
    select i.id from ids as i where i.id is not null \
        and not exists (select from inbox.consumers as c where c.id operator(pg_catalog.=) i.id) \
        and not exists (select from inbox.losses as l where l.what operator(pg_catalog.=) 'consumer' \
            and l.consumer_id operator(pg_catalog.=) i.id) \
    order by i.id limit 10";

/// Registers the name, and returns its number.
pub(crate) async fn number(sessions: &Arc<Sessions>) -> Result<i32, InboxError> {
    let refused = |error| InboxError::of(DOING, error);
    let bytes = sessions.consumer().len();
    if bytes == 0 || bytes > NAME_BYTES_MAX {
        return Err(InboxError::Setting(format!(
            "the consumer's name has {bytes} bytes; give it 1 to {NAME_BYTES_MAX}"
        )));
    }
    let name = sessions.repertoire().text(sessions.consumer());
    for _ in 0..TRIES_MAX {
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
        let readable = open.query(DOING, READABLE, &[]).await?;
        let readable = readable.first().expect("a query without a table returns one row");
        let highest = highest(readable.try_get(0).map_err(refused)?);
        let nameless = open.query(DOING, NAMELESS, &[]).await?;
        let nameless: Result<Vec<i32>, _> = nameless.iter().map(|row| row.try_get(0)).collect();
        let nameless = nameless.map_err(refused)?;
        // The sequence's, where it is past all that are known. Somebody may have set it back.
        let next = format!(
            "insert into inbox.consumers (name) values ($1) on conflict do nothing \
             returning id, id operator(pg_catalog.>) {highest}"
        );
        let next = open.query(DOING, &next, &[&name]).await?;
        if let Some(row) = next.first()
            && row.try_get(1).map_err(refused)?
        {
            let id = row.try_get(0).map_err(refused)?;
            open.commit().await?;
            tell_of(sessions, id, &nameless);
            return Ok(id);
        }
        open.rollback().await?;
        let beyond = format!(
            "insert into inbox.consumers (id, name) select {highest} operator(pg_catalog.+) 1, $1 \
             on conflict do nothing returning id"
        );
        let (open, beyond) = Open::begin(sessions, DOING, &beyond, &[&name]).await?;
        if let Some(row) = beyond.first() {
            let id = row.try_get(0).map_err(refused)?;
            open.commit().await?;
            tell_of(sessions, id, &nameless);
            return Ok(id);
        }
        // Another process of this consumer, or another consumer, was faster.
        open.rollback().await?;
    }
    Err(InboxError::Setting(
        "inbox.consumers accepts no number for the consumer; look at its triggers and rules".into(),
    ))
}

/// The highest number under which anything is kept.
fn highest(with_watermarks: bool) -> String {
    let mut columns = vec![
        "consumers.id",
        "losses.consumer_id",
        "messages.consumer_id",
        "parked_lanes.consumer_id",
        "parked.consumer_id",
        "dead_letters.consumer_id",
    ];
    if with_watermarks {
        columns.extend(["watermarks.consumer_id", "applied.consumer_id"]);
    }
    let of_each: Vec<String> = columns
        .iter()
        .map(|column| {
            let (table, _) = column.split_once('.').expect("a table's");
            format!("(select pg_catalog.max({column}) from inbox.{table})")
        })
        .collect();
    format!("coalesce(greatest({}), 0)", of_each.join(", "))
}

/// Messages without a consumer may be this one's, which then only seems to be new.
fn tell_of(sessions: &Sessions, id: i32, nameless: &[i32]) {
    if !nameless.is_empty() {
        let consumer = sessions.consumer();
        tracing::error!(
            consumer,
            id,
            "the consumer is new and has taken nothing yet, but inbox.messages has messages of the numbers \
             {nameless:?}, for which inbox.consumers has no row: someone has deleted it without a note, or \
             inbox.unite has left them. If one of these numbers was this consumer's, messages that come again take \
             effect again: stop all its instances and type, as the owner of the schema inbox: select \
             inbox.unite({id}, <that number>). If not, there is nothing to do"
        );
    }
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
                "inbox.consumers has no row for {consumer}, and gives its number {id} another name: if someone has \
                 renamed it, open the inbox with that name, or type, as the owner of the schema inbox: update \
                 inbox.consumers set name = $${consumer}$$ where id = {id}. If the row was deleted and another \
                 consumer has the number by now, the messages of one would count as the other's: stop both and \
                 restore inbox.consumers from a backup"
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
         instances and type, as the owner of the schema inbox: select inbox.unite({now}, {id})"
    ))
}
