//! What the demo tells of itself while it runs.

use anyhow::{Result, bail};
use tokio_util::sync::CancellationToken;

/// What is happening, for whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Something worth a line.
    Line(String),
    /// How far it is, ten times a second.
    Progress {
        /// Events committed so far.
        committed: u64,
        /// Events that took effect so far.
        delivered: u64,
    },
}

/// Where updates go.
pub type Tell<'a> = &'a dyn Fn(Update);

pub(super) async fn unless_stopped<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        () = stop.cancelled() => bail!("stopped before the end; what the demo made is removed"),
        done = work => done,
    }
}
