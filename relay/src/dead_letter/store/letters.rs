//! Parked events as rows of the table, and rows as records.

use serde_json::Value;
use tokio_postgres::{Row, types::PgLsn};
use uuid::Uuid;

use super::{numbers::signed, session::Store};
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
    route::{Origin, reason},
};

impl Store {
    /// Parks letters that are few enough for one statement.
    pub(super) async fn insert(&mut self, letters: &[Letter<'_>]) -> Result<(), DeadLetterError> {
        let columns = Columns::of(letters, self.repertoire);
        self.execute(
            "parking events",
            // What was released and delivered long ago, and is refused now that its place was streamed once more,
            // is parked again; what is parked stays as it is.
            "insert into outbox.dead_letters as d (relay, system_id, commit_lsn, ordinal, event_id, \
                 lane, topic, key, partition, timestamp_ms, payload, headers, fit, reason, error) \
             select $1, $2, n.* \
             from unnest($3::pg_lsn[], $4::int8[], $5::text[], $6::uuid[], $7::text[], $8::bytea[], \
                 $9::int4[], $10::int8[], $11::bytea[], $12::jsonb[], $13::bool[], $14::text[], \
                 $15::text[]) \
                 as n (commit_lsn, ordinal, event_id, lane, topic, key, partition, timestamp_ms, \
                     payload, headers, fit, reason, error) \
             on conflict (relay, commit_lsn, ordinal, coalesce(event_id, '')) do update \
             set state = 'parked', release_id = null, release_ordinal = null, lane = excluded.lane, \
                 topic = excluded.topic, key = excluded.key, partition = excluded.partition, \
                 payload = excluded.payload, headers = excluded.headers, fit = excluded.fit, \
                 reason = excluded.reason, error = excluded.error, \
                 parked_at = clock_timestamp(), changed_at = clock_timestamp() \
             where d.state = 'released'",
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
            ],
        )
        .await?;
        Ok(())
    }
}

impl Store {
    /// Which records of the batch are events of the table that it has not delivered; their indexes, ascending.
    pub(super) async fn find(&self, batch: &Batch) -> Result<Vec<usize>, DeadLetterError> {
        const DOING: &str = "looking for parked events";
        let any = "select from outbox.dead_letters where relay = $1 limit 1";
        if batch.is_empty() || self.query(DOING, any, &[&self.relay]).await?.is_empty() {
            return Ok(Vec::new());
        }
        let mut columns = Columns::default();
        for record in batch.iter() {
            columns.add_identity(&record, self.repertoire);
        }
        // One by one, whatever the planner takes the table's size to be. An id may be the same in two tables:
        // the event is the one of that time, topic and key.
        let rows = self
            .query(
                DOING,
                "select n.number from unnest($2::text[], $3::int8[], $4::text[], $5::bytea[]) \
                     with ordinality as n (event_id, timestamp_ms, topic, key, number) \
                 cross join lateral (select from outbox.dead_letters d \
                     where d.event_id = n.event_id and d.relay = $1 and d.state <> 'released' \
                         and d.timestamp_ms is not distinct from n.timestamp_ms \
                         and d.topic is not distinct from n.topic \
                         and d.key is not distinct from n.key limit 1) d \
                 order by n.number",
                &[
                    &self.relay,
                    &columns.event_ids,
                    &columns.timestamps_ms,
                    &columns.topics,
                    &columns.keys,
                ],
            )
            .await?;
        let number = |row: &Row| usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(usize::MAX);
        Ok(rows.iter().map(number).collect())
    }
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
}

impl<'a> Columns<'a> {
    fn of(letters: &[Letter<'a>], repertoire: Repertoire) -> Self {
        let mut columns = Columns::default();
        for letter in letters {
            let record: Record<'a> = letter.record;
            columns.add_identity(&record, repertoire);
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

    /// By what an event is known again.
    fn add_identity(&mut self, record: &Record<'a>, repertoire: Repertoire) {
        let text = |bytes: &[u8]| repertoire.sanitised(&String::from_utf8_lossy(bytes));
        let topic = Some(record.topic).filter(|topic| !topic.is_empty());
        self.event_ids.push(record.event_id().map(text));
        self.topics.push(topic.map(|topic| repertoire.sanitised(topic)));
        self.keys.push(record.key);
        self.timestamps_ms.push(record.timestamp_ms);
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
    if !row.get::<_, bool>(7) {
        let (index, error) = (batch.len() - 1, row.get(9));
        let reason = reason::known(row.get(8));
        batch.unfit.push(RefusedRecord { index, reason, error, certain: true });
    }
}
