//! A file, or standard output: a line of JSON for each record (`line`).
//!
//! For development, tests in other languages and archives. All records of a delivery are on disk when
//! it returns. One process at a time writes a file, by a lock on it for each delivery; what a crash left of a line is cut
//! off before the next one is added. All blocking calls run on tokio's threads for those.

mod line;
mod output;
mod settings;
mod stdout;

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

pub use self::settings::Settings;
use self::{line::write_line, output::Output};
use super::{Delivered, Sink, SinkError};
use crate::core::record::Batch;

/// Bytes of lines that are gathered before they are written.
const WRITTEN_AT_ONCE: usize = 1 << 20;

/// The file.
#[derive(Debug)]
pub struct FileSink {
    output: Arc<Mutex<Output>>,
}

impl FileSink {
    /// Opens nothing yet: the first delivery does.
    pub fn new(settings: &Settings) -> Self {
        FileSink { output: Arc::new(Mutex::new(Output::new(settings.path.clone()))) }
    }

    /// A handle that looks whether the file can be written.
    pub fn probe(&self) -> Probe {
        Probe { output: Arc::clone(&self.output) }
    }
}

impl Sink for FileSink {
    async fn deliver(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
    ) -> Result<Delivered, SinkError> {
        let (output, batch) = (Arc::clone(&self.output), Arc::clone(batch));
        blocking(move || {
            let written = write(&output, &batch, range);
            // The caller reuses the batch once it has the answer.
            drop(batch);
            written.map(|()| Delivered { restamped: 0 })
        })
        .await
    }
}

fn write(output: &Mutex<Output>, batch: &Batch, range: Range<usize>) -> Result<(), SinkError> {
    let output = &mut *output.lock().unwrap_or_else(PoisonError::into_inner);
    output.begin()?;
    let mut lines = Vec::new();
    for record in batch.iter().take(range.end).skip(range.start) {
        write_line(&mut lines, &record);
        if lines.len() >= WRITTEN_AT_ONCE {
            output.write(&lines)?;
            lines.clear();
        }
    }
    output.write(&lines)?;
    output.end()
}

/// Looks whether the file can be written.
#[derive(Clone, Debug)]
pub struct Probe {
    output: Arc<Mutex<Output>>,
}

impl Probe {
    /// Opens the file if it is not open. Cancel safe.
    ///
    /// # Errors
    /// `Unavailable` or `Misconfigured`, as a delivery.
    pub async fn check(&self) -> Result<(), SinkError> {
        let output = Arc::clone(&self.output);
        blocking(move || match output.try_lock() {
            // A delivery is under way, and tells.
            Err(std::sync::TryLockError::WouldBlock) => Ok(()),
            Err(std::sync::TryLockError::Poisoned(output)) => output.into_inner().open(),
            Ok(mut output) => output.open(),
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SinkError> + Send + 'static,
) -> Result<T, SinkError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(SinkError::Unavailable { doing: "writing the file".into(), source: error.into() })
    })
}
