//! Values as TOML has them.

use std::{fmt::Write as _, path::Path};

use super::sizes::Size;

/// A TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub(super) fn size(bytes: usize) -> String {
    quoted(&Size(bytes as u64).to_string())
}

pub(super) fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
