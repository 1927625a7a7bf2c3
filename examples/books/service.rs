//! One of the services as a process.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use outbox_relay::throwaway::{self, guardian};
use tokio::process::{Child, Command};

/// How a service is started.
pub(crate) struct Program {
    /// Of the service; not that of the program.
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
}

/// The program of that name beside this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    let books = std::env::current_exe()?;
    // target/<profile>/examples/books, and the services in target/<profile>.
    let programs = books.ancestors().nth(2).context("a place among the build's programs")?;
    let program = programs.join(name);
    ensure!(
        program.is_file(),
        "no {name} in {}: cargo build -p outbox-examples",
        programs.display()
    );
    Ok(program)
}

/// A service that runs; ended by KILL when dropped, and when this process ends.
pub(crate) struct Service {
    child: Child,
    pid: u32,
    log: std::path::PathBuf,
}

impl Service {
    pub(crate) fn start(program: &Program, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{}.log", program.name));
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = Command::new(&program.path)
            .args(&program.arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().context("a process that runs has an id")?;
        guardian::kill_at_exit(pid)?;
        Ok(Service { child, pid, log })
    }

    /// Ends it with KILL while it is at work.
    pub(crate) async fn kill9(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "it had ended before: {}", throwaway::tail(&self.log));
        self.child.kill().await?;
        guardian::forget(self.pid);
        Ok(())
    }

    /// Waits until it has ended, by itself or as it was made to.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let status = self.child.wait().await?;
        guardian::forget(self.pid);
        // Without a code it was killed.
        ensure!(status.code().unwrap_or(0) == 0, "{status}: {}", throwaway::tail(&self.log));
        Ok(())
    }
}
