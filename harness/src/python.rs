//! Environments of Python's with packages from PyPI: those of emulators, and of an example.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::host;

/// An environment with what a file of requirements names, from `target/harness`; the first process to come makes it, and a
/// change of the file makes another.
///
/// # Errors
/// What to install, or the command that failed.
pub fn environment(name: &str, requirements: &Path) -> Result<PathBuf> {
    let wanted = std::fs::read_to_string(requirements)
        .with_context(|| format!("reading {}", requirements.display()))?;
    let cache = host::cache_dir()?;
    let environment = cache.join(format!("python-{name}"));
    let lock = File::create(cache.join(format!("python-{name}.lock")))?;
    lock.lock().context("waiting for another process that installs packages of Python")?;
    let done = environment.join("requirements.txt");
    if std::fs::read_to_string(&done).is_ok_and(|text| text == wanted) {
        return Ok(environment);
    }
    host::report(&format!("installing {} with pip, once", requirements.display()));
    // Its programs name their place, so it can't be made elsewhere and moved.
    host::removed(&environment)?;
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
        .context("python3 can't make an environment: install it (apt-get install python3-venv)")?;
    run(Command::new(environment.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(requirements))?;
    std::fs::write(&done, wanted)?;
    Ok(environment)
}

fn run(command: &mut Command) -> Result<()> {
    let done = command.output().with_context(|| format!("{command:?} did not start"))?;
    if !done.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}
