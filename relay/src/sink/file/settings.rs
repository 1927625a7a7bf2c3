//! What the file sink can be told.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{
    core::finding::Finding,
    sink::doctor::{Examined, Seen},
};

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file; `None` is standard output.
    pub path: Option<PathBuf>,
}

impl Settings {
    /// What can be seen of the file before the relay runs: whether its folder is there. Opens and
    /// makes nothing.
    pub fn problems(&self) -> Vec<Finding> {
        let Some(path) = &self.path else { return vec![] };
        let problem = |what, remedy: &str| {
            vec![Finding { key: "sink.file.path".into(), what, remedy: remedy.into() }]
        };
        if path.is_dir() {
            return problem(format!("{} is a folder", path.display()), "name a file in it");
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        match folder.is_dir() {
            true => vec![],
            false => problem(
                format!("there is no folder {}", folder.display()),
                "make it, or name a file in one that is there",
            ),
        }
    }

    /// Says what can be seen of it. Opens nothing.
    pub(in crate::sink) fn examine(&self) -> Examined {
        const NAME: &str = "file";
        let seen = match self.lockable_by_others() {
            Some(Finding { what, remedy, .. }) => Seen::warning(NAME, what, remedy),
            None => Seen::fine(NAME, format!("lines of JSON go to {}", self.name())),
        };
        Examined { seen: vec![seen], has_progress: Some(true) }
    }

    /// Of a file that is there: who besides the relay's user may read it, and so lock it. Opens nothing.
    pub fn lockable_by_others(&self) -> Option<Finding> {
        let path = self.path.as_ref()?;
        // Of a device, others may need the same rights.
        let metadata = path.metadata().ok().filter(std::fs::Metadata::is_file)?;
        // SAFETY: it takes nothing, touches no memory, and can't fail.
        let user = unsafe { libc::geteuid() };
        shared(path, (metadata.uid(), metadata.mode() & 0o777), user)
    }

    /// In a sentence.
    pub fn name(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "standard output".into(),
        }
    }
}

/// Who besides `user` may open a file of this owner and mode.
fn shared(path: &Path, (owner, mode): (u32, u32), user: u32) -> Option<Finding> {
    let (what, remedy) = if owner != user {
        (
            format!(
                "{} belongs to the user with the number {owner}, and the relay runs as {user}: its owner reads every \
                 event that is written there, and can change or lock the file",
                path.display()
            ),
            "have the relay make the file, in a directory to which it alone may write".to_owned(),
        )
    } else if mode & 0o066 != 0 {
        (
            format!(
                "others than its owner may open {} (mode {mode:03o}): whoever may read it can lock it, and the \
                 relay waits as long as the lock is held",
                path.display()
            ),
            format!(
                "`chmod 600 {}`, or let only those read it who may stop the relay",
                path.display()
            ),
        )
    } else {
        return None;
    };
    Some(Finding { key: "sink.file.path".into(), what, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_others_may_open_or_own_is_told() {
        let what = |file, user| Some(shared(Path::new("/f"), file, user)?.what);
        assert_eq!(what((7, 0o600), 7), None);
        assert!(what((7, 0o644), 7).is_some_and(|it| it.contains("(mode 644)")));
        assert!(
            what((7, 0o600), 0).is_some_and(|it| it.contains("number 7") && it.contains("as 0"))
        );
    }
}
