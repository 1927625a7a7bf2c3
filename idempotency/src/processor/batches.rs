//! Takes messages batch by batch, and halves a batch that fails until the message is alone that can't be handled.

use std::ops::Range;

use super::{
    Attempt, Processor, Stop,
    aside::Called,
    settle::{Parts, Patience},
};
use crate::{error::InboxError, message::RawMessage};

impl Processor {
    /// Gives each message its one effect, puts it aside, or finds that it was here before; returns
    /// when all of that is committed. Messages of one [lane](Processor::lane) must come in order, and no two
    /// calls may have the same lane at the same time, but for copies. While the database is away it waits.
    ///
    /// Cancel safe: what was not committed is as good as new.
    ///
    /// # Errors
    /// [`Stop`]: don't acknowledge them, and stop.
    pub async fn process(&self, messages: &[RawMessage]) -> Result<(), Stop> {
        for batch in self.batches(messages) {
            self.process_batch(messages, batch).await?;
        }
        Ok(())
    }

    /// One that fails is halved, and the first half is done before the second. The halves of a batch that has waited
    /// for the database do not wait again: they are tried to find those messages that succeed in spite of its trouble.
    async fn process_batch(
        &self,
        messages: &[RawMessage],
        batch: Range<usize>,
    ) -> Result<(), Stop> {
        let (mut open, mut patience) = (vec![batch], Patience::default());
        while let Some(range) = open.pop() {
            let batch = messages.get(range.clone()).unwrap_or_default();
            let called = Called::default();
            let parts = if batch.len() > 1 { Parts::Several } else { Parts::One };
            let small = || self.attempt(batch, false, &called);
            let mut settled = self.settle_within(&mut patience, parts, small).await;
            if let Ok(Attempt::Large) = settled {
                let large = || self.attempt(batch, true, &called);
                settled = self.settle_within(&mut patience, parts, large).await;
            }
            let middle = range.start + batch.len() / 2;
            let attempt = match settled {
                // A message of it is why: those before that are taken.
                Err(Stop::Inbox(InboxError::Unsafe(_))) if batch.len() > 1 => {
                    open.push(middle..range.end);
                    open.push(range.start..middle);
                    continue;
                }
                settled => settled?,
            };
            match attempt {
                Attempt::Done | Attempt::Large | Attempt::Idle => {}
                Attempt::Failed(failure) => match batch {
                    [message] => self.surely_put_aside(message, &failure, &called).await?,
                    _ => {
                        if called.ended().is_some() {
                            self.bury_what_was_committed(batch, &called, &failure).await?;
                        }
                        open.push(middle..range.end);
                        open.push(range.start..middle);
                    }
                },
            }
        }
        Ok(())
    }

    /// Ranges of at most a batch; where a watermark is locked, of one partition each.
    fn batches(&self, messages: &[RawMessage]) -> Vec<Range<usize>> {
        let same = |a: &RawMessage, b: &RawMessage| {
            !self.by_partition()
                || (a.source.partition == b.source.partition && a.source.topic == b.source.topic)
        };
        let (mut ranges, mut start) = (Vec::new(), 0);
        for run in messages.chunk_by(same).flat_map(|run| run.chunks(self.shared.batch_max)) {
            ranges.push(start..start + run.len());
            start += run.len();
        }
        ranges
    }
}
