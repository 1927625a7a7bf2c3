//! The doctor: every precondition, each with its remedy.

use anyhow::anyhow;

use crate::config::Config;

/// Examines everything and prints what was found; `true` when all is well.
///
/// # Errors
/// The examination itself failed.
#[expect(clippy::unused_async, reason = "not built yet")]
pub async fn run(config: &Config, _json: bool) -> anyhow::Result<bool> {
    Err(anyhow!("check is not built yet (relay {})", config.name))
}
