//! A sink and a store of progress that are two things: records first, then progress, when the pipeline
//! sees fit. So a crash repeats what was delivered since progress was last stored.
//!
//! After an uncertain outcome of either it takes nothing more: retry is replay.

use std::{future::Future, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{ProgressStore, Publisher, Receipt, Sink, SinkError, Stored, StoredProgress};
use crate::core::record::Batch;

/// The two of them.
#[derive(Debug)]
pub struct Apart<S, P> {
    /// Stores records.
    pub sink: S,
    progress: P,
    /// An outcome is uncertain.
    spent: bool,
}

impl<S, P> Apart<S, P> {
    /// `sink` stores records, `progress` keeps progress.
    pub fn new(sink: S, progress: P) -> Self {
        Apart { sink, progress, spent: false }
    }
}

/// Notes while it is under way, and when it failed, that its outcome is uncertain. Who drops it half-way
/// will never know.
async fn once_certain<T>(
    spent: &mut bool,
    work: impl Future<Output = Result<T, SinkError>>,
) -> Result<T, SinkError> {
    if *spent {
        return Err(SinkError::spent());
    }
    *spent = true;
    let done = work.await;
    *spent = matches!(&done, Err(error) if !matches!(error, SinkError::Refused { .. }));
    done
}

impl<S: Sink, P: ProgressStore> ProgressStore for Apart<S, P> {
    async fn peek(&mut self) -> Result<StoredProgress, SinkError> {
        self.progress.peek().await
    }

    async fn fence(&mut self) -> Result<(), SinkError> {
        self.progress.fence().await
    }

    async fn read(&mut self) -> Result<StoredProgress, SinkError> {
        self.progress.read().await
    }

    async fn store(&mut self, progress: Bytes) -> Result<Stored, SinkError> {
        once_certain(&mut self.spent, self.progress.store(progress)).await
    }
}

impl<S: Sink, P: ProgressStore> Publisher for Apart<S, P> {
    fn delivery_limit(&self) -> Option<Duration> {
        self.sink.delivery_limit()
    }

    fn is_apart(&self) -> bool {
        true
    }

    async fn publish(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        _progress: Option<Bytes>,
    ) -> Result<Receipt, SinkError> {
        if range.is_empty() {
            return Ok(Receipt { restamped: 0, progress: None });
        }
        let delivered = once_certain(&mut self.spent, self.sink.deliver(batch, range)).await?;
        Ok(Receipt { restamped: delivered.restamped, progress: None })
    }
}
