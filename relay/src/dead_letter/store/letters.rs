//! Parked events as rows of the table, and rows as records.

use std::collections::HashMap;

use serde_json::Value;
use tokio_postgres::{Row, error::SqlState, types::PgLsn};
use uuid::Uuid;

use super::{
    numbers::signed,
    recognised::{Identity, Kind, Kinds, event_id, groups, topic},
    session::Store,
};
use crate::{
    core::{
        header,
        position::RowPosition,
        record::{Batch, Record, RecordHead, RefusedRecord},
    },
    dead_letter::{
        error::DeadLetterError,
        headers::{self, Repertoire},
        lane::Lane,
        table::Letter,
    },
    postgres::catalog::blame,
    route::{Origin, reason},
};

/// What sets the next id right.
const NEXT_ID: &str = "select setval(pg_get_serial_sequence('outbox.dead_letters', 'id'), max(id)) \
                       from outbox.dead_letters";
/// Characters of an id or a topic in a text.
const SHOWN_MAX: usize = 64;
/// Statements that give ids, until one finds them free.
const IDS_TRIED: usize = 5;

impl Store {
    /// Parks letters that are few enough for one statement.
    pub(super) async fn insert(&mut self, letters: &[Letter<'_>]) -> Result<(), DeadLetterError> {
        let columns = Columns::of(letters, self.repertoire);
        self.insert_numbered(&columns).await.map_err(|error| columns.named_in(error))
    }

    /// Where the table's ids have fallen behind its rows, as in a copy that was made row by row, or where its sequence is
    /// at its end, the relay gives ids itself: only the owner can set them right.
    async fn insert_numbered(&mut self, columns: &Columns<'_>) -> Result<(), DeadLetterError> {
        if !self.gives_ids {
            match self.insert_columns(columns).await {
                Err(error) if is_at_end(&error) => {
                    tracing::warn!(
                        "the sequence of outbox.dead_letters has no id left, as after an alter sequence; events are \
                         parked with ids after the highest. `outbox-relay check` has the statement that sets it right"
                    );
                    self.gives_ids = true;
                }
                Err(error) if is_taken(&error) => {
                    tracing::warn!(
                        "the next id of outbox.dead_letters is of a parked event already, as in a copy of \
                         the table; events are parked with ids after the highest. To set it right, as the \
                         table's owner: {NEXT_ID}"
                    );
                    self.gives_ids = true;
                }
                parked => return parked,
            }
        }
        // A relay of another name may take the same id at this moment.
        for _ in 1..IDS_TRIED {
            match self.insert_columns(columns).await {
                Err(error) if is_taken(&error) => {}
                parked => return parked,
            }
        }
        self.insert_columns(columns).await
    }

    async fn insert_columns(&self, columns: &Columns<'_>) -> Result<(), DeadLetterError> {
        let (id, given, overriding) = match self.gives_ids {
            true => (
                "id, ",
                "(select coalesce(max(id), 0) from outbox.dead_letters) + row_number() over (), ",
                "overriding system value ",
            ),
            false => ("", "", ""),
        };
        let written = self
            .execute(
            "parking events",
            // What was released and delivered long ago, and is refused now that its place was streamed once more,
            // is parked again; what is parked stays as it is.
            &format!(
                "insert into outbox.dead_letters as d ({id}relay, system_id, commit_lsn, ordinal, \
                 event_id, lane, topic, key, partition, timestamp_ms, payload, headers, fit, reason, \
                 error, xid) {overriding}\
             select {given}$1, $2, n.* \
             from unnest($3::pg_lsn[], $4::int8[], $5::text[], $6::uuid[], $7::text[], $8::bytea[], \
                 $9::int4[], $10::int8[], $11::bytea[], $12::jsonb[], $13::bool[], $14::text[], \
                 $15::text[], $16::text[]::xid[]) \
                 as n (commit_lsn, ordinal, event_id, lane, topic, key, partition, timestamp_ms, \
                     payload, headers, fit, reason, error, xid) \
             on conflict (relay, commit_lsn, ordinal, hashtextextended(coalesce(event_id, ''), 0)) \
             do update \
             set state = 'parked', release_id = null, release_ordinal = null, lane = excluded.lane, \
                 topic = excluded.topic, key = excluded.key, partition = excluded.partition, \
                 payload = excluded.payload, headers = excluded.headers, fit = excluded.fit, \
                 reason = excluded.reason, error = excluded.error, xid = excluded.xid, \
                 parked_at = clock_timestamp(), changed_at = clock_timestamp() \
             where d.state = 'released'"
            ),
            &[
                &self.relay.clone(),
                &self.origin.system_id.clone(),
                &columns.commits,
                &columns.ordinals,
                &columns.event_ids,
                &columns.lanes,
                &columns.topics,
                &columns.keys,
                &columns.partitions,
                &columns.timestamps_ms,
                &columns.payloads,
                &columns.headers,
                &columns.fit,
                &columns.reasons,
                &columns.errors,
                &columns.xids,
            ],
        )
        .await?;
        match written == columns.commits.len() as u64 {
            true => Ok(()),
            false => self.are_there(columns).await,
        }
    }

    /// Of rows that were not written: were they there before? A trigger of somebody's may have kept them out.
    async fn are_there(&self, columns: &Columns<'_>) -> Result<(), DeadLetterError> {
        let sql = "select from unnest($2::pg_lsn[], $3::int8[], $4::text[]) \
                       as n (commit_lsn, ordinal, event_id) \
                   where not exists (select from outbox.dead_letters d \
                       where d.relay = $1 and d.commit_lsn = n.commit_lsn and d.ordinal = n.ordinal \
                           and hashtextextended(coalesce(d.event_id, ''), 0) \
                               = hashtextextended(coalesce(n.event_id, ''), 0)) \
                   limit 1";
        let rows = self
            .query(
                "looking whether events are parked",
                sql,
                &[&self.relay, &columns.commits, &columns.ordinals, &columns.event_ids],
            )
            .await?;
        match rows.is_empty() {
            true => Ok(()),
            false => Err(DeadLetterError::Misconfigured {
                what: "an event that was to be parked is not in outbox.dead_letters, though the statement \
                       succeeded: a trigger of somebody's keeps it out, or changes it. Nothing is lost"
                    .to_owned(),
                remedy: "type `\\d outbox.dead_letters` in psql to see which trigger it is, and drop it; \
                         `outbox-relay check` has the statement"
                    .to_owned(),
            }),
        }
    }
}

impl Store {
    /// Which records of the batch are events of the table that it has not delivered; their indexes, ascending.
    /// One repair's batches, in its order.
    pub(super) async fn find(&mut self, batch: &Batch) -> Result<Vec<usize>, DeadLetterError> {
        const DOING: &str = "looking for parked events";
        if self.found.newest.is_none() {
            let highest = "select coalesce(max(id), 0) from outbox.dead_letters";
            let rows = self.query(DOING, highest, &[]).await?;
            self.found.newest = rows.first().map(|row| row.get(0));
        }
        let any = "select from outbox.dead_letters where relay = $1 limit 1";
        if batch.is_empty() || self.query(DOING, any, &[&self.relay]).await?.is_empty() {
            return Ok(Vec::new());
        }
        let groups = groups(batch, self.repertoire);
        let identities = groups.iter().map(|(identity, _): &(Identity, _)| identity);
        let event_ids: Vec<&str> = identities.clone().map(|it| it.event_id.as_str()).collect();
        let topics: Vec<Option<&str>> = identities.clone().map(|it| it.topic.as_deref()).collect();
        let keys: Vec<Option<&[u8]>> = identities.clone().map(|it| it.key.as_deref()).collect();
        let times: Vec<Option<i64>> = identities.map(|it| it.timestamp_ms).collect();
        let rows = self
            .query(
                DOING,
                // One by one, whatever the planner takes the table's size to be. Transactions of another
                // cluster say nothing here. A payload's length is known without reading it.
                "select n.number, l.xid, l.bytes, count(*) \
                 from unnest($2::text[], $3::int8[], $4::text[], $5::bytea[]) \
                     with ordinality as n (event_id, timestamp_ms, topic, key, number) \
                 cross join lateral (select octet_length(d.payload)::int8 as bytes, \
                         case when d.system_id = $6 then d.xid::text::int8 end as xid \
                     from outbox.dead_letters d \
                     where d.event_id = n.event_id and d.relay = $1 and d.state <> 'released' \
                         and d.timestamp_ms is not distinct from n.timestamp_ms \
                         and d.topic is not distinct from n.topic \
                         and d.key is not distinct from n.key and d.id <= $7 offset 0) l \
                 group by n.number, l.xid, l.bytes",
                &[
                    &self.relay,
                    &event_ids,
                    &times,
                    &topics,
                    &keys,
                    &self.origin.system_id,
                    &self.found.newest.unwrap_or(i64::MAX),
                ],
            )
            .await?;
        let mut letters: HashMap<usize, Kinds> = HashMap::new();
        for row in &rows {
            let number = usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
            let xid = row.get::<_, Option<i64>>(1).and_then(|xid| u32::try_from(xid).ok());
            let kind = Kind { xid, bytes: row.get(2), count: row.get(3) };
            letters.entry(number).or_default().push(kind);
        }
        Ok(self.found.take(&groups, &letters, batch, self.repertoire))
    }
}

/// Whether another row has the id, and not what a unique index of someone else's is on. The columns stand in
/// the detail in every language.
fn is_taken(error: &DeadLetterError) -> bool {
    let DeadLetterError::Database { source, .. } = error else { return false };
    let of_id = |detail: &str| detail.contains("(id)=(");
    source.code() == Some(&SqlState::UNIQUE_VIOLATION)
        && source.as_db_error().and_then(|error| error.detail()).is_some_and(of_id)
}

/// Whether the sequence has no id left.
fn is_at_end(error: &DeadLetterError) -> bool {
    let DeadLetterError::Database { source, .. } = error else { return false };
    source.code() == Some(&SqlState::SEQUENCE_GENERATOR_LIMIT_EXCEEDED)
}

/// Letters as the arrays of one statement.
#[derive(Default)]
struct Columns<'a> {
    commits: Vec<PgLsn>,
    ordinals: Vec<i64>,
    event_ids: Vec<Option<String>>,
    lanes: Vec<Option<Uuid>>,
    topics: Vec<Option<String>>,
    keys: Vec<Option<&'a [u8]>>,
    partitions: Vec<Option<i32>>,
    timestamps_ms: Vec<Option<i64>>,
    payloads: Vec<Option<&'a [u8]>>,
    headers: Vec<Value>,
    fit: Vec<bool>,
    reasons: Vec<&'a str>,
    errors: Vec<String>,
    xids: Vec<Option<String>>,
}

impl<'a> Columns<'a> {
    fn of(letters: &[Letter<'a>], repertoire: Repertoire) -> Self {
        let mut columns = Columns::default();
        for letter in letters {
            let record: Record<'a> = letter.record;
            columns.event_ids.push(event_id(&record, repertoire));
            columns.topics.push(topic(&record, repertoire));
            columns.keys.push(record.key);
            columns.timestamps_ms.push(record.timestamp_ms);
            columns.xids.push(record.xid.map(|xid| xid.to_string()));
            columns.commits.push(PgLsn::from(record.position.commit.get()));
            columns.ordinals.push(signed(record.position.ordinal));
            columns.lanes.push(letter.lane.map(Lane::to_uuid));
            columns.partitions.push(record.partition);
            columns.payloads.push(record.payload);
            columns.headers.push(headers::to_json(record.headers(), repertoire));
            columns.fit.push(letter.fit);
            columns.reasons.push(letter.reason);
            columns.errors.push(repertoire.sanitised(letter.error));
        }
        columns
    }

    /// An answer that the table will give again says which events it was about.
    fn named_in(&self, error: DeadLetterError) -> DeadLetterError {
        let DeadLetterError::Database { doing, source } = error else { return error };
        if !source.code().is_some_and(blame::may_explain) {
            return DeadLetterError::Database { doing, source };
        }
        let text = |it: Option<&Option<String>>| it.cloned().flatten().unwrap_or_default();
        let (id, topic) = (text(self.event_ids.first()), text(self.topics.first()));
        let short = |text: &str| text.chars().take(SHOWN_MAX).collect::<String>();
        let more = match self.commits.len() {
            0 | 1 => String::new(),
            all => format!(" and {} more", all - 1),
        };
        let events = format!("event {} of topic {}{more}", short(&id), short(&topic));
        DeadLetterError::Refused { events, source }
    }
}

/// Adds a row of the table to the batch as a record at `position`.
pub(super) fn add(row: &Row, origin: &Origin, position: RowPosition, batch: &mut Batch) {
    let headers: Value = row.get(6);
    let mut record = batch.start_record(RecordHead {
        position,
        topic: row.get::<_, Option<&str>>(1).unwrap_or_default(),
        key: row.get(2),
        payload: row.get(5),
        partition: row.get(3),
        timestamp_ms: row.get(4),
    });
    let position = header::position(&origin.system_id, origin.timeline, position);
    let kept = headers::from_json(&headers);
    for (name, value) in headers::with_position(kept, &position, origin.era) {
        record.header(&name, &value);
    }
    record.finish();
    let unfit = match row.get::<_, bool>(7) {
        false => Some((reason::known(row.get(8)), row.get(9))),
        true if !headers::are_readable(&headers) => {
            Some((reason::HEADERS_SHAPE, headers::UNREADABLE.to_owned()))
        }
        true => None,
    };
    if let Some((reason, error)) = unfit {
        let index = batch.len() - 1;
        batch.unfit.push(RefusedRecord { index, reason, error, certain: true });
    }
}
