//! Other versions of PostgreSQL beside whatever runs the suite, for what only some servers do.
//!
//! `OUTBOX_TEST_POSTGRES_<major>_BIN` names the directory of its `initdb`; else a small build is
//! fetched once with Maven. That has the server alone: no `psql`, no `pg_basebackup`.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use outbox_relay::throwaway::guardian;

use crate::host;

const ARTIFACT: &str = "io.zonky.test.postgres:embedded-postgres-binaries";
/// The version of the plugin is the one of Kafka's `pom.xml`.
const UNPACK: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:unpack";

/// A major version that a test asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The oldest that is supported.
    V14,
    /// The first whose slots may outlive a failover and `pg_upgrade`.
    V17,
    /// The newest; it streams on without a publication that is missing, where others fail.
    V18,
}

impl Version {
    const fn major(self) -> u32 {
        match self {
            Version::V14 => 14,
            Version::V17 => 17,
            Version::V18 => 18,
        }
    }

    /// As the artifact has it.
    const fn release(self) -> &'static str {
        match self {
            Version::V14 => "14.24.0",
            Version::V17 => "17.6.0",
            Version::V18 => "18.6.0",
        }
    }
}

/// Directory with its `initdb`, gone when this process is.
///
/// # Errors
/// It is not there, and can't be fetched.
pub(crate) fn bin(version: Version) -> Result<PathBuf> {
    let variable = format!("OUTBOX_TEST_POSTGRES_{}_BIN", version.major());
    if let Some(chosen) = std::env::var_os(&variable) {
        return Ok(chosen.into());
    }
    let archive = archive(version, &variable)?;
    // Not in `target`: who runs the server may not be let into there.
    let dir = tempfile::Builder::new().prefix("outbox-postgres-bin-").tempdir()?.keep();
    guardian::remove_at_exit(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    let mut tar = Command::new("tar");
    tar.arg("-xJf").arg(archive).arg("-C").arg(&dir);
    run(tar, "tar could not unpack PostgreSQL (is xz there?)")?;
    Ok(dir.join("bin"))
}

/// The archive, from `target/harness`; the first process to come fetches it.
fn archive(version: Version, variable: &str) -> Result<PathBuf> {
    let (major, release) = (version.major(), version.release());
    let cache = host::cache_dir()?;
    let unpacked = cache.join(format!("postgres-{release}"));
    let lock = File::create(cache.join(format!("postgres{major}.lock")))?;
    lock.lock().with_context(|| format!("waiting for who fetches PostgreSQL {major}"))?;
    if let Some(archive) = archive_in(&unpacked) {
        return Ok(archive);
    }
    host::report(&format!("fetching PostgreSQL {release} with Maven (15 MB, once)"));
    let system = if cfg!(target_os = "macos") { "darwin" } else { "linux" };
    let processor = if cfg!(target_arch = "aarch64") { "arm64v8" } else { "amd64" };
    // Into another directory first: an interrupted fetch must not look like a whole one.
    let partial = cache.join(format!("postgres{major}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let mut maven = Command::new("mvn");
    // The plugin leaves its markers where it runs.
    maven
        .current_dir(&cache)
        .args(["--quiet", "--batch-mode", UNPACK])
        .arg(format!("-Dartifact={ARTIFACT}-{system}-{processor}:{release}"))
        .arg(format!("-DoutputDirectory={}", partial.display()));
    run(maven, &format!("mvn could not fetch PostgreSQL {major}: set {variable}"))?;
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
