//! The statements that take messages from a parked lane's head.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    reads::{Reads, is_read},
    store::Shelf,
};
use crate::{
    error::InboxError,
    message::{LARGE, Message, RawMessage, Source},
    message_id::MessageId,
    repertoire,
    session::Sessions,
    timestamp::Timestamp,
    transaction::Open,
};

/// Message of a parked lane, with what is known about it.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) seq: i64,
    pub(super) replays: i32,
    /// It was given up without a claim, since its day was not kept.
    pub(super) unclaimed: bool,
    /// Bytes of its payload, if that is large: [`Shelf::read_large`] has not read it yet, and the message is without.
    pub(super) unread: Option<usize>,
    pub(super) message: RawMessage,
}

/// A lane that is due, locked by the transaction, which has taken its first messages behind a savepoint.
pub(super) struct Taken {
    pub(super) open: Open,
    pub(super) lane: Uuid,
    /// Of its first message, failed so far.
    pub(super) attempts: i32,
    /// Its first messages, which are not parked any more if this commits.
    pub(super) heads: Vec<Head>,
    /// Whether there are others behind them.
    pub(super) more: bool,
}

/// Between two tries to lock a lane that this worker has tried: the first wait, and the longest.
const LOCKED: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(320));

/// The lane to take from.
#[derive(Clone, Copy)]
pub(super) enum Which {
    /// That which has been due longest.
    Any,
    /// This one, due or not.
    This(Uuid),
    /// This one, if it is due and its first message has not failed: its messages are behind this place. Whoever
    /// knows the lane and the place does not pass over all lanes, and not over all that was deleted before.
    Next(Uuid, i64),
}

impl Taken {
    pub(super) fn is_large(&self) -> bool {
        self.heads.iter().any(|head| head.unread.is_some() || head.message.is_large())
    }
}

impl Shelf {
    /// As [`Shelf::take`]. While somebody adds to the lane, or another worker looks at it, it waits for a moment; `None`
    /// after that, and where the lane is gone.
    pub(super) async fn take_soon(
        self,
        sessions: &Arc<Sessions>,
        which: Which,
        max: i64,
        large_too: bool,
    ) -> Result<Option<Taken>, InboxError> {
        let mut wait = LOCKED.0;
        loop {
            let taken = self.take(sessions, which, max, large_too, None).await?;
            if taken.is_some() || wait > LOCKED.1 {
                return Ok(taken);
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }

    /// Begins, locks one of the lanes that no one has locked, and takes its first messages: at most `max`, and a
    /// mebibyte, but at least one, and no more than one where that has failed before, or where the lane is the next
    /// one. A lane whose first message is larger is left to others where `large_too` does not say otherwise. One
    /// without messages is free again. Of any lanes, only those of topics in `reads`, if there is such a list.
    ///
    /// All of it is one round trip. The messages are looked for by a statement of their own, behind the
    /// lock: its snapshot has what whoever had the lane last has left.
    pub(super) async fn take(
        self,
        sessions: &Arc<Sessions>,
        which: Which,
        max: i64,
        large_too: bool,
        reads: Option<&Reads>,
    ) -> Result<Option<Taken>, InboxError> {
        const DOING: &str = "taking a parked lane up";
        let (lane, behind) = match which {
            Which::Any => (None, None),
            Which::This(lane) => (Some(lane), None),
            Which::Next(lane, behind) => (Some(lane), Some(behind)),
        };
        let one = max == 1 || behind.is_some();
        let take = if one { take_one() } else { take_some() };
        let lock = lock(which, reads.is_some());
        let behind = behind.unwrap_or(i64::MIN);
        let mut locking: Vec<&(dyn ToSql + Sync)> = vec![&self.consumer_id, &lane, &large_too];
        locking.extend(reads.iter().flat_map(|reads| reads.params()));
        let taking: [&(dyn ToSql + Sync); 2] =
            [&self.consumer_id, if one { &behind } else { &max }];
        let statements = [(lock.as_str(), &locking[..]), (take.as_str(), &taking[..])];
        let (open, locked, rows) = Open::begin_marked(sessions, DOING, statements).await?;
        let read = |error| InboxError::of(DOING, error);
        let first = locked.first().expect("a query without a table returns one row");
        let Some(lane) = first.try_get::<_, Option<Uuid>>(0).map_err(read)? else {
            open.rollback().await?;
            return Ok(None);
        };
        let (attempts, settled): (i32, bool) =
            (first.try_get(1).map_err(read)?, first.try_get(2).map_err(read)?);
        if rows.is_empty() && matches!(which, Which::Next(..)) {
            // Somebody else has taken it; others may be there.
            open.rollback().await?;
            return Ok(None);
        }
        let more = rows.last().map_or(Ok(false), |row| row.try_get(14)).map_err(read)?;
        if !settled {
            self.go_on(&open, lane).await?;
        }
        let failed = u32::try_from(attempts).unwrap_or(0);
        let counts = std::iter::once(failed.saturating_add(1)).chain(std::iter::repeat(1));
        // Each row goes when its message is made.
        let heads: Result<Vec<Head>, _> =
            rows.into_iter().zip(counts).map(|(row, n)| head(&row, n)).collect();
        let heads = heads.map_err(read)?;
        heads.iter().for_each(|head| open.carries(&head.message));
        Ok(Some(Taken { open, lane, attempts, heads, more }))
    }
}

/// What a message takes as it is stored: nothing is read for it.
const SIZE: &str = "(coalesce(pg_catalog.octet_length(p.payload), 0) \
    operator(pg_catalog.+) coalesce(pg_catalog.octet_length(p.key), 0) \
    operator(pg_catalog.+) pg_catalog.pg_column_size(p.headers))";

/// Locks a lane, and sets `inbox.lane` until the end of the transaction, for the statement behind it,
/// which is sent before anybody here knows the lane: to one that can't be where there is none. Says
/// whether the lane's row may stay as it is while there are messages.
fn lock(which: Which, of_topics: bool) -> String {
    const DUE: &str = "l.due_at operator(pg_catalog.<=) pg_catalog.now()";
    const SETTLED: &str = "l.attempts operator(pg_catalog.=) 0 and l.code is null \
        and l.due_at operator(pg_catalog.<=) pg_catalog.now() \
        and l.due_at operator(pg_catalog.>=) (pg_catalog.now() operator(pg_catalog.-) interval '1 second')";
    let condition = match which {
        Which::Any => format!("$2::pg_catalog.uuid is null and {DUE}"),
        Which::This(_) => "l.lane operator(pg_catalog.=) $2".to_owned(),
        Which::Next(..) => format!("l.lane operator(pg_catalog.=) $2 and {DUE} and {SETTLED}"),
    };
    // One without messages is anyone's.
    let is_read = match of_topics {
        true => format!(
            "and coalesce((select {} from inbox.parked as p \
                where p.consumer_id operator(pg_catalog.=) $1 \
                    and p.lane operator(pg_catalog.=) l.lane \
                order by p.seq limit 1), true)",
            is_read("p.topic", "$4", "$5")
        ),
        false => String::new(),
    };
    format!(
        "with due as (select l.lane, l.attempts, {SETTLED} as settled \
            from inbox.parked_lanes as l \
            where l.consumer_id operator(pg_catalog.=) $1 and {condition} \
                and ($3 or coalesce((select {SIZE} from inbox.parked as p \
                    where p.consumer_id operator(pg_catalog.=) $1 \
                        and p.lane operator(pg_catalog.=) l.lane \
                    order by p.seq limit 1), 0) operator(pg_catalog.<=) {LARGE}) {is_read} \
            order by l.due_at limit 1 for no key update skip locked) \
        select d.lane, d.attempts, d.settled, pg_catalog.set_config('inbox.lane', \
            coalesce(d.lane, '00000000-0000-0000-0000-000000000000')::pg_catalog.text, true), \
            pg_catalog.pg_backend_pid() as backend, \
            case when d.lane is not null then pg_catalog.pg_current_xact_id()::pg_catalog.text end \
                as transaction \
        from (values (1)) as one left join due as d on true"
    )
}

/// Of the lane that is locked.
const OF_THE_LANE: &str = "p.consumer_id operator(pg_catalog.=) $1 \
    and p.lane operator(pg_catalog.=) pg_catalog.current_setting('inbox.lane')::pg_catalog.uuid";

/// The columns that [`head`] reads: of a large payload only its size.
fn taken() -> String {
    let is_large = format!("pg_catalog.octet_length(p.payload) operator(pg_catalog.>) {LARGE}");
    format!(
        "p.seq, p.replays, p.message_id, p.topic, p.partition, p.record_offset, \
        p.key, case when {is_large} then null else p.payload end as payload, p.headers, p.day, \
        p.produced_at, p.stored_at, p.unclaimed, \
        case when {is_large} then pg_catalog.octet_length(p.payload) end as unread"
    )
}

/// Takes the first message behind a place, and says whether there are more.
fn take_one() -> String {
    let taken = taken();
    format!(
        "delete from inbox.parked as p \
        where {OF_THE_LANE} and p.seq operator(pg_catalog.=) (select p.seq \
            from inbox.parked as p where {OF_THE_LANE} and p.seq operator(pg_catalog.>) $2 \
            order by p.seq limit 1) \
        returning {taken}, exists (select from inbox.parked as later \
            where later.consumer_id operator(pg_catalog.=) p.consumer_id \
                and later.lane operator(pg_catalog.=) p.lane \
                and later.seq operator(pg_catalog.>) p.seq)"
    )
}

/// Takes the first messages; the last row's last column says whether there are more.
fn take_some() -> String {
    let taken = taken();
    format!(
        "with gone as (delete from inbox.parked as p \
            where {OF_THE_LANE} and p.seq operator(pg_catalog.=) any (array(select h.seq from ( \
                select p.seq, pg_catalog.row_number() over (order by p.seq) as place, \
                    pg_catalog.sum({SIZE}) over (order by p.seq) as bytes \
                from inbox.parked as p where {OF_THE_LANE} \
                order by p.seq limit (select case when l.attempts operator(pg_catalog.=) 0 \
                        then $2::pg_catalog.int8 else 1 end from inbox.parked_lanes as l \
                    where l.consumer_id operator(pg_catalog.=) $1 and l.lane operator(pg_catalog.=) \
                        pg_catalog.current_setting('inbox.lane')::pg_catalog.uuid)) as h \
                where h.place operator(pg_catalog.=) 1 \
                    or coalesce(h.bytes, 0) operator(pg_catalog.<=) {LARGE})) \
            returning {taken}) \
        select gone.*, exists (select from inbox.parked as p where {OF_THE_LANE} \
            and p.seq operator(pg_catalog.>) (select pg_catalog.max(seq) from gone)) \
        from gone order by seq"
    )
}

fn head(row: &Row, attempt: u32) -> Result<Head, tokio_postgres::Error> {
    let message = message(row, attempt)?;
    let unread: Option<i32> = row.try_get(13)?;
    Ok(Head {
        seq: row.try_get(0)?,
        replays: row.try_get(1)?,
        unclaimed: row.try_get(12)?,
        unread: unread.and_then(|bytes| usize::try_from(bytes).ok()),
        message,
    })
}

/// From the third of the columns on.
fn message(row: &Row, attempt: u32) -> Result<RawMessage, tokio_postgres::Error> {
    Ok(Message {
        id: MessageId::from_parts(row.try_get(2)?, row.try_get(9)?),
        source: Source {
            topic: repertoire::told(row.try_get(3)?).into(),
            partition: row.try_get(4)?,
            offset: row.try_get(5)?,
        },
        key: row.try_get(6)?,
        payload: row.try_get::<_, Option<&[u8]>>(7)?.map(Bytes::copy_from_slice),
        headers: repertoire::headers(&row.try_get(8)?),
        timestamp: match row.try_get(10)? {
            Some(time) => Some(Timestamp::Produced(time)),
            None => row.try_get::<_, Option<_>>(11)?.map(Timestamp::Stored),
        },
        attempt,
    })
}

impl Shelf {
    /// Takes a lane's first messages, which [`Shelf::take`] has read and were put back since. Returns whether there
    /// are more.
    pub(super) async fn advance(
        self,
        open: &Open,
        lane: Uuid,
        heads: &[Head],
    ) -> Result<bool, InboxError> {
        const DOING: &str = "taking from a parked lane";
        let sql = "with gone as (delete from inbox.parked \
                   where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2 \
                       and seq operator(pg_catalog.=) any ($3)) \
               select exists (select from inbox.parked \
                   where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2 \
                       and seq operator(pg_catalog.>) $4)";
        let seqs: Vec<i64> = heads.iter().map(|head| head.seq).collect();
        let last = seqs.last().copied().unwrap_or_default();
        let rows = open.query(DOING, sql, &[&self.consumer_id, &lane, &seqs, &last]).await?;
        let row = rows.first().expect("a query without a table returns one row");
        let more = row.try_get(0).map_err(|error| InboxError::of(DOING, error))?;
        self.go_on(open, lane).await?;
        Ok(more)
    }

    /// A statement that keeps other workers from taking the lane for a while. It waits for no one: a lost session may
    /// have the lane still.
    pub(super) fn reserve(self, lane: Uuid) -> String {
        let of = format!(
            "l.consumer_id operator(pg_catalog.=) {} and l.lane operator(pg_catalog.=) '{lane}'",
            self.consumer_id
        );
        format!(
            "update inbox.parked_lanes as l set due_at = pg_catalog.clock_timestamp() \
                 operator(pg_catalog.+) interval '10 seconds', \
                 set_at = pg_catalog.clock_timestamp(), asked = null \
             from (select l.lane from inbox.parked_lanes as l where {of} \
                 for no key update skip locked) as k \
             where {of} and k.lane operator(pg_catalog.=) l.lane"
        )
    }

    /// A lane continues with its next message at once, behind others that are due; or it has none, and is free as
    /// soon as someone sees that.
    async fn go_on(self, open: &Open, lane: Uuid) -> Result<(), InboxError> {
        let sql = "update inbox.parked_lanes set attempts = 0, due_at = pg_catalog.now(), \
                     set_at = pg_catalog.now(), asked = null, \
                     code = null, error = null, since = pg_catalog.now() \
                 where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2";
        open.query("going on with a parked lane", sql, &[&self.consumer_id, &lane]).await?;
        Ok(())
    }

    /// Frees a lane, if it has no messages.
    ///
    /// Never in a transaction that a handler is called in: whoever adds to the lane would wait for that handler. They
    /// hold the lane's row until they have committed, so where one of them is at work it is left for later.
    pub(super) async fn free(self, sessions: &Sessions, lane: Uuid) -> Result<(), InboxError> {
        const DOING: &str = "freeing a key that nothing waits of";
        // Whether the lane is locked here, and the second statement may look behind the lock.
        const LOCK: &str = "select pg_catalog.set_config('inbox.lane', k.lane::pg_catalog.text, true) \
            from (select l.lane from inbox.parked_lanes as l \
                where l.consumer_id operator(pg_catalog.=) $1 and l.lane operator(pg_catalog.=) $2 \
                for update skip locked) as k";
        const FREE: &str = "delete from inbox.parked_lanes as l \
            where l.consumer_id operator(pg_catalog.=) $1 and l.lane operator(pg_catalog.=) $2 \
                and pg_catalog.current_setting('inbox.lane', true) \
                    operator(pg_catalog.=) $2::pg_catalog.text \
                and not exists (select from inbox.parked as p \
                    where p.consumer_id operator(pg_catalog.=) $1 and p.lane operator(pg_catalog.=) $2)";
        const LATER: &str = "update inbox.parked_lanes as l \
            set due_at = pg_catalog.clock_timestamp() operator(pg_catalog.+) interval '200 milliseconds', \
                set_at = pg_catalog.clock_timestamp(), asked = null \
            from (select l.lane from inbox.parked_lanes as l \
                where l.consumer_id operator(pg_catalog.=) $1 and l.lane operator(pg_catalog.=) $2 \
                    and not exists (select from inbox.parked as p \
                        where p.consumer_id operator(pg_catalog.=) $1 and p.lane operator(pg_catalog.=) $2) \
                for no key update skip locked) as k \
            where l.consumer_id operator(pg_catalog.=) $1 and l.lane operator(pg_catalog.=) k.lane";
        let params: [&(dyn ToSql + Sync); 2] = [&self.consumer_id, &lane];
        if sessions.run_alone(DOING, &[LOCK, FREE], &params).await? == 0 {
            sessions.run_alone(DOING, &[LATER], &params).await?;
        }
        Ok(())
    }
}
