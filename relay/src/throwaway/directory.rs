//! Where throwaway things lie: a new directory, on a way that no one else can change.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// Writable by group or by others.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// A new directory of this user's, below TMPDIR or the system's place for such.
///
/// # Errors
/// This process is root's, and another user could change the way there.
pub fn directory(prefix: &str) -> Result<TempDir> {
    let parent = std::env::temp_dir();
    let parent = parent.canonicalize().with_context(|| format!("finding {}", parent.display()))?;
    // SAFETY: geteuid has no preconditions and cannot fail.
    let us = unsafe { libc::geteuid() };
    if us == 0
        && let Some((place, user)) = changeable(&parent)?
    {
        bail!(
            "this process is root's, and user {user} can change {}, where {} lies: set TMPDIR to a \
             directory that root alone can change, such as /tmp",
            place.display(),
            parent.display()
        );
    }
    Ok(tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?)
}

/// The part of the way that a user other than root can change. In a sticky directory no one can
/// move what is another's.
fn changeable(path: &Path) -> Result<Option<(PathBuf, u32)>> {
    for part in path.ancestors() {
        let found = fs::metadata(part).with_context(|| format!("looking at {}", part.display()))?;
        if is_changeable(found.uid(), found.mode()) {
            return Ok(Some((part.to_owned(), found.uid())));
        }
    }
    Ok(None)
}

/// Whether a user other than root can change a directory of this owner and mode.
fn is_changeable(owner: u32, mode: u32) -> bool {
    owner != 0 || (mode & OTHERS_WRITE != 0 && mode & STICKY == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn set(dir: &Path, mode: u32) {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).expect("its mode is set");
    }

    #[test]
    fn a_way_that_another_user_can_change_is_found() {
        let outer = tempfile::tempdir().expect("a directory");
        let inner = outer.path().join("inner");
        fs::create_dir(&inner).expect("made");
        set(outer.path(), 0o777);
        let found = changeable(&inner).expect("seen").expect("anybody may swap it");
        // Any user's but root's is found by its owner, and the innermost comes first.
        let innermost_is_roots = fs::metadata(&inner).expect("seen").uid() == 0;
        assert_eq!(found.0, if innermost_is_roots { outer.path() } else { &inner });
    }

    #[test]
    fn only_roots_directories_that_are_sticky_or_closed_can_be_changed_by_root_alone() {
        for (owner, mode, changeable) in [
            (0, 0o755, false),
            (0, 0o1777, false),
            (0, 0o777, true),
            (0, 0o775, true),
            (65534, 0o755, true),
            (65534, 0o1777, true),
        ] {
            assert_eq!(is_changeable(owner, mode), changeable, "{owner} {mode:o}");
        }
    }
}
