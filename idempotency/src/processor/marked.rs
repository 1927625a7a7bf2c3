//! Claims by a partition's watermark instead of by rows.
//!
//! The watermark's row is locked by each transaction that moves it, so all of a partition's
//! transactions take turns, whoever runs them, and each sees how far the last one came. A process
//! walks its partition in order, so what it brings next begins at or before the watermark, and no
//! owner needs a fence. The one thing that breaks this is a database that loses what it had
//! committed: then the watermark is behind what this process knows, and it stops.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, MutexGuard, PoisonError},
};

use uuid::Uuid;

use super::{
    Dedup, Processor, Sorted,
    by_id::{self, Found},
    position,
    stranger::{Stranger, continue_at},
    watermark::{self, Applied, Mark, Verdict},
};
use crate::{
    error::InboxError,
    fault::{Point, point},
    losses,
    message::RawMessage,
    transaction::Open,
};

pub(super) type Partition = (Arc<str>, i32);

/// Where a watermark goes when the transaction commits.
pub(super) struct Moved {
    partition: Partition,
    mark: Mark,
    applied: Applied,
    /// The offset of the first that is taken though the mark had passed it.
    passed: Option<i64>,
}

impl Processor {
    /// Whether messages of a partition must be brought one after the other.
    pub(crate) fn by_partition(&self) -> bool {
        matches!(self.shared.dedup, Dedup::Watermark { .. })
    }

    pub(super) async fn claim_marked<'a>(
        &self,
        relay: &str,
        messages: &'a [RawMessage],
    ) -> Result<(Open, Sorted<'a>), InboxError> {
        let inbox = &self.shared.inbox;
        let mut positions = Vec::with_capacity(messages.len());
        let mut partition = None;
        for message in messages {
            let placeless = || cannot_tell(message, "it has no partition and offset");
            let (number, offset) = message.source.place().ok_or_else(placeless)?;
            let position = match position::read(&message.headers, relay) {
                Ok(position) => Ok(position),
                Err(Stranger::Message(why)) => Err(why),
                Err(Stranger::Relay(other)) => {
                    return Err(cannot_tell(message, &self.another_relay(message, relay, &other)));
                }
            };
            partition.get_or_insert_with(|| (Arc::clone(&message.source.topic), number));
            positions.push((position, offset));
        }
        let partition = partition.expect("there is at least one");
        let lanes: Vec<Uuid> =
            messages.iter().map(|message| self.shared.ordering.lane(message)).collect();
        let (open, mut mark, parked) =
            watermark::lock(inbox, &partition.0, partition.1, &lanes).await?;
        mark.topic_id = self.topics().get(&partition.0).cloned();
        if mark.is_blank() {
            let stored = inbox.repertoire().text(&partition.0);
            let (consumer_id, (topic, number)) = (inbox.consumer_id(), &partition);
            let lost = losses::of_watermark(&open, consumer_id, topic, &stored, *number).await?;
            if let Some(lost) = lost {
                return Err(InboxError::Unsafe(lost));
            }
        }
        if self.marks().get(&partition).is_some_and(|known| !mark.includes(known)) {
            let (topic, number) = &partition;
            return Err(InboxError::Unsafe(format!(
                "the database has lost what it had committed of {topic}/{number}, or an instance of this consumer \
                 that keeps no watermark has processed the partition: then stop all instances, and start them \
                 with one and the same Dedup. Started again, the consumer continues from where the database is"
            )));
        }

        let mut sorted = Sorted::default();
        let (mut verdicts, mut unclear) = (Vec::with_capacity(messages.len()), Vec::new());
        let mut by_position: HashSet<Uuid> = HashSet::new();
        for (message, (position, offset)) in messages.iter().zip(&positions) {
            let (position, repaired) = match position {
                Ok(position) => position,
                Err(why) => {
                    sorted.strange.push((message.source.clone(), why.clone()));
                    sorted.outside.push(message);
                    verdicts.push((None, *offset));
                    continue;
                }
            };
            // Without a key it may have come before in another partition, and never in this one.
            let placeless = *repaired || message.key.is_none();
            if *repaired && message.key.is_some() {
                mark.is_repaired_up_to(position);
            }
            let verdict = mark.judge(position, placeless, *offset);
            let verdict = verdict.map_err(|why| {
                let stored = inbox.repertoire().text(&partition.0);
                let remedy = watermark::continue_by_id(inbox.consumer_id(), &stored);
                let leave_out = self.leave_out(message);
                cannot_tell(message, &format!("{why}. {remedy}. {leave_out}"))
            })?;
            match verdict {
                Verdict::Fresh => drop(by_position.insert(message.id.uuid())),
                Verdict::Duplicate => {}
                // Taken in this very batch, of which no table knows yet.
                _ if by_position.contains(&message.id.uuid()) => {}
                _ if inbox.can_tell_in(&open, &message.id).await? => unclear.push(message),
                _ => sorted.outside.push(message),
            }
            verdicts.push((Some(verdict), *offset));
        }
        let Found { new: mut claimed, outside } = by_id::look_up(&open, inbox, unclear).await?;
        sorted.forgotten.extend(outside.iter().map(|message| message.id.uuid()));
        sorted.outside.extend(outside);
        let parked: HashSet<Uuid> = parked.into_iter().collect();
        let (mut applied, mut passed) = (Applied::default(), None);
        for ((message, (verdict, offset)), lane) in messages.iter().zip(verdicts).zip(lanes) {
            let id = message.id.uuid();
            let Some(verdict) = verdict else {
                // It may have come before, and then the mark is past it.
                if offset >= mark.next_offset {
                    mark.take(offset);
                }
                continue;
            };
            let fresh = match verdict {
                Verdict::Fresh => true,
                Verdict::Duplicate => false,
                _ if sorted.outside.iter().any(|o| o.source == message.source) => {
                    mark.take(offset);
                    continue;
                }
                Verdict::ById | Verdict::Passed => claimed.remove(&id),
            };
            if !fresh {
                sorted.duplicates += 1;
                continue;
            }
            mark.take(offset);
            match verdict {
                Verdict::Fresh => applied.add(message),
                Verdict::Passed => passed = passed.or(Some(offset)),
                Verdict::ById | Verdict::Duplicate => {}
            }
            let kind = if parked.contains(&lane) { &mut sorted.waiting } else { &mut sorted.fresh };
            kind.push(message);
        }
        sorted.moved = Some(Moved { partition, mark, applied, passed });
        Ok((open, sorted))
    }

    fn another_relay(&self, message: &RawMessage, relay: &str, other: &str) -> String {
        let leave_out = self.leave_out(message);
        format!(
            "it comes from the relay {other:?}, and Dedup::Watermark names {relay:?}; nothing of it was taken, and all \
             before it was. If the relay was renamed, or the setting is wrong, name {other:?}. If both relays feed the \
             topic, use Dedup::Rows. {leave_out}"
        )
    }

    fn leave_out(&self, message: &RawMessage) -> String {
        let inbox = &self.shared.inbox;
        let topic = inbox.repertoire().text(&message.source.topic);
        let (partition, offset) = message.source.place().unwrap_or_default();
        let next = offset.saturating_add(1);
        let typed = continue_at(inbox.consumer_id(), &topic, partition, next);
        format!(
            "To leave this one record out, so that it has no effect, stop all instances, type `{typed}` and start them \
             again"
        )
    }

    /// Moves the watermark, if there is one.
    pub(super) async fn move_mark(
        &self,
        open: &Open,
        sorted: &Sorted<'_>,
    ) -> Result<(), InboxError> {
        let Some(Moved { partition: (topic, number), mark, applied, .. }) = &sorted.moved else {
            return Ok(());
        };
        watermark::advance(open, &self.shared.inbox, topic, *number, mark, applied).await?;
        point(Point::MarkMoved);
        Ok(())
    }

    /// Commits, and knows where the watermark is then.
    pub(super) async fn finish(&self, open: Open, sorted: &Sorted<'_>) -> Result<(), InboxError> {
        open.commit().await?;
        if let Some(Moved { partition, mark, passed, .. }) = &sorted.moved {
            self.marks().insert(partition.clone(), mark.clone());
            if let Some(offset) = passed {
                self.tell_passed(partition, *offset);
            }
        }
        Ok(())
    }

    /// Once for each partition: from then on it may be so of each message.
    fn tell_passed(&self, partition: &Partition, offset: i64) {
        let told = &self.shared.passed;
        if told.lock().unwrap_or_else(PoisonError::into_inner).insert(partition.clone()) {
            let (topic, partition) = partition;
            tracing::warn!(
                consumer = self.shared.inbox.consumer(),
                %topic,
                partition,
                offset,
                "a message came behind the partition's watermark and had not been taken, so it was taken by \
                 its id; so are all others that come there. A relay in at-least-once sends such after a \
                 crash. If the relay is in exactly-once, somebody else has written to the topic in its \
                 name: give Write on it to the relay's principal alone"
            );
        }
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<Arc<str>, String>> {
        self.shared.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which topic it is that has this name, as the broker says; `None` while messages of another one
    /// of the same name may be at work.
    #[cfg(feature = "kafka-plain")]
    pub(crate) fn topic_is(&self, topic: Arc<str>, id: Option<String>) {
        let mut topics = self.topics();
        match id {
            Some(id) => drop(topics.insert(topic, id)),
            None => drop(topics.remove(&topic)),
        }
    }

    /// Has a partition read from its beginning, since its topic is another one. Nothing of it may be at
    /// work: that would move the watermark past what is read now.
    ///
    /// # Errors
    /// The database's.
    #[cfg(feature = "kafka-plain")]
    pub(crate) async fn set_back(
        &self,
        partition: &Partition,
        topic_id: &str,
    ) -> Result<(), InboxError> {
        let inbox = &self.shared.inbox;
        let mark = watermark::set_back(inbox, &partition.0, partition.1, topic_id).await?;
        self.marks().insert(partition.clone(), mark);
        Ok(())
    }

    fn marks(&self) -> MutexGuard<'_, HashMap<Partition, Mark>> {
        self.shared.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(feature = "kafka-plain")]
    /// Where the database says that partitions continue, of those that it knows, and of which topic that
    /// is; to be asked whenever partitions come to this process, since what it knew of them may be old.
    pub(crate) async fn start_offsets(
        &self,
        partitions: &[Partition],
    ) -> Result<Vec<(Partition, i64, Option<String>)>, InboxError> {
        let inbox = &self.shared.inbox;
        let mut offsets = Vec::new();
        for partition in partitions {
            let mark = watermark::look(inbox, &partition.0, partition.1).await?;
            let mut marks = self.marks();
            marks.remove(partition);
            if let Some(mark) = mark {
                offsets.push((partition.clone(), mark.next_offset, mark.topic_id.clone()));
                marks.insert(partition.clone(), mark);
            }
        }
        Ok(offsets)
    }

    /// Forgets ids that were taken over longer ago than repairs repeat, counted from the newest
    /// (`docs/CONSUMER.md` has the limits), and remembers how new they were.
    pub(super) async fn trim(&self) -> Result<(), InboxError> {
        let sql = "with kept as (select topic, partition, pg_catalog.max(applied_at) \
                           operator(pg_catalog.-) interval '15 minutes' as since \
                       from inbox.applied where consumer_id operator(pg_catalog.=) $1 \
                       group by topic, partition), \
                   gone as (delete from inbox.applied as a using kept as k \
                       where a.consumer_id operator(pg_catalog.=) $1 \
                           and a.topic operator(pg_catalog.=) k.topic \
                           and a.partition operator(pg_catalog.=) k.partition \
                           and a.applied_at operator(pg_catalog.<) k.since \
                       returning a.topic, a.partition, k.since, \
                           coalesce(a.newest, a.applied_at) as newest) \
                   insert into inbox.applied (consumer_id, topic, partition, applied_at, ids, newest) \
                   select $1, topic, partition, pg_catalog.max(since), '{}', pg_catalog.max(newest) \
                   from gone group by topic, partition";
        let inbox = &self.shared.inbox;
        let consumer_id = inbox.consumer_id();
        let (open, _) = Open::begin(inbox.sessions(), "trimming ids", sql, &[&consumer_id]).await?;
        open.commit().await
    }
}

fn cannot_tell(message: &RawMessage, why: &str) -> InboxError {
    InboxError::Unsafe(format!("{}: {why}", message.source))
}
