//! A streak: one worker takes a lane's messages one after the other, with no look at other lanes.
//!
//! It knows the lane, so it locks the lane's row by its key and takes the message in the same statement. It
//! knows where the last message was, so it does not pass over all that was deleted before. And none of these
//! messages has failed yet, so they have no savepoint: like a new message, one that fails is rolled back, and a
//! second transaction stores that it failed. A streak lasts a second; then lanes that have waited longer come
//! first.

use std::sync::Arc;

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    Attempt, Processor,
    hands::{Hands, Streak},
    store::Shelf,
    taken::{Head, SIZE, TAKEN, head},
};
use crate::{
    error::InboxError,
    failure::{Failure, Kind},
    fault::{Point, point},
    message::LARGE,
    meter::Outcome,
    session::Sessions,
    transaction::Open,
};

/// The transaction has locked the lane and taken this message.
struct Next {
    open: Open,
    head: Head,
    /// Whether there are others behind it, as far as the statement's snapshot tells.
    more: bool,
}

impl Processor {
    /// Handles the next message of a lane; `None` where it has none that this worker may take now.
    pub(super) async fn take_next(
        &self,
        Streak { lane, behind }: Streak,
        hands: &Hands,
    ) -> Result<Option<Attempt>, InboxError> {
        let shelf = self.shelf();
        let next = shelf.next(self.shared.inbox.sessions(), lane, behind).await?;
        let Some(Next { open, head, more }) = next else { return Ok(None) };
        hands.blame(lane, &head);
        point(Point::TakenUp);
        // Before the handler, which may leave the session in any role.
        let more = more || !shelf.free(&open, lane).await?;
        if let Err(failure) = self.work(open.tx(), vec![head.message]).await {
            return match open.rollback().await {
                Err(why @ (InboxError::Escaped | InboxError::Ended)) => Err(why),
                _ => Ok(Some(Attempt::Failed(failure))),
            };
        }
        point(Point::Retried);
        match open.commit().await {
            Ok(()) => {}
            // Whether it was kept the next look tells; this one was answered.
            Err(InboxError::Unavailable(error)) => {
                let lost = Failure::new(Kind::Lost, "unavailable", error);
                return Ok(Some(Attempt::Failed(lost)));
            }
            Err(error) => return Err(error),
        }
        self.shared.meter.count(Outcome::Applied, 1);
        if more {
            hands.keep(lane, head.seq);
        }
        Ok(Some(Attempt::Done))
    }
}

impl Shelf {
    /// Begins, locks the lane, and takes its first message behind that place: one statement, in one round trip.
    ///
    /// Its snapshot may be older than the lock. Where somebody else has taken the message since, it is gone, and
    /// nothing is taken. Where somebody has added messages since, they are behind it, and [`Shelf::free`] looks
    /// for them.
    async fn next(
        self,
        sessions: &Arc<Sessions>,
        lane: Uuid,
        behind: i64,
    ) -> Result<Option<Next>, InboxError> {
        const DOING: &str = "taking the next message of a parked lane";
        let params: [&(dyn ToSql + Sync); 3] = [&self.consumer_id, &lane, &behind];
        let (open, rows) = Open::begin(sessions, DOING, &next(), &params).await?;
        let Some(row) = rows.first() else {
            open.rollback().await?;
            return Ok(None);
        };
        let read = |error| InboxError::of(DOING, error);
        let (more, head) = (row.try_get(12).map_err(read)?, head(row, 1).map_err(read)?);
        open.carries(&head.message);
        Ok(Some(Next { open, head, more }))
    }

    /// Frees a lane that is locked, if it has no message left; says whether it had none. A statement of its own:
    /// its snapshot has what was added before the lock.
    async fn free(self, open: &Open, lane: Uuid) -> Result<bool, InboxError> {
        let sql = "delete from inbox.parked_lanes \
                   where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2 \
                       and not exists (select from inbox.parked \
                           where consumer_id operator(pg_catalog.=) $1 \
                               and lane operator(pg_catalog.=) $2) \
                   returning 1";
        let freed = open.query("freeing a parked lane", sql, &[&self.consumer_id, &lane]).await?;
        Ok(!freed.is_empty())
    }
}

/// A large message is left to a look at all lanes, which asks for a turn first.
fn next() -> String {
    format!(
        "with lane as materialized (select l.lane from inbox.parked_lanes as l \
            where l.consumer_id operator(pg_catalog.=) $1 and l.lane operator(pg_catalog.=) $2 \
                and l.attempts operator(pg_catalog.=) 0 and l.code is null \
                and l.due_at operator(pg_catalog.<=) pg_catalog.now() \
                and l.due_at operator(pg_catalog.>=) \
                    (pg_catalog.now() operator(pg_catalog.-) interval '1 second') \
            for update skip locked), \
        first as materialized (select array(select p.seq from inbox.parked as p \
            where p.consumer_id operator(pg_catalog.=) $1 and p.lane operator(pg_catalog.=) $2 \
                and p.seq operator(pg_catalog.>) $3 order by p.seq limit 2) as seqs) \
        delete from inbox.parked as p using lane, first \
        where p.consumer_id operator(pg_catalog.=) $1 and p.lane operator(pg_catalog.=) lane.lane \
            and p.seq operator(pg_catalog.=) first.seqs[1] \
            and {SIZE} operator(pg_catalog.<=) {LARGE} \
        returning {TAKEN}, pg_catalog.cardinality(first.seqs) operator(pg_catalog.=) 2, \
            pg_catalog.pg_backend_pid() as backend"
    )
}
