//! Takes parked lanes up again, each from its head, when they are due.
//!
//! Any process of the consumer may take any lane: the lock on the lane's row makes them take turns,
//! with one another and with live messages of the lane. A failure is stored under that same lock,
//! behind a savepoint, so nobody can take the head between its failure and its new due time. Several
//! messages of a lane share a transaction: a key that was parked under load must catch up.

use std::time::Duration;

use futures_util::future;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Attempt, Processor, Stop, store};
use crate::{
    error::{InboxError, chain},
    failure::{Failure, Kind},
    fault::{Point, point},
    meter::Outcome,
    transaction::Open,
};

/// Parked lanes that are worked on at once, in one process.
const AT_ONCE: usize = 4;
/// Messages of a lane that are handled in one transaction: below what a session caches of
/// subtransactions (64), beyond which all others get slower.
const AT_A_TIME: i64 = 32;
/// How long a lane that another process parked may be overlooked.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at what waits.
const OBSERVE: Duration = Duration::from_secs(15);
/// Between two visits of the inbox's partitions.
const MAINTAIN: Duration = Duration::from_secs(3600);
/// The same, while one is left that is past retention: each visit may hold others up for 50 ms.
const MAINTAIN_AGAIN: Duration = Duration::from_secs(60);

impl Processor {
    /// What must go on beside the messages that come in: parked ones are tried again when they are
    /// due, gauges are measured, days of the inbox are made and dropped. Runs until it is dropped
    /// or can't go on; the Kafka runner does it by itself. Any number of processes may run it.
    ///
    /// Cancel safe: what is dropped is rolled back.
    pub async fn background(&self) -> Stop {
        let retries = future::select_all((0..AT_ONCE).map(|_| Box::pin(self.retries())));
        tokio::select! {
            (stop, _, _) = retries => stop,
            stop = self.upkeep() => stop,
        }
    }

    async fn retries(&self) -> Stop {
        loop {
            match self.settle(|| self.retry_one()).await {
                Err(stop) => return stop,
                Ok(Attempt::Done) => continue,
                Ok(Attempt::Idle | Attempt::Failed(_)) => {}
            }
            tokio::select! {
                () = self.shared.parked.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn upkeep(&self) -> Stop {
        let mut maintained = Instant::now();
        loop {
            if let Err(error) = self.observe().await {
                tracing::debug!(%error, "gauges of the inbox were not measured");
            }
            if self.by_partition()
                && let Err(error) = self.trim().await
            {
                tracing::debug!(%error, "old ids were not forgotten");
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

    async fn observe(&self) -> Result<(), InboxError> {
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
        let (open, rows) = Open::begin(inbox.pool(), "measuring", sql, &[&consumer_id]).await?;
        open.rollback().await?;
        if let Some(row) = rows.first() {
            let read = |error| InboxError::of("measuring", error);
            self.shared.meter.gauges(
                row.try_get(0).map_err(read)?,
                row.try_get(1).map_err(read)?,
                row.try_get(2).map_err(read)?,
                row.try_get(3).map_err(read)?,
            );
        }
        Ok(())
    }

    /// Takes the lane that has been due longest, and what it can of it.
    async fn retry_one(&self) -> Result<Attempt, InboxError> {
        const DOING: &str = "looking for what is due";
        let inbox = &self.shared.inbox;
        let shelf = self.shelf();
        let (open, rows) =
            Open::begin(inbox.pool(), DOING, store::LOCK_DUE, &[&shelf.consumer_id]).await?;
        let Some(row) = rows.first() else {
            open.rollback().await?;
            return Ok(Attempt::Idle);
        };
        let read = |error| InboxError::of(DOING, error);
        let lane: Uuid = row.try_get(0).map_err(read)?;
        let attempts: i32 = row.try_get(1).map_err(read)?;
        let heads = shelf.heads(&open, lane, attempts, AT_A_TIME).await?;
        if heads.is_empty() {
            shelf.free(&open, lane).await?;
            open.commit().await?;
            return Ok(Attempt::Done);
        }
        point(Point::TakenUp);
        let (done, failure) = self.try_heads(&open, &heads, attempts).await?;
        let (applied, left) = heads.split_at(done);
        match (failure, left.first()) {
            // Not the message's fault, or not for us to decide: all stay as they are.
            (Some(failure), _) if !failure.is_the_messages() => {
                drop(open.rollback().await);
                return Ok(Attempt::Failed(failure));
            }
            (Some(failure), Some(head)) => {
                let attempts = if done == 0 { attempts } else { 0 };
                if done > 0 {
                    shelf.advance(&open, lane, applied).await?;
                }
                self.failed_again(open, lane, head, &failure, attempts).await?;
            }
            _ => {
                shelf.advance(&open, lane, applied).await?;
                point(Point::Retried);
                open.commit().await?;
            }
        }
        self.shared.meter.count(Outcome::Applied, done);
        Ok(Attempt::Done)
    }

    /// Handles messages from the head on until one fails: how many did not, and the failure. What
    /// failed is undone, unless nothing of the transaction is to be kept.
    async fn try_heads(
        &self,
        open: &Open,
        heads: &[store::Head],
        attempts: i32,
    ) -> Result<(usize, Option<Failure>), InboxError> {
        // A batch handler gets many at once, and each alone when that has failed.
        let mut size = if attempts == 0 { self.shared.batch_max } else { 1 };
        let mut done = 0;
        while done < heads.len() {
            let group = heads.get(done..heads.len().min(done + size)).unwrap_or_default();
            match self.try_group(open, group).await? {
                Ok(()) => done += group.len(),
                Err(failure) if !failure.is_the_messages() => return Ok((done, Some(failure))),
                Err(failure) => {
                    open.back_to_savepoint().await?;
                    if group.len() == 1 {
                        return Ok((done, Some(failure)));
                    }
                    size = 1;
                }
            }
        }
        Ok((done, None))
    }

    /// The handler's verdict, with whatever the database would say at the commit.
    async fn try_group(
        &self,
        open: &Open,
        group: &[store::Head],
    ) -> Result<Result<(), Failure>, InboxError> {
        open.savepoint().await?;
        let messages = group.iter().map(|head| head.message.clone()).collect();
        let done = self.work(open.tx(), messages).await;
        if done.is_err() {
            open.alone()?;
            return Ok(done);
        }
        match open.check() {
            Err(InboxError::Aborted(state)) => Ok(Err(super::aborted(state))),
            Err(error) => Err(error),
            Ok(()) => Ok(open.keep().await.map_err(Failure::from)),
        }
    }

    /// Stores what becomes of a head that failed again: a new due time, or a dead letter.
    async fn failed_again(
        &self,
        open: Open,
        lane: Uuid,
        head: &store::Head,
        failure: &Failure,
        attempts: i32,
    ) -> Result<(), InboxError> {
        let shelf = self.shelf();
        let deferred = matches!(failure.kind, Kind::Defer(_));
        let failed = if deferred { attempts } else { attempts.saturating_add(1) };
        if let Some(due) = self.due(failure, u32::try_from(failed).unwrap_or(u32::MAX)) {
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
