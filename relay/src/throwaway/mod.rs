//! Servers that are gone, with all they wrote, when this process ends, whichever way it ends.
//!
//! Run as root, it opens nothing in a folder that another user can change: a link there would lead it
//! to any file of the machine.
//!
//! Finds an installed PostgreSQL, starts it in a directory of its own as a user that PostgreSQL
//! accepts, and has a guardian clear up. Knows no SQL and waits for no answer: its callers do,
//! `demo` and the test suite's harness. The daemon has no use for it.

mod directory;
pub mod guardian;
mod port;
mod postgres;
mod unprivileged;

use std::{
    fs::File,
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

pub use directory::directory;
pub use port::free_port;
pub use postgres::{LocalPostgres, Shutdown, installed};

/// Lines of a log that an error's text shows.
const TAIL_LINES: usize = 40;

/// Starts a server with its output added to `log`. It need not be waited for: `ends` tells the
/// guardian how to end it.
///
/// # Errors
/// The log can't be written, the program not started, or no one would end it; then it is ended.
pub fn spawn_logged(
    mut server: Command,
    dir: &Path,
    log: &Path,
    ends: fn(u32) -> Result<()>,
) -> Result<Child> {
    let output = File::options().create(true).append(true).mode(0o600).open(log);
    let output = output.with_context(|| format!("opening {}", log.display()))?;
    let mut child = server
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        // A terminal's ctrl-C is for this process; servers go when the guardian says.
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {}", server.get_program().display()))?;
    ends(child.id()).inspect_err(|_| drop(child.kill()))?;
    Ok(child)
}

/// The end of a log, for an error's text.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map_or_else(
        |error| format!("(no log: {error})"),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    );
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n")
}
