//! A program that was built with the tests, as a process: killed, frozen, asked to stop.
//!
//! Its log goes to a file whose end is printed when the test that owns it fails.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use outbox_relay::throwaway::{self, guardian};
use tokio::process::{Child, Command};

use crate::{host, wait};

/// How long one that was dropped may take to be gone.
const GONE: Duration = Duration::from_secs(20);

/// Ended by KILL when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    /// `the relay`, for people.
    what: &'static str,
    child: Child,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts it. What it writes is added to `log`; its standard output to `stdout`, where that is given.
    ///
    /// # Panics
    /// When it does not start.
    pub(crate) fn start(
        what: &'static str,
        command: Result<Command>,
        log: PathBuf,
        stdout: Option<&Path>,
    ) -> Self {
        let (child, pid) =
            spawn(command, &log, stdout).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        Process { what, child, pid, log }
    }

    /// Starts it again, with the same log.
    ///
    /// # Panics
    /// When it does not start.
    pub(crate) fn restart(&mut self, command: Result<Command>, stdout: Option<&Path>) {
        let started = spawn(command, &self.log, stdout);
        (self.child, self.pid) = started.unwrap_or_else(|error| panic!("{}: {error:#}", self.what));
    }

    /// For signals.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Ends it with KILL and waits for that.
    ///
    /// # Panics
    /// When it had ended before.
    pub(crate) async fn kill9(&mut self) {
        assert!(self.ended().expect("a status").is_none(), "{} was running until now", self.what);
        self.child.kill().await.expect("it is killed");
        guardian::forget(self.pid);
    }

    /// # Panics
    /// When it has ended.
    pub(crate) fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.pid).expect("a process id");
        // SAFETY: kill takes any numbers; the child was not waited for, so this one is still its.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{} was running", self.what);
    }

    /// How it ended; `None` when it still runs after `deadline`.
    ///
    /// # Panics
    /// When the system does not say how.
    pub(crate) async fn ended_within(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let ended = tokio::time::timeout(deadline, self.child.wait()).await.ok()?;
        guardian::forget(self.pid);
        Some(ended.expect("a status"))
    }

    /// A number that Linux tells about it, such as `VmHWM:`.
    ///
    /// # Panics
    /// When it has ended, or this is not Linux.
    pub(crate) fn in_proc(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.unwrap_or_else(|error| panic!("{} runs: {error}", self.what));
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        let number = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// The names of its threads now, in order.
    ///
    /// # Panics
    /// As [`Process::in_proc`].
    pub(crate) fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid));
        let tasks = tasks.unwrap_or_else(|error| panic!("{} runs: {error}", self.what));
        // One that ends meanwhile has no name.
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
        let names = tasks.filter_map(|task| name(task.ok()?));
        let mut names: Vec<_> = names.map(|name| name.trim().to_owned()).collect();
        names.sort();
        names
    }

    /// The most memory it ever had resident, in bytes.
    ///
    /// # Panics
    /// As [`Process::in_proc`].
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        self.in_proc("VmHWM:") << 10
    }

    /// The memory that it has resident now, in bytes.
    ///
    /// # Panics
    /// As [`Process::in_proc`].
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.in_proc("VmRSS:") << 10
    }

    /// Its log so far, of all its lives.
    pub(crate) fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until its log has `text`.
    ///
    /// # Panics
    /// When it does not within [`wait::PATIENCE`].
    pub(crate) async fn wait_log(&self, text: &str) {
        wait::until(&format!("the log says {text:?}"), wait::PATIENCE, || async {
            if self.log_text().contains(text) { Ok(()) } else { Err(throwaway::tail(&self.log)) }
        })
        .await
        .unwrap_or_else(|error| panic!("{} logs it: {error:#}", self.what));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _gone = self.child.start_kill();
        }
        // `kill_on_drop` leaves the waiting to the runtime; here the process must be gone before
        // the test's database is dropped.
        let until = Instant::now() + GONE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::yield_now();
        }
        guardian::forget(self.pid);
        if std::thread::panicking() {
            let log = self.log.display();
            host::report(&format!("log of {}, {log}:\n{}", self.what, throwaway::tail(&self.log)));
        }
    }
}

fn spawn(command: Result<Command>, log: &Path, stdout: Option<&Path>) -> Result<(Child, u32)> {
    let open = |path: &Path| OpenOptions::new().create(true).append(true).open(path);
    let mut command = command?;
    command
        .stdin(Stdio::null())
        .stdout(open(stdout.unwrap_or(log))?)
        .stderr(open(log)?)
        // A terminal's ctrl-C ends the tests; the guardian ends this.
        .process_group(0)
        .kill_on_drop(true);
    // Whoever ran the tests may ignore it (`nohup`), and what is ignored is inherited.
    // SAFETY: signal is async-signal-safe, and the closure does nothing else.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_DFL);
            Ok(())
        });
    }
    let child = command.spawn()?;
    let pid = child.id().context("a process that runs has an id")?;
    guardian::kill_at_exit(pid)?;
    Ok((child, pid))
}

/// Starts a server, which the guardian ends; what it prints goes to `log`.
pub(crate) fn server(
    command: &mut std::process::Command,
    log: &Path,
) -> Result<std::process::Child> {
    use std::os::unix::process::CommandExt;
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let server = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A terminal's ctrl-C is for the tests; servers go when the guardian says.
        .process_group(0)
        .spawn()?;
    guardian::kill_at_exit(server.id())?;
    Ok(server)
}

/// The program of this name that cargo built beside the running test.
///
/// # Errors
/// There is none.
pub(crate) fn beside_the_tests(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    // target/<profile>/deps/<test> or target/<profile>/<program>.
    let places = this.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    places
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("no {name} beside the tests: cargo build -p outbox-tests --bins"))
}
