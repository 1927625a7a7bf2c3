//! An installed PostgreSQL, run in a directory of its own.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
};

use anyhow::{Context, Result, bail};

use super::{free_port, guardian, spawn_logged, unprivileged::Unprivileged};

/// A server that was started; its superuser is `postgres`. It listens on 127.0.0.1 and on a Unix
/// socket, and answers a moment later.
#[derive(Debug)]
pub struct LocalPostgres {
    user: Unprivileged,
    bin: PathBuf,
    settings: Vec<String>,
    dir: PathBuf,
    port: u16,
    server: Child,
}

/// How a server is asked to end (the manual, "Shutting Down the Server").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Sessions are ended, walsenders after all they have to send; the next start finds all in order.
    Fast,
    /// As a crash: the next start recovers from the WAL.
    Immediate,
}

impl LocalPostgres {
    /// Makes a cluster and starts its server, with `settings` as `name=value`. Durability is off:
    /// nothing in it outlives this process. Blocks for a second or two.
    ///
    /// # Errors
    /// What `initdb` said, or what could not be made or started.
    pub fn start(bin: &Path, password: &str, settings: &[&str]) -> Result<Self> {
        let user = Unprivileged::find()?;
        let dir = directory(user)?;
        let password_file = dir.join("password");
        std::fs::write(&password_file, password)?;
        user.owns(&password_file)?;
        let mut initdb = user.command(&bin.join("initdb"));
        initdb
            .args(["--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg(format!("--pwfile={}", password_file.display()))
            .arg("--pgdata")
            .arg(dir.join("data"));
        run(initdb, &dir)?;
        let settings = settings.iter().map(|&setting| setting.into()).collect();
        Self::launch(user, bin, settings, dir)
    }

    /// A copy that streams from this one, which must answer: a hot standby with the same settings.
    /// A build without `pg_basebackup` is stopped and copied.
    ///
    /// # Errors
    /// What `pg_basebackup` said, or what could not be made or started.
    pub fn standby(&mut self) -> Result<Self> {
        let dir = directory(self.user)?;
        // Beside the real `initdb`: what is in PATH may be a link to it alone.
        let initdb = self.bin.join("initdb").canonicalize().context("finding initdb")?;
        let basebackup = initdb.with_file_name("pg_basebackup");
        if basebackup.is_file() {
            let mut copy = self.user.command(&basebackup);
            copy.arg("-h").arg(&self.dir).args(["-p", &self.port.to_string(), "-U", "postgres"]);
            copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "-D"]);
            copy.arg(dir.join("data"));
            run(copy, &dir)?;
        } else {
            self.copy_cold(&dir)?;
        }
        Self::launch(self.user, &self.bin, self.settings.clone(), dir)
    }

    /// What `pg_basebackup --write-recovery-conf` makes, with the server stopped.
    fn copy_cold(&mut self, dir: &Path) -> Result<()> {
        self.stop(Shutdown::Fast)?;
        let data = dir.join("data");
        let mut copy = self.user.command(Path::new("cp"));
        copy.arg("-a").arg(self.dir.join("data")).arg(&data);
        run(copy, dir)?;
        self.restart()?;
        let signal = data.join("standby.signal");
        std::fs::write(&signal, "")?;
        self.user.owns(&signal)?;
        let conninfo = format!(
            "primary_conninfo = 'host={} port={} user=postgres'\n",
            self.dir.display(),
            self.port
        );
        let mut settings =
            std::fs::OpenOptions::new().append(true).open(data.join("postgresql.auto.conf"))?;
        settings.write_all(conninfo.as_bytes())?;
        Ok(())
    }

    fn launch(user: Unprivileged, bin: &Path, settings: Vec<String>, dir: PathBuf) -> Result<Self> {
        let port = free_port()?;
        let server = spawn(user, bin, &settings, &dir, port)?;
        Ok(LocalPostgres { user, bin: bin.into(), settings, dir, port, server })
    }

    /// Ends it and waits until it has.
    ///
    /// # Errors
    /// The system does not say how it ended.
    pub fn stop(&mut self, how: Shutdown) -> Result<ExitStatus> {
        let signal = match how {
            Shutdown::Fast => libc::SIGINT,
            Shutdown::Immediate => libc::SIGQUIT,
        };
        let pid = libc::pid_t::try_from(self.server.id()).context("a process id")?;
        // SAFETY: kill takes any numbers; the child was not waited for, so this one is its.
        unsafe { libc::kill(pid, signal) };
        let status = self.server.wait().context("waiting for PostgreSQL to end")?;
        guardian::forget(self.server.id());
        Ok(status)
    }

    /// Starts it again after [`LocalPostgres::stop`]. It answers a moment later.
    ///
    /// # Errors
    /// What could not be started.
    pub fn restart(&mut self) -> Result<()> {
        self.server = spawn(self.user, &self.bin, &self.settings, &self.dir, self.port)?;
        Ok(())
    }

    /// Directory of its Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// Its port, for TCP and in the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        log_file(&self.dir)
    }
}

/// A directory of the user's, gone when this process is.
fn directory(user: Unprivileged) -> Result<PathBuf> {
    let dir = tempfile::Builder::new().prefix("outbox-postgres-").tempdir()?.keep();
    guardian::remove_at_exit(&dir)?;
    user.owns(&dir)?;
    Ok(dir)
}

/// Runs a program of PostgreSQL's to its end.
fn run(mut program: Command, dir: &Path) -> Result<()> {
    let name = program.get_program().to_owned();
    let name = name.display();
    let output =
        program.current_dir(dir).output().with_context(|| format!("{name} did not start"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn spawn(
    user: Unprivileged,
    bin: &Path,
    settings: &[String],
    dir: &Path,
    port: u16,
) -> Result<Child> {
    let mut server = user.command(&bin.join("postgres"));
    server.arg("-D").arg(dir.join("data")).arg("-k").arg(dir);
    server.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
    server.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
    server.args(settings.iter().flat_map(|setting| ["-c", setting]));
    spawn_logged(server, dir, &log_file(dir), guardian::quit_at_exit)
}

fn log_file(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// Directory with `initdb`: PATH, else the newest in the places of Debian, Red Hat and Homebrew.
pub fn installed() -> Option<PathBuf> {
    let in_path = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).find(|dir| dir.join("initdb").is_file()));
    in_path.or_else(|| {
        let mut found: Vec<(u32, PathBuf)> = [
            ("/usr/lib/postgresql", ""),
            ("/usr", "pgsql-"),
            ("/opt/homebrew/opt", "postgresql@"),
            ("/usr/local/opt", "postgresql@"),
        ]
        .iter()
        .flat_map(|(parent, prefix)| versions(Path::new(parent), prefix))
        .collect();
        found.sort();
        found.pop().map(|(_, bin)| bin)
    })
}

/// `<parent>/<prefix><major>/bin` with an `initdb` in it.
fn versions(parent: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            let bin = entry.path().join("bin");
            bin.join("initdb").is_file().then_some((major, bin))
        })
        .collect()
}
