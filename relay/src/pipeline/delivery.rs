//! Delivers a batch and the progress that goes with it, parking what must be.
//!
//! Gives the broker as much at a time as it takes in time (`pace`). Bisects what the broker refuses, so that
//! only a record refused alone is refused; parks it and what follows it in its lane, and lets the other lanes
//! continue. A park is durable before any progress that covers its position is stored; where records go before
//! their progress, the other lanes need not wait for it (`desk`). Where the events come from is a [`Course`]'s
//! business: the stream, a release, a repair. It retries nothing: after an uncertain outcome the daemon starts
//! again from progress. While no lane is parked, all of this costs a branch a batch.

mod desk;
mod parking;
mod releases;

use std::{
    collections::VecDeque,
    ops::Range,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use self::desk::Desk;
use super::{
    error::PipelineError,
    pace::Pace,
    settling::Settling,
    suspicion::{INSISTENCE, Suspicion, suspects},
};
use crate::{
    core::{
        lsn::Lsn,
        position::{Position, RowPosition},
        progress::Progress,
        record::{Batch, RefusedRecord},
    },
    dead_letter::{DeadLetters, Lanes},
    fault::{self, Point},
    sink::{ALONE_MAX, Publisher, Receipt, Rest, SinkError, Stored},
    state::Board,
};

/// Where events come from, and what progress says of them.
pub trait Course: Send {
    /// Writes into `progress` what holds once the first `end` records of `batch` are stored or
    /// parked, and all before them; the batch's own position where these are all. May be called
    /// again with a smaller `end`. `false` when there is nothing to say, and so nothing to store.
    fn advance(&mut self, progress: &mut Progress, batch: &Batch, end: usize) -> bool;

    /// What was last advanced to is stored.
    fn stored(&mut self, progress: &Progress, proof: Stored);

    /// Whose events they are.
    fn origin(&self) -> Origin<'_>;
}

/// Whose events a batch has, which decides how they are parked.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// The stream's: a parked one is a new dead letter.
    Stream,
    /// A repair's: as the stream's, and it may be parked already.
    Repair,
    /// A release's: a parked one goes back to where it was.
    Release {
        /// The release.
        id: &'a str,
        /// Position of its event at place 0.
        first: RowPosition,
    },
}

/// The publisher, the parked lanes and the progress: all that a delivery changes.
#[derive(Debug)]
pub struct Delivery<P, D> {
    publisher: P,
    desk: Desk<D>,
    lanes: Lanes,
    progress: Progress,
    settling: Settling,
    /// `None` where the sink takes its time.
    pace: Option<Pace>,
    board: Board,
    /// Told when an event is parked because its topic is missing.
    missing: Arc<Notify>,
    /// Told when events are parked that the broker was not asked about by themselves.
    suspected: Arc<Notify>,
    suspicion: Suspicion,
    /// When the broker refused something last.
    refused_at: Instant,
    /// Reasons that were logged.
    told: Vec<&'static str>,
    /// The releases that were finished last: they may be announced once more.
    finished: VecDeque<String>,
}

impl<P: Publisher, D: DeadLetters + 'static> Delivery<P, D> {
    /// `progress` is what was read back or first stored, `lanes` what was parked by then.
    pub fn new(
        publisher: P,
        dead_letters: D,
        lanes: Lanes,
        progress: Progress,
        board: Board,
    ) -> Self {
        board.parked_lanes(lanes.len());
        let pace = publisher.delivery_limit().map(Pace::new);
        let settling = Settling::new(reached(&progress));
        Delivery {
            publisher,
            desk: Desk::new(dead_letters),
            lanes,
            progress,
            settling,
            pace,
            board,
            missing: Arc::default(),
            suspected: Arc::default(),
            suspicion: Suspicion::new(),
            refused_at: Instant::now(),
            told: Vec::new(),
            finished: VecDeque::new(),
        }
    }

    /// Notified when an event was parked because its topic is missing.
    pub fn missing_topic(&self) -> Arc<Notify> {
        Arc::clone(&self.missing)
    }

    /// Notified when events were parked that the broker was not asked about by themselves.
    pub fn suspected(&self) -> Arc<Notify> {
        Arc::clone(&self.suspected)
    }

    /// What is stored, or about to be.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// When [`Delivery::settle`] is to be called; `None` while all that is delivered is stored, and while
    /// something is being parked.
    pub fn settles_at(&self) -> Option<Instant> {
        self.settling.due_at().filter(|_| !self.desk.is_busy())
    }

    /// Waits until then, by the publisher's clock. Cancel safe.
    pub async fn wait_until(&mut self, at: Instant) {
        self.publisher.wait_until(at).await;
    }

    /// Stores progress, unless it went with what was delivered.
    ///
    /// Not cancel safe, as a delivery.
    ///
    /// # Errors
    /// [`PipelineError`].
    pub async fn settle<C: Course>(&mut self, course: &mut C) -> Result<(), PipelineError> {
        self.until_parked().await?;
        if !self.settling.is_open() {
            return Ok(());
        }
        self.note_parked();
        let started = Instant::now();
        let stored = self.publisher.store(self.progress.encode()).await;
        let stored = stored.map_err(PipelineError::Sink)?;
        let now = Instant::now();
        self.settling.stored(now, now - started);
        self.board.stored(&self.progress);
        course.stored(&self.progress, stored);
        fault::point(Point::Confirmable);
        Ok(())
    }

    /// As [`Delivery::settle`], if it is time.
    ///
    /// # Errors
    /// As [`Delivery::settle`].
    pub async fn settle_in_time<C: Course>(&mut self, course: &mut C) -> Result<(), PipelineError> {
        self.look_at_desk().await?;
        match self.settles_at() {
            Some(at) if at <= Instant::now() => self.settle(course).await,
            _ => Ok(()),
        }
    }

    /// Stores or parks all records of the batch, in order, and the progress that goes with them.
    /// Parked ones are no longer in the batch when it returns. No one else may hold the batch.
    ///
    /// Not cancel safe: dropped half-way, the outcome is uncertain.
    ///
    /// # Errors
    /// [`PipelineError`]; what was stored by then has been told to the course.
    pub async fn deliver<C: Course>(
        &mut self,
        batch: &mut Arc<Batch>,
        course: &mut C,
    ) -> Result<(), PipelineError> {
        self.look_at_desk().await?;
        if matches!(course.origin(), Origin::Repair) {
            self.leave_to_the_table(batch).await?;
        }
        if !self.lanes.is_empty() || !batch.unfit.is_empty() {
            let unfit = std::mem::take(&mut alone(batch).unfit);
            self.park(batch, &unfit, false, 0, course).await?;
        }
        let mut start = 0;
        // A release that tells nothing would come again for ever.
        let mut insistence = match course.origin() {
            Origin::Release { .. } => INSISTENCE,
            Origin::Stream | Origin::Repair => 0,
        };
        // Ends of the ranges that are still to be delivered, the next one last.
        let mut ends = vec![batch.len()];
        while let Some(&end) = ends.last() {
            if start == end && ends.len() > 1 {
                ends.pop(); // All of it is parked, and a later range has the progress.
                continue;
            }
            let end = match &self.pace {
                Some(pace) => pace.cut(batch, start..end),
                None => end,
            };
            let end = end.min(start.saturating_add(self.publisher.records_max()));
            // Where there is no time for halving, each time that the broker is asked must tell something.
            let end = match self.suspicion.is_exhausted(self.refused_at.elapsed()) {
                true => end.min(start + ALONE_MAX),
                false => end,
            };
            if ends.last() != Some(&end) {
                ends.push(end);
            }
            let asked = Instant::now();
            let (records, rest) = match self.store(batch, start..end, course).await {
                Ok(()) => {
                    start = end;
                    ends.pop();
                    continue;
                }
                Err(PipelineError::Sink(SinkError::Refused { records, rest })) => (records, rest),
                Err(error) => return Err(error),
            };
            let guilty = if rest == Rest::NotStored && self.has_waited_enough(asked) {
                insistence = insistence.saturating_sub(1);
                suspects(batch, start..end, records, insistence > 0)
            } else {
                guilty(records, rest, end - start)
            };
            if guilty.is_empty() {
                ends.push(start + (end - start) / 2);
                continue;
            }
            // Where the rest is stored, what follows in a lane was in flight already.
            let followers = if rest == Rest::Stored { end } else { start };
            let parked = self.park(batch, &guilty, true, followers, course).await?;
            assert!(!parked.is_empty(), "a sink refuses records of the range it was given");
            for end in &mut ends {
                *end -= parked.partition_point(|index| index < end);
            }
            if matches!(rest, Rest::Stored | Rest::StoredButFollowers) {
                start = ends.last().copied().unwrap_or(start);
            }
        }
        Ok(())
    }

    async fn store<C: Course>(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        course: &mut C,
    ) -> Result<(), PipelineError> {
        if !course.advance(&mut self.progress, batch, range.end) {
            return Ok(());
        }
        match course.origin() {
            Origin::Release { .. } => self.note_released(batch, range.clone()),
            Origin::Stream | Origin::Repair => self.note_parked(),
        }
        let started = Instant::now();
        self.board.delivery_started();
        let receipt = self.publish(batch, range.clone()).await;
        if matches!(receipt, Err(PipelineError::Sink(SinkError::Refused { .. }))) {
            self.board.delivery_refused();
        }
        let receipt = receipt?;
        fault::point(Point::Delivered);
        let took = started.elapsed();
        let sizes = batch.iter().skip(range.start).take(range.len()).map(|r| r.size_bytes());
        let bytes = sizes.sum();
        if let Some(pace) = self.pace.as_mut().filter(|_| !range.is_empty()) {
            pace.learn(bytes, took);
        }
        let newest_commit_us = batch.newest_commit_us;
        let records = range.len() as u64;
        let position = self.progress.position;
        self.board.delivered(position, records, bytes as u64, took, newest_commit_us);
        self.board.metrics().restamped(receipt.restamped);
        match receipt.progress {
            Some(stored) => {
                self.settling.stored(Instant::now(), Duration::ZERO);
                self.board.stored(&self.progress);
                course.stored(&self.progress, stored);
                fault::point(Point::Confirmable);
            }
            None => self.settling.delivered(records > 0, reached(&self.progress)),
        }
        Ok(())
    }

    /// Publishes, and continues with what is being parked meanwhile: no progress goes along then.
    async fn publish(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
    ) -> Result<Receipt, PipelineError> {
        if !self.desk.is_busy() {
            let progress = Some(self.progress.encode());
            let receipt = self.publisher.publish(batch, range, progress).await;
            return receipt.map_err(PipelineError::Sink);
        }
        if range.is_empty() {
            return Ok(Receipt { restamped: 0, progress: None });
        }
        let (mut parked, mut failed) = (Vec::new(), None);
        let receipt = {
            let mut publish = pin!(self.publisher.publish(batch, range, None));
            loop {
                tokio::select! {
                    biased;
                    receipt = &mut publish => break receipt,
                    Some(done) = self.desk.next(), if failed.is_none() => match done {
                        Ok(parcel) => parked.push(parcel),
                        Err(error) => failed = Some(error),
                    }
                }
            }
        };
        parked.iter().for_each(|parcel| self.are_parked(&parcel.letters()));
        match failed {
            Some(error) => Err(error.into()),
            None => receipt.map_err(PipelineError::Sink),
        }
    }

    /// A batch of the stream was taken: `/readyz` looks whether something comes of it.
    pub(super) fn begins(&self) {
        self.board.batch_taken();
    }

    /// All of it is done.
    pub(super) fn ends(&self) {
        self.board.batch_done();
    }
}

/// The records that are refused themselves: where all was taken back, one that was sent together
/// with others may only share their fate.
fn guilty(mut records: Vec<RefusedRecord>, rest: Rest, count: usize) -> Vec<RefusedRecord> {
    if rest == Rest::NotStored && count > 1 {
        records.retain(|record| record.certain);
    }
    records
}

/// How far the WAL is done.
fn reached(progress: &Progress) -> Lsn {
    progress.position.map_or(Lsn::ZERO, Position::resume_lsn)
}

/// A batch that only its owner holds.
fn alone(batch: &mut Arc<Batch>) -> &mut Batch {
    Arc::get_mut(batch).expect("a sink keeps no batch after its delivery")
}

#[cfg(test)]
mod tests;
