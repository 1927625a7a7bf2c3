//! What a consumer must do now and then, whatever comes: look at its tables and at the database's timeline,
//! measure what waits, make and drop days of the inbox, and forget old ids.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{Processor, Stop};
use crate::{
    error::{InboxError, chain},
    losses::Told,
    transaction::Open,
};

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

impl Processor {
    /// Until it is dropped, or the inbox can't go on.
    pub(super) async fn upkeep(&self) -> Stop {
        let (mut maintained, mut said) = (Instant::now(), false);
        let (mut refused, mut timeline) = (HashSet::new(), None);
        let (losses, mut left) = (Told::default(), HashSet::new());
        loop {
            if let Err(weakened @ InboxError::Setting(_)) = self.shared.inbox.is_whole().await {
                return Stop::Inbox(weakened);
            }
            match self.look_at_losses(&losses).await {
                Err(another @ InboxError::Setting(_)) => return Stop::Inbox(another),
                Err(error) => {
                    let not_done = "what was forgotten is not looked for";
                    self.pass_over(error, not_done, &mut refused).await;
                }
                Ok(()) => {}
            }
            if let Err(error) = self.look_at_the_timeline(&mut timeline).await {
                let error = chain(&error);
                tracing::debug!(error, "whether the database has failed over is not known");
            }
            if let Err(error) = self.look_at_the_clock().await {
                let not_done = "keys that are due too late are not looked for";
                self.pass_over(error, not_done, &mut refused).await;
            }
            if let Err(error) = self.look_at_what_is_left(&mut left).await {
                let not_done = "parked messages of other topics are not looked for";
                self.pass_over(error, not_done, &mut refused).await;
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
            greatest(0, (select extract(epoch from pg_catalog.clock_timestamp() \
                    operator(pg_catalog.-) pg_catalog.min(since)) from inbox.parked_lanes \
                where consumer_id operator(pg_catalog.=) $1))::double precision, \
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
        if self.shared.plans.observe(waits.parked) {
            inbox.sessions().prepare_anew();
        }
        self.shared.meter.gauges(waits.lanes, waits.parked, waits.oldest_seconds, waits.dead);
        Ok(waits)
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
