//! Waiting for a condition, with a deadline and never for a time.

use std::{future::Future, time::Duration};

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// How long a test waits for what should take moments: long enough for a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks: a twentieth of the wait so far, within these bounds. Looks are not cheap (a new client of Kafka),
/// and several tests wait at once.
const POLL_MIN: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_millis(100);

/// Probes until the answer is `Ok`, and returns it.
///
/// # Errors
/// After `deadline`, with the last answer that was not.
pub async fn until<T, E, F, Fut>(what: &str, deadline: Duration, mut probe: F) -> Result<T>
where
    E: std::fmt::Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let begun = Instant::now();
    let end = begun + deadline;
    let mut last_seen = "no answer at all".to_owned();
    loop {
        // A probe that hangs must not outlive the deadline.
        match tokio::time::timeout_at(end, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            // One that answers at once would never be timed out.
            Ok(Err(seen)) if Instant::now() < end => last_seen = format!("{seen:#}"),
            Ok(Err(seen)) => bail!("{what}: not within {deadline:?}; last seen: {seen:#}"),
            Err(_) => bail!("{what}: not within {deadline:?}; last seen: {last_seen}"),
        }
        sleep((begun.elapsed() / 20).clamp(POLL_MIN, POLL_MAX)).await;
    }
}
