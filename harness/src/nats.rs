//! A NATS server with JetStream, built once from its published module, in a directory of its own. It can
//! be ended and started again, with all it had stored.

mod flood;
mod jetstream;
mod program;
mod stream;

pub use self::{program::program, stream::Stream};

use self::jetstream::{api, client, overwrite};

use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context, Result};
use outbox_relay::throwaway::guardian;
use serde_json::{Value, json};

use crate::{host, process, wait};

/// Its settings, in its directory.
const SETTINGS: &str = "server.conf";

/// A server, running or not; ended by KILL when dropped.
#[derive(Debug)]
pub struct Nats {
    program: PathBuf,
    dir: PathBuf,
    port: u16,
    server: Child,
}

impl Nats {
    /// Starts one on a port of its own. Blocks for a moment, or a minute where it has to be built.
    ///
    /// # Errors
    /// What to install.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// The same, with settings as in a file of the server's.
    ///
    /// # Errors
    /// As [`Nats::start`].
    pub fn start_with(settings: &str) -> Result<Self> {
        let program = program()?;
        let dir = tempfile::Builder::new().prefix("outbox-nats-").tempdir()?.keep();
        guardian::remove_at_exit(&dir)?;
        std::fs::write(dir.join(SETTINGS), settings)?;
        let port = host::free_port();
        let server = spawn(&program, &dir, port)?;
        Ok(Nats { program, dir, port, server })
    }

    /// Names of its streams.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn streams(&self) -> Vec<String> {
        let client = client(&self.address()).await;
        let answer = api(&client, "STREAM.NAMES", &json!({})).await.expect("an answer");
        let names = answer.get("streams").and_then(Value::as_array);
        names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    /// Has it read other settings while it runs.
    ///
    /// # Panics
    /// When they can't be written.
    pub fn reload(&self, settings: &str) {
        std::fs::write(self.dir.join(SETTINGS), settings).expect("settings");
        let pid = libc::pid_t::try_from(self.server.id()).expect("a process");
        // SAFETY: it is this one's child, which was not waited for.
        let told = unsafe { libc::kill(pid, libc::SIGHUP) };
        assert_eq!(told, 0, "the server is told");
    }

    /// How many logins it has rejected, by its log.
    pub fn rejected(&self) -> usize {
        let log = std::fs::read_to_string(self.dir.join("log"));
        log.map_or(0, |log| log.matches("authentication error").count())
    }

    /// Ends it as a crash does.
    ///
    /// # Panics
    /// When it had ended before.
    pub fn kill9(&mut self) {
        assert!(self.server.try_wait().expect("a status").is_none(), "it was running until now");
        self.end();
    }

    /// Starts it again, with all it had stored.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.server = spawn(&self.program, &self.dir, self.port).expect("the server starts");
    }

    /// Ends it, and keeps a copy of all that it has on disk; runs again.
    ///
    /// # Panics
    /// When files can't be copied.
    pub fn saved(&mut self) -> PathBuf {
        self.end();
        let copy = self.dir.join("saved");
        copied(&self.dir.join("data"), &copy);
        self.restart();
        copy
    }

    /// Ends it, and puts back what was on disk then, as a power cut can that comes before a write. It is down then.
    ///
    /// # Panics
    /// When files can't be copied.
    pub fn put_back(&mut self, saved: &Path) {
        self.end();
        let data = self.dir.join("data");
        std::fs::remove_dir_all(&data).expect("its data goes");
        copied(saved, &data);
    }

    fn end(&mut self) {
        // One that has ended already can't be killed, and is waited for all the same.
        let _ended_before = self.server.kill();
        let _status = self.server.wait();
        guardian::forget(self.server.id());
    }

    /// Makes a stream as the relay wants it, which has these subjects; `settings` are further ones.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn stream(&self, name: &str, subjects: &[&str], settings: &Value) -> Stream {
        self.stream_of(&self.address(), name, subjects, settings).await
    }

    /// The same, as the user that is in `server`: `user:password@host:port`.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn stream_of(
        &self,
        server: &str,
        name: &str,
        subjects: &[&str],
        settings: &Value,
    ) -> Stream {
        let mut config = json!({
            "name": name, "subjects": subjects, "retention": "limits", "storage": "file",
            "num_replicas": 1, "allow_atomic": true, "allow_rollup_hdrs": true,
        });
        overwrite(&mut config, settings);
        let create = format!("STREAM.CREATE.{name}");
        let client = client(server).await;
        let made =
            wait::until("JetStream is ready", wait::PATIENCE, || api(&client, &create, &config));
        made.await.expect("the stream is made");
        Stream { server: server.to_owned(), name: name.to_owned() }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(program: &Path, dir: &Path, port: u16) -> Result<Child> {
    let mut command = Command::new(program);
    command
        .args(["--jetstream", "--addr", "127.0.0.1", "--port", &port.to_string(), "--store_dir"])
        .arg(dir.join("data"))
        .arg("--config")
        .arg(dir.join(SETTINGS))
        .current_dir(dir);
    process::server(&mut command, &dir.join("log")).context("nats-server did not start")
}

fn copied(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("there is cp");
    assert!(done.success(), "{} is copied", from.display());
}
