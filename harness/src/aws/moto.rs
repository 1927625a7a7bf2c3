//! moto's server: SNS's topics and the queues behind them, in memory; from PyPI, installed once into an environment of
//! its own.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command},
};

use anyhow::{Context, Result, bail};
use outbox_relay::throwaway::guardian;

use super::{elasticmq::removed, http, queue::Queue, topic::SnsTopic};
use crate::{host, process, wait};

/// Which versions: a change of it makes another environment.
const REQUIREMENTS: &str = include_str!("../../aws/requirements.txt");

/// A server; ended by KILL when dropped, with all it had.
#[derive(Debug)]
pub struct Moto {
    port: u16,
    dir: PathBuf,
    server: Child,
}

impl Moto {
    /// Starts one on a port of its own, which answers some seconds later.
    ///
    /// # Errors
    /// What to install.
    pub fn start() -> Result<Self> {
        let environment = environment()?;
        let dir = tempfile::Builder::new().prefix("outbox-moto-").tempdir()?.keep();
        guardian::remove_at_exit(&dir)?;
        let port = host::free_port();
        let mut command = Command::new(environment.join("bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).current_dir(&dir);
        let server =
            process::server(&mut command, &dir.join("log")).context("moto_server did not start")?;
        Ok(Moto { port, dir, server })
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn wait_ready(&self) {
        let address = self.address();
        let answers =
            wait::until("moto answers", wait::PATIENCE, || http::sns(&address, "ListTopics", &[]));
        if let Err(error) = answers.await {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            panic!("{error:#}; it said: {log}");
        }
    }

    /// Makes a queue; one whose name ends with `.fifo` is a FIFO queue.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn queue(&self, name: &str, partitions: i32) -> Queue {
        let queue = Queue::new(self.address(), name, partitions);
        queue.make().await;
        queue
    }

    /// Makes a topic; one whose name ends with `.fifo` is a FIFO topic.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn topic(&self, name: &str) -> SnsTopic {
        SnsTopic::make(self.address(), name).await
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // One that has ended already can't be killed, and is waited for all the same.
        let _ended_before = self.server.kill();
        let _status = self.server.wait();
        guardian::forget(self.server.id());
    }
}

/// An environment of Python's with moto in it, from `target/harness`; the first process to come makes it.
fn environment() -> Result<PathBuf> {
    let version = REQUIREMENTS.lines().find_map(|line| line.strip_prefix("moto=="));
    let cache = host::cache_dir()?;
    let environment = cache.join(format!("moto-{}", version.context("a version of moto")?));
    let lock = File::create(cache.join("moto.lock"))?;
    lock.lock().context("waiting for another process that installs moto")?;
    let done = environment.join("requirements.txt");
    if std::fs::read_to_string(&done).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(environment);
    }
    host::report("installing moto with pip (140 MB, once)");
    // Its programs name their place, so it can't be made elsewhere and moved.
    removed(&environment)?;
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
        .context("python3 can't make an environment: install it (Debian: python3-venv)")?;
    run(Command::new(environment.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/aws/requirements.txt")))?;
    std::fs::write(&done, REQUIREMENTS)?;
    Ok(environment)
}

fn run(command: &mut Command) -> Result<()> {
    let done = command.output().with_context(|| format!("{command:?} did not start"))?;
    if !done.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}
