//! Files that settings name, such as certificates: which of them can't be read.

use std::{fs::File, path::PathBuf};

use crate::core::finding::Finding;

/// What is wrong with those files of a section that are named: `("ca_file", file)`.
pub(super) fn unreadable<'a>(
    section: &'a str,
    files: impl IntoIterator<Item = (&'a str, Option<&'a PathBuf>)>,
) -> impl Iterator<Item = Finding> {
    files.into_iter().filter_map(move |(name, file)| {
        let file = file?;
        let error = File::open(file).err()?;
        Some(Finding {
            key: format!("{section}.{name}"),
            what: format!("{}: {error}", file.display()),
            remedy: "name a file that the relay may read".into(),
        })
    })
}
