//! Whether the consumer's database has failed over.
//!
//! A standby that is promoted writes another timeline. If it was asynchronous it may lack the last effects, and
//! what is acknowledged does not come again by itself. No one here can tell whether it lacks any, so it is said.

use std::time::SystemTime;

use super::Processor;
use crate::{alert::Alert, error::InboxError, rfc3339, transaction::Open};

/// What a primary writes; null on a standby.
const TIMELINE: &str = "select case when not pg_catalog.pg_is_in_recovery() then pg_catalog.left( \
    pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) end";

/// A timeline, and when it was written at the latest.
pub(super) struct Seen {
    timeline: String,
    at: SystemTime,
}

impl Processor {
    /// Looks which timeline the database writes, and says so where it is another one than before.
    pub(super) async fn look_at_the_timeline(
        &self,
        seen: &mut Option<Seen>,
    ) -> Result<(), InboxError> {
        const DOING: &str = "looking at the database's timeline";
        let at = SystemTime::now();
        let (open, rows) = Open::begin(self.shared.inbox.sessions(), DOING, TIMELINE, &[]).await?;
        open.rollback().await?;
        let row = rows.first().expect("a query without a table returns one row");
        let found = row.try_get(0).map_err(|error| InboxError::of(DOING, error))?;
        let Some(timeline): Option<String> = found else { return Ok(()) };
        let before = seen.replace(Seen { timeline: timeline.clone(), at });
        if let Some(before) = before.filter(|before| before.timeline != timeline) {
            self.has_failed_over(&before, &timeline);
        }
        Ok(())
    }

    fn has_failed_over(&self, before: &Seen, now: &str) {
        let consumer = self.shared.inbox.consumer().to_owned();
        let (timeline, seen) = (&before.timeline, rfc3339::text(before.at));
        if self.by_partition() {
            tracing::warn!(
                consumer,
                "the consumer's database has failed over: it writes timeline {now}, and wrote {timeline} at \
                 {seen}. If the standby lacks effects, the watermarks of their partitions are behind, the \
                 consumer stops there, and continues where the database is when it is started again"
            );
        } else {
            tracing::error!(
                consumer,
                "the consumer's database has failed over: it writes timeline {now}, and wrote {timeline} at \
                 {seen}. If the standby was asynchronous, it may lack the last effects before that, and their \
                 messages do not come again by themselves. To have them come again, stop all instances, set \
                 the group's offsets back to where it was before {seen}, or to the beginning \
                 (kafka-consumer-groups.sh --reset-offsets), and start them; {}",
                self.of_copies()
            );
        }
        self.shared.alerts.raise(&Alert::FailedOver { consumer, seen: before.at });
    }
}
