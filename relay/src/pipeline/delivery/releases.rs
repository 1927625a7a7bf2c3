//! Releases of parked events: what the stream announces, delivered from the table in its place.

use std::sync::Arc;

use super::{Course, Delivery, Origin};
use crate::{
    core::{
        position::RowPosition,
        progress::Progress,
        record::{Announced, Batch, BatchLimits},
    },
    dead_letter::{DeadLetters, Seen},
    fault::{self, Point},
    pipeline::error::PipelineError,
    sink::{Publisher, Stored},
};

/// Releases that progress may speak of, at some 130 bytes each.
const RELEASES_MAX: usize = 50;
/// Finished releases that are remembered; of one that is not, a second announcement is only counted
/// among those that say nothing.
const FINISHED_KEPT: usize = 256;

impl<P: Publisher, D: DeadLetters + 'static> Delivery<P, D> {
    /// Those of the announcements that there is something to do for.
    ///
    /// # Errors
    /// [`PipelineError::DeadLetters`].
    pub async fn due(
        &mut self,
        announced: Vec<Announced>,
    ) -> Result<Vec<Announced>, PipelineError> {
        if announced.is_empty() {
            return Ok(announced);
        }
        self.until_parked().await?;
        let seen = self.desk.table().look_up(&announced).await?;
        let mut due = Vec::new();
        for (announced, seen) in announced.into_iter().zip(seen) {
            match seen {
                Seen::Due => due.push(announced),
                Seen::NotYet => self.board.message_ignored("not_visible"),
                Seen::Nothing => {
                    // All of it was put back before the relay ended, and is discarded or released
                    // by now; or it was finished, and the server has sent it once more.
                    if !self.forget(&announced.id) && !self.finished.contains(&announced.id) {
                        self.board.message_ignored("no_such_release");
                    }
                }
            }
        }
        Ok(due)
    }

    /// Delivers the parked events of a release, at most as many at a time as `limits` allow. Returns
    /// how many places they took; none for a release that has no row any more. Progress says that
    /// it is complete from the next time on that it is stored.
    ///
    /// # Errors
    /// As [`Delivery::deliver`].
    pub async fn release(
        &mut self,
        announced: &Announced,
        limits: BatchLimits,
    ) -> Result<u64, PipelineError> {
        if self.progress.releases.len() >= RELEASES_MAX {
            let nothing = Arc::new(Batch::new(limits));
            self.store(&nothing, 0..0, &mut ProgressAlone).await?;
            self.settle(&mut ProgressAlone).await?;
            self.finish_complete().await?;
            if self.progress.releases.len() >= RELEASES_MAX {
                self.board.message_ignored("not_visible");
                return Ok(0);
            }
        }
        let first = announced.first;
        let id = announced.id.as_str();
        // Its lanes may have more by now.
        self.until_parked().await?;
        let release = match self.desk.table().begin(id, &self.progress.releases).await {
            Ok(Some(release)) => release,
            Ok(None) => {
                self.forget(id);
                return Ok(0);
            }
            // Its rows are locked: its lanes stay parked, others continue, and it is announced again.
            Err(error) if error.is_locked() => {
                self.board.release_locked();
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        // What was parked behind them by now goes with them, so that nothing that comes after the
        // release has anything to wait for.
        fault::point(Point::ReleaseBegun);
        release.lanes.iter().for_each(|lane| self.lanes.free(*lane));
        let mut next = self.progress.begin_release(id, first.commit);
        if next < release.end {
            tracing::info!(release = id, events = release.end - next, "releasing parked events");
        }
        let mut batch = Batch::new(limits);
        while let Some(after) = self.desk.table().read(id, next, first, &mut batch).await? {
            let mut shared = Arc::new(batch);
            let mut course = ReleaseCourse { id, first, after };
            self.deliver(&mut shared, &mut course).await?;
            batch = Arc::into_inner(shared).expect("a sink keeps no batch after its delivery");
            batch.clear();
            next = after;
        }
        self.progress.complete_release(id);
        self.board.parked_lanes(self.lanes.len());
        fault::point(Point::ReleaseDelivered);
        Ok(release.end)
    }

    /// Stored progress says of some releases that they are complete: their rows need not be kept for
    /// them. To be called when progress was stored after them.
    ///
    /// # Errors
    /// [`PipelineError::DeadLetters`]; the next start does it.
    pub async fn finish_complete(&mut self) -> Result<(), PipelineError> {
        let complete = self.progress.releases.iter().filter(|release| release.complete);
        for release in complete.cloned().collect::<Vec<_>>() {
            fault::point(Point::ReleaseStored);
            match self.desk.table().finish(&release).await {
                Ok(()) => {}
                // Its rows are locked, and progress remembers that they are delivered.
                Err(error) if error.is_locked() => continue,
                Err(error) => return Err(error.into()),
            }
            fault::point(Point::ReleaseFinished);
            self.forget(&release.id);
            self.board.parking_changed();
            if self.finished.len() == FINISHED_KEPT {
                self.finished.pop_front();
            }
            self.finished.push_back(release.id);
        }
        self.lanes.settled();
        Ok(())
    }

    /// Whether progress had it.
    fn forget(&mut self, release: &str) -> bool {
        let before = self.progress.releases.len();
        self.progress.releases.retain(|known| known.id != release);
        self.progress.releases.len() < before
    }
}

/// Counts the places of a release; the position stays before it until all of it is delivered.
struct ReleaseCourse<'a> {
    id: &'a str,
    first: RowPosition,
    /// The place behind the batch's last event.
    after: u64,
}

impl Course for ReleaseCourse<'_> {
    fn advance(&mut self, progress: &mut Progress, batch: &Batch, end: usize) -> bool {
        let delivered = match end.checked_sub(1).and_then(|last| batch.get(last)) {
            Some(last) if end < batch.len() => last.position.ordinal - self.first.ordinal + 1,
            _ => self.after,
        };
        progress.deliver_release(self.id, delivered);
        true
    }

    fn stored(&mut self, _progress: &Progress, proof: Stored) {
        // It covers no new position.
        drop(proof);
    }

    fn origin(&self) -> Origin<'_> {
        Origin::Release { id: self.id, first: self.first }
    }
}

/// Stores what progress says already.
struct ProgressAlone;

impl Course for ProgressAlone {
    fn advance(&mut self, _progress: &mut Progress, _batch: &Batch, _end: usize) -> bool {
        true
    }

    fn stored(&mut self, _progress: &Progress, proof: Stored) {
        // It covers no new position.
        drop(proof);
    }

    fn origin(&self) -> Origin<'_> {
        Origin::Stream
    }
}
