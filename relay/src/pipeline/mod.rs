//! The main path: batch → sink → progress → confirmation.
//!
//! Takes batches from the source, one at a time and in order, has them delivered or parked
//! (`delivery`), carries out the releases that they announce, and tells the source what is stored.

mod ahead;
pub mod delivery;
mod error;
pub mod intake;
pub mod ladder;
mod pace;
mod settling;
mod suspicion;

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

pub use self::error::PipelineError;
use self::{
    ahead::Ahead,
    delivery::{Course, Delivery, Origin},
    ladder::Ladder,
};
use crate::{
    core::{
        position::{Confirmable, Position},
        progress::{DepartedRecord, Progress, SnapshotRecord},
        published::Published,
        record::{Announced, Batch, BatchLimits},
        witness::Witness,
    },
    dead_letter::DeadLetters,
    sink::{Publisher, Stored},
    source::handover::Taker,
};

/// What the control session saw at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which transactions were visible.
    pub snapshot: SnapshotRecord,
    /// How the tables were published: no row can be missing from the stream by then.
    pub published: Published,
    /// Partitions that have left.
    pub departed: Vec<DepartedRecord>,
}

/// Delivers batches until the source ends.
#[derive(Debug)]
pub struct Pipeline<P, D> {
    taker: Taker,
    delivery: Delivery<P, D>,
    course: StreamCourse,
    /// Of a batch that a release is read into.
    limits: BatchLimits,
}

impl<P: Publisher, D: DeadLetters + 'static> Pipeline<P, D> {
    /// What was `seen` waits in its channel until delivery looks; it is bounded, and the newest may
    /// be dropped. `limits` bound what a release takes into memory at a time.
    pub fn new(
        taker: Taker,
        delivery: Delivery<P, D>,
        seen: mpsc::Receiver<Seen>,
        confirmed: watch::Sender<Confirmable>,
        limits: BatchLimits,
    ) -> Self {
        let ladder = Ladder::new(delivery.progress().snapshots.clone());
        let ahead = Ahead::default();
        let course = StreamCourse { ladder, passing: None, ahead, seen, confirmed };
        Pipeline { taker, delivery, course, limits }
    }

    /// Delivers until the source ends, which is how a stop arrives.
    ///
    /// # Errors
    /// [`PipelineError`]. What was stored has been confirmed to the source.
    pub async fn run(mut self) -> Result<(), PipelineError> {
        let mut released = false;
        while let Some(mut batch) = self.next().await? {
            self.delivery.begins();
            let announced = std::mem::take(&mut batch.announced);
            let says_nothing = announced.is_empty();
            let due = self.delivery.due(announced).await?;
            released = if says_nothing { released } else { !due.is_empty() };
            let batch = match due.is_empty() {
                true => self.deliver(batch).await?,
                false => self.release(batch, due).await?,
            };
            self.delivery.ends();
            self.taker.give_back(batch, released);
            self.delivery.settle_in_time(&mut self.course).await?;
        }
        self.delivery.settle(&mut self.course).await
    }

    /// The next batch; what is being parked continues meanwhile, and progress that is due is stored.
    async fn next(&mut self) -> Result<Option<Batch>, PipelineError> {
        loop {
            if self.delivery.is_parking() {
                tokio::select! {
                    biased;
                    batch = self.taker.take() => return Ok(batch),
                    parked = self.delivery.until_parked() => parked?,
                }
                continue;
            }
            let Some(at) = self.delivery.settles_at() else { return Ok(self.taker.take().await) };
            tokio::select! {
                biased;
                batch = self.taker.take() => return Ok(batch),
                () = self.delivery.wait_until(at) => self.delivery.settle(&mut self.course).await?,
            }
        }
    }

    async fn deliver(&mut self, batch: Batch) -> Result<Batch, PipelineError> {
        let mut batch = Arc::new(batch);
        self.delivery.deliver(&mut batch, &mut self.course).await?;
        Ok(Arc::into_inner(batch).expect("a sink keeps no batch after its delivery"))
    }

    /// Delivers the batch with the releases that are announced in it, each in its place. The position
    /// is past one only when it is done, so that whatever ends the relay meanwhile, the server sends
    /// its announcement again. Returns what the batch ended with.
    async fn release(
        &mut self,
        mut batch: Batch,
        due: Vec<Announced>,
    ) -> Result<Batch, PipelineError> {
        // A release stores progress, but confirms nothing.
        self.delivery.settle(&mut self.course).await?;
        let (mut before, mut commit, mut places) = (0, None, 0);
        for mut announced in due {
            let rest = batch.split_off(announced.after - before);
            before = announced.after;
            self.deliver(batch).await?;
            batch = rest;
            // Those of one transaction come one behind the other.
            if commit != Some(announced.first.commit) {
                (commit, places) = (Some(announced.first.commit), 0);
            }
            announced.first.ordinal += places;
            places += self.delivery.release(&announced, self.limits).await?;
        }
        let batch = self.deliver(batch).await?;
        self.delivery.settle(&mut self.course).await?;
        self.delivery.finish_complete().await?;
        Ok(batch)
    }
}

/// The stream's progress: a position, and the snapshots that it has passed.
#[derive(Debug)]
struct StreamCourse {
    ladder: Ladder,
    /// The ladder with what the delivery under way passes: it counts once that is stored.
    passing: Option<Ladder>,
    ahead: Ahead,
    seen: mpsc::Receiver<Seen>,
    confirmed: watch::Sender<Confirmable>,
}

impl Course for StreamCourse {
    fn advance(&mut self, progress: &mut Progress, batch: &Batch, end: usize) -> bool {
        let Some(position) = position_after(batch, end) else { return false };
        if let Some(seen) = batch.newest.filter(|_| end == batch.len()) {
            let newest = progress.snapshots.first().map(|newest| newest.snapshot.as_str());
            progress.witness = Witness::after(progress.witness, seen, newest);
        }
        while let Ok(Seen { snapshot, published, departed }) = self.seen.try_recv() {
            self.ahead.offer(snapshot.lsn, published, progress);
            self.ladder.offer(snapshot);
            progress.departed = departed;
        }
        self.ahead.pass(position.resume_lsn(), progress);
        let was_passing = self.passing.take().is_some();
        self.passing = self.ladder.passed(position.resume_lsn());
        match &self.passing {
            Some(ladder) => progress.snapshots = ladder.rungs().to_vec(),
            None if was_passing => progress.snapshots = self.ladder.rungs().to_vec(),
            None => {}
        }
        progress.position = Some(position);
        progress.landmark = batch.landmark(end).or(progress.landmark);
        true
    }

    fn stored(&mut self, progress: &Progress, proof: Stored) {
        if let Some(ladder) = self.passing.take() {
            self.ladder = ladder;
        }
        self.ahead.stored(progress);
        let position = progress.position.expect("it was advanced to one");
        self.confirmed.send_replace(proof.confirms(position));
    }

    fn origin(&self) -> Origin<'_> {
        Origin::Stream
    }
}

/// The position that is reached when the first `end` records are delivered.
fn position_after(batch: &Batch, end: usize) -> Option<Position> {
    if end == batch.len() {
        return batch.position;
    }
    let last = end.checked_sub(1)?;
    batch.get(last).map(|record| Position::Row(record.position))
}
