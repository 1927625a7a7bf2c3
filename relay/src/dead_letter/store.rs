//! The relay's side of `outbox.dead_letters`.
//!
//! It speaks through the session that holds the leader's lock, which others use too: so each step
//! is one statement, a transaction of its own, and may be repeated with the same effect.

use std::{collections::HashSet, sync::Arc, time::Duration};

use serde_json::Value;
use tokio_postgres::{
    Row,
    error::SqlState,
    types::{Json, PgLsn, ToSql},
};
use uuid::Uuid;

use super::{
    DeadLetterError, DeadLetters, Lane, Lanes, Letter, Message, PutBack, Release, Seen,
    headers::{self, Repertoire},
};
use crate::{
    header,
    lsn::Lsn,
    position::{Position, RowPosition},
    postgres::sql::SqlSession,
    record::{Announced, Batch, Record, RecordHead, RefusedRecord},
    route::{Origin, reason},
    snapshot,
};

/// Bytes of payloads in one statement, beyond one that is larger alone.
const STATEMENT_BYTES: usize = 4 << 20;
/// Between two looks at whether a release is visible; mostly there is one look.
const VISIBLE_POLL: Duration = Duration::from_millis(2);
/// All such waiting until everything is visible again. A transaction that waits for a standby is in
/// the stream long before it is visible, and any role may let one announce something.
const VISIBLE_MAX: Duration = Duration::from_secs(1);
/// Releases that are announced again at a time.
const WAITING_MAX: i64 = 1_000;
/// Letters in one statement.
const STATEMENT_ROWS: usize = 2_000;
/// Parked lanes that are read at a time.
const LANES_READ: i64 = 10_000;
/// Rows that are read at a time; a batch may be full before they end.
const READ_ROWS: i64 = 500;
/// Bytes of payloads that are read at a time, beyond one that is larger alone.
const READ_BYTES: i64 = 4 << 20;

/// The table, for one relay.
#[derive(Debug)]
pub struct Store {
    session: Arc<SqlSession>,
    relay: String,
    origin: Origin,
    repertoire: Repertoire,
    /// How long it waits, still, for what is not visible.
    patience: Duration,
}

impl Store {
    /// Looks whether the table can be used. `session` is the one that holds the leader's lock.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn open(
        session: Arc<SqlSession>,
        relay: &str,
        origin: Origin,
    ) -> Result<Self, DeadLetterError> {
        let encoding = session.client().query_one(Repertoire::QUERY, &[]).await;
        let encoding = encoding.map_err(|e| sorted("asking for the server's encoding", e))?;
        let repertoire = Repertoire::of(encoding.get(0));
        let relay = relay.to_owned();
        let mut store = Store { session, relay, origin, repertoire, patience: VISIBLE_MAX };
        store.adopt().await?;
        Ok(store)
    }

    /// Positions of another cluster's WAL mean nothing here, and its events come before all that
    /// this one streams: a dump was restored, or the cluster upgraded.
    async fn adopt(&mut self) -> Result<(), DeadLetterError> {
        let adopted = self
            .execute(
                "looking at outbox.dead_letters",
                "update outbox.dead_letters d \
                 set system_id = $2, commit_lsn = '0/0', ordinal = o.ordinal \
                 from (select id, (select max(id) from outbox.dead_letters) + row_number() over \
                              (order by commit_lsn, ordinal, id) as ordinal \
                       from outbox.dead_letters \
                       where relay = $1 and system_id <> $2 and state in ('parked', 'releasing') \
                      ) o \
                 where d.id = o.id",
                &[&self.relay.clone(), &self.origin.system_id.clone()],
            )
            .await?;
        if adopted > 0 {
            tracing::warn!(events = adopted, "another cluster's parked events were taken over");
        }
        Ok(())
    }

    /// What is parked now, or announced and not yet delivered; `max` lanes of it in memory.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn lanes(&mut self, max: usize) -> Result<Lanes, DeadLetterError> {
        let mut lanes = Lanes::new(max);
        let mut after = Uuid::nil();
        loop {
            let rows = self
                .query(
                    "reading the parked lanes",
                    "select distinct on (lane) lane, commit_lsn, ordinal from outbox.dead_letters \
                     where relay = $1 and state in ('parked', 'releasing') and lane > $2 \
                     order by lane, commit_lsn, ordinal limit $3",
                    &[&self.relay, &after, &LANES_READ],
                )
                .await?;
            let Some(last) = rows.last() else { break };
            after = last.get(0);
            rows.iter().for_each(|row| lanes.park(Lane::from_uuid(row.get(0)), position(row, 1)));
            // What of them is beyond memory is asked for when it matters.
            lanes.told([]);
        }
        Ok(lanes)
    }

    /// Tells `lanes` of events that were parked and that `progress` does not cover: the relay ended
    /// between the two, and the server sends them again. Somebody may have mended, released or
    /// discarded them meanwhile.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn expect(
        &mut self,
        progress: Position,
        lanes: &mut Lanes,
    ) -> Result<(), DeadLetterError> {
        let from = PgLsn::from(progress.resume_lsn().get());
        let rows = self
            .query(
                "reading what was parked last",
                "select commit_lsn, ordinal from outbox.dead_letters \
                 where relay = $1 and system_id = $2 and commit_lsn >= $3 and state <> 'released'",
                &[&self.relay, &self.origin.system_id, &from],
            )
            .await?;
        let positions = rows.iter().map(|row| position(row, 0));
        positions.filter(|at| !progress.covers(*at)).for_each(|at| lanes.expect(at));
        Ok(())
    }

    /// Announces once more what was released and is not delivered: the first announcement may be
    /// in WAL that is lost. If it is not, this one finds nothing left to do.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn announce_again(&mut self) -> Result<(), DeadLetterError> {
        for release in waiting(&self.session, &self.relay).await? {
            announce(&self.session, &self.relay, release).await?;
        }
        Ok(())
    }

    /// Which of the releases have events that are not delivered.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn under_way(&mut self, releases: &[Uuid]) -> Result<Vec<Uuid>, DeadLetterError> {
        let rows = self
            .query(
                "looking for unfinished releases",
                "select r.id from unnest($2::uuid[]) r (id) where exists ( \
                     select from outbox.dead_letters where relay = $1 and release_id = r.id \
                         and state = 'releasing')",
                &[&self.relay, &releases],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn insert(&mut self, letters: &[Letter<'_>]) -> Result<(), DeadLetterError> {
        let columns = Columns::of(letters, self.repertoire);
        self.execute(
            "parking events",
            "insert into outbox.dead_letters (relay, system_id, commit_lsn, ordinal, event_id, \
                 lane, topic, key, partition, timestamp_ms, payload, headers, fit, reason, error) \
             select $1, $2, n.* \
             from unnest($3::pg_lsn[], $4::int8[], $5::text[], $6::uuid[], $7::text[], $8::bytea[], \
                 $9::int4[], $10::int8[], $11::bytea[], $12::jsonb[], $13::bool[], $14::text[], \
                 $15::text[]) \
                 as n (commit_lsn, ordinal, event_id, lane, topic, key, partition, timestamp_ms, \
                     payload, headers, fit, reason, error) \
             where not $16 or not exists (select from outbox.dead_letters d \
                 where d.relay = $1 and d.event_id = n.event_id \
                     and d.lane is not distinct from n.lane \
                     and d.state in ('parked', 'releasing')) \
             on conflict (relay, commit_lsn, ordinal, coalesce(event_id, '')) do nothing",
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
                &letters.iter().any(|letter| letter.repaired),
            ],
        )
        .await?;
        Ok(())
    }

    async fn execute(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DeadLetterError> {
        self.session.client().execute(sql, parameters).await.map_err(|e| sorted(doing, e))
    }

    async fn query(
        &self,
        doing: &'static str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, DeadLetterError> {
        self.session.client().query(sql, parameters).await.map_err(|e| sorted(doing, e))
    }
}

impl DeadLetters for Store {
    async fn park(&mut self, letters: &[Letter<'_>]) -> Result<(), DeadLetterError> {
        let mut rest = letters;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |letter: &&Letter<'_>| {
                bytes += letter.record.size_bytes();
                bytes <= STATEMENT_BYTES
            };
            let count = rest.iter().take(STATEMENT_ROWS).take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            self.insert(now).await?;
            rest = later;
        }
        Ok(())
    }

    async fn parked_of(
        &mut self,
        lanes: &[Lane],
    ) -> Result<Vec<(Lane, RowPosition)>, DeadLetterError> {
        let lanes: Vec<Uuid> = lanes.iter().map(|lane| lane.to_uuid()).collect();
        let rows = self
            .query(
                "asking which lanes are parked",
                "select distinct on (lane) lane, commit_lsn, ordinal from outbox.dead_letters \
                 where relay = $1 and state in ('parked', 'releasing') and lane = any($2) \
                 order by lane, commit_lsn, ordinal",
                &[&self.relay, &lanes],
            )
            .await?;
        Ok(rows.iter().map(|row| (Lane::from_uuid(row.get(0)), position(row, 1))).collect())
    }

    async fn look_up(&mut self, announced: &[Announced]) -> Result<Vec<Seen>, DeadLetterError> {
        let ids: Vec<Option<Uuid>> = announced.iter().map(|one| one.id.parse().ok()).collect();
        loop {
            // In one statement, so that the rows are what the snapshot shows.
            let rows = self
                .query(
                    "looking for announced releases",
                    "select pg_catalog.pg_current_snapshot()::text, array( \
                         select distinct a.id from unnest($2::uuid[]) a (id) where exists ( \
                             select from outbox.dead_letters where relay = $1 \
                                 and release_id = a.id and state in ('releasing', 'discarded')))",
                    &[&self.relay, &ids],
                )
                .await?;
            let Some(row) = rows.first() else { return Ok(vec![Seen::Nothing; ids.len()]) };
            let (snapshot, due): (&str, Vec<Uuid>) = (row.get(0), row.get(1));
            let due: HashSet<Uuid> = due.into_iter().collect();
            let seen = |(id, one): (&Option<Uuid>, &Announced)| match id {
                Some(id) if due.contains(id) => Seen::Due,
                _ if snapshot::shows(snapshot, one.xid) == Some(false) => Seen::NotYet,
                _ => Seen::Nothing,
            };
            let seen: Vec<Seen> = ids.iter().zip(announced).map(seen).collect();
            if !seen.contains(&Seen::NotYet) {
                self.patience = VISIBLE_MAX;
                return Ok(seen);
            }
            if self.patience.is_zero() {
                return Ok(seen);
            }
            self.patience = self.patience.saturating_sub(VISIBLE_POLL);
            tokio::time::sleep(VISIBLE_POLL).await;
        }
    }

    async fn begin(
        &mut self,
        release: &str,
        done: u64,
    ) -> Result<Option<Release>, DeadLetterError> {
        const DOING: &str = "beginning a release";
        let Ok(id) = release.parse::<Uuid>() else { return Ok(None) };
        // A later release may have taken what was parked since: it goes with the earlier one, or
        // it would be overtaken. Lane by lane, or each of many releases would read all that is parked.
        let behind = self
            .query(
                DOING,
                "select o.id from (select distinct lane from outbox.dead_letters \
                     where relay = $1 and release_id = $2 and state = 'releasing') l \
                 cross join lateral (select id from outbox.dead_letters \
                     where relay = $1 and lane = l.lane and state in ('parked', 'releasing') \
                         and release_id is distinct from $2 offset 0) o",
                &[&self.relay, &id],
            )
            .await?;
        let behind: Vec<i64> = behind.iter().map(|row| row.get(0)).collect();
        if !behind.is_empty() {
            self.execute(
                DOING,
                "update outbox.dead_letters set state = 'releasing', release_id = $1, \
                     release_ordinal = null, changed_at = clock_timestamp() \
                 where id = any($2) and state in ('parked', 'releasing')",
                &[&id, &behind],
            )
            .await?;
        }
        self.execute(
            DOING,
            "update outbox.dead_letters d set release_ordinal = o.ordinal \
             from (select id, row_number() over (order by commit_lsn, ordinal, id) - 1 + greatest( \
                       (select max(release_ordinal) + 1 from outbox.dead_letters \
                        where relay = $1 and release_id = $2 and state = 'releasing'), $3) as ordinal \
                   from outbox.dead_letters where relay = $1 and release_id = $2 \
                       and state = 'releasing' and release_ordinal is null) o \
             where d.id = o.id",
            &[&self.relay, &id, &signed(done)],
        )
        .await?;
        let rows = self
            .query(
                DOING,
                "select array_agg(distinct lane) filter (where lane is not null \
                        and (m.state = 'releasing' or not exists ( \
                            select from outbox.dead_letters o where o.relay = $1 \
                                and o.lane = m.lane and o.state in ('parked', 'releasing')))), \
                    max(release_ordinal) filter (where state = 'releasing') + 1 \
                 from outbox.dead_letters m \
                 where relay = $1 and release_id = $2 and state in ('releasing', 'discarded') \
                 having count(*) > 0",
                &[&self.relay, &id],
            )
            .await?;
        Ok(rows.first().map(|row| Release {
            lanes: row
                .get::<_, Option<Vec<Uuid>>>(0)
                .into_iter()
                .flatten()
                .map(Lane::from_uuid)
                .collect(),
            end: unsigned(row.get::<_, Option<i64>>(1).unwrap_or(0)),
        }))
    }

    async fn read(
        &mut self,
        release: &str,
        from: u64,
        first: RowPosition,
        batch: &mut Batch,
    ) -> Result<Option<u64>, DeadLetterError> {
        let Ok(id) = release.parse::<Uuid>() else { return Ok(None) };
        let mut next = from;
        while !batch.is_full() {
            // The window keeps what is read at a time within bounds, whatever a payload's size.
            let rows = self
                .query(
                    "reading released events",
                    "select release_ordinal, topic, key, partition, timestamp_ms, payload, headers, \
                            fit, reason, error \
                     from (select *, sum(octet_length(payload)) over \
                                  (order by release_ordinal rows unbounded preceding) \
                                  - octet_length(payload) as before \
                           from (select * from outbox.dead_letters where relay = $1 \
                                     and release_id = $2 and state = 'releasing' \
                                     and release_ordinal >= $3 \
                                 order by release_ordinal limit $4) d) d \
                     where coalesce(before, 0) < $5 order by release_ordinal",
                    &[&self.relay, &id, &signed(next), &READ_ROWS, &READ_BYTES],
                )
                .await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                if batch.is_full() {
                    break;
                }
                let ordinal = unsigned(row.get(0));
                let ordinal_there = first.ordinal + ordinal;
                add(&row, &self.origin, RowPosition { ordinal: ordinal_there, ..first }, batch);
                next = ordinal + 1;
            }
        }
        Ok((next > from).then_some(next))
    }

    async fn put_back(
        &mut self,
        release: &str,
        letters: &[PutBack<'_>],
        from: u64,
    ) -> Result<(), DeadLetterError> {
        const DOING: &str = "parking released events again";
        let Ok(id) = release.parse::<Uuid>() else { return Ok(()) };
        let ordinals: Vec<i64> = letters.iter().map(|letter| signed(letter.ordinal)).collect();
        let lanes: Vec<Option<Uuid>> =
            letters.iter().map(|letter| letter.lane.map(Lane::to_uuid)).collect();
        let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason).collect();
        let errors: Vec<String> =
            letters.iter().map(|letter| self.repertoire.sanitised(letter.error)).collect();
        // In one statement: were the relay to end between the first of a lane and the rest, the
        // rest would still be in the release, and the first would be taken in behind them.
        self.execute(
            DOING,
            "with refused as ( \
                 select * from unnest($3::int8[], $4::uuid[], $5::text[], $6::text[]) \
                     as r (ordinal, lane, reason, error)), \
             back as ( \
                 select d.id, coalesce(r.lane, d.lane) as lane, r.reason, r.error \
                 from outbox.dead_letters d left join refused r on r.ordinal = d.release_ordinal \
                 where d.relay = $1 and d.release_id = $2 and d.state = 'releasing' \
                     and (r.ordinal is not null or d.release_ordinal >= $7 and exists ( \
                         select from refused s \
                         where s.lane = d.lane and s.ordinal < d.release_ordinal))) \
             update outbox.dead_letters d \
             set state = 'parked', release_id = null, release_ordinal = null, lane = back.lane, \
                 reason = coalesce(back.reason, $8), error = coalesce(back.error, $9), \
                 changed_at = clock_timestamp() \
             from back where d.id = back.id",
            &[
                &self.relay,
                &id,
                &ordinals,
                &lanes,
                &reasons,
                &errors,
                &signed(from),
                &super::BEHIND,
                &super::BEHIND_ERROR,
            ],
        )
        .await?;
        Ok(())
    }

    async fn finish(&mut self, release: &str) -> Result<(), DeadLetterError> {
        let Ok(id) = release.parse::<Uuid>() else { return Ok(()) };
        // What is discarded has had its effect, and is announced no more.
        self.execute(
            "finishing a release",
            "update outbox.dead_letters set \
                 changed_at = case state when 'releasing' then clock_timestamp() else changed_at end, \
                 release_id = case state when 'releasing' then release_id end, \
                 state = case state when 'releasing' then 'released' else state end \
             where relay = $1 and release_id = $2 and (state = 'discarded' \
                 or state = 'releasing' and release_ordinal is not null)",
            &[&self.relay, &id],
        )
        .await?;
        Ok(())
    }
}

/// Releases and discards of the relay that have not had their effect, oldest first; as many as one
/// look may find. Their ids grow with time.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn waiting(session: &SqlSession, relay: &str) -> Result<Vec<Uuid>, DeadLetterError> {
    // From one to the next by the index: one of them may have a million rows.
    let query = "with recursive r (id) as ( \
                     (select release_id from outbox.dead_letters where relay = $1 \
                          and state in ('releasing', 'discarded') and release_id is not null \
                      order by release_id limit 1) \
                     union all \
                     select (select release_id from outbox.dead_letters where relay = $1 \
                                 and state in ('releasing', 'discarded') and release_id > r.id \
                             order by release_id limit 1) \
                     from r where r.id is not null) \
                 select id from r where id is not null limit $2";
    let rows = session.client().query(query, &[&relay, &WAITING_MAX]).await;
    let rows = rows.map_err(|e| sorted("looking for releases that wait", e))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Where the WAL that is flushed ends.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn wal_end(session: &SqlSession) -> Result<Lsn, DeadLetterError> {
    let query = "select pg_catalog.pg_current_wal_flush_lsn()";
    let row = session.client().query_one(query, &[]).await;
    let row = row.map_err(|e| sorted("reading the end of the WAL", e))?;
    Ok(Lsn::new(row.get::<_, PgLsn>(0).into()))
}

/// Announces a release once more. A transaction each: places within one begin behind those of the
/// release before, of which a later start may know nothing any more.
///
/// # Errors
/// [`DeadLetterError`].
pub async fn announce(
    session: &SqlSession,
    relay: &str,
    release: Uuid,
) -> Result<(), DeadLetterError> {
    let message = Message { relay: relay.to_owned(), release };
    let query = "select pg_catalog.pg_logical_emit_message(true, 'outbox', $1::jsonb::text)";
    let emitted = session.client().query(query, &[&Json(message)]).await;
    emitted.map(drop).map_err(|e| sorted("announcing a release again", e))
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
            let text = |bytes: &[u8]| repertoire.sanitised(&String::from_utf8_lossy(bytes));
            let topic = Some(record.topic).filter(|topic| !topic.is_empty());
            columns.commits.push(PgLsn::from(record.position.commit.get()));
            columns.ordinals.push(signed(record.position.ordinal));
            columns.event_ids.push(record.event_id().map(text));
            columns.lanes.push(letter.lane.map(Lane::to_uuid));
            columns.topics.push(topic.map(|topic| repertoire.sanitised(topic)));
            columns.keys.push(record.key);
            columns.partitions.push(record.partition);
            columns.timestamps_ms.push(record.timestamp_ms);
            columns.payloads.push(record.payload);
            columns.headers.push(headers::to_json(record.headers(), repertoire));
            columns.fit.push(letter.fit);
            columns.reasons.push(letter.reason);
            columns.errors.push(repertoire.sanitised(letter.error));
        }
        columns
    }
}

/// Adds a row of the table to the batch as a record at `position`.
fn add(row: &Row, origin: &Origin, position: RowPosition, batch: &mut Batch) {
    let headers: Value = row.get(6);
    let mut record = batch.start_record(RecordHead {
        position,
        topic: row.get::<_, Option<&str>>(1).unwrap_or_default(),
        key: row.get(2),
        payload: row.get(5),
        partition: row.get(3),
        timestamp_ms: row.get(4),
    });
    for (name, value) in headers::from_json(&headers) {
        if headers::is_position(&name) {
            let position = header::position(&origin.system_id, origin.timeline, position);
            record.header(&name, position.as_bytes());
        } else {
            record.header(&name, &value);
        }
    }
    record.finish();
    if !row.get::<_, bool>(7) {
        let (index, error) = (batch.len() - 1, row.get(9));
        let reason = reason::known(row.get(8));
        batch.unfit.push(RefusedRecord { index, reason, error, certain: true });
    }
}

fn position(row: &Row, column: usize) -> RowPosition {
    let commit = Lsn::new(row.get::<_, PgLsn>(column).into());
    RowPosition { commit, ordinal: unsigned(row.get(column + 1)) }
}

/// Ordinals count rows of a transaction: they don't come near either type's end.
fn signed(ordinal: u64) -> i64 {
    i64::try_from(ordinal).unwrap_or(i64::MAX)
}

fn unsigned(ordinal: i64) -> u64 {
    u64::try_from(ordinal).unwrap_or(0)
}

/// What happened, and what to do, where there is no such table.
pub(super) fn missing() -> (&'static str, &'static str) {
    (
        "the table outbox.dead_letters, where refused events are parked, is missing or of another \
         version",
        "run `outbox-relay migrate` as the schema's owner",
    )
}

/// Where it may not be used.
pub(super) fn not_granted() -> (&'static str, &'static str) {
    (
        "the relay's role may not use outbox.dead_letters, where refused events are parked",
        "grant usage on schema outbox and select, insert, update on outbox.dead_letters to it \
         (docs/ROLES.md)",
    )
}

pub(super) fn sorted(doing: &'static str, source: tokio_postgres::Error) -> DeadLetterError {
    let absent = [SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME];
    match source.code() {
        Some(code) if absent.contains(code) || *code == SqlState::UNDEFINED_COLUMN => {
            let (what, remedy) = missing();
            DeadLetterError::Misconfigured { what: what.into(), remedy: remedy.into() }
        }
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => {
            let (what, remedy) = not_granted();
            DeadLetterError::Misconfigured { what: what.into(), remedy: remedy.into() }
        }
        _ => DeadLetterError::Database { doing, source },
    }
}
