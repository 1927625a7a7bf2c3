//! What is parked, as people and programs see it: one by one, in groups, counted.

use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::{Row, Transaction, types::ToSql};

use super::{
    error::OperatorError,
    selection::{CHOSEN, Selection},
    session::{Operator, repertoire},
};
use crate::dead_letter::{
    answer::sorted,
    headers::{self, Repertoire},
    notice::REASON as NOTICE,
    restored::RESTORED,
};

/// A parked event, or one of history, as `list` gives it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// The dead letter's own number.
    pub id: i64,
    /// The event's id.
    pub event_id: Option<String>,
    /// Destination.
    pub topic: Option<String>,
    /// A string, `{"base64": …}` where it is no text, or null.
    pub key: Value,
    /// Where it was parked, such as `16/B374D848:12`.
    pub position: String,
    /// One of a few fixed words.
    pub reason: String,
    /// What is wrong, for a person.
    pub error: String,
    /// RFC 3339, UTC.
    pub parked_at: String,
    /// Only where it came into the table from a copy of it: when. RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored_at: Option<String>,
    /// Only where history is asked for, and for a single one: `parked`, `releasing`, `released` or
    /// `discarded`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// With `state`: when it came to that. RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<String>,
}

/// One dead letter with everything that is known of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Letter {
    /// As in `list`.
    #[serde(flatten)]
    pub entry: Entry,
    /// Explicit partition.
    pub partition: Option<i32>,
    /// Record timestamp in milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
    /// Whether it is a record; if not, it must be edited before it can be delivered.
    pub fit: bool,
    /// Who discarded it, as logged in to the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discarded_by: Option<String>,
    /// Why, in that person's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discarded_why: Option<String>,
    /// All headers, `[[name, value], …]`; a value is a string or `{"base64": …}`.
    pub headers: Value,
    /// A string, `{"base64": …}` where it is no text, or null.
    pub payload: Value,
}

/// Parked events that have something in common.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Their topic.
    pub topic: Option<String>,
    /// Their key; absent where they are grouped by reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Value>,
    /// The reason of the first of them that was refused itself.
    pub reason: Option<String>,
    /// How many.
    pub events: i64,
    /// The first one's number.
    pub first: i64,
    /// When the first one was parked. RFC 3339, UTC.
    pub parked_at: String,
}

/// Parked events of a selection, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// How many.
    pub events: i64,
    /// The highest number among them; 0 where there are none.
    pub newest: i64,
}

/// By what [`Operator::groups`] groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Topic and key: what waits for one another.
    Lane,
    /// Topic and reason.
    Reason,
}

/// What is common to `list` and `show`.
const ENTRY: &str = "id, event_id, topic, key, commit_lsn::text || ':' || ordinal, reason, error, \
    to_char(parked_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), state, \
    to_char(changed_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), \
    case when restored_at > parked_at then \
        to_char(restored_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') end";
/// Rows that `list` reads at a time.
const PAGE_ROWS: i32 = 1_000;

impl Operator<'_> {
    /// Gives what is parked to `each`, in the order of positions; with `history`, also what was; no
    /// more than `limit`. Returns how many there are besides.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn list(
        &mut self,
        selection: &Selection,
        history: bool,
        limit: Option<i64>,
        mut each: impl FnMut(Entry),
    ) -> Result<i64, OperatorError> {
        const DOING: &str = "listing dead letters";
        let failed = |e| sorted(DOING, e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let of = selection.parameters(repertoire(&transaction).await.map_err(failed)?);
        let whose = format!(
            "from outbox.dead_letters where relay = $1 and {CHOSEN} \
             and ($6 or state in ('parked', 'releasing'))"
        );
        let sql = format!("select {ENTRY} {whose} order by commit_lsn, ordinal, id limit $7");
        let parameters: [&(dyn ToSql + Sync); 7] =
            [&self.relay, &of.ids, &of.topic, &of.key, &of.reason, &history, &limit];
        let portal = transaction.bind(&sql, &parameters).await.map_err(failed)?;
        let mut listed = 0;
        loop {
            let rows = transaction.query_portal(&portal, PAGE_ROWS).await.map_err(failed)?;
            if rows.is_empty() {
                break;
            }
            listed += i64::try_from(rows.len()).unwrap_or(i64::MAX);
            rows.iter().for_each(|row| each(entry(row, history)));
        }
        if limit.is_none_or(|limit| listed < limit) {
            return Ok(0);
        }
        let count = format!("select count(*) {whose}");
        let parameters = parameters.get(..6).unwrap_or_default();
        let row = transaction.query_one(&count, parameters).await.map_err(failed)?;
        Ok(row.get::<_, i64>(0) - listed)
    }

    /// What is parked, in groups, the largest first.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn groups(
        &mut self,
        selection: &Selection,
        by: By,
        limit: Option<i64>,
    ) -> Result<Vec<Group>, OperatorError> {
        let failed = |e| sorted("grouping dead letters", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let of = selection.parameters(repertoire(&transaction).await.map_err(failed)?);
        let (columns, key) = match by {
            By::Lane => ("topic, key, coalesce(lane::text, id::text)", "key"),
            By::Reason => ("topic, reason", "null::bytea"),
        };
        let sql = format!(
            "select topic, {key}, min(reason) filter (where reason <> 'lane_parked'), count(*), \
                 min(id), to_char(min(parked_at) at time zone 'UTC', \
                     'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), min(reason) \
             from outbox.dead_letters \
             where relay = $1 and {CHOSEN} and state in ('parked', 'releasing') \
             group by {columns} order by count(*) desc, min(id) limit $6"
        );
        let parameters: [&(dyn ToSql + Sync); 6] =
            [&self.relay, &of.ids, &of.topic, &of.key, &of.reason, &limit];
        let rows = transaction.query(&sql, &parameters).await.map_err(failed)?;
        let group = |row: &Row| Group {
            topic: row.get(0),
            key: (by == By::Lane).then(|| value(row.get(1))),
            reason: row.get::<_, Option<String>>(2).or_else(|| row.get(6)),
            events: row.get(3),
            first: row.get(4),
            parked_at: row.get(5),
        };
        Ok(rows.iter().map(group).collect())
    }

    /// How many parked events the selection has.
    ///
    /// # Errors
    /// [`OperatorError::NothingChosen`] where it names something and has none.
    pub async fn count(&mut self, selection: &Selection) -> Result<Counted, OperatorError> {
        let failed = |e| sorted("counting parked events", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let of = selection.parameters(repertoire(&transaction).await.map_err(failed)?);
        let sql = format!(
            "select count(*), coalesce(max(id), 0) from outbox.dead_letters \
             where relay = $1 and {CHOSEN} and state = 'parked'"
        );
        let parameters: [&(dyn ToSql + Sync); 5] =
            [&self.relay, &of.ids, &of.topic, &of.key, &of.reason];
        let row = transaction.query_one(&sql, &parameters).await.map_err(failed)?;
        let counted = Counted { events: row.get(0), newest: row.get(1) };
        if counted.events > 0 || *selection == Selection::default() {
            return Ok(counted);
        }
        let there = "select coalesce('parked are events of ' || string_agg(what, ', '), \
                         'nothing at all is parked') from ( \
                         select distinct coalesce(left(topic, 260), '(no topic)') \
                             || ' (' || reason || ')' as what \
                         from outbox.dead_letters where relay = $1 and state = 'parked' \
                         order by 1 limit 20) t";
        let there = transaction.query_one(there, &[&self.relay]).await.map_err(failed)?.get(0);
        Err(OperatorError::NothingChosen { selection: selection.to_string(), there })
    }

    /// How many parked events that a release of the selection takes came into the table from a copy of it.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn restored(&mut self, selection: &Selection) -> Result<u64, OperatorError> {
        let failed = |e| sorted("counting parked events", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let of = selection.parameters(repertoire(&transaction).await.map_err(failed)?);
        // A lane is released whole.
        let sql = format!(
            "select count(*) from outbox.dead_letters \
             where relay = $1 and {RESTORED} and state = 'parked' and reason <> '{NOTICE}' \
                 and (({CHOSEN}) or lane in (select lane from outbox.dead_letters \
                     where relay = $1 and state = 'parked' and lane is not null and {CHOSEN}))"
        );
        let parameters: [&(dyn ToSql + Sync); 5] =
            [&self.relay, &of.ids, &of.topic, &of.key, &of.reason];
        let row = transaction.query_one(&sql, &parameters).await.map_err(failed)?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
    }

    /// One dead letter, whatever became of it.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn show(&mut self, id: i64) -> Result<Letter, OperatorError> {
        let failed = |e| sorted("reading a dead letter", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        read(&transaction, &self.relay, id, "").await
    }
}

pub(super) async fn read(
    transaction: &Transaction<'_>,
    relay: &str,
    id: i64,
    lock: &str,
) -> Result<Letter, OperatorError> {
    let sql = format!(
        "select {ENTRY}, partition, timestamp_ms, fit, headers, payload, discarded_by, \
                discarded_why from outbox.dead_letters \
         where relay = $1 and id = $2 {lock}"
    );
    let row = transaction
        .query_opt(&sql, &[&relay, &id])
        .await
        .map_err(|e| sorted("reading a dead letter", e))?
        .ok_or_else(|| OperatorError::Unknown { id, relay: relay.to_owned() })?;
    Ok(Letter {
        entry: entry(&row, true),
        partition: row.get(11),
        timestamp_ms: row.get(12),
        fit: row.get(13),
        headers: headers::again(&row.get(14), Repertoire::Unicode),
        payload: value(row.get(15)),
        discarded_by: row.get(16),
        discarded_why: row.get(17),
    })
}

fn entry(row: &Row, with_state: bool) -> Entry {
    Entry {
        id: row.get(0),
        event_id: row.get(1),
        topic: row.get(2),
        key: value(row.get(3)),
        position: row.get(4),
        reason: row.get(5),
        error: row.get(6),
        parked_at: row.get(7),
        restored_at: row.get(10),
        state: with_state.then(|| row.get(8)),
        changed_at: with_state.then(|| row.get(9)),
    }
}

fn value(bytes: Option<&[u8]>) -> Value {
    bytes.map_or_else(|| json!(null), headers::to_value)
}

pub(super) fn is_parked(letter: &Letter) -> Result<(), OperatorError> {
    match letter.entry.state.as_deref() {
        Some("parked") => Ok(()),
        state => Err(OperatorError::NotParked {
            id: letter.entry.id,
            state: state.unwrap_or("unknown").to_owned(),
        }),
    }
}
