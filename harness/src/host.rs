//! This machine: its terminal, its folders, its ports.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use outbox_relay::throwaway;

/// A line for the person who runs the tests; shown with `--nocapture` and on failure.
#[expect(clippy::print_stderr, reason = "a test harness speaks on the terminal")]
pub fn report(line: &str) {
    eprintln!("harness: {line}");
}

/// `target/harness`: what a later run may find again, such as Kafka's jars.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")),
        Into::into,
    );
    let dir = target.join("harness");
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    dir.canonicalize().with_context(|| format!("resolving {}", dir.display()))
}

/// Takes away what an interrupted run may have left.
pub(crate) fn removed(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// A free port of the loopback interface, never the same one twice, nor one that another process was given.
///
/// # Panics
/// When the loopback interface has none.
pub fn free_port() -> u16 {
    throwaway::free_port().expect("a free loopback port")
}
