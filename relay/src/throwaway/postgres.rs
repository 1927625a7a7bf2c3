//! An installed PostgreSQL, run in a directory of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{free_port, guardian, spawn_logged, unprivileged::Unprivileged};

/// A server that was started; its superuser is `postgres`. It listens on 127.0.0.1 and on a Unix
/// socket, and answers a moment later.
#[derive(Debug)]
pub struct LocalPostgres {
    dir: PathBuf,
    port: u16,
}

impl LocalPostgres {
    /// Makes a cluster and starts its server, with `settings` as `name=value`. Durability is off:
    /// nothing in it outlives this process. Blocks for a second or two.
    ///
    /// # Errors
    /// What `initdb` said, or what could not be made or started.
    pub fn start(bin: &Path, password: &str, settings: &[&str]) -> Result<Self> {
        let user = Unprivileged::find()?;
        let dir = tempfile::Builder::new().prefix("outbox-postgres-").tempdir()?.keep();
        guardian::remove_at_exit(&dir)?;
        user.owns(&dir)?;
        let password_file = dir.join("password");
        std::fs::write(&password_file, password)?;
        user.owns(&password_file)?;
        let initdb = user
            .command(&bin.join("initdb"))
            .args(["--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg(format!("--pwfile={}", password_file.display()))
            .arg("--pgdata")
            .arg(dir.join("data"))
            .current_dir(&dir)
            .output()
            .context("initdb did not start")?;
        if !initdb.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&initdb.stderr));
        }

        let port = free_port()?;
        let mut server = user.command(&bin.join("postgres"));
        server.arg("-D").arg(dir.join("data")).arg("-k").arg(&dir);
        server.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        server.args(["-c", "fsync=off", "-c", "full_page_writes=off"]);
        server.args(settings.iter().flat_map(|setting| ["-c", setting]));
        let postgres = LocalPostgres { dir, port };
        spawn_logged(server, &postgres.dir, &postgres.log(), guardian::quit_at_exit)?;
        Ok(postgres)
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
        self.dir.join("log")
    }
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
