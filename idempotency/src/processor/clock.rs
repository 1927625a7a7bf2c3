//! Keys that would wait until a time that the database's clock had by mistake: it was ahead when they were parked, and
//! was set back since.

use super::Processor;
use crate::{error::InboxError, transaction::Open};

/// A clock that is set back by less is not spoken of: a key waits longer by so much, at most.
const BY: &str = "interval '5 seconds'";

impl Processor {
    /// Has keys wait from now on for as long as they were to wait, if their time was set in what is the future now.
    pub(super) async fn look_at_the_clock(&self) -> Result<(), InboxError> {
        const DOING: &str = "looking for keys that are due too late";
        // A worker that has one of them at hand sets its time itself.
        let sql = format!(
            "with late as (select l.lane, l.set_at from inbox.parked_lanes as l \
                 where l.consumer_id operator(pg_catalog.=) $1 \
                     and l.due_at operator(pg_catalog.>) pg_catalog.now() \
                     and l.set_at operator(pg_catalog.>) (pg_catalog.now() operator(pg_catalog.+) {BY}) \
                 for no key update skip locked), \
             early as (update inbox.parked_lanes as l set \
                     due_at = least(l.due_at, pg_catalog.now() operator(pg_catalog.+) greatest(interval '0', \
                         coalesce(l.asked, l.due_at operator(pg_catalog.-) l.set_at))), \
                     since = least(l.since, pg_catalog.now()), set_at = pg_catalog.now() \
                 from late where l.consumer_id operator(pg_catalog.=) $1 \
                     and l.lane operator(pg_catalog.=) late.lane \
                 returning late.set_at) \
             select pg_catalog.count(*), extract(epoch from pg_catalog.max(set_at) \
                 operator(pg_catalog.-) pg_catalog.now())::pg_catalog.float8 from early"
        );
        let inbox = &self.shared.inbox;
        let (open, rows) =
            Open::begin(inbox.sessions(), DOING, &sql, &[&inbox.consumer_id()]).await?;
        open.commit().await?;
        let row = rows.first().expect("an aggregate returns one row");
        let read = |error| InboxError::of(DOING, error);
        let (keys, ahead): (i64, Option<f64>) =
            (row.try_get(0).map_err(read)?, row.try_get(1).map_err(read)?);
        if keys == 0 {
            return Ok(());
        }
        self.shared.meter.rescheduled(keys);
        self.shared.due.notify_one();
        let (consumer, seconds) = (inbox.consumer(), ahead.unwrap_or_default().round());
        tracing::warn!(
            consumer,
            keys,
            seconds,
            "the database's clock was ahead by `seconds` and was set back: `keys` that were parked meanwhile would have \
             waited that much longer; they wait from now on for as long as their retries or their handler asked. \
             Nothing is lost. Look at the time synchronization of the database's server"
        );
        Ok(())
    }
}
