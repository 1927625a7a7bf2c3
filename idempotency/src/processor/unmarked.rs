//! What is processed without a watermark makes an older one of its partition untrue: reading would begin there again.

use std::{
    collections::HashSet,
    sync::{Arc, MutexGuard, PoisonError},
};

use tokio_postgres::types::ToSql;

use super::{Processor, marked::Partition};
use crate::{error::InboxError, message::RawMessage, transaction::Open};

/// Whoever has no right on the table has never had a watermark.
const WRITABLE: &str = "select coalesce( \
    pg_catalog.has_table_privilege(pg_catalog.to_regclass('inbox.watermarks'), 'select') \
    and pg_catalog.has_table_privilege(pg_catalog.to_regclass('inbox.watermarks'), 'update'), false)";
/// The position stays: what is not past it is looked up by its id, should it come to a watermark again.
const OUTDATE: &str = "update inbox.watermarks \
    set next_offset = 0, topic_id = null, changed_at = pg_catalog.now() \
    where consumer_id operator(pg_catalog.=) $1 and topic operator(pg_catalog.=) $2 \
        and partition operator(pg_catalog.=) $3 \
        and (next_offset operator(pg_catalog.>) 0 or topic_id is not null) returning 1";

impl Processor {
    /// Before messages are taken without a watermark: from then on one that is left from before is no place to
    /// begin at. Committed before any of their effects.
    pub(super) async fn outdate_marks(&self, messages: &[RawMessage]) -> Result<(), InboxError> {
        let places = messages.iter().filter_map(|message| {
            Some((Arc::clone(&message.source.topic), message.source.place()?.0))
        });
        let new: HashSet<Partition> = {
            let known = self.unmarked();
            places.filter(|place| !known.contains(place)).collect()
        };
        for place in new {
            self.outdate_mark(&place).await?;
            self.unmarked().insert(place);
        }
        Ok(())
    }

    async fn outdate_mark(&self, (topic, partition): &Partition) -> Result<(), InboxError> {
        const DOING: &str = "looking for a watermark from before";
        let inbox = &self.shared.inbox;
        let (open, rows) = Open::begin(inbox.sessions(), DOING, WRITABLE, &[]).await?;
        let row = rows.first().expect("a query without a table returns one row");
        if !row.try_get(0).map_err(|error| InboxError::of(DOING, error))? {
            return open.rollback().await;
        }
        let stored = inbox.repertoire().text(topic);
        let params: [&(dyn ToSql + Sync); 3] = [&inbox.consumer_id(), &stored, partition];
        let outdated = !open.query(DOING, OUTDATE, &params).await?.is_empty();
        open.commit().await?;
        if outdated {
            tracing::info!(
                consumer = inbox.consumer(),
                %topic,
                partition,
                "the partition has a watermark from before, and is read without one now: should the consumer keep \
                 watermarks again, it begins at the group's offset"
            );
        }
        Ok(())
    }

    /// Partitions that come to this process: others may have kept watermarks of them meanwhile.
    #[cfg(feature = "kafka-plain")]
    pub(crate) fn may_be_marked(&self, partitions: &[Partition]) {
        let mut known = self.unmarked();
        known.retain(|place| !partitions.contains(place));
    }

    fn unmarked(&self) -> MutexGuard<'_, HashSet<Partition>> {
        self.shared.unmarked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
