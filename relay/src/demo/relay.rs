//! The relay as a process of its own: this program with `run`, killed and started again.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};

use super::database::Database;
use crate::{
    config::keys::ENV_PREFIX,
    throwaway::{self, guardian},
};

/// SIGTERM to exit, as promised to operators.
const STOP: Duration = Duration::from_secs(10);

/// A relay that runs; ended by KILL when dropped.
#[derive(Debug)]
pub(super) struct Relay {
    dir: PathBuf,
    child: Child,
    pid: u32,
}

impl Relay {
    /// Writes the settings to `dir`, and starts it. `sink` is what they have from `[sink]` on.
    pub(super) fn start(dir: &Path, name: &str, database: &Database, sink: &str) -> Result<Self> {
        let settings = format!(
            "name = {}\n[postgres]\nurl = {}\n[admin]\nlisten = \"off\"\n{sink}",
            quoted(name),
            quoted(database.url()),
        );
        std::fs::write(settings_file(dir), settings).context("writing the relay's settings")?;
        let (child, pid) = spawn(dir)?;
        Ok(Relay { dir: dir.to_owned(), child, pid })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it with KILL, and starts another with the same settings.
    pub(super) async fn replace(&mut self) -> Result<()> {
        self.is_running()?;
        self.child.kill().await.context("killing the relay")?;
        guardian::forget(self.pid);
        (self.child, self.pid) = spawn(&self.dir)?;
        Ok(())
    }

    /// # Errors
    /// It ended by itself, with the end of its log.
    pub(super) fn is_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the relay ended: {status}; its log:\n{}", self.log()),
        }
    }

    /// The end of its log.
    pub(super) fn log(&self) -> String {
        throwaway::tail(&log_file(&self.dir))
    }

    /// Asks it to stop, and waits until it has.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.is_running()?;
        let pid = libc::pid_t::try_from(self.pid).context("a process id")?;
        // SAFETY: kill takes any numbers; the child was not waited for, so this one is still its.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let ended = tokio::time::timeout(STOP, self.child.wait()).await;
        let status: ExitStatus = ended.context("the relay does not stop when asked to")??;
        guardian::forget(self.pid);
        if !status.success() {
            bail!("the relay stopped with {status}; its log:\n{}", self.log());
        }
        Ok(())
    }
}

/// A value of the settings: a JSON string is a TOML basic string.
pub(super) fn quoted(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

fn settings_file(dir: &Path) -> PathBuf {
    dir.join("outbox-relay.toml")
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("relay.log")
}

fn spawn(dir: &Path) -> Result<(Child, u32)> {
    let log = OpenOptions::new().create(true).append(true).open(log_file(dir))?;
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    // Settings meant for another relay are not meant for this one.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(ENV_PREFIX) {
            command.env_remove(name);
        }
    }
    let child = command
        .arg("run")
        .arg("--config")
        .arg(settings_file(dir))
        .env_remove("RUST_LOG")
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A terminal's ctrl-C is for the demo, which stops it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("starting the relay")?;
    let pid = child.id().context("a process that runs has an id")?;
    guardian::kill_at_exit(pid)?;
    Ok((child, pid))
}
