//! The running relay.

use anyhow::anyhow;

use crate::config::{Config, Finding};

/// What `route`, `sink` and `postgres` find wrong with their settings, without connecting.
pub fn examine(_config: &Config) -> Vec<Finding> {
    Vec::new()
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What no retry can mend.
#[expect(clippy::unused_async, reason = "not built yet")]
pub async fn run(config: Config) -> anyhow::Result<()> {
    Err(anyhow!("run is not built yet (relay {})", config.name))
}
