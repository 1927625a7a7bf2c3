//! The statements that put messages aside: parked, dead, taken from a lane's head.

use std::time::SystemTime;

use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use crate::{
    error::InboxError,
    failure::Failure,
    fault::{Point, point},
    message::{Headers, Message, RawMessage, Source},
    message_id::MessageId,
    ordering::Ordering,
    transaction::Open,
};

/// When a lane is due.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    /// After so many seconds, by the database's clock.
    In(f64),
    /// At a time that the handler named.
    At(SystemTime),
}

impl Due {
    fn params(self) -> (f64, Option<SystemTime>) {
        match self {
            Due::In(seconds) => (seconds, None),
            Due::At(time) => (0.0, Some(time)),
        }
    }
}

/// Message of a parked lane, with what is known about it.
pub(super) struct Head {
    pub(super) seq: i64,
    pub(super) replays: i32,
    pub(super) message: RawMessage,
}

/// Where one consumer's messages are put aside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shelf {
    pub(super) consumer_id: i32,
    pub(super) ordering: Ordering,
}

impl Shelf {
    /// Adds messages to the ends of their lanes, which are parked and locked by this transaction.
    pub(super) async fn append(
        self,
        open: &Open,
        messages: &[&RawMessage],
    ) -> Result<(), InboxError> {
        let sql = "insert into inbox.parked \
               (consumer_id, lane, message_id, day, topic, partition, record_offset, key, payload, headers) \
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        for message in messages {
            let Source { topic, partition, offset } = &message.source;
            let (lane, id, headers) =
                (self.ordering.lane(message), message.id.uuid(), message.headers.to_json());
            let day = message.id.day();
            let params: [&(dyn ToSql + Sync); 10] = [
                &self.consumer_id,
                &lane,
                &id,
                &day,
                &&**topic,
                partition,
                offset,
                &message.key,
                &message.payload,
                &headers,
            ];
            open.query("parking a message", sql, &params).await?;
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
        let sql = "insert into inbox.parked_lanes as l (consumer_id, lane, attempts, due_at, code, error) \
               values ($1, $2, $3, coalesce($5, pg_catalog.now() \
                   operator(pg_catalog.+) pg_catalog.make_interval(secs => $4)), $6, $7) \
               on conflict (consumer_id, lane) do update set due_at = l.due_at";
        let (lane, (seconds, at)) = (self.ordering.lane(message), due.params());
        let (code, text) = (failure.code(), failure.text());
        let params: [&(dyn ToSql + Sync); 7] =
            [&self.consumer_id, &lane, &attempts, &seconds, &at, &code, &text];
        open.query("parking a lane", sql, &params).await?;
        self.append(open, &[message]).await
    }

    /// Stores a dead letter, and says whether its code is new to this consumer.
    pub(super) async fn bury(
        self,
        open: &Open,
        message: &RawMessage,
        failure: &Failure,
        attempts: i32,
        replays: i32,
    ) -> Result<bool, InboxError> {
        let sql = "with known as (select exists (select from inbox.dead_letters \
                   where consumer_id operator(pg_catalog.=) $1 \
                       and code operator(pg_catalog.=) $11) as code) \
               insert into inbox.dead_letters (consumer_id, lane, message_id, day, topic, partition, \
                   record_offset, key, payload, headers, code, error, attempts, replays, \
                   first_failed_at) \
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, \
                   $13, $14, coalesce((select since from inbox.parked_lanes \
                       where consumer_id operator(pg_catalog.=) $1 \
                           and lane operator(pg_catalog.=) $2), pg_catalog.now())) \
               on conflict do nothing returning not (select code from known)";
        let Source { topic, partition, offset } = &message.source;
        let (lane, id, headers) =
            (self.ordering.lane(message), message.id.uuid(), message.headers.to_json());
        let (code, text) = (failure.code(), failure.text());
        let day = message.id.day();
        let params: [&(dyn ToSql + Sync); 14] = [
            &self.consumer_id,
            &lane,
            &id,
            &day,
            &&**topic,
            partition,
            offset,
            &message.key,
            &message.payload,
            &headers,
            &code,
            &text,
            &attempts,
            &replays,
        ];
        let rows = open.query("storing a dead letter", sql, &params).await?;
        point(Point::Burying);
        rows.first()
            .map_or(Ok(false), |row| row.try_get(0))
            .map_err(|e| InboxError::of("reading", e))
    }
}

/// Begins, and locks the lane that has been due longest, if there is one that nobody has locked.
pub(super) const LOCK_DUE: &str = "select lane, attempts from inbox.parked_lanes \
     where consumer_id operator(pg_catalog.=) $1 \
         and due_at operator(pg_catalog.<=) pg_catalog.now() \
     order by due_at limit 1 for update skip locked";

impl Shelf {
    /// The first messages of a lane that is locked, at most `max`; the first of them was tried
    /// `attempts` times.
    pub(super) async fn heads(
        self,
        open: &Open,
        lane: Uuid,
        attempts: i32,
        max: i64,
    ) -> Result<Vec<Head>, InboxError> {
        let sql = "select seq, replays, message_id, topic, partition, record_offset, key, payload, headers, \
                   day from inbox.parked \
                   where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2 \
                   order by seq limit $3";
        let params: [&(dyn ToSql + Sync); 3] = [&self.consumer_id, &lane, &max];
        let rows = open.query("taking from a parked lane", sql, &params).await?;
        let first = u32::try_from(attempts).unwrap_or(0).saturating_add(1);
        let attempts = std::iter::once(first).chain(std::iter::repeat(1));
        let heads: Result<_, _> = rows.iter().zip(attempts).map(|(row, n)| head(row, n)).collect();
        heads.map_err(|error| InboxError::of("reading a parked message", error))
    }
}

fn head(row: &Row, attempt: u32) -> Result<Head, tokio_postgres::Error> {
    let message = message(row, attempt)?;
    Ok(Head { seq: row.try_get(0)?, replays: row.try_get(1)?, message })
}

/// From the third column of the query in [`Shelf::heads`] on.
fn message(row: &Row, attempt: u32) -> Result<RawMessage, tokio_postgres::Error> {
    Ok(Message {
        id: MessageId::from_parts(row.try_get(2)?, row.try_get(9)?),
        source: Source {
            topic: row.try_get::<_, &str>(3)?.into(),
            partition: row.try_get(4)?,
            offset: row.try_get(5)?,
        },
        key: row.try_get(6)?,
        payload: row.try_get(7)?,
        headers: Headers::from_json(&row.try_get(8)?),
        attempt,
    })
}

impl Shelf {
    /// Removes a lane's first messages. It goes on with its next one at once, or is free again.
    pub(super) async fn advance(
        self,
        open: &Open,
        lane: Uuid,
        heads: &[Head],
    ) -> Result<(), InboxError> {
        let sql = "with gone as (delete from inbox.parked \
                   where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2 \
                       and seq operator(pg_catalog.=) any ($3)), \
               more as (select exists (select from inbox.parked \
                   where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2 \
                       and seq operator(pg_catalog.<>) all ($3)) as there), \
               next as (update inbox.parked_lanes set attempts = 0, due_at = pg_catalog.now(), \
                       code = null, error = null, since = pg_catalog.now() \
                   where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2 \
                       and (select there from more)) \
               delete from inbox.parked_lanes \
               where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2 \
                   and not (select there from more)";
        let seqs: Vec<i64> = heads.iter().map(|head| head.seq).collect();
        open.query("taking from a parked lane", sql, &[&self.consumer_id, &lane, &seqs]).await?;
        Ok(())
    }

    /// Frees a lane without messages.
    pub(super) async fn free(self, open: &Open, lane: Uuid) -> Result<(), InboxError> {
        let sql = "delete from inbox.parked_lanes \
               where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2";
        open.query("freeing a lane", sql, &[&self.consumer_id, &lane]).await?;
        Ok(())
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
               due_at = coalesce($5, pg_catalog.clock_timestamp() \
                   operator(pg_catalog.+) pg_catalog.make_interval(secs => $4)) \
               where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2";
        let (seconds, at) = due.params();
        let (code, text) = (failure.code(), failure.text());
        let params: [&(dyn ToSql + Sync); 7] =
            [&self.consumer_id, &lane, &attempts, &seconds, &at, &code, &text];
        open.query("postponing a lane", sql, &params).await?;
        point(Point::Postponing);
        Ok(())
    }
}
