//! Messages that a consumer gave up: looked at, replayed, discarded.
//!
//! A replay moves a message back to where its key's messages wait, so only this consumer sees it,
//! and a running [`crate::Processor`] takes it within half a second. Each command is one statement. None is
//! cancel safe: dropped before it returns, its statement may take effect or not, as a whole; look with [`list`]
//! or [`show`].

use std::time::SystemTime;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Row, types::ToSql};

use crate::{
    fault::{Point, point},
    message::Source,
    rfc3339,
};

/// A dead letter without its payload.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its number.
    pub id: i64,
    /// Whose it is.
    pub consumer: String,
    /// `dead`, `replayed` or `discarded`.
    pub state: String,
    /// The message's id.
    pub message_id: String,
    /// Where it was found.
    pub topic: String,
    /// Where it was found, if the broker has partitions.
    pub partition: Option<i32>,
    /// Where it was found, if the broker has offsets.
    pub offset: Option<i64>,
    /// When it was sent, by its producer's clock. RFC 3339 in JSON.
    #[serde(serialize_with = "rfc3339::serialize_some")]
    pub produced_at: Option<SystemTime>,
    /// When it was sent, by the broker's clock, if that took the place of the producer's. RFC 3339 in JSON.
    #[serde(serialize_with = "rfc3339::serialize_some")]
    pub stored_at: Option<SystemTime>,
    /// Text, or `{"base64": …}`, or null.
    pub key: Value,
    /// Why, in one word.
    pub code: String,
    /// The last error.
    pub error: String,
    /// How often it was tried since it came, or since its last replay.
    pub attempts: i32,
    /// How often it had been replayed before.
    pub replays: i32,
    /// When it failed first since it came, or since its last replay. RFC 3339 in JSON.
    #[serde(serialize_with = "rfc3339::serialize")]
    pub first_failed_at: SystemTime,
    /// When it was given up. RFC 3339 in JSON.
    #[serde(serialize_with = "rfc3339::serialize")]
    pub died_at: SystemTime,
}

impl DeadLetter {
    /// Where it was found: `orders/3@17`, or as much of it as there is.
    pub fn source(&self) -> Source {
        let topic = self.topic.as_str().into();
        Source { topic, partition: self.partition, offset: self.offset }
    }
}

/// A dead letter with what it says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Letter {
    /// Everything else.
    #[serde(flatten)]
    pub entry: DeadLetter,
    /// `[[name, value], …]`
    pub headers: Value,
    /// Text, or `{"base64": …}`, or null for a tombstone.
    pub payload: Value,
}

/// Which dead letters to select. Without conditions: all that were neither replayed nor discarded. With conditions:
/// those of them that meet all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    id: Option<i64>,
    code: Option<String>,
    consumer: Option<String>,
    topic: Option<String>,
    until: Option<i64>,
    history: bool,
}

impl Selection {
    /// The one of this number.
    #[must_use]
    pub fn with_id(mut self, id: i64) -> Self {
        self.id = Some(id);
        self
    }

    /// Those with this code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Those of this consumer.
    #[must_use]
    pub fn with_consumer(mut self, consumer: impl Into<String>) -> Self {
        self.consumer = Some(consumer.into());
        self
    }

    /// Those of this topic.
    #[must_use]
    pub fn with_topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Those whose numbers are not higher than this: what was there when it was counted ([`Counted::newest`]).
    #[must_use]
    pub fn until(mut self, newest: i64) -> Self {
        self.until = Some(newest);
        self
    }

    /// Also those that were replayed or discarded. [`replay`] and [`discard`] never take these.
    #[must_use]
    pub fn with_history(mut self) -> Self {
        self.history = true;
        self
    }

    /// The number it asks for.
    pub fn id(&self) -> Option<i64> {
        self.id
    }

    /// The code it asks for.
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The consumer it asks for.
    pub fn consumer(&self) -> Option<&str> {
        self.consumer.as_deref()
    }

    /// The topic it asks for.
    pub fn topic(&self) -> Option<&str> {
        self.topic.as_deref()
    }

    fn params(&self) -> [&(dyn ToSql + Sync); 6] {
        [&self.id, &self.code, &self.consumer, &self.topic, &self.until, &self.history]
    }
}

/// A part of a list, in the order of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    after: i64,
    limit: i64,
}

impl Page {
    /// The first `limit`.
    pub fn first(limit: i64) -> Self {
        Page { after: i64::MIN, limit }
    }

    /// The next page: as many letters, after this id (the last id of the previous page).
    #[must_use]
    pub fn after(self, id: i64) -> Self {
        Page { after: id, ..self }
    }
}

/// Why dead letters could not be read or changed. The database's answer is its source.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct Error {
    doing: &'static str,
    source: tokio_postgres::Error,
}

fn reading(source: tokio_postgres::Error) -> Error {
    Error { doing: "reading inbox.dead_letters", source }
}

fn changing(source: tokio_postgres::Error) -> Error {
    Error { doing: "changing inbox.dead_letters; nothing was changed", source }
}

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counted {
    /// Dead letters.
    pub letters: i64,
    /// The highest number among them; 0 where there are none.
    pub newest: i64,
}

/// Dead letters that have consumer, topic and code in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Group {
    /// Whose they are.
    pub consumer: String,
    /// Where they were found.
    pub topic: String,
    /// Why.
    pub code: String,
    /// How many.
    pub letters: i64,
    /// The first one's number.
    pub first: i64,
}

const COLUMNS: &str = "d.id, c.name, d.state, d.message_id::pg_catalog.text, d.topic, d.partition, \
    d.record_offset, d.key, d.code, d.error, d.attempts, d.replays, d.first_failed_at, d.died_at, \
    d.produced_at, d.stored_at";

/// `$1` to `$6` are a [`Selection`].
const SELECTED: &str = "($1::bigint is null or d.id operator(pg_catalog.=) $1) \
    and ($2::pg_catalog.text is null or d.code operator(pg_catalog.=) $2) \
    and ($3::pg_catalog.text is null or d.consumer_id operator(pg_catalog.=) \
        (select id from inbox.consumers where name operator(pg_catalog.=) $3)) \
    and ($4::pg_catalog.text is null or d.topic operator(pg_catalog.=) $4) \
    and ($5::bigint is null or d.id operator(pg_catalog.<=) $5) \
    and ($6::pg_catalog.bool or d.state operator(pg_catalog.=) 'dead')";
/// A dead letter and its consumer's name.
const NAMED: &str = "inbox.dead_letters d \
    join inbox.consumers c on c.id operator(pg_catalog.=) d.consumer_id";

/// One page of the selected ones, in the order of their numbers.
///
/// # Errors
/// The database's.
pub async fn list(
    client: &impl GenericClient,
    selection: &Selection,
    page: Page,
) -> Result<Vec<DeadLetter>, Error> {
    let sql = format!(
        "select {COLUMNS} from {NAMED} where {SELECTED} and d.id operator(pg_catalog.>) $7 \
         order by d.id limit $8"
    );
    let [id, code, consumer, topic, until, history] = selection.params();
    let parameters = [id, code, consumer, topic, until, history, &page.after, &page.limit];
    let rows = client.query(&sql, &parameters).await.map_err(reading)?;
    rows.iter().map(entry).collect::<Result<_, _>>().map_err(reading)
}

/// How many of the selected ones there are.
///
/// # Errors
/// The database's.
pub async fn count(client: &impl GenericClient, selection: &Selection) -> Result<Counted, Error> {
    let sql = format!(
        "select pg_catalog.count(*), coalesce(pg_catalog.max(d.id), 0) from {NAMED} where {SELECTED}"
    );
    let row = client.query_one(&sql, &selection.params()).await.map_err(reading)?;
    let column = |n| row.try_get(n).map_err(reading);
    Ok(Counted { letters: column(0)?, newest: column(1)? })
}

/// The selected ones in groups, the largest first; at most `limit` groups.
///
/// # Errors
/// The database's.
pub async fn groups(
    client: &impl GenericClient,
    selection: &Selection,
    limit: i64,
) -> Result<Vec<Group>, Error> {
    let sql = format!(
        "select c.name, d.topic, d.code, pg_catalog.count(*), pg_catalog.min(d.id) from {NAMED} \
         where {SELECTED} \
         group by c.name, d.topic, d.code order by 4 desc, 5 limit $7"
    );
    let [id, code, consumer, topic, until, history] = selection.params();
    let parameters = [id, code, consumer, topic, until, history, &limit];
    let rows = client.query(&sql, &parameters).await.map_err(reading)?;
    let group = |row: &Row| {
        Ok(Group {
            consumer: row.try_get(0)?,
            topic: row.try_get(1)?,
            code: row.try_get(2)?,
            letters: row.try_get(3)?,
            first: row.try_get(4)?,
        })
    };
    rows.iter().map(group).collect::<Result<_, _>>().map_err(reading)
}

/// The consumers of this database, by name.
///
/// # Errors
/// The database's.
pub async fn consumers(client: &impl GenericClient) -> Result<Vec<String>, Error> {
    let failed = |source| Error { doing: "reading inbox.consumers", source };
    let rows = client.query("select name from inbox.consumers order by name", &[]).await;
    let rows = rows.map_err(failed)?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)
}

/// One of them, whole; `None` if there is none of that number.
///
/// # Errors
/// The database's.
pub async fn show(client: &impl GenericClient, id: i64) -> Result<Option<Letter>, Error> {
    let sql = format!(
        "select {COLUMNS}, d.headers, d.payload from {NAMED} where d.id operator(pg_catalog.=) $1"
    );
    let row = client.query_opt(&sql, &[&id]).await.map_err(reading)?;
    let letter = |row: &Row| {
        let (headers, payload) = (row.try_get(16)?, bytes(row.try_get(17)?));
        Ok(Letter { entry: entry(row)?, headers, payload })
    };
    row.as_ref().map(letter).transpose().map_err(reading)
}

/// Lets the selected ones be handled again, each behind what waits of its key, in the order of
/// their numbers; returns how many. A message that fails again is a new dead letter. A dead letter with the code
/// `outside-window` counts as a duplicate if its day is kept now and a copy took effect in the meantime.
///
/// # Errors
/// The database's; nothing was changed.
pub async fn replay(client: &impl GenericClient, selection: &Selection) -> Result<u64, Error> {
    // The lane's row is written first and locked by that, so that no one frees the lane meanwhile.
    let sql = format!(
        "with chosen as (select d.* from inbox.dead_letters d \
             where {SELECTED} and d.state operator(pg_catalog.=) 'dead' order by d.id for update), \
         moved as (update inbox.dead_letters set state = 'replayed', changed_at = pg_catalog.now() \
             where id operator(pg_catalog.=) any (select id from chosen)), \
         lanes as (insert into inbox.parked_lanes as l (consumer_id, lane) \
             select distinct consumer_id, lane from chosen order by consumer_id, lane \
             on conflict (consumer_id, lane) do update set due_at = l.due_at \
             returning consumer_id, lane) \
         insert into inbox.parked (consumer_id, lane, message_id, day, topic, partition, \
             record_offset, key, payload, headers, replays, produced_at, stored_at, unclaimed) \
         select c.consumer_id, c.lane, c.message_id, c.day, c.topic, c.partition, c.record_offset, \
             c.key, c.payload, c.headers, c.replays operator(pg_catalog.+) 1, \
             c.produced_at, c.stored_at, c.unclaimed \
         from chosen c join lanes l on l.consumer_id operator(pg_catalog.=) c.consumer_id \
             and l.lane operator(pg_catalog.=) c.lane order by c.id"
    );
    point(Point::Replaying);
    let replayed = client.execute(&sql, &selection.params()).await.map_err(changing)?;
    point(Point::Replayed);
    Ok(replayed)
}

/// Gives the selected ones up permanently; returns how many. They stay as history.
///
/// # Errors
/// The database's; nothing was changed.
pub async fn discard(client: &impl GenericClient, selection: &Selection) -> Result<u64, Error> {
    let sql = format!(
        "update inbox.dead_letters d set state = 'discarded', changed_at = pg_catalog.now() \
         where {SELECTED} and d.state operator(pg_catalog.=) 'dead'"
    );
    client.execute(&sql, &selection.params()).await.map_err(changing)
}

fn entry(row: &Row) -> Result<DeadLetter, tokio_postgres::Error> {
    Ok(DeadLetter {
        id: row.try_get(0)?,
        consumer: row.try_get(1)?,
        state: row.try_get(2)?,
        message_id: row.try_get(3)?,
        topic: row.try_get(4)?,
        partition: row.try_get(5)?,
        offset: row.try_get(6)?,
        key: bytes(row.try_get(7)?),
        code: row.try_get(8)?,
        error: row.try_get(9)?,
        attempts: row.try_get(10)?,
        replays: row.try_get(11)?,
        first_failed_at: row.try_get(12)?,
        died_at: row.try_get(13)?,
        produced_at: row.try_get(14)?,
        stored_at: row.try_get(15)?,
    })
}

fn bytes(bytes: Option<Vec<u8>>) -> Value {
    match bytes.map(String::from_utf8) {
        None => Value::Null,
        Some(Ok(text)) => text.into(),
        Some(Err(error)) => json!({ "base64": BASE64.encode(error.as_bytes()) }),
    }
}
