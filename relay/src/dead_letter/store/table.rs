//! The table, as the pipeline uses it.

use std::{collections::HashSet, time::Duration};

use uuid::Uuid;

use super::{
    letters::add,
    numbers::{position, signed, unsigned},
    session::{Store, VISIBLE_MAX},
    taking::RELEASING,
};
use crate::{
    core::{
        position::RowPosition,
        progress::ReleaseRecord,
        record::{Announced, Batch},
        snapshot,
    },
    dead_letter::{
        error::DeadLetterError,
        lane::Lane,
        table::{BEHIND, BEHIND_ERROR, DeadLetters, Letter, PutBack, Release, Seen},
    },
};

/// Bytes of payloads in one statement, beyond one that is larger alone.
const STATEMENT_BYTES: usize = 4 << 20;
/// Between two looks at whether a release is visible; mostly there is one look.
const VISIBLE_POLL: Duration = Duration::from_millis(2);
/// Letters in one statement.
const STATEMENT_ROWS: usize = 2_000;
/// Rows of a release of which somebody's lock is met before it begins. Those of one very large lane that come
/// later are not looked at: marking a million rows would keep the session from its heartbeat.
const LOCKS_SEEN: i64 = 10_000;
/// Rows that are read at a time; a batch may be full before they end.
const READ_ROWS: i64 = 500;
/// Bytes of payloads that are read at a time, beyond one that is larger alone.
const READ_BYTES: i64 = 4 << 20;

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

    async fn find(&mut self, batch: &Batch) -> Result<Vec<usize>, DeadLetterError> {
        Store::find(self, batch).await
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
        known: &[ReleaseRecord],
    ) -> Result<Option<Release>, DeadLetterError> {
        const DOING: &str = "beginning a release";
        let Ok(id) = release.parse::<Uuid>() else { return Ok(None) };
        let done = known.iter().find(|known| known.id == release).map_or(0, |r| r.delivered);
        let freed = self.take_in(DOING, id, known).await?;
        // What is refused again is written to its row: a lock on it is to be met before anything is sent,
        // and costs no one a wait.
        self.query(
            DOING,
            &format!(
                "select 1 from outbox.dead_letters where relay = $1 and release_id = $2 and {RELEASING} \
                 order by release_ordinal limit $3 for no key update nowait"
            ),
            &[&self.relay, &id, &LOCKS_SEEN],
        )
        .await?;
        self.execute(
            DOING,
            // In the order of the table, whichever release was announced first: announcements that were
            // lost come again, behind later ones. Mostly the command has given the same places. What is
            // delivered and could not be marked keeps its own.
            &format!(
                "with o as materialized ( \
                     select id, place from ( \
                         select id, release_ordinal, \
                             row_number() over (order by commit_lsn, ordinal, id) - 1 + $3 as place \
                         from outbox.dead_letters where relay = $1 and release_id = $2 \
                             and {RELEASING} \
                             and coalesce(release_ordinal >= $3, true)) p \
                     where release_ordinal is distinct from place) \
                 update outbox.dead_letters d set release_ordinal = o.place \
                 from o where d.id = o.id"
            ),
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
        let left = rows.first().map(|row| {
            let lanes: Option<Vec<Uuid>> = row.get(0);
            let end: Option<i64> = row.get(1);
            (lanes.unwrap_or_default(), end.unwrap_or(0))
        });
        if left.is_none() && freed.is_empty() {
            return Ok(None);
        }
        let (mut lanes, end) = left.unwrap_or_default();
        lanes.extend(freed);
        lanes.sort_unstable();
        lanes.dedup();
        Ok(Some(Release {
            lanes: lanes.into_iter().map(Lane::from_uuid).collect(),
            end: unsigned(end).max(done),
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
                    &format!(
                        // Cut where the rows before it are enough: a sum over all before a row only grows,
                        // so that nothing is left out between two that are read.
                        "select release_ordinal, topic, key, partition, timestamp_ms, payload, \
                                headers, fit, reason, error \
                         from (select *, coalesce(sum(coalesce(octet_length(payload), 0)) over \
                                      (order by release_ordinal rows between unbounded preceding \
                                          and 1 preceding), 0) as before \
                               from (select * from outbox.dead_letters where relay = $1 \
                                         and release_id = $2 and {RELEASING} \
                                         and release_ordinal >= $3 \
                                     order by release_ordinal limit $4) d) d \
                         where before < $5 order by release_ordinal"
                    ),
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
            &format!(
                "with refused as materialized ( \
                 select * from unnest($3::int8[], $4::uuid[], $5::text[], $6::text[]) \
                     as r (ordinal, lane, reason, error)), \
             back as materialized ( \
                 select o.id, coalesce(r.lane, o.lane) as lane, r.reason, r.error \
                 from refused r cross join lateral (select d.id, d.lane from outbox.dead_letters d \
                     where d.relay = $1 and d.release_id = $2 and {RELEASING} \
                         and d.release_ordinal = r.ordinal offset 0) o \
                 union all \
                 select d.id, d.lane, null, null from outbox.dead_letters d \
                 where d.relay = $1 and d.release_id = $2 and {RELEASING} \
                     and d.release_ordinal >= $7 and d.lane = any($4)) \
             update outbox.dead_letters d \
             set state = 'parked', release_id = null, release_ordinal = null, lane = back.lane, \
                 reason = coalesce(back.reason, $8), error = coalesce(back.error, $9), \
                 changed_at = clock_timestamp() \
             from back where d.id = back.id"
            ),
            &[
                &self.relay,
                &id,
                &ordinals,
                &lanes,
                &reasons,
                &errors,
                &signed(from),
                &BEHIND,
                &BEHIND_ERROR,
            ],
        )
        .await?;
        Ok(())
    }

    async fn finish(&mut self, release: &ReleaseRecord) -> Result<(), DeadLetterError> {
        let Ok(id) = release.id.parse::<Uuid>() else { return Ok(()) };
        // What is discarded has had its effect, and is announced no more.
        self.execute(
            "finishing a release",
            // No one waits for a row that somebody keeps locked.
            "with mine as materialized ( \
                 select id from outbox.dead_letters \
                 where relay = $1 and release_id = $2 and (state = 'discarded' \
                     or state = 'releasing' and release_ordinal < $3) \
                 for no key update nowait) \
             update outbox.dead_letters set \
                 changed_at = case state when 'releasing' then clock_timestamp() else changed_at end, \
                 release_id = case state when 'releasing' then release_id end, \
                 state = case state when 'releasing' then 'released' else state end \
             where id = any(array(select id from mine)) and state in ('releasing', 'discarded')",
            &[&self.relay, &id, &signed(release.delivered)],
        )
        .await?;
        Ok(())
    }
}
