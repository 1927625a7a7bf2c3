//! What the server still does after we have stopped waiting for it, and must be told to end.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use crate::postgres::dial::CancelHandle;

/// For reaching the server, when the start is given up.
const CANCEL_MAX: Duration = Duration::from_secs(2);

/// A command of the start that outlives its connection: making a slot waits for open writers for
/// as long as it takes, and then makes the slot for no one.
#[derive(Debug, Default)]
pub(super) struct Unfinished(Mutex<Option<CancelHandle>>);

impl Unfinished {
    /// From now on `command` is running.
    pub(super) fn begin(&self, command: CancelHandle) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(command);
    }

    /// It has ended by itself.
    pub(super) fn end(&self) {
        self.take();
    }

    /// Ends it on the server, if it was given up half-way.
    pub(super) async fn cancel(&self) {
        let Some(command) = self.take() else { return };
        let outcome = timeout(CANCEL_MAX, command.cancel()).await;
        if let Err(error) = outcome.map_err(anyhow::Error::new).and_then(|told| Ok(told?)) {
            tracing::warn!(
                error = format!("{error:#}"),
                "the server could not be told to give up making the slot; the next start ends it"
            );
        }
    }

    fn take(&self) -> Option<CancelHandle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
