//! moto's server: SNS's topics and the queues behind them, in memory; from PyPI, installed once into an environment of
//! its own.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context, Result};
use outbox_relay::throwaway::guardian;

use super::{http, queue::Queue, topic::SnsTopic};
use crate::{host, process, python, wait};

/// Which versions.
const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/aws/requirements.txt");

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
        let environment = python::environment("moto", Path::new(REQUIREMENTS))?;
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
