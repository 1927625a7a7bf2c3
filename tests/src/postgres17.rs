//! PostgreSQL 17 beside whatever runs the suite, for what only later servers do.
//!
//! `OUTBOX_TEST_POSTGRES_17_BIN` names the directory of its `initdb`; else a small build is fetched
//! once with Maven. That has no `pg_basebackup`.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use outbox_relay::throwaway::guardian;

use crate::servers;

const VERSION: &str = "17.6.0";
const ARTIFACT: &str = "io.zonky.test.postgres:embedded-postgres-binaries";
/// The version of the plugin is the one of Kafka's `pom.xml`.
const UNPACK: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:unpack";

/// Directory with its `initdb`, gone when this process is.
///
/// # Errors
/// It is not there, and can't be fetched.
pub(crate) fn bin() -> Result<PathBuf> {
    if let Some(chosen) = std::env::var_os("OUTBOX_TEST_POSTGRES_17_BIN") {
        return Ok(chosen.into());
    }
    let archive = archive()?;
    // Not in `target`: who runs the server may not be let into there.
    let dir = tempfile::Builder::new().prefix("outbox-postgres17-").tempdir()?.keep();
    guardian::remove_at_exit(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    let mut tar = Command::new("tar");
    tar.arg("-xJf").arg(archive).arg("-C").arg(&dir);
    run(tar, "tar could not unpack PostgreSQL (is xz there?)")?;
    Ok(dir.join("bin"))
}

/// The archive, from `target/harness`; the first process to come fetches it.
fn archive() -> Result<PathBuf> {
    let cache = servers::cache_dir()?;
    let unpacked = cache.join(format!("postgres-{VERSION}"));
    let lock = File::create(cache.join("postgres17.lock"))?;
    lock.lock().context("waiting for another process that fetches PostgreSQL 17")?;
    if let Some(archive) = archive_in(&unpacked) {
        return Ok(archive);
    }
    servers::report(&format!("fetching PostgreSQL {VERSION} with Maven (15 MB, once)"));
    let system = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    let processor = if cfg!(target_arch = "aarch64") { "arm64v8" } else { "amd64" };
    // Into another directory first: an interrupted fetch must not look like a whole one.
    let partial = cache.join("postgres17.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let mut maven = Command::new("mvn");
    // The plugin leaves its markers where it runs.
    maven
        .current_dir(&cache)
        .args(["--quiet", "--batch-mode", UNPACK])
        .arg(format!("-Dartifact={ARTIFACT}-{system}-{processor}:{VERSION}"))
        .arg(format!("-DoutputDirectory={}", partial.display()));
    let remedy = "mvn could not fetch PostgreSQL 17: set OUTBOX_TEST_POSTGRES_17_BIN";
    run(maven, remedy)?;
    fs::rename(&partial, &unpacked)?;
    archive_in(&unpacked).context("no archive was in the jar")
}

fn archive_in(dir: &Path) -> Option<PathBuf> {
    let mut files = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    files.find(|path| path.extension().is_some_and(|extension| extension == "txz"))
}

fn run(mut command: Command, failed: &str) -> Result<()> {
    let output = command.output().with_context(|| failed.to_owned())?;
    if !output.status.success() {
        let words = [output.stdout, output.stderr].concat();
        bail!("{failed}: {}", String::from_utf8_lossy(&words));
    }
    Ok(())
}
