//! Takes parked lanes up again, each from its head, when they are due.
//!
//! Any process of the consumer may take any lane: the lock on the lane's row makes them take turns,
//! with one another and with live messages of the lane. A failure is stored under that same lock,
//! behind a savepoint, so no one can take the head between its failure and its new due time. Each
//! message has a transaction of its own, as it would have had without waiting: what a handler
//! locks, sets or makes in it is gone before the next. A batch handler gets a batch of a lane.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    Attempt, Processor, Stop,
    aside::{ENDED, UNFINISHED},
    store::Due,
    taken::{Head, Taken},
};
use crate::{
    error::{InboxError, chain},
    failure::{Failure, Kind},
    fault::{Point, point},
    meter::Outcome,
    transaction::Open,
};

/// Parked lanes that are worked on at once, in one process.
pub(crate) const AT_ONCE: usize = 8;
/// How long a lane that another process parked may be overlooked.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at what waits.
const OBSERVE: Duration = Duration::from_secs(15);
/// Between two visits of the inbox's partitions.
const MAINTAIN: Duration = Duration::from_secs(3600);
/// The same, while one is left that is past retention: each visit may hold others up for 50 ms.
const MAINTAIN_AGAIN: Duration = Duration::from_secs(60);

/// What waits, of all processes of the consumer.
struct Waits {
    lanes: i64,
    parked: i64,
    oldest_seconds: f64,
    dead: i64,
}

/// A parked message.
struct Parked {
    lane: Uuid,
    head: Head,
}

impl Processor {
    /// What must go on beside the messages that come in: parked ones are tried again when they are
    /// due, gauges are measured, days of the inbox are made and dropped. Runs until it is dropped
    /// or can't go on; the Kafka runner does it by itself. Any number of processes may run it.
    ///
    /// Cancel safe: what is dropped is rolled back.
    pub async fn background(&self) -> Stop {
        let retries = (0..AT_ONCE).map(|_| Box::pin(self.retries()));
        tokio::select! {
            (stop, _, _) = future::select_all(retries) => stop,
            stop = self.upkeep() => stop,
        }
    }

    /// One of those that have nothing to do looks whether anything is due; whoever takes something up has
    /// the next one look at once.
    async fn retries(&self) -> Stop {
        loop {
            let head = Mutex::new(None);
            let mut outcome = self.settle(|| self.retry_one(&head)).await;
            let head = head.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let (Ok(Attempt::Failed(failure)), Some(head)) = (&outcome, head) {
                outcome = self.settle(|| self.count_failure(&head, failure)).await;
            }
            match outcome {
                Err(stop) => return stop,
                Ok(Attempt::Done) => continue,
                Ok(Attempt::Idle | Attempt::Large | Attempt::Failed(_)) => {}
            }
            let _lookout = self.shared.lookout.lock().await;
            tokio::select! {
                () = self.shared.parked.notified() => {}
                () = self.shared.due.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn upkeep(&self) -> Stop {
        let (mut maintained, mut said) = (Instant::now(), false);
        let (mut refused, mut timeline) = (HashSet::new(), None);
        loop {
            if let Err(weakened @ InboxError::Setting(_)) = self.shared.inbox.is_whole().await {
                return Stop::Inbox(weakened);
            }
            if let Err(error) = self.look_at_the_timeline(&mut timeline).await {
                let error = chain(&error);
                tracing::debug!(error, "whether the database has failed over is not known");
            }
            match self.observe().await {
                Ok(waits) if !said => {
                    said = true;
                    let consumer = self.shared.inbox.consumer();
                    let Waits { lanes, parked, dead, .. } = waits;
                    tracing::info!(consumer, parked, lanes, dead, "messages from before that wait");
                }
                Ok(_) => {}
                Err(error) => {
                    let not_done = "gauges of the inbox are not measured";
                    self.pass_over(error, not_done, &mut refused).await;
                }
            }
            match self.shelf().rejoin(self.shared.inbox.sessions()).await {
                Ok(0) => {}
                Ok(lanes) => {
                    let consumer = self.shared.inbox.consumer();
                    tracing::error!(
                        consumer,
                        lanes,
                        "messages waited in inbox.parked that no process would have taken up, since \
                         inbox.parked_lanes had no row for their keys: a version before this one could \
                         leave that so under REPEATABLE READ, or somebody deleted the rows. They are \
                         taken up now, after later messages of their keys may have taken effect"
                    );
                    self.shared.due.notify_one();
                }
                Err(error) => {
                    let not_done = "messages without a lane are not looked for";
                    self.pass_over(error, not_done, &mut refused).await;
                }
            }
            if self.by_partition()
                && let Err(error) = self.trim().await
            {
                let not_done = "old ids are not forgotten, so inbox.applied grows";
                self.pass_over(error, not_done, &mut refused).await;
            }
            let inbox = &self.shared.inbox;
            if maintained.elapsed() >= until_next_visit(inbox.overdue()) {
                match inbox.maintain().await {
                    Ok(()) => maintained = Instant::now(),
                    Err(error) => {
                        let error = chain(&error);
                        tracing::warn!(error, "the inbox's partitions were not visited");
                    }
                }
            }
            tokio::time::sleep(OBSERVE).await;
        }
    }

    /// What upkeep could not do now is done later, but for what a person must change: said once.
    async fn pass_over(
        &self,
        error: InboxError,
        not_done: &'static str,
        refused: &mut HashSet<&'static str>,
    ) {
        let error = self.shared.inbox.sessions().explained(error).await;
        let (consumer, text) = (self.shared.inbox.consumer(), chain(&error));
        if matches!(error, InboxError::Refused { .. }) && refused.insert(not_done) {
            tracing::error!(consumer, error = text, "{not_done}");
        } else {
            tracing::debug!(consumer, error = text, "{not_done}");
        }
    }

    async fn observe(&self) -> Result<Waits, InboxError> {
        let sql = "select \
            (select pg_catalog.count(*) from inbox.parked_lanes \
                where consumer_id operator(pg_catalog.=) $1), \
            (select pg_catalog.count(*) from inbox.parked \
                where consumer_id operator(pg_catalog.=) $1), \
            coalesce((select extract(epoch from pg_catalog.clock_timestamp() \
                    operator(pg_catalog.-) pg_catalog.min(since)) from inbox.parked_lanes \
                where consumer_id operator(pg_catalog.=) $1), 0)::double precision, \
            (select pg_catalog.count(*) from inbox.dead_letters \
                where consumer_id operator(pg_catalog.=) $1 and state operator(pg_catalog.=) 'dead')";
        let inbox = &self.shared.inbox;
        let consumer_id = inbox.consumer_id();
        let (open, rows) = Open::begin(inbox.sessions(), "measuring", sql, &[&consumer_id]).await?;
        open.rollback().await?;
        let row = rows.first().expect("a query without a table returns one row");
        let read = |error| InboxError::of("measuring", error);
        let waits = Waits {
            lanes: row.try_get(0).map_err(read)?,
            parked: row.try_get(1).map_err(read)?,
            oldest_seconds: row.try_get(2).map_err(read)?,
            dead: row.try_get(3).map_err(read)?,
        };
        self.shared.meter.gauges(waits.lanes, waits.parked, waits.oldest_seconds, waits.dead);
        Ok(waits)
    }

    /// Takes the lane that has been due longest and handles its first message, or a batch of them.
    /// `first` becomes the one that is to be blamed if that can't be said here.
    async fn retry_one(&self, first: &Mutex<Option<Parked>>) -> Result<Attempt, InboxError> {
        let (sessions, shelf) = (self.shared.inbox.sessions(), self.shelf());
        let max = i64::try_from(self.shared.batch_max).unwrap_or(i64::MAX);
        let (mut turn, place) = (self.shared.large.try_turn(), self.shared.large.try_parked());
        let large_too = turn.is_some() && place.is_some();
        let taken = shelf.take(sessions, None, max, large_too).await?;
        let is_large = taken.as_ref().is_some_and(Taken::is_large);
        if let Some(turn) = &mut turn {
            turn.used(is_large);
        }
        drop(turn);
        let Some(Taken { open, lane, attempts, heads }) = taken else {
            return Ok(Attempt::Idle);
        };
        self.shared.due.notify_one();
        let Some(head) = heads.first() else {
            // It is free again.
            open.commit().await?;
            return Ok(Attempt::Done);
        };
        let _place = place.filter(|_| is_large);
        *first.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Parked { lane, head: head.clone() });
        point(Point::TakenUp);
        let mut group = heads.as_slice();
        loop {
            let failure = match self.try_group(&open, group).await {
                Ok(Ok(())) => return Ok(Attempt::Done),
                Ok(Err(failure)) => failure,
                // Whoever keeps it would have the lane as well, for as long.
                Err(InboxError::Escaped) => {
                    return open.rollback().await.and(Err(InboxError::Escaped));
                }
                Err(error) => return Err(error),
            };
            if !failure.is_the_messages() || open.back_to_savepoint().await.is_err() {
                return match open.rollback().await {
                    Err(ended @ InboxError::Ended) => Err(ended),
                    _ => Ok(Attempt::Failed(failure)),
                };
            }
            if group.len() == 1 {
                if head.message.is_large() && self.outlook(&failure, attempts).1.is_none() {
                    // Storing it takes a turn, and that is taken before a connection.
                    open.rollback().await?;
                    return Ok(Attempt::Failed(failure));
                }
                self.failed_again(open, lane, head, &failure, attempts).await?;
                return Ok(Attempt::Done);
            }
            // A batch that fails is halved until the first is alone.
            group = group.get(..group.len().div_ceil(2)).unwrap_or_default();
            // Before the handler, which may leave the session in any role.
            shelf.advance(&open, lane, group).await?;
        }
    }

    /// Handles and commits. On a failure the transaction is open, unless the failure has ended it.
    async fn try_group(
        &self,
        open: &Open,
        group: &[Head],
    ) -> Result<Result<(), Failure>, InboxError> {
        let messages = group.iter().map(|head| head.message.clone()).collect();
        let done = self.work(open.tx(), messages).await;
        open.alone()?;
        if done.is_err() {
            return Ok(done);
        }
        point(Point::Retried);
        match open.commit_or_go_back().await {
            Ok(()) => {
                self.shared.meter.count(Outcome::Applied, group.len());
                Ok(Ok(()))
            }
            Err(InboxError::Aborted(state)) => Ok(Err(super::aborted(state))),
            Err(InboxError::Uncommitted(error)) => Ok(Err(error.into())),
            Err(error @ InboxError::Unfinished) => {
                Ok(Err(Failure::new(Kind::Transient, UNFINISHED, error)))
            }
            // Whether it was kept the next look tells; this one was answered.
            Err(InboxError::Unavailable(error)) => {
                Ok(Err(Failure::new(Kind::Lost, "unavailable", error)))
            }
            Err(error) => Err(error),
        }
    }

    /// A message that could not be tried to an end, again and again: that counts as one failure, or it
    /// would keep its place before all others for ever.
    async fn count_failure(&self, at: &Parked, failure: &Failure) -> Result<Attempt, InboxError> {
        let (sessions, shelf) = (self.shared.inbox.sessions(), self.shelf());
        let turn = match at.head.message.is_large() {
            true => Some(self.shared.large.turn().await),
            false => None,
        };
        let taken = shelf.take(sessions, Some(at.lane), 1, turn.is_some()).await?;
        let there = taken.as_ref().and_then(|taken| taken.heads.first());
        let is_there = there.is_some_and(|head| head.seq == at.head.seq);
        match taken {
            Some(Taken { open, lane, attempts, .. }) if is_there => {
                open.back_to_savepoint().await?;
                self.failed_again(open, lane, &at.head, failure, attempts).await?;
            }
            Some(Taken { open, .. }) => open.rollback().await?,
            None => {}
        }
        if !is_there && failure.code() == ENDED {
            self.bury_what_was_taken(at, failure).await?;
        }
        Ok(Attempt::Done)
    }

    /// Its handler has committed that it is parked no more, and not all of the effect. Where it is parked
    /// still, the handler has rolled back, and somebody else has its lane by now.
    async fn bury_what_was_taken(&self, at: &Parked, failure: &Failure) -> Result<(), InboxError> {
        const DOING: &str = "giving a message up";
        let (sessions, head) = (self.shared.inbox.sessions(), &at.head);
        let is_parked = "select exists (select from inbox.parked \
            where consumer_id operator(pg_catalog.=) $1 and lane operator(pg_catalog.=) $2 \
                and seq operator(pg_catalog.=) $3)";
        let consumer_id = self.shared.inbox.consumer_id();
        let params: [&(dyn ToSql + Sync); 3] = [&consumer_id, &at.lane, &head.seq];
        let (open, rows) = Open::begin(sessions, DOING, is_parked, &params).await?;
        let row = rows.first().expect("a query without a table returns one row");
        if row.try_get(0).map_err(|error| InboxError::of(DOING, error))? {
            return open.rollback().await;
        }
        let (message, replays) = (&head.message, head.replays);
        let new_code = self.shelf().bury(&open, message, failure, 1, replays).await?;
        open.commit().await?;
        self.announce(failure, new_code);
        Ok(())
    }

    /// How often it has failed then, and when it is tried again.
    fn outlook(&self, failure: &Failure, attempts: i32) -> (i32, Option<Due>) {
        let deferred = matches!(failure.kind, Kind::Defer(_));
        let failed = if deferred { attempts } else { attempts.saturating_add(1) };
        (failed, self.due(failure, u32::try_from(failed).unwrap_or(u32::MAX)))
    }

    /// Stores what becomes of a head that failed again: a new due time, or a dead letter.
    async fn failed_again(
        &self,
        open: Open,
        lane: Uuid,
        head: &Head,
        failure: &Failure,
        attempts: i32,
    ) -> Result<(), InboxError> {
        let shelf = self.shelf();
        let (failed, due) = self.outlook(failure, attempts);
        if let Some(due) = due {
            shelf.postpone(&open, lane, failed, due, failure).await?;
            return open.commit().await;
        }
        let (message, replays) = (&head.message, head.replays);
        let new_code = shelf.bury(&open, message, failure, failed, replays).await?;
        shelf.advance(&open, lane, std::slice::from_ref(head)).await?;
        open.commit().await?;
        self.announce(failure, new_code);
        Ok(())
    }
}

fn until_next_visit(overdue: bool) -> Duration {
    if overdue { MAINTAIN_AGAIN } else { MAINTAIN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_is_left_past_retention_is_visited_again_within_minutes() {
        assert!(until_next_visit(true) <= Duration::from_secs(120));
        assert!(until_next_visit(false) >= Duration::from_secs(1800));
    }
}
