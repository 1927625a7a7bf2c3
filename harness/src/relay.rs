//! The relay as a real process: started with a settings file, killed, stopped, asked.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use crate::{
    host,
    process::{self, Process},
    wait,
};

/// SIGTERM to exit, as promised (DESIGN: command line).
pub const STOP: Duration = Duration::from_secs(10);
/// The variable that `relay-under-test` reads its fault from.
const FAULT: &str = "OUTBOX_FAULT";
/// How long a command that ends by itself may take.
const COMMAND: Duration = Duration::from_secs(60);

/// Settings of a relay that is not running yet.
#[derive(Clone, Debug)]
pub struct Settings {
    dir: PathBuf,
    /// Dotted TOML keys, and values as TOML writes them.
    values: BTreeMap<String, String>,
    environment: BTreeMap<String, String>,
    /// What to run; `None` is what [`binary`] finds.
    program: Option<PathBuf>,
    /// Of its files, where several relays have one name.
    file_name: Option<String>,
    /// Where its standard output goes; `None`: to its log.
    stdout: Option<PathBuf>,
}

/// A relay's process; ended by KILL when dropped.
#[derive(Debug)]
pub struct Relay {
    settings: Settings,
    process: Process,
    admin: SocketAddr,
}

impl Settings {
    pub(crate) fn new(dir: &Path) -> Self {
        Settings {
            dir: dir.to_owned(),
            values: BTreeMap::new(),
            environment: BTreeMap::new(),
            program: None,
            file_name: None,
            stdout: None,
        }
    }

    /// Sets a key to a string.
    #[must_use]
    pub fn set(self, key: &str, value: &str) -> Self {
        let text = Value::from(value).to_string(); // A JSON string is a TOML basic string.
        self.set_toml(key, &text)
    }

    /// Sets a key to a value as TOML writes it: `12`, `true`, `["a"]`.
    #[must_use]
    pub fn set_toml(mut self, key: &str, value: &str) -> Self {
        self.values.insert(key.to_owned(), value.to_owned());
        self
    }

    /// What a key is set to, as text.
    ///
    /// # Panics
    /// When it is not set.
    pub fn value(&self, key: &str) -> String {
        self.values.get(key).expect(key).trim_matches('"').to_owned()
    }

    /// Leaves a key out.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.values.remove(key);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Names its settings file and log: for several relays of one name.
    #[must_use]
    pub fn files(mut self, name: &str) -> Self {
        self.file_name = Some(name.to_owned());
        self
    }

    /// Has its standard output in a file.
    #[must_use]
    pub fn stdout(mut self, path: &Path) -> Self {
        self.stdout = Some(path.to_owned());
        self
    }

    /// Arms a fault: `point[:nth[:freeze]]`.
    #[must_use]
    pub fn fault(self, fault: &str) -> Self {
        self.env(FAULT, fault)
    }

    /// Runs this program instead of the one that was built with the tests.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Starts `run`, and returns without waiting for anything.
    ///
    /// # Panics
    /// When the process does not start.
    pub fn spawn(self) -> Relay {
        let port = host::free_port();
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

    /// Runs another command to its end, such as `["check"]`.
    ///
    /// # Panics
    /// When it does not start, or does not end in a minute.
    pub async fn command(&self, arguments: &[&str]) -> Output {
        let run = async {
            let mut command = self.prepare(arguments)?;
            let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
            anyhow::Ok(tokio::time::timeout(COMMAND, output).await??)
        };
        run.await.unwrap_or_else(|error| panic!("{arguments:?}: {error:#}"))
    }

    /// Starts another command, and waits until it says `words` to who typed it. Returns all that it has
    /// said by then, and the process, which goes on.
    ///
    /// # Panics
    /// When it does not start, or does not say so in a minute.
    pub async fn command_that_says(&self, arguments: &[&str], words: &str) -> (String, Child) {
        let run = async {
            let mut command = self.prepare(arguments)?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut child = command.kill_on_drop(true).spawn()?;
            let mut lines = BufReader::new(child.stderr.take().context("its errors")?).lines();
            let mut said = String::new();
            while !said.contains(words) {
                let line = lines.next_line().await?;
                said += &line.with_context(|| format!("it has ended: {said}"))?;
            }
            anyhow::Ok((said, child))
        };
        let said = tokio::time::timeout(COMMAND, run).await.map_err(anyhow::Error::new);
        said.flatten().unwrap_or_else(|error| panic!("{arguments:?}: {error:#}"))
    }

    fn name(&self) -> String {
        if let Some(name) = &self.file_name {
            return name.clone();
        }
        self.values.get("name").map_or("relay", |name| name.trim_matches('"')).to_owned()
    }

    /// Writes them to a file, for who reads it in this process.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn written(&self) -> PathBuf {
        self.write("read").expect("the settings are written")
    }

    /// A file for each use: a relay that was just started may not have read its own yet.
    fn write(&self, used_by: &str) -> Result<PathBuf> {
        let mut toml = String::new();
        for (key, value) in &self.values {
            writeln!(toml, "{key} = {value}")?;
        }
        let file = self.dir.join(format!("{}.{used_by}.toml", self.name()));
        std::fs::write(&file, toml)?;
        Ok(file)
    }

    fn prepare(&self, arguments: &[&str]) -> Result<Command> {
        let (subcommand, rest) = arguments.split_first().context("a subcommand")?;
        let file = self.write(subcommand)?;
        let program = self.program.clone().map_or_else(binary, Ok)?;
        let mut command = Command::new(program);
        command.arg(subcommand).arg("--config").arg(file).args(rest).current_dir(&self.dir);
        command.envs(&self.environment);
        Ok(command)
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

    /// Its threads now.
    ///
    /// # Panics
    /// As [`Relay::peak_memory_bytes`].
    pub fn threads(&self) -> u64 {
        self.process.in_proc("Threads:")
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

    /// Lets it go on after [`Relay::freeze`].
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
        self.settings.environment.remove(FAULT);
        self.settings.environment.extend(fault.map(|fault| (FAULT.to_owned(), fault.to_owned())));
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

/// `OUTBOX_TEST_RELAY`, else the one that cargo built beside the running test.
///
/// # Errors
/// There is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("OUTBOX_TEST_RELAY") {
        return Ok(path.into());
    }
    process::beside_the_tests("relay-under-test")
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
