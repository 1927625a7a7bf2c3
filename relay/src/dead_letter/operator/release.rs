//! The announcement of a release: whole lanes, some at a time.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::time::sleep;
use tokio_postgres::types::{PgLsn, ToSql};
use uuid::Uuid;

use super::{
    error::OperatorError,
    selection::{CHOSEN, Selection},
    session::{Operator, announce, commit, repertoire},
};
use crate::dead_letter::{answer::sorted, notice::REASON as NOTICE};

/// What a release has announced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Released {
    /// Ids of the releases, each of whole lanes; none where there was nothing to release.
    pub releases: Vec<Uuid>,
    /// Events so far; what is parked in the same lanes until the stream comes to it is added.
    pub events: i64,
    /// Lanes; an event alone counts as one.
    pub lanes: i64,
    /// Of its events, those that are no records and so will be parked again, each with all behind
    /// it: edit or discard them. The first hundred.
    pub unfit: Vec<i64>,
}

/// How far a release is, while it lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Far {
    /// Events that are announced.
    pub announced: i64,
    /// Of these, those that the relay was seen to have delivered.
    pub delivered: i64,
    /// For how long no relay has delivered any, where that was so long that none is waited for.
    pub undelivered_for: Option<Duration>,
}

/// Events that are released at a time, and with them all of the last one's lane.
const RELEASE_EVENTS: i64 = 2_000;
/// Releases that may be announced and not delivered. What is committed meanwhile comes behind them in the
/// stream, so its delay is what these take; with one, the relay would wait for the next.
const UNDER_WAY_MAX: usize = 2;
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// A release that takes longer has no relay that delivers it: what is left is announced for when one does.
const NOBODY_AFTER: Duration = Duration::from_secs(10);
/// Events that are no records and that a release names.
const UNFIT_NAMED: usize = 100;

impl Operator<'_> {
    /// Announces that whole lanes are released: the relay delivers what is parked in them when its
    /// stream has come to the announcement. Some lanes at a time, and no more than the relay keeps up with, so that
    /// neither the database nor what is committed meanwhile waits for all of them; `progress` is told
    /// how far it is, several times a second.
    ///
    /// # Errors
    /// [`OperatorError`]; what was announced by then is released.
    pub async fn release(
        &mut self,
        selection: &Selection,
        mut progress: impl FnMut(Far),
    ) -> Result<Released, OperatorError> {
        let mut released = Released::default();
        let mut after = After::beginning();
        let mut far = Far::default();
        // Each release, with the events up to its end.
        let mut ends: Vec<(Uuid, i64)> = Vec::new();
        while let Some(next) = self.release_next(selection, &after, &mut released).await? {
            after = next;
            far.announced = released.events;
            let new = released.releases.iter().skip(ends.len());
            ends.extend(new.map(|release| (*release, released.events)));
            progress(far);
            let Some(&(oldest, end)) = ends.iter().nth_back(UNDER_WAY_MAX - 1) else { continue };
            if far.undelivered_for.is_some() {
                continue;
            }
            match self.has_room(oldest, || progress(far)).await? {
                true => far.delivered = end,
                false => far.undelivered_for = Some(NOBODY_AFTER),
            }
            progress(far);
        }
        Ok(released)
    }

    /// Waits until the oldest of the releases under way is delivered. `false` when no one does it.
    async fn has_room(&self, oldest: Uuid, mut waits: impl FnMut()) -> Result<bool, OperatorError> {
        let sql = "select exists (select from outbox.dead_letters where relay = $1 \
                       and release_id = $2 and state = 'releasing')";
        let begun = Instant::now();
        loop {
            let row = self.client.query_one(sql, &[&self.relay, &oldest]).await;
            if !row.map_err(|e| sorted("looking how far a release is", e))?.get::<_, bool>(0) {
                return Ok(true);
            }
            if begun.elapsed() >= NOBODY_AFTER {
                return Ok(false);
            }
            waits();
            sleep(LOOK_EVERY).await;
        }
    }

    /// The next lanes after those that were looked at; `None` where none is left.
    async fn release_next(
        &mut self,
        selection: &Selection,
        after: &After,
        released: &mut Released,
    ) -> Result<Option<After>, OperatorError> {
        let failed = |e| sorted("releasing parked events", e);
        let transaction = self.client.transaction().await.map_err(failed)?;
        let of = selection.parameters(repertoire(&transaction).await.map_err(failed)?);
        // By the index of what is parked, from one place on: the whole takes one pass. Events that
        // stand alone are behind all lanes there.
        let sql = format!(
            "select id, lane, commit_lsn, ordinal from outbox.dead_letters \
             where relay = $1 and state = 'parked' and reason <> '{NOTICE}' and {CHOSEN} and {} limit {}",
            match after.alone {
                false => "lane > $6 order by relay, lane, commit_lsn, ordinal",
                true =>
                    "lane is null and (commit_lsn, ordinal, id) > ($6, $7, $8) \
                         order by relay, lane, commit_lsn, ordinal, id",
            },
            if after.alone { "$9" } else { "$7" }
        );
        let mut parameters: Vec<&(dyn ToSql + Sync)> =
            vec![&self.relay, &of.ids, &of.topic, &of.key, &of.reason];
        match &after.alone {
            false => parameters.push(&after.lane),
            true => {
                parameters.extend([&after.commit as &(dyn ToSql + Sync), &after.ordinal, &after.id])
            }
        }
        parameters.push(&RELEASE_EVENTS);
        let rows = transaction.query(&sql, &parameters).await.map_err(failed)?;
        let Some(last) = rows.last() else {
            return Ok((!after.alone).then(|| After { alone: true, ..After::beginning() }));
        };
        let next = After {
            alone: after.alone,
            lane: last.get::<_, Option<Uuid>>(1).unwrap_or_default(),
            commit: last.get(2),
            ordinal: last.get(3),
            id: last.get(0),
        };
        let mut lanes: Vec<Uuid> = rows.iter().filter_map(|row| row.get(1)).collect();
        lanes.dedup();
        let alone: Vec<i64> = rows
            .iter()
            .filter(|row| row.get::<_, Option<Uuid>>(1).is_none())
            .map(|row| row.get(0))
            .collect();
        let release = Uuid::now_v7();
        // A lane is released whole: its later events may not go before its earlier ones.
        let row = transaction
            .query_one(
                // By ids, one by one: the planner takes such an array for ten, whatever it knows of the
                // table, and so neither reads all of it nor compares each id with all others.
                "with changed as ( \
                     update outbox.dead_letters d set state = 'releasing', release_id = $2, \
                         release_ordinal = chosen.place - 1, changed_at = clock_timestamp() \
                     from unnest(array( \
                         select c.id from ( \
                             select o.* from unnest($3::uuid[]) l (lane) cross join lateral ( \
                                 select id, commit_lsn, ordinal from outbox.dead_letters \
                                 where relay = $1 and lane = l.lane and state = 'parked' offset 0) o \
                             union all \
                             select o.* from unnest($4::int8[]) a (id) cross join lateral ( \
                                 select id, commit_lsn, ordinal from outbox.dead_letters \
                                 where id = a.id and state = 'parked' offset 0) o) c \
                         order by c.commit_lsn, c.ordinal, c.id)) with ordinality chosen (id, place) \
                     where d.id = chosen.id and d.state || '' = 'parked' \
                     returning d.id, d.lane, d.fit) \
                 select count(*), count(distinct lane) + count(*) filter (where lane is null), \
                     coalesce((array_agg(id order by id) filter (where not fit))[1:100], '{}') \
                 from changed",
                &[&self.relay, &release, &lanes, &alone],
            )
            .await
            .map_err(failed)?;
        let events = row.get::<_, i64>(0);
        if events > 0 {
            announce(&transaction, &self.relay, release).await.map_err(failed)?;
            commit(transaction).await.map_err(failed)?;
            released.releases.push(release);
            released.events += events;
            released.lanes += row.get::<_, i64>(1);
            released.unfit.extend(row.get::<_, Vec<i64>>(2));
            released.unfit.truncate(UNFIT_NAMED);
        }
        Ok(Some(next))
    }
}

/// Up to where a release has come.
#[derive(Debug)]
struct After {
    /// Lanes are done; now events that stand alone.
    alone: bool,
    lane: Uuid,
    commit: PgLsn,
    ordinal: i64,
    id: i64,
}

impl After {
    fn beginning() -> Self {
        After { alone: false, lane: Uuid::nil(), commit: PgLsn::from(0), ordinal: -1, id: 0 }
    }
}
