//! PostgreSQL refuses to run as root: who runs it instead.

use std::{
    ffi::CString,
    os::unix::{fs::chown, process::CommandExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};

/// The user that servers run as: ourselves, or `postgres` or `nobody` when we are root.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unprivileged(Option<(u32, u32)>);

impl Unprivileged {
    pub(super) fn find() -> Result<Self> {
        // SAFETY: geteuid has no preconditions and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return Ok(Unprivileged(None));
        }
        match ["postgres", "nobody"].into_iter().find_map(ids) {
            Some(ids) => Ok(Unprivileged(Some(ids))),
            None => {
                bail!("running as root, and there is no user postgres or nobody to run PostgreSQL")
            }
        }
    }

    /// Gives `path` to the user.
    pub(super) fn owns(self, path: &Path) -> Result<()> {
        match self.0 {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid))
                .with_context(|| format!("giving {} to user {uid}", path.display())),
            None => Ok(()),
        }
    }

    /// A command that will run as the user; supplementary groups go with root's uid.
    pub(super) fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = self.0 {
            command.uid(uid).gid(gid);
        }
        command
    }
}

/// User and group id of a user by its name.
fn ids(name: &str) -> Option<(u32, u32)> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` is a C string that outlives the call; the answer is read at once, in the only
    // place of this process that asks.
    let user = unsafe { libc::getpwnam(name.as_ptr()).as_ref() }?;
    Some((user.pw_uid, user.pw_gid))
}
