//! The operator's side of `outbox.dead_letters`: look, edit, release, discard.
//!
//! It speaks to PostgreSQL alone, with no more rights than `docs/ROLES.md` gives an operator. What
//! changes which lanes are parked is announced by a WAL message in the same transaction, and takes
//! effect when the relay's stream has come to it. Called by `cli`.

use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::{Client, Row, Transaction, types::Json};
use uuid::Uuid;

use super::{
    DeadLetterError, Lane, Message,
    edit::{Edit, EditError, Event},
    headers,
    store::sorted,
};
use crate::fault::{self, Point};

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
    /// All headers, `[[name, value], …]`; a value is a string or `{"base64": …}`.
    pub headers: Value,
    /// A string, `{"base64": …}` where it is no text, or null.
    pub payload: Value,
}

/// What a release takes.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Lanes of this topic only.
    pub topic: Option<String>,
    /// The lane of this key only.
    pub key: Option<String>,
}

/// What a release has announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Released {
    /// Its id; `None` where there was nothing to release.
    pub release: Option<Uuid>,
    /// Events so far; what is parked in the same lanes until the stream comes to it is added.
    pub events: i64,
    /// Lanes; an event alone counts as one.
    pub lanes: i64,
    /// Of its events, those that are no records and so will be parked again, each with all behind
    /// it: edit or discard them.
    pub unfit: Vec<i64>,
}

/// Why a command did nothing.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The database's answer, or a table that is not there.
    #[error(transparent)]
    DeadLetters(#[from] DeadLetterError),
    /// There is no such dead letter of this relay.
    #[error("relay {relay} has no dead letter {id}; see `outbox-relay dead-letters list --all`")]
    Unknown {
        /// The number that was given.
        id: i64,
        /// The relay's name.
        relay: String,
    },
    /// It is not parked any more.
    #[error("dead letter {id} is {state}, not parked: it can't be changed any more")]
    NotParked {
        /// Its number.
        id: i64,
        /// Its state.
        state: String,
    },
    /// The event can't be what it would become.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// In its new lane it would overtake what is parked there.
    #[error(
        "{count} events of the lane that dead letter {id} would go to are parked, and it would \
         overtake them: release or discard these first"
    )]
    LaneIsParked {
        /// Its number.
        id: i64,
        /// Parked events of the lane.
        count: i64,
    },
}

/// The table, for the operator of one relay.
#[derive(Debug)]
pub struct Operator<'a> {
    client: &'a mut Client,
    relay: String,
}

/// What is common to `list` and `show`.
const ENTRY: &str = "id, event_id, topic, key, commit_lsn::text || ':' || ordinal, reason, error, \
    to_char(parked_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), state, \
    to_char(changed_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
/// Rows that `list` reads at a time.
const PAGE_ROWS: i32 = 1_000;

impl<'a> Operator<'a> {
    /// `relay` is the name of the relay that parked the events.
    pub fn new(client: &'a mut Client, relay: &str) -> Self {
        Operator { client, relay: relay.to_owned() }
    }

    /// Gives what is parked to `each`, in the order of positions; with `history`, also what was.
    ///
    /// # Errors
    /// [`OperatorError`].
    pub async fn list(
        &mut self,
        history: bool,
        mut each: impl FnMut(Entry),
    ) -> Result<(), OperatorError> {
        const DOING: &str = "listing dead letters";
        let failed = |e| sorted(DOING, e);
        let sql = format!(
            "select {ENTRY} from outbox.dead_letters \
             where relay = $1 and ($2 or state in ('parked', 'releasing')) \
             order by commit_lsn, ordinal, id"
        );
        let transaction = self.client.transaction().await.map_err(failed)?;
        let portal = transaction.bind(&sql, &[&self.relay, &history]).await.map_err(failed)?;
        loop {
            let rows = transaction.query_portal(&portal, PAGE_ROWS).await.map_err(failed)?;
            if rows.is_empty() {
                return Ok(());
            }
            rows.iter().for_each(|row| each(entry(row, history)));
        }
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

    /// Changes what a parked event is. Its place does not change, nor what waits behind it; it
    /// goes to its new topic, key or partition when it is released.
    ///
    /// # Errors
    /// [`OperatorError`]; nothing is changed then.
    pub async fn edit(&mut self, id: i64, edit: &Edit) -> Result<Letter, OperatorError> {
        let failed = |e| sorted("editing a dead letter", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let before = read(&transaction, &self.relay, id, "for update").await?;
        is_parked(&before)?;
        let row = transaction
            .query_one(
                "select topic, key, partition, timestamp_ms, payload, headers, lane, fit, reason \
                 from outbox.dead_letters where id = $1",
                &[&id],
            )
            .await
            .map_err(failed)?;
        let event = Event {
            topic: row.get(0),
            key: row.get(1),
            partition: row.get(2),
            timestamp_ms: row.get(3),
            payload: row.get(4),
            headers: row.get(5),
        };
        // A row above the size limit was read past: there is no payload to go on with.
        let payload_lost = !row.get::<_, bool>(7)
            && event.payload.is_none()
            && row.get::<_, &str>(8) == "too_large";
        let event = edit.apply(event, payload_lost)?;
        let topic = event.topic.as_deref().unwrap_or_default();
        let lane = Lane::of(topic, event.key.as_deref(), event.partition).map(Lane::to_uuid);
        if lane.is_some() && lane != row.get::<_, Option<Uuid>>(6) {
            let count: i64 = transaction
                .query_one(
                    "select count(*) from outbox.dead_letters where relay = $1 and lane = $2 \
                     and state in ('parked', 'releasing')",
                    &[&self.relay, &lane],
                )
                .await
                .map_err(failed)?
                .get(0);
            if count > 0 {
                return Err(OperatorError::LaneIsParked { id, count });
            }
        }
        transaction
            .execute(
                "update outbox.dead_letters set topic = $2, key = $3, partition = $4, \
                     timestamp_ms = $5, payload = $6, headers = $7, fit = true, \
                     changed_at = clock_timestamp() \
                 where id = $1",
                &[
                    &id,
                    &event.topic,
                    &event.key,
                    &event.partition,
                    &event.timestamp_ms,
                    &event.payload,
                    &event.headers,
                ],
            )
            .await
            .map_err(failed)?;
        let after = read(&transaction, &self.relay, id, "").await?;
        commit(transaction).await.map_err(failed)?;
        Ok(after)
    }

    /// Announces that whole lanes are released: the relay delivers what is parked in them when its
    /// stream has come to the announcement.
    ///
    /// # Errors
    /// [`OperatorError`]; nothing is changed then.
    pub async fn release(&mut self, selection: &Selection) -> Result<Released, OperatorError> {
        let failed = |e| sorted("releasing parked events", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let release = Uuid::now_v7();
        let key = selection.key.as_ref().map(String::as_bytes);
        // A lane is released whole: its later events may not go before its earlier ones.
        let row = transaction
            .query_one(
                "with chosen as ( \
                     select id, lane from outbox.dead_letters \
                     where relay = $1 and state = 'parked' \
                         and ($3::text is null or topic = $3) and ($4::bytea is null or key = $4)), \
                 changed as ( \
                     update outbox.dead_letters d set state = 'releasing', release_id = $2, \
                         release_ordinal = null, changed_at = clock_timestamp() \
                     where d.relay = $1 and d.state = 'parked' \
                         and (d.id in (select id from chosen) \
                             or d.lane in (select lane from chosen)) \
                     returning id, lane, fit) \
                 select count(*), count(distinct lane) + count(*) filter (where lane is null), \
                     coalesce(array_agg(id order by id) filter (where not fit), '{}') \
                 from changed",
                &[&self.relay, &release, &selection.topic, &key],
            )
            .await
            .map_err(failed)?;
        let (events, lanes) = (row.get::<_, i64>(0), row.get(1));
        if events == 0 {
            return Ok(Released { release: None, events, lanes, unfit: vec![] });
        }
        announce(&transaction, &self.relay, release).await.map_err(failed)?;
        commit(transaction).await.map_err(failed)?;
        Ok(Released { release: Some(release), events, lanes, unfit: row.get(2) })
    }

    /// Leaves an event out: the only way in which one is dropped. What waits behind it stays
    /// parked until it is released; where nothing does, its lane flows again.
    ///
    /// # Errors
    /// [`OperatorError`]; nothing is changed then.
    pub async fn discard(&mut self, id: i64) -> Result<Letter, OperatorError> {
        let failed = |e| sorted("discarding a dead letter", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let before = read(&transaction, &self.relay, id, "for update").await?;
        is_parked(&before)?;
        let release = Uuid::now_v7();
        transaction
            .execute(
                "update outbox.dead_letters set state = 'discarded', release_id = $2, \
                     changed_at = clock_timestamp() \
                 where id = $1",
                &[&id, &release],
            )
            .await
            .map_err(failed)?;
        announce(&transaction, &self.relay, release).await.map_err(failed)?;
        let after = read(&transaction, &self.relay, id, "").await?;
        commit(transaction).await.map_err(failed)?;
        Ok(after)
    }
}

/// Says where in the stream the transaction's changes take their place.
async fn announce(
    transaction: &Transaction<'_>,
    relay: &str,
    release: Uuid,
) -> Result<(), tokio_postgres::Error> {
    fault::point(Point::CommandChanged);
    let message = Message { relay: relay.to_owned(), release };
    transaction
        .execute(
            "select pg_catalog.pg_logical_emit_message(true, 'outbox', $1::jsonb::text)",
            &[&Json(message)],
        )
        .await?;
    fault::point(Point::CommandAnnounced);
    Ok(())
}

async fn commit(transaction: Transaction<'_>) -> Result<(), tokio_postgres::Error> {
    transaction.commit().await?;
    fault::point(Point::CommandCommitted);
    Ok(())
}

fn is_parked(letter: &Letter) -> Result<(), OperatorError> {
    match letter.entry.state.as_deref() {
        Some("parked") => Ok(()),
        state => Err(OperatorError::NotParked {
            id: letter.entry.id,
            state: state.unwrap_or("unknown").to_owned(),
        }),
    }
}

async fn read(
    transaction: &Transaction<'_>,
    relay: &str,
    id: i64,
    lock: &str,
) -> Result<Letter, OperatorError> {
    let sql = format!(
        "select {ENTRY}, partition, timestamp_ms, fit, headers, payload from outbox.dead_letters \
         where relay = $1 and id = $2 {lock}"
    );
    let row = transaction
        .query_opt(&sql, &[&relay, &id])
        .await
        .map_err(|e| sorted("reading a dead letter", e))?
        .ok_or_else(|| OperatorError::Unknown { id, relay: relay.to_owned() })?;
    Ok(Letter {
        entry: entry(&row, true),
        partition: row.get(10),
        timestamp_ms: row.get(11),
        fit: row.get(12),
        headers: row.get(13),
        payload: value(row.get(14)),
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
        state: with_state.then(|| row.get(8)),
        changed_at: with_state.then(|| row.get(9)),
    }
}

fn value(bytes: Option<&[u8]>) -> Value {
    bytes.map_or_else(|| json!(null), headers::to_value)
}
