//! Who asks, as far as emulators want to know.

use std::path::{Path, PathBuf};

/// The region that all of them are told.
pub const REGION: &str = "eu-west-1";

/// A file of credentials that all of them accept.
///
/// # Panics
/// When it can't be written.
pub fn credentials(dir: &Path) -> PathBuf {
    let file = dir.join("aws-credentials");
    write_key(&file, "AKIATESTTESTTESTTEST");
    file
}

/// The file has another key from now on.
///
/// # Panics
/// When it can't be written.
pub fn write_key(file: &Path, id: &str) {
    let text = format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = se-cret\n");
    std::fs::write(file, text).expect("the credentials are written");
}
