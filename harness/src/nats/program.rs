//! The server's program, built once from its published module.

use std::{fs::File, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::host;

/// The version of the module, for CI too.
const VERSION: &str = include_str!("../../nats/version");

/// Where it is, in `target/harness`; the first process to come builds it.
///
/// # Errors
/// What to install.
pub fn program() -> Result<PathBuf> {
    let cache = host::cache_dir()?;
    let version = VERSION.trim();
    let program = cache.join(format!("nats-server-{version}")).join("nats-server");
    let lock = File::create(cache.join("nats-server.lock"))?;
    lock.lock().context("waiting for another process that builds nats-server")?;
    if program.is_file() {
        return Ok(program);
    }
    host::report(&format!("building nats-server {version} with Go (a minute, once)"));
    let built = Command::new("go")
        .args(["install", &format!("github.com/nats-io/nats-server/v2@v{version}")])
        .env("GOBIN", program.parent().expect("a folder"))
        .output()
        .context("go did not start: install Go, which builds nats-server")?;
    if !built.status.success() {
        bail!("go could not build nats-server: {}", String::from_utf8_lossy(&built.stderr));
    }
    Ok(program)
}
