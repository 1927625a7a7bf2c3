//! The main path: batch → sink → progress → confirmation.
//!
//! Takes batches from the source, one at a time and in order, and tells the source what is
//! stored. It bisects what the broker refuses, so that only a record refused alone is refused.
//! It retries nothing: after an uncertain outcome the daemon starts again from progress.

pub mod intake;
pub mod ladder;

use std::{ops::Range, sync::Arc, time::Instant};

use tokio::sync::{mpsc, watch};

use self::ladder::Ladder;
use crate::{
    admin::Board,
    fault::{self, Point},
    position::{Confirmable, Position},
    progress::{Progress, SnapshotRecord},
    record::{Batch, Refused},
    sink::{RefusedRecord, Rest, Sink, SinkError},
    source::handover::Taker,
};

/// Why the pipeline ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The sink failed; the outcome of the delivery under way is uncertain.
    #[error("delivery failed")]
    Sink(#[source] SinkError),
    /// A row can't be a record, or the broker will never take it. Everything before it is stored.
    #[error("the event at {} was refused ({}): {}", .0.position, .0.reason, .0.error)]
    Refused(Box<Refused>),
}

/// Delivers batches until the source ends.
#[derive(Debug)]
pub struct Pipeline<S> {
    taker: Taker,
    sink: S,
    progress: Progress,
    ladder: Ladder,
    /// Snapshots wait here until delivery has passed them; bounded, the newest may be dropped.
    snapshots: mpsc::Receiver<SnapshotRecord>,
    confirmed: watch::Sender<Confirmable>,
    board: Board,
}

impl<S: Sink> Pipeline<S> {
    /// `progress` is what was read back or first stored: delivery goes on from it.
    pub fn new(
        taker: Taker,
        sink: S,
        progress: Progress,
        snapshots: mpsc::Receiver<SnapshotRecord>,
        confirmed: watch::Sender<Confirmable>,
        board: Board,
    ) -> Self {
        let ladder = Ladder::new(progress.snapshots.clone());
        Pipeline { taker, sink, progress, ladder, snapshots, confirmed, board }
    }

    /// Delivers until the source ends, which is how a stop arrives.
    ///
    /// # Errors
    /// [`PipelineError`]. What was stored has been confirmed to the source.
    pub async fn run(mut self) -> Result<(), PipelineError> {
        while let Some(batch) = self.taker.take().await {
            let batch = Arc::new(batch);
            self.deliver(&batch).await?;
            if let Some(refused) = &batch.refused {
                return Err(PipelineError::Refused(Box::new(refused.clone())));
            }
            let batch = Arc::into_inner(batch).expect("a sink keeps no batch after its delivery");
            self.taker.give_back(batch);
        }
        Ok(())
    }

    /// Stores all records of the batch and its position, in order.
    async fn deliver(&mut self, batch: &Arc<Batch>) -> Result<(), PipelineError> {
        if batch.is_empty() && batch.position.is_none() {
            return Ok(()); // Only a refused row: nothing to store before it.
        }
        // Ranges still to be delivered, the next one last.
        let mut ranges: Vec<Range<usize>> = std::iter::once(0..batch.len()).collect();
        while let Some(range) = ranges.pop() {
            match self.deliver_range(batch, range.clone()).await {
                Ok(()) => {}
                Err(SinkError::Refused { rest: Rest::NotStored, .. }) if range.len() > 1 => {
                    let middle = range.start + range.len() / 2;
                    ranges.push(middle..range.end);
                    ranges.push(range.start..middle);
                }
                Err(SinkError::Refused { rest: Rest::Stored, records }) if range.len() > 1 => {
                    self.deliver_alone(batch, records).await?;
                    ranges.push(range.end..range.end); // The progress of the whole range.
                }
                Err(SinkError::Refused { records, .. }) => {
                    return Err(refused_for_good(batch, records));
                }
                Err(error) => return Err(PipelineError::Sink(error)),
            }
        }
        Ok(())
    }

    /// At-least-once: the others are stored; each refused record gets a try of its own.
    async fn deliver_alone(
        &mut self,
        batch: &Arc<Batch>,
        refused: Vec<RefusedRecord>,
    ) -> Result<(), PipelineError> {
        for RefusedRecord { index, .. } in refused {
            match self.deliver_range(batch, index..index + 1).await {
                Ok(()) => {}
                Err(SinkError::Refused { records, .. }) => {
                    return Err(refused_for_good(batch, records));
                }
                Err(error) => return Err(PipelineError::Sink(error)),
            }
        }
        Ok(())
    }

    async fn deliver_range(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
    ) -> Result<(), SinkError> {
        let Some(position) = position_after(batch, &range) else { return Ok(()) };
        self.take_snapshots(position);
        self.progress.position = Some(position);
        self.progress.snapshots = self.ladder.rungs().to_vec();
        let started = Instant::now();
        self.board.delivery_started();
        let stored = self.sink.deliver(batch, range.clone(), self.progress.encode()).await?;
        fault::point(Point::Delivered);
        let bytes =
            batch.iter().skip(range.start).take(range.len()).map(|r| r.size_bytes() as u64).sum();
        let newest_commit_us = batch.newest_commit_us;
        let records = range.len() as u64;
        self.board.delivered(position, records, bytes, started.elapsed(), newest_commit_us);
        self.confirmed.send_replace(stored.confirms(position));
        fault::point(Point::Confirmable);
        Ok(())
    }

    /// Moves the snapshots that this delivery passes into the record that goes with it.
    fn take_snapshots(&mut self, position: Position) {
        while let Ok(snapshot) = self.snapshots.try_recv() {
            self.ladder.offer(snapshot);
        }
        self.ladder.pass(position.resume_lsn());
    }
}

/// The position that is reached when `range` and all before it is stored.
fn position_after(batch: &Batch, range: &Range<usize>) -> Option<Position> {
    if range.end == batch.len() && batch.refused.is_none() {
        return batch.position;
    }
    let last = range.end.checked_sub(1)?;
    batch.get(last).map(|record| Position::Row(record.position))
}

fn refused_for_good(batch: &Batch, records: Vec<RefusedRecord>) -> PipelineError {
    let first = records.into_iter().next().expect("a refusal names at least one record");
    let record = batch.get(first.index).expect("a sink refuses records of the batch");
    let event_id = record
        .headers()
        .find(|(name, _)| *name == crate::header::ID || *name == crate::header::cloudevents::ID)
        .map(|(_, id)| String::from_utf8_lossy(id).into_owned());
    PipelineError::Refused(Box::new(Refused {
        position: record.position,
        event_id,
        topic: Some(record.topic.to_owned()),
        key: record.key.map(<[u8]>::to_vec),
        reason: first.reason,
        error: first.error,
    }))
}
