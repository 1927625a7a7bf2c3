//! Messages whose day is not kept: dead letters without a claim, and their copies.

use std::collections::HashSet;

use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{Dedup, Processor, Sorted, by_id, taken::Head};
use crate::{
    error::InboxError, message::RawMessage, message_id::MessageId, transaction::Open,
    window::no_partition,
};

impl Sorted<'_> {
    /// Whether a message that is given up has no claim by which copies would know it.
    pub(super) fn is_unclaimed(&self, id: &MessageId) -> bool {
        self.outside.iter().any(|message| message.id == *id) && !self.forgotten.contains(&id.uuid())
    }
}

impl Processor {
    /// Of what can't be told, those that are dead letters already are copies of these, whatever became of them.
    pub(super) async fn know_letters(
        &self,
        open: &Open,
        sorted: &mut Sorted<'_>,
    ) -> Result<(), InboxError> {
        const DOING: &str = "looking for dead letters";
        if sorted.outside.is_empty() {
            return Ok(());
        }
        let sql = "select d.message_id from inbox.dead_letters as d \
            where d.consumer_id operator(pg_catalog.=) $1 \
                and d.message_id operator(pg_catalog.=) any ($2)";
        let ids: Vec<Uuid> = sorted.outside.iter().map(|message| message.id.uuid()).collect();
        let params: [&(dyn ToSql + Sync); 2] = [&self.shared.inbox.consumer_id(), &ids];
        let rows = open.query(DOING, sql, &params).await?;
        let known: Result<HashSet<Uuid>, _> = rows.iter().map(|row| row.try_get(0)).collect();
        let mut known = known.map_err(|error| InboxError::of(DOING, error))?;
        // Of copies in one batch the first is given up.
        sorted.outside.retain(|message| known.insert(message.id.uuid()));
        sorted.duplicates += ids.len() - sorted.outside.len();
        Ok(())
    }

    /// Of replayed messages that were given up without a claim, those whose day is kept now are claimed as new ones are.
    /// Returns what is to be handled: of the others, copies were taken meanwhile.
    pub(super) async fn claim_replayed(
        &self,
        open: &Open,
        group: &[Head],
    ) -> Result<Vec<RawMessage>, InboxError> {
        let mut fresh = Vec::with_capacity(group.len());
        for Head { message, unclaimed, .. } in group {
            if !unclaimed || self.is_new(open, message).await? {
                fresh.push(message.clone());
            }
        }
        Ok(fresh)
    }

    async fn is_new(&self, open: &Open, message: &RawMessage) -> Result<bool, InboxError> {
        let inbox = &self.shared.inbox;
        if self.shared.dedup == Dedup::Off || !inbox.can_tell_in(open, &message.id).await? {
            return Ok(true);
        }
        let found = if self.by_partition() && message.source.place().is_some() {
            let found = by_id::look_up(open, inbox, vec![message]).await;
            // Of what may be forgotten no one can tell, and somebody has decided.
            found.map(|found| !found.new.is_empty() || !found.outside.is_empty())
        } else {
            by_id::claim_rows(open, inbox, &[message]).await.map(|new| !new.is_empty())
        };
        match found {
            // Its day was dropped since we looked.
            Err(InboxError::Refused { source, .. }) if no_partition(&source) => {
                Err(InboxError::Conflict(source))
            }
            found => found,
        }
    }
}
