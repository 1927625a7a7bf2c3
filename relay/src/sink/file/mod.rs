//! A file, or standard output: a line of JSON for each record (`line`).
//!
//! For development, tests in other languages and archives. All records of a delivery are on disk when
//! it returns. One process at a time writes a file, by a lock on it for each delivery; what a crash left of a line is cut
//! off before the next one is added. All blocking calls run on tokio's threads for those.

mod line;
mod locked;
mod output;
mod settings;
mod stdout;
mod waiting;

use std::{
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use self::settings::Settings;
use self::{line::write_line, output::Output, waiting::Waiting};
use super::{Delivered, Sink, SinkError, unavailable};
use crate::core::record::Batch;

/// Bytes of lines that are gathered before they are written.
const WRITTEN_AT_ONCE: usize = 1 << 20;
/// A look at the file takes no longer, or it hangs.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// The file.
#[derive(Debug)]
pub struct FileSink {
    output: Arc<Mutex<Output>>,
    waiting: Arc<Waiting>,
    path: Option<PathBuf>,
}

impl FileSink {
    /// Opens nothing yet: the first delivery does.
    pub fn new(settings: &Settings) -> Self {
        let waiting = Arc::<Waiting>::default();
        let path = settings.path.clone();
        let output = Output::new(path.clone(), Arc::clone(&waiting));
        FileSink { output: Arc::new(Mutex::new(output)), waiting, path }
    }

    /// A handle that looks whether the file can be written.
    pub fn probe(&self) -> Probe {
        let (output, waiting) = (Arc::clone(&self.output), Arc::clone(&self.waiting));
        Probe { output, waiting, path: self.path.clone() }
    }
}

impl Sink for FileSink {
    async fn deliver(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
    ) -> Result<Delivered, SinkError> {
        let (output, batch) = (Arc::clone(&self.output), Arc::clone(batch));
        let waiting = Arc::clone(&self.waiting);
        waiting.steps();
        // A thread that waits can't be ended; it leaves by itself where it can.
        let mut abandoned = Abandoned { waiting: &self.waiting, is_over: false };
        let delivered = blocking(move || {
            let written = write(&output, &batch, range);
            waiting.ends();
            // The caller reuses the batch once it has the answer.
            drop(batch);
            written.map(|()| Delivered { restamped: 0 })
        })
        .await;
        abandoned.is_over = true;
        delivered
    }
}

/// Tells the thread that writes when whoever waits for it is dropped.
struct Abandoned<'a> {
    waiting: &'a Waiting,
    is_over: bool,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.waiting.abandon();
        }
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
    waiting: Arc<Waiting>,
    path: Option<PathBuf>,
}

impl Probe {
    /// Opens the file if it is not open. Within some seconds; cancel safe.
    ///
    /// # Errors
    /// `Unavailable` or `Misconfigured`, as a delivery; the first where one under way waits for long.
    pub async fn check(&self) -> Result<(), SinkError> {
        if let Some(since) = self.waiting.too_long_since() {
            return Err(self.waits(&format!(" since {since:.0}")));
        }
        let output = Arc::clone(&self.output);
        let look = blocking(move || match output.try_lock() {
            // A delivery is under way.
            Err(std::sync::TryLockError::WouldBlock) => Ok(()),
            Err(std::sync::TryLockError::Poisoned(output)) => output.into_inner().open(),
            Ok(mut output) => output.open(),
        });
        tokio::time::timeout(LOOK_MAX, look).await.unwrap_or_else(|_| Err(self.waits("")))
    }

    fn waits(&self, since: &str) -> SinkError {
        let (doing, source) = match &self.path {
            None => (
                "writing to standard output".to_owned(),
                format!(
                    "standard output is not read{since}: whoever reads it stands still. Nothing is lost, events \
                     wait in PostgreSQL, and the relay continues when it is read again"
                ),
            ),
            Some(path) => (
                format!("writing {}", path.display()),
                format!(
                    "the file takes no write{since}: its file system hangs. Nothing is lost, events wait in \
                     PostgreSQL, and the relay continues when the write ends"
                ),
            ),
        };
        unavailable(doing, source)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SinkError> + Send + 'static,
) -> Result<T, SinkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(unavailable("writing the file", error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_that_panics_is_told() {
        let error = blocking::<()>(|| panic!("a defect")).await.expect_err("it has panicked");
        let told = crate::causes::of(&error);
        assert!(told.starts_with("writing the file") && told.contains("a defect"), "{told}");
    }
}
