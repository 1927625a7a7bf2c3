//! The relay as a real process: started with a settings file, killed, stopped, asked.

mod settings;

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub use self::settings::{Settings, binary};
use crate::{host, process::Process, wait};

/// SIGTERM to exit, as promised (DESIGN: command line).
pub const STOP: Duration = Duration::from_secs(10);
/// A relay's process; ended by KILL when dropped.
#[derive(Debug)]
pub struct Relay {
    settings: Settings,
    process: Process,
    admin: SocketAddr,
}

impl Settings {
    /// Starts `run`, and returns without waiting for anything.
    ///
    /// # Panics
    /// When the process does not start.
    pub fn spawn(self) -> Relay {
        self.spawn_at(host::free_port())
    }

    /// As [`Settings::spawn`], with its admin server at this port, which another may have.
    ///
    /// # Panics
    /// When the process does not start.
    pub fn spawn_at(self, port: u16) -> Relay {
        let settings = self.set("admin.listen", &format!("127.0.0.1:{port}"));
        let log = settings.dir.join(format!("{}.log", settings.name()));
        let (command, stdout) = (settings.prepare(&["run"]), settings.stdout.as_deref());
        let process = Process::start("the relay", command, log, stdout);
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Relay { settings, process, admin }
    }

    /// Starts `run` and waits until it is ready.
    ///
    /// # Panics
    /// When it ends, or is not ready after [`wait::PATIENCE`].
    pub async fn start(self) -> Relay {
        let mut relay = self.spawn();
        relay.wait_ready().await;
        relay
    }
}

impl Relay {
    /// Waits until `/readyz` says 200.
    ///
    /// # Panics
    /// When the process ends, or is not ready after [`wait::PATIENCE`].
    pub async fn wait_ready(&mut self) {
        self.wait_for("/readyz", 200).await;
    }

    /// Waits until `path` answers with `status`.
    ///
    /// # Panics
    /// When the process ends, or does not say so within [`wait::PATIENCE`].
    pub async fn wait_for(&mut self, path: &str, status: u16) {
        let admin = self.admin;
        let what = format!("{path} says {status}");
        let answered = wait::until(&what, wait::PATIENCE, || {
            let ended = self.process.ended();
            async move {
                if let Some(ended) = ended? {
                    // No answer will come; the deadline would only hide why.
                    panic!("the relay ended: {ended}");
                }
                match get(admin, path).await? {
                    (found, _) if found == status => Ok(()),
                    (found, body) => bail!("{found} {body}"),
                }
            }
        });
        answered.await.expect("the relay answers");
    }

    /// Body of an admin page.
    ///
    /// # Panics
    /// When it is not 200.
    pub async fn page(&self, path: &str) -> String {
        match get(self.admin, path).await {
            Ok((200, body)) => body,
            other => panic!("{path}: {other:?}"),
        }
    }

    /// That `/readyz` says nothing but `ok`, and perhaps that lanes are parked.
    ///
    /// # Errors
    /// What it says.
    ///
    /// # Panics
    /// When it is not 200.
    pub async fn nothing_of_concern(&self) -> Result<(), String> {
        let page = self.page("/readyz").await;
        let parked = |line: &str| line.contains("parked") && line.contains("later events wait");
        match page.lines().all(|line| line == "ok" || parked(line)) {
            true => Ok(()),
            false => Err(page),
        }
    }

    /// `/status`.
    ///
    /// # Panics
    /// When there is none, or it is not JSON.
    pub async fn status(&self) -> Value {
        serde_json::from_str(&self.page("/status").await).expect("/status is JSON")
    }

    /// As [`Relay::status`], for a relay that may not answer yet.
    ///
    /// # Errors
    /// It does not answer, or not with JSON.
    pub async fn try_status(&self) -> Result<Value> {
        match get(self.admin, "/status").await? {
            (200, body) => Ok(serde_json::from_str(&body)?),
            (status, body) => bail!("{status} {body}"),
        }
    }

    /// Whether its log has `text`, in any of its lives.
    pub fn logs_contain(&self, text: &str) -> bool {
        self.log_text().contains(text)
    }

    /// Waits until its log has `text`.
    ///
    /// # Panics
    /// When it does not within [`wait::PATIENCE`].
    pub async fn wait_log(&self, text: &str) {
        self.process.wait_log(text).await;
    }

    /// Its log so far.
    pub fn log_text(&self) -> String {
        self.process.log_text()
    }

    /// Where it answers `/livez` and the rest.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The most memory it ever had resident, in bytes: `VmHWM` of `/proc`.
    ///
    /// # Panics
    /// When it has ended, or this is not Linux.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.process.peak_memory_bytes()
    }

    /// The names of its threads now, in order. Linux keeps the first 15 bytes of each.
    ///
    /// # Panics
    /// As [`Relay::peak_memory_bytes`].
    pub fn threads(&self) -> Vec<String> {
        self.process.threads()
    }

    /// Its process id, for signals.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Ends it with KILL and waits for that.
    ///
    /// # Panics
    /// When it had ended before.
    pub async fn kill9(&mut self) {
        self.process.kill9().await;
    }

    /// Stops its process in the middle of whatever it does, as a paused virtual machine would.
    pub fn freeze(&self) {
        self.process.signal(libc::SIGSTOP);
    }

    /// Lets it continue after [`Relay::freeze`].
    pub fn thaw(&self) {
        self.process.signal(libc::SIGCONT);
    }

    /// Asks it to stop, and returns at once.
    pub fn ask_to_stop(&self) {
        self.process.signal(libc::SIGTERM);
    }

    /// Starts it again with the same settings, after [`Relay::kill9`] or [`Relay::sigterm`].
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.process.restart(self.settings.prepare(&["run"]), self.settings.stdout.as_deref());
    }

    /// As [`Relay::restart`], with the fault that it is to run into (`outbox_relay::fault`).
    ///
    /// # Panics
    /// As [`Relay::restart`].
    pub fn restart_with(&mut self, fault: Option<&str>) {
        self.settings.set_fault(fault);
        self.restart();
    }

    /// Asks it to stop, and returns how it ended.
    ///
    /// # Panics
    /// When it has not ended after [`STOP`].
    pub async fn sigterm(&mut self) -> ExitStatus {
        self.ask_to_stop();
        self.wait_end(STOP).await
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it has not after `deadline`.
    pub async fn wait_end(&mut self, deadline: Duration) -> ExitStatus {
        let ended = self.ended_within(deadline).await;
        ended.unwrap_or_else(|| panic!("the relay still runs after {deadline:?}"))
    }

    /// How it ended; `None` when it still runs after `deadline`.
    ///
    /// # Panics
    /// When the system does not say how.
    pub async fn ended_within(&mut self, deadline: Duration) -> Option<ExitStatus> {
        self.process.ended_within(deadline).await
    }
}

/// A GET of the admin server: status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    let status = head.split(' ').nth(1).context("an HTTP status")?.parse()?;
    Ok((status, body.to_owned()))
}
