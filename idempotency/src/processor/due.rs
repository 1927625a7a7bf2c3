//! Takes parked lanes up again, each from its head, when they are due.
//!
//! Any process of the consumer may take any lane: the lock on the lane's row makes them take turns,
//! with one another and with live messages of the lane. A failure is stored under that same lock,
//! behind a savepoint, so nobody can take the head between its failure and its new due time.

use std::time::Duration;

use futures_util::future;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Attempt, Processor, Stop, store};
use crate::{
    error::InboxError,
    failure::{Failure, Kind},
    meter::Outcome,
    transaction::Open,
};

/// Parked messages that are handled at once, in one process.
const AT_ONCE: usize = 4;
/// How long a lane that another process parked may be overlooked.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at what waits.
const OBSERVE: Duration = Duration::from_secs(15);
/// Between two visits of the inbox's partitions.
const MAINTAIN: Duration = Duration::from_secs(3600);

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
            if maintained.elapsed() >= MAINTAIN {
                match self.shared.inbox.maintain().await {
                    Ok(()) => maintained = Instant::now(),
                    Err(error) => tracing::warn!(%error, "the inbox's partitions were not visited"),
                }
            }
            tokio::time::sleep(OBSERVE).await;
        }
    }

    async fn observe(&self) -> Result<(), InboxError> {
        let sql = "select \
            (select count(*) from inbox.parked_lanes where consumer_id = $1), \
            (select count(*) from inbox.parked where consumer_id = $1), \
            coalesce((select extract(epoch from clock_timestamp() - min(since)) \
                from inbox.parked_lanes where consumer_id = $1), 0)::float8, \
            (select count(*) from inbox.dead_letters where consumer_id = $1 and state = 'dead')";
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

    /// Takes the head of the lane that has been due longest.
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
        let Some(head) = shelf.head(&open, lane, attempts).await? else {
            shelf.free(&open, lane).await?;
            open.commit().await?;
            return Ok(Attempt::Done);
        };
        match self.try_head(&open, &head).await? {
            Ok(()) => {
                shelf.advance(&open, &head).await?;
                open.commit().await?;
                self.shared.meter.count(Outcome::Applied, 1);
                Ok(Attempt::Done)
            }
            // Not the message's fault, or not for us to decide: it stays as it is.
            Err(failure) if matches!(failure.kind, Kind::Outage | Kind::Conflict | Kind::Fatal) => {
                drop(open.rollback().await);
                Ok(Attempt::Failed(failure))
            }
            Err(failure) => {
                open.back_to_savepoint().await?;
                self.failed_again(open, &head, &failure, attempts).await?;
                Ok(Attempt::Done)
            }
        }
    }

    /// The handler's verdict, with whatever the database would say at the commit.
    async fn try_head(
        &self,
        open: &Open,
        head: &store::Head,
    ) -> Result<Result<(), Failure>, InboxError> {
        open.savepoint().await?;
        let done = self.work(open.tx(), vec![head.message.clone()]).await;
        if done.is_err() {
            return Ok(done);
        }
        match open.check() {
            Err(InboxError::Aborted(state)) => Ok(Err(super::aborted(state))),
            Err(error) => Err(error),
            Ok(()) => Ok(open.check_constraints().await.map_err(Failure::from)),
        }
    }

    /// Stores what becomes of a head that failed again: a new due time, or a dead letter.
    async fn failed_again(
        &self,
        open: Open,
        head: &store::Head,
        failure: &Failure,
        attempts: i32,
    ) -> Result<(), InboxError> {
        let shelf = self.shelf();
        let deferred = matches!(failure.kind, Kind::Defer(_));
        let failed = if deferred { attempts } else { attempts.saturating_add(1) };
        if let Some(due) = self.due(failure, u32::try_from(failed).unwrap_or(u32::MAX)) {
            shelf.postpone(&open, head.lane, failed, due, failure).await?;
            return open.commit().await;
        }
        let (message, replays) = (&head.message, head.replays);
        let new_code = shelf.bury(&open, message, failure, failed, replays).await?;
        shelf.advance(&open, head).await?;
        open.commit().await?;
        self.announce(failure, new_code);
        Ok(())
    }
}
