//! A sink and a store of progress that are two things: records first, then progress, when the pipeline
//! sees fit. So a crash repeats what was delivered since progress was last stored.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{ProgressStore, Publisher, Receipt, Sink, SinkError, Stored, StoredProgress};
use crate::record::Batch;

/// The two of them.
#[derive(Debug)]
pub struct Apart<S, P> {
    /// Stores records.
    pub sink: S,
    /// Keeps progress.
    pub progress: P,
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
        self.progress.store(progress).await
    }
}

impl<S: Sink, P: ProgressStore> Publisher for Apart<S, P> {
    fn delivery_limit(&self) -> Option<Duration> {
        self.sink.delivery_limit()
    }

    async fn publish(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        _progress: Bytes,
    ) -> Result<Receipt, SinkError> {
        if range.is_empty() {
            return Ok(Receipt { restamped: 0, progress: None });
        }
        let delivered = self.sink.deliver(batch, range).await?;
        Ok(Receipt { restamped: delivered.restamped, progress: None })
    }
}
