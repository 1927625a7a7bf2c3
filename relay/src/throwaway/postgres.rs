//! An installed PostgreSQL, run in a directory of its own.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{free_port, guardian, spawn_logged, unprivileged::Unprivileged};

/// Looks at whether a server has ended, before it is asked once more.
const STOP_POLLS: u32 = 200;
const STOP_POLL: Duration = Duration::from_millis(5);

/// A server that was started; its superuser is `postgres`. It listens on 127.0.0.1 and on a Unix
/// socket, and answers a moment later.
#[derive(Debug)]
pub struct LocalPostgres {
    user: Unprivileged,
    bin: PathBuf,
    settings: Vec<String>,
    dir: Directory,
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
        let dir = Directory::make(user)?;
        initdb(user, bin, password, &dir)?;
        let settings = settings.iter().map(|&setting| setting.into()).collect();
        Self::launch(user, bin, settings, dir)
    }

    /// Ends this one for ever; returns the cluster that `pg_upgrade` makes of it, by the same release. It
    /// has another system identifier, and before 17 none of its slots; from then on all of each must be
    /// confirmed.
    ///
    /// # Errors
    /// What `pg_upgrade` said, or what could not be made or started.
    pub fn upgrade(&mut self, password: &str) -> Result<Self> {
        let dir = Directory::make(self.user)?;
        let initdb_bin = self.bin.join("initdb").canonicalize().context("finding initdb")?;
        let bin = initdb_bin.parent().context("its directory")?;
        initdb(self.user, bin, password, &dir)?;
        self.stop(Shutdown::Fast)?;
        let mut upgrade = self.user.command(&bin.join("pg_upgrade"));
        upgrade.args(["--username=postgres", "--old-port", &free_port()?.to_string()]);
        upgrade.args(["--new-port", &free_port()?.to_string(), "--old-bindir"]).arg(bin);
        upgrade.arg("--new-bindir").arg(bin).arg("--old-datadir").arg(self.dir.data());
        upgrade.arg("--new-datadir").arg(dir.data());
        // Without them the old one does not start: it has slots; and the new one takes none.
        let settings = self.settings.iter().map(|setting| format!("-c {setting}"));
        let settings = settings.collect::<Vec<_>>().join(" ");
        upgrade.arg("--old-options").arg(&settings).arg("--new-options").arg(settings);
        run(upgrade, &dir.theirs)?;
        Self::launch(self.user, &self.bin, self.settings.clone(), dir)
    }

    /// Keeps what its volume holds now; the server is restarted. One backup at a time.
    ///
    /// # Errors
    /// What could not be stopped, copied or started.
    pub fn back_up(&mut self) -> Result<()> {
        self.stop(Shutdown::Fast)?;
        self.replace("data.backup", "data")?;
        self.restart()
    }

    /// Keeps a base backup, which has none of its slots; the server continues. Where there is no
    /// `pg_basebackup`, it is restarted.
    ///
    /// # Errors
    /// What `pg_basebackup` said, or what could not be stopped, copied or started.
    pub fn back_up_without_slots(&mut self) -> Result<()> {
        let backup = self.dir.theirs.join("data.backup");
        let Some(mut copy) = self.basebackup()? else {
            self.back_up()?;
            let mut clear = self.user.command(Path::new("/bin/sh"));
            clear.args(["-c", "rm -rf data.backup/pg_replslot/*"]);
            return run(clear, &self.dir.theirs);
        };
        let mut clear = self.user.command(Path::new("/bin/rm"));
        clear.arg("-rf").arg(&backup);
        run(clear, &self.dir.theirs)?;
        copy.arg("-D").arg(&backup);
        run(copy, &self.dir.theirs)
    }

    /// Puts back what [`LocalPostgres::back_up`] kept, as an administrator of volumes does: nothing
    /// of the server tells that time was lost.
    ///
    /// # Errors
    /// As there.
    pub fn put_back(&mut self) -> Result<()> {
        self.stop(Shutdown::Immediate)?;
        self.replace("data", "data.backup")?;
        self.restart()
    }

    /// By the server's user, whose files they are.
    fn replace(&self, to: &str, from: &str) -> Result<()> {
        const SCRIPT: &str = "rm -rf \"$1\" && cp -a \"$2\" \"$1\"";
        let mut copy = self.user.command(Path::new("/bin/sh"));
        copy.args(["-c", SCRIPT, "sh", to, from]);
        run(copy, &self.dir.theirs)
    }

    /// A copy that streams from this one, which must answer: a hot standby with the same settings.
    /// A build without `pg_basebackup` is stopped and copied.
    ///
    /// # Errors
    /// What `pg_basebackup` said, or what could not be made or started.
    pub fn standby(&mut self) -> Result<Self> {
        let dir = Directory::make(self.user)?;
        match self.basebackup()? {
            Some(mut copy) => {
                copy.args(["--write-recovery-conf", "-D"]).arg(dir.data());
                run(copy, &dir.theirs)?;
            }
            None => self.copy_cold(&dir)?,
        }
        Self::launch(self.user, &self.bin, self.settings.clone(), dir)
    }

    /// A copy of the running server; `None` where this build has no program for it.
    fn basebackup(&self) -> Result<Option<Command>> {
        // Beside the real `initdb`: what is in PATH may be a link to it alone.
        let initdb = self.bin.join("initdb").canonicalize().context("finding initdb")?;
        let basebackup = initdb.with_file_name("pg_basebackup");
        if !basebackup.is_file() {
            return Ok(None);
        }
        let mut copy = self.user.command(&basebackup);
        copy.arg("-h").arg(&self.dir.theirs).args(["-p", &self.port.to_string()]);
        copy.args(["-U", "postgres", "--checkpoint=fast", "--no-sync"]);
        Ok(Some(copy))
    }

    /// What `pg_basebackup --write-recovery-conf` makes, with the server stopped. By the server's
    /// user, whose files they are.
    fn copy_cold(&mut self, dir: &Directory) -> Result<()> {
        const SCRIPT: &str = "cp -a \"$1\" \"$2\" && touch \"$2/standby.signal\" && \
                              printf '%s\\n' \"$3\" >> \"$2/postgresql.auto.conf\"";
        self.stop(Shutdown::Fast)?;
        let conninfo = format!(
            "primary_conninfo = 'host={} port={} user=postgres'",
            self.dir.theirs.display(),
            self.port
        );
        let mut copy = self.user.command(Path::new("/bin/sh"));
        copy.args(["-c", SCRIPT, "sh"]).arg(self.dir.data()).arg(dir.data()).arg(conninfo);
        run(copy, &dir.theirs)?;
        self.restart()
    }

    fn launch(
        user: Unprivileged,
        bin: &Path,
        settings: Vec<String>,
        dir: Directory,
    ) -> Result<Self> {
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
        // Again and again: whoever runs us may ignore the signal, and until the server has a handler of
        // its own it does, too.
        loop {
            // SAFETY: kill takes any numbers; the child was not waited for, so this one is its.
            unsafe { libc::kill(pid, signal) };
            for _ in 0..STOP_POLLS {
                let ended = self.server.try_wait().context("waiting for PostgreSQL to end")?;
                if let Some(status) = ended {
                    guardian::forget(self.server.id());
                    return Ok(status);
                }
                std::thread::sleep(STOP_POLL);
            }
        }
    }

    /// Starts it again after [`LocalPostgres::stop`]. It answers a moment later.
    ///
    /// # Errors
    /// What could not be started.
    pub fn restart(&mut self) -> Result<()> {
        self.server = spawn(self.user, &self.bin, &self.settings, &self.dir, self.port)?;
        Ok(())
    }

    /// From its next start on the setting is the cluster's own, and `alter system` changes it.
    pub fn leave_out(&mut self, setting: &str) {
        let is_it = |given: &String| given.split_once('=').is_some_and(|(name, _)| name == setting);
        self.settings.retain(|given| !is_it(given));
    }

    /// Directory of its Unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.dir.theirs
    }

    /// Its port, for TCP and in the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.dir.log()
    }
}

/// A server's place on disk, gone when this process is. We may be root, and the server is another
/// user's: what we open is in our part, and what it opens in its own.
#[derive(Debug)]
struct Directory {
    /// The server's user may pass through it, and change nothing: the log, the password.
    ours: PathBuf,
    /// The server's, in ours: its data, its socket.
    theirs: PathBuf,
}

impl Directory {
    fn make(user: Unprivileged) -> Result<Self> {
        let ours = super::directory("outbox-postgres-")?.keep();
        guardian::remove_at_exit(&ours)?;
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o711))?;
        let theirs = ours.join("server");
        fs::create_dir(&theirs)?;
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700))?;
        user.owns(&theirs)?;
        Ok(Directory { ours, theirs })
    }

    fn data(&self) -> PathBuf {
        self.theirs.join("data")
    }

    fn log(&self) -> PathBuf {
        self.ours.join("log")
    }
}

/// Makes a cluster.
fn initdb(user: Unprivileged, bin: &Path, password: &str, dir: &Directory) -> Result<()> {
    let password_file = dir.ours.join("password");
    let new = fs::File::options().write(true).create_new(true).mode(0o600).open(&password_file);
    new?.write_all(password.as_bytes())?;
    user.owns(&password_file)?;
    let mut initdb = user.command(&bin.join("initdb"));
    initdb
        .args(["--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"])
        .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
        .arg(format!("--pwfile={}", password_file.display()))
        .arg("--pgdata")
        .arg(dir.data());
    run(initdb, &dir.theirs)?;
    fs::remove_file(&password_file)?;
    Ok(())
}

/// Runs a program of PostgreSQL's to its end.
fn run(mut program: Command, dir: &Path) -> Result<()> {
    let name = program.get_program().to_owned();
    let name = name.display();
    let output =
        program.current_dir(dir).output().with_context(|| format!("{name} did not start"))?;
    if !output.status.success() {
        let words = [output.stdout, output.stderr].concat();
        bail!("{name} failed: {}", String::from_utf8_lossy(&words));
    }
    Ok(())
}

fn spawn(
    user: Unprivileged,
    bin: &Path,
    settings: &[String],
    dir: &Directory,
    port: u16,
) -> Result<Child> {
    let mut server = user.command(&bin.join("postgres"));
    server.arg("-D").arg(dir.data()).arg("-k").arg(&dir.theirs);
    server.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
    server.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
    server.args(settings.iter().flat_map(|setting| ["-c", setting]));
    spawn_logged(server, &dir.theirs, &dir.log(), guardian::quit_at_exit)
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
