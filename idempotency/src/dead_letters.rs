//! Messages that a consumer gave up: looked at, replayed, discarded.
//!
//! A replay moves a message back to where its key's messages wait, so only this consumer sees it,
//! and a running [`crate::Processor`] takes it within half a second. Each command is one statement.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::{GenericClient, Row, types::ToSql};

use crate::fault::{Point, point};

/// A dead letter without its payload.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// Where it was found.
    pub partition: i32,
    /// Where it was found.
    pub offset: i64,
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
    /// RFC 3339, UTC.
    pub first_failed_at: String,
    /// RFC 3339, UTC.
    pub died_at: String,
}

/// A dead letter with what it says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Letter {
    /// Everything else.
    #[serde(flatten)]
    pub entry: DeadLetter,
    /// `[[name, value], …]`
    pub headers: Value,
    /// Text, or `{"base64": …}`, or null for a tombstone.
    pub payload: Value,
}

/// Which of them; all conditions that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// This one.
    pub id: Option<i64>,
    /// Those with this code.
    pub code: Option<String>,
    /// Those of this consumer.
    pub consumer: Option<String>,
    /// Those of this topic.
    pub topic: Option<String>,
    /// Those whose numbers are not higher than this: what was there when it was counted.
    pub until: Option<i64>,
}

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Dead letters.
    pub letters: i64,
    /// The highest number among them; 0 where there are none.
    pub newest: i64,
}

/// Dead letters that have consumer, topic and code in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
    d.record_offset, d.key, d.code, d.error, d.attempts, d.replays, \
    pg_catalog.to_char(d.first_failed_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), \
    pg_catalog.to_char(d.died_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";

/// `$1` to `$5` are a [`Selection`].
const SELECTED: &str = "($1::bigint is null or d.id operator(pg_catalog.=) $1) \
    and ($2::pg_catalog.text is null or d.code operator(pg_catalog.=) $2) \
    and ($3::pg_catalog.text is null or d.consumer_id operator(pg_catalog.=) \
        (select id from inbox.consumers where name operator(pg_catalog.=) $3)) \
    and ($4::pg_catalog.text is null or d.topic operator(pg_catalog.=) $4) \
    and ($5::bigint is null or d.id operator(pg_catalog.<=) $5)";
/// A dead letter and its consumer's name.
const NAMED: &str = "inbox.dead_letters d \
    join inbox.consumers c on c.id operator(pg_catalog.=) d.consumer_id";

impl Selection {
    fn params(&self) -> [&(dyn ToSql + Sync); 5] {
        [&self.id, &self.code, &self.consumer, &self.topic, &self.until]
    }
}

/// Dead letters in the order of their numbers, after the number `after` and at most `limit`; only
/// those that were neither replayed nor discarded, unless `all`.
///
/// # Errors
/// The database's.
pub async fn list(
    client: &impl GenericClient,
    selection: &Selection,
    all: bool,
    after: i64,
    limit: i64,
) -> Result<Vec<DeadLetter>, tokio_postgres::Error> {
    let sql = format!(
        "select {COLUMNS} from {NAMED} \
         where {SELECTED} and ($6 or d.state operator(pg_catalog.=) 'dead') \
             and d.id operator(pg_catalog.>) $7 order by d.id limit $8"
    );
    let [id, code, consumer, topic, until] = selection.params();
    let parameters = [id, code, consumer, topic, until, &all, &after, &limit];
    let rows = client.query(&sql, &parameters).await?;
    rows.iter().map(entry).collect()
}

/// How many there are; only those that were neither replayed nor discarded, unless `all`.
///
/// # Errors
/// The database's.
pub async fn count(
    client: &impl GenericClient,
    selection: &Selection,
    all: bool,
) -> Result<Counted, tokio_postgres::Error> {
    let sql = format!(
        "select pg_catalog.count(*), coalesce(pg_catalog.max(d.id), 0) from {NAMED} \
         where {SELECTED} and ($6 or d.state operator(pg_catalog.=) 'dead')"
    );
    let [id, code, consumer, topic, until] = selection.params();
    let row = client.query_one(&sql, &[id, code, consumer, topic, until, &all]).await?;
    Ok(Counted { letters: row.try_get(0)?, newest: row.try_get(1)? })
}

/// Those that were neither replayed nor discarded, in groups, the largest first; at most `limit` groups.
///
/// # Errors
/// The database's.
pub async fn groups(
    client: &impl GenericClient,
    selection: &Selection,
    limit: i64,
) -> Result<Vec<Group>, tokio_postgres::Error> {
    let sql = format!(
        "select c.name, d.topic, d.code, pg_catalog.count(*), pg_catalog.min(d.id) from {NAMED} \
         where {SELECTED} and d.state operator(pg_catalog.=) 'dead' \
         group by c.name, d.topic, d.code order by 4 desc, 5 limit $6"
    );
    let [id, code, consumer, topic, until] = selection.params();
    let rows = client.query(&sql, &[id, code, consumer, topic, until, &limit]).await?;
    let group = |row: &Row| {
        Ok(Group {
            consumer: row.try_get(0)?,
            topic: row.try_get(1)?,
            code: row.try_get(2)?,
            letters: row.try_get(3)?,
            first: row.try_get(4)?,
        })
    };
    rows.iter().map(group).collect()
}

/// The consumers of this database, by name.
///
/// # Errors
/// The database's.
pub async fn consumers(client: &impl GenericClient) -> Result<Vec<String>, tokio_postgres::Error> {
    let rows = client.query("select name from inbox.consumers order by name", &[]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// One of them, whole; `None` if there is none of that number.
///
/// # Errors
/// The database's.
pub async fn show(
    client: &impl GenericClient,
    id: i64,
) -> Result<Option<Letter>, tokio_postgres::Error> {
    let sql = format!(
        "select {COLUMNS}, d.headers, d.payload from {NAMED} where d.id operator(pg_catalog.=) $1"
    );
    let Some(row) = client.query_opt(&sql, &[&id]).await? else { return Ok(None) };
    let letter =
        Letter { entry: entry(&row)?, headers: row.try_get(14)?, payload: bytes(row.try_get(15)?) };
    Ok(Some(letter))
}

/// Lets the selected ones be handled again, each behind what waits of its key, in the order of
/// their numbers; returns how many. A message that fails again is a new dead letter.
///
/// # Errors
/// The database's; nothing was changed.
pub async fn replay(
    client: &impl GenericClient,
    selection: &Selection,
) -> Result<u64, tokio_postgres::Error> {
    // The lane's row is written first and locked by that, so that nobody frees the lane meanwhile.
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
             record_offset, key, payload, headers, replays) \
         select c.consumer_id, c.lane, c.message_id, c.day, c.topic, c.partition, c.record_offset, \
             c.key, c.payload, c.headers, c.replays operator(pg_catalog.+) 1 \
         from chosen c join lanes l on l.consumer_id operator(pg_catalog.=) c.consumer_id \
             and l.lane operator(pg_catalog.=) c.lane order by c.id"
    );
    point(Point::Replaying);
    let replayed = client.execute(&sql, &selection.params()).await?;
    point(Point::Replayed);
    Ok(replayed)
}

/// Gives the selected ones up for good; returns how many. They stay as history.
///
/// # Errors
/// The database's; nothing was changed.
pub async fn discard(
    client: &impl GenericClient,
    selection: &Selection,
) -> Result<u64, tokio_postgres::Error> {
    let sql = format!(
        "update inbox.dead_letters d set state = 'discarded', changed_at = pg_catalog.now() \
         where {SELECTED} and d.state operator(pg_catalog.=) 'dead'"
    );
    client.execute(&sql, &selection.params()).await
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
    })
}

fn bytes(bytes: Option<Vec<u8>>) -> Value {
    match bytes.map(String::from_utf8) {
        None => Value::Null,
        Some(Ok(text)) => text.into(),
        Some(Err(error)) => json!({ "base64": BASE64.encode(error.as_bytes()) }),
    }
}
