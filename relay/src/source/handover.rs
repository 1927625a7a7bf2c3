//! The one queue: two batches that change hands between the source and the pipeline.
//!
//! The source fills one while the pipeline delivers the other. An empty batch given back means
//! "the sink is free": batches form by themselves, as large as the delivery before them was long.

use tokio::sync::mpsc;

use crate::core::record::{Batch, BatchLimits};

/// Makes the two ends.
pub fn handover(limits: BatchLimits) -> (Giver, Taker) {
    let (full_tx, full_rx) = mpsc::channel(1);
    let (spare_tx, spare_rx) = mpsc::channel(1);
    (
        Giver {
            full: full_tx,
            spare: spare_rx,
            filling: Batch::new(limits),
            free: None,
            released: false,
        },
        Taker {
            full: full_rx,
            spare: spare_tx,
            idle: Some(Spare { batch: Batch::new(limits), released: false }),
        },
    )
}

/// A batch that is emptied.
#[derive(Debug)]
struct Spare {
    batch: Batch,
    /// Whether what was announced last was a release.
    released: bool,
}

/// The source's end.
#[derive(Debug)]
pub struct Giver {
    full: mpsc::Sender<Batch>,
    spare: mpsc::Receiver<Spare>,
    /// The batch that is being filled.
    pub filling: Batch,
    free: Option<Batch>,
    released: bool,
}

impl Giver {
    /// Whether the sink waits for a batch.
    pub fn sink_is_free(&self) -> bool {
        self.free.is_some()
    }

    /// Waits until the sink is free. Cancel safe. `false` when the pipeline has ended.
    pub async fn until_sink_is_free(&mut self) -> bool {
        if self.free.is_none() {
            let spare = self.spare.recv().await;
            self.free = spare.map(|Spare { batch, released }| {
                self.released = released;
                batch
            });
        }
        self.free.is_some()
    }

    /// Whether the last announcement that was looked at was true: the next one may well be.
    pub fn has_released(&self) -> bool {
        self.released
    }

    /// Hands over what has been filled, if the sink is free; `filling` is empty afterwards.
    pub fn give(&mut self) {
        if let Some(empty) = self.free.take() {
            let full = std::mem::replace(&mut self.filling, empty);
            // There are two batches, and the pipeline has just given its own back, so there is
            // room. A pipeline that has ended is noticed by `until_sink_is_free`.
            let _ = self.full.try_send(full);
        }
    }
}

/// The pipeline's end.
#[derive(Debug)]
pub struct Taker {
    full: mpsc::Receiver<Batch>,
    spare: mpsc::Sender<Spare>,
    idle: Option<Spare>,
}

impl Taker {
    /// Says that the sink is free and waits for the next batch; `None` when the source has ended.
    /// Cancel safe. The batch that it gave before must be [`Taker::give_back`] first.
    pub async fn take(&mut self) -> Option<Batch> {
        if let Some(idle) = self.idle.take() {
            // There is room: of two batches the source fills the other one. A source that has ended
            // is noticed by the receive below.
            let _ = self.spare.try_send(idle);
        }
        self.full.recv().await
    }

    /// Keeps an emptied batch for the next [`Taker::take`], which tells the source whether what was
    /// announced last was a release.
    pub fn give_back(&mut self, mut batch: Batch, released: bool) {
        batch.clear();
        self.idle = Some(Spare { batch, released });
    }
}
