//! The statements that put messages aside: parked, and dead.

use std::{sync::Arc, time::Duration, time::SystemTime};

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::payload::Payload;
use crate::{
    error::InboxError,
    failure::Failure,
    fault::{Point, point},
    guard,
    message::{RawMessage, Source},
    ordering::OrderBy,
    repertoire::{self, Repertoire},
    session::Sessions,
    timestamp::Timestamp,
    transaction::Open,
};

/// Shortest time for which a message is deferred, by whatever time its handler names.
pub(crate) const DEFER_MIN: Duration = Duration::from_millis(200);

/// When a lane is due.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    /// After so long, by the database's clock.
    In(Duration),
    /// At a time that the handler named.
    At(SystemTime),
    /// After a while, which grows with the time that it waits already.
    Again,
}

/// The shortest time between two tries while the database has trouble.
pub(crate) const AGAIN: Duration = Duration::from_secs(5);

impl Due {
    fn params(self) -> (f64, Option<SystemTime>) {
        match self {
            Due::Again => (AGAIN.as_secs_f64(), None),
            Due::In(delay) => (repertoire::delay(delay).as_secs_f64(), None),
            // A handler that defers to the past would be called again at once, for ever.
            Due::At(time) => (DEFER_MIN.as_secs_f64(), Some(repertoire::time(time))),
        }
    }

    /// For how many seconds a handler has deferred, by the clock by which it named the time; of all else the
    /// database's clock tells.
    fn asked(self) -> Option<f64> {
        let Due::At(time) = self else { return None };
        let asked = repertoire::time(time).duration_since(SystemTime::now()).unwrap_or_default();
        Some(asked.max(DEFER_MIN).as_secs_f64())
    }
}

/// Where one consumer's messages are put aside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shelf {
    pub(super) consumer_id: i32,
    pub(super) ordering: OrderBy,
    pub(super) repertoire: Repertoire,
}

impl Shelf {
    /// A failure's code and text.
    fn why(self, failure: &Failure) -> (String, String) {
        (self.repertoire.code(failure.code()), self.repertoire.error(failure.text()))
    }

    /// Adds messages to the ends of their lanes, which are parked, and kept so by this transaction.
    pub(super) async fn append(
        self,
        open: &Open,
        messages: &[&RawMessage],
    ) -> Result<(), InboxError> {
        let sql = "insert into inbox.parked \
               (consumer_id, lane, message_id, day, topic, partition, record_offset, key, payload, headers, \
                   produced_at, stored_at) \
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) returning 1";
        for message in messages {
            let Source { topic, partition, offset } = &message.source;
            let (lane, id, headers) = (
                self.ordering.lane(message),
                message.id.uuid(),
                self.repertoire.headers(&message.headers),
            );
            let topic = self.repertoire.text(topic);
            let (day, payload) = (message.id.day(), Payload::of(message));
            let (produced_at, stored_at) = times(message);
            open.carries(message);
            let params: [&(dyn ToSql + Sync); 12] = [
                &self.consumer_id,
                &lane,
                &id,
                &day,
                &topic,
                partition,
                offset,
                &message.key,
                &payload,
                &headers,
                &produced_at,
                &stored_at,
            ];
            if open.query("parking a message", sql, &params).await?.is_empty() {
                return Err(guard::kept_out_of("inbox.parked"));
            }
            point(Point::Waiting);
        }
        Ok(())
    }

    /// Parks a lane and its first message. Where somebody has parked the lane meanwhile, the message
    /// goes to its end, and the lane is due when it was.
    pub(super) async fn park(
        self,
        open: &Open,
        message: &RawMessage,
        attempts: i32,
        due: Due,
        failure: &Failure,
    ) -> Result<(), InboxError> {
        let sql = "insert into inbox.parked_lanes as l \
                   (consumer_id, lane, attempts, due_at, code, error, asked) \
               values ($1, $2, $3, greatest($5, pg_catalog.now() \
                   operator(pg_catalog.+) pg_catalog.make_interval(secs => $4)), $6, $7, \
                   pg_catalog.make_interval(secs => $8)) \
               on conflict (consumer_id, lane) do update set due_at = l.due_at returning 1";
        let (lane, (seconds, at)) = (self.ordering.lane(message), due.params());
        let (code, text) = self.why(failure);
        let asked = due.asked();
        let params: [&(dyn ToSql + Sync); 8] =
            [&self.consumer_id, &lane, &attempts, &seconds, &at, &code, &text, &asked];
        if open.query("parking a lane", sql, &params).await?.is_empty() {
            return Err(guard::kept_out_of("inbox.parked_lanes"));
        }
        self.append(open, &[message]).await
    }

    /// Stores a dead letter, and says whether its code is new to this consumer. `unclaimed` where it is known that it
    /// has no claim.
    pub(super) async fn bury(
        self,
        open: &Open,
        message: &RawMessage,
        failure: &Failure,
        attempts: i32,
        replays: i32,
        unclaimed: bool,
    ) -> Result<bool, InboxError> {
        let sql = "with known as (select exists (select from inbox.dead_letters \
                   where consumer_id operator(pg_catalog.=) $1 \
                       and code operator(pg_catalog.=) $11) as code) \
               insert into inbox.dead_letters (consumer_id, lane, message_id, day, topic, partition, \
                   record_offset, key, payload, headers, code, error, attempts, replays, \
                   produced_at, stored_at, unclaimed, first_failed_at) \
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, \
                   $13, $14, $15, $16, $17, coalesce((select since from inbox.parked_lanes \
                       where consumer_id operator(pg_catalog.=) $1 \
                           and lane operator(pg_catalog.=) $2), pg_catalog.now())) \
               on conflict do nothing returning not (select code from known)";
        let Source { topic, partition, offset } = &message.source;
        let (lane, id, headers) = (
            self.ordering.lane(message),
            message.id.uuid(),
            self.repertoire.headers(&message.headers),
        );
        let topic = self.repertoire.text(topic);
        let (code, text) = self.why(failure);
        let (day, payload) = (message.id.day(), Payload::of(message));
        let (produced_at, stored_at) = times(message);
        open.carries(message);
        let params: [&(dyn ToSql + Sync); 17] = [
            &self.consumer_id,
            &lane,
            &id,
            &day,
            &topic,
            partition,
            offset,
            &message.key,
            &payload,
            &headers,
            &code,
            &text,
            &attempts,
            &replays,
            &produced_at,
            &stored_at,
            &unclaimed,
        ];
        let rows = open.query("storing a dead letter", sql, &params).await?;
        point(Point::Burying);
        let Some(row) = rows.first() else {
            let there = "select from inbox.dead_letters where consumer_id operator(pg_catalog.=) $1 \
                and message_id operator(pg_catalog.=) $2 and state operator(pg_catalog.=) 'dead'";
            let params: [&(dyn ToSql + Sync); 2] = [&self.consumer_id, &id];
            return match open.query("looking for a dead letter", there, &params).await?.is_empty() {
                true => Err(guard::kept_out_of("inbox.dead_letters")),
                false => Ok(false),
            };
        };
        row.try_get(0).map_err(|error| InboxError::of("reading", error))
    }
}

/// Its producer's time, or its broker's, as a column takes it.
fn times(message: &RawMessage) -> (Option<SystemTime>, Option<SystemTime>) {
    let time = |by: fn(Timestamp) -> Option<SystemTime>| {
        message.timestamp.and_then(by).map(repertoire::time)
    };
    (time(Timestamp::produced), time(Timestamp::stored))
}

impl Shelf {
    /// Parks lanes again that have messages and no row, so that no one would ever take them up;
    /// returns how many.
    pub(super) async fn rejoin(self, sessions: &Arc<Sessions>) -> Result<usize, InboxError> {
        let sql = "insert into inbox.parked_lanes (consumer_id, lane) \
               select distinct p.consumer_id, p.lane from inbox.parked as p \
               where p.consumer_id operator(pg_catalog.=) $1 \
                   and not exists (select from inbox.parked_lanes as l \
                       where l.consumer_id operator(pg_catalog.=) p.consumer_id \
                           and l.lane operator(pg_catalog.=) p.lane) \
               on conflict do nothing returning 1";
        let doing = "looking for messages without a lane";
        let (open, rows) = Open::begin(sessions, doing, sql, &[&self.consumer_id]).await?;
        open.commit().await?;
        Ok(rows.len())
    }

    /// A lane's head has failed again.
    pub(super) async fn postpone(
        self,
        open: &Open,
        lane: Uuid,
        attempts: i32,
        due: Due,
        failure: &Failure,
    ) -> Result<(), InboxError> {
        // clock_timestamp(): the handler may have taken long.
        let sql = "update inbox.parked_lanes set attempts = $3, code = $6, error = $7, \
               set_at = pg_catalog.clock_timestamp(), asked = pg_catalog.make_interval(secs => $9), \
               due_at = greatest($5, pg_catalog.clock_timestamp() \
                   operator(pg_catalog.+) pg_catalog.make_interval(secs => $4) \
                   operator(pg_catalog.+) case when $8 then greatest(interval '0', \
                       least(interval '1 minute', \
                           pg_catalog.clock_timestamp() operator(pg_catalog.-) since)) \
                       else interval '0' end) \
               where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2";
        let (seconds, at) = due.params();
        let grows = matches!(due, Due::Again);
        let (code, text) = self.why(failure);
        let asked = due.asked();
        let params: [&(dyn ToSql + Sync); 9] =
            [&self.consumer_id, &lane, &attempts, &seconds, &at, &code, &text, &grows, &asked];
        open.query("postponing a lane", sql, &params).await?;
        point(Point::Postponing);
        Ok(())
    }
}
