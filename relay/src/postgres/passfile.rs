//! Passwords from libpq's password file (`~/.pgpass`), by libpq's rules.
//!
//! Read again for each connection, so that a rotated password is found without a restart. A file
//! that others can read is not used, and says so in the log. Called by `dial`.

use std::path::Path;

use tracing::warn;

use super::conninfo::Host;
use crate::core::secret::Secret;

/// What a line of the file is matched against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Login<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// The name by which the file knows a host: the standard socket directories are `localhost`.
pub(super) fn host_name(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(directory) if super::conninfo::is_default_directory(directory) => {
            "localhost".to_owned()
        }
        Host::Unix(directory) => directory.to_string_lossy().into_owned(),
    }
}

/// Looks the password up. A file that isn't there is no error, as in libpq.
pub(super) async fn look_up(path: &Path, login: Login<'_>) -> Option<Secret> {
    use std::os::unix::fs::PermissionsExt;

    let metadata = match tokio::fs::metadata(path).await {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            warn!(passfile = %path.display(), %error, "the password file can't be read");
            return None;
        }
    };
    if !metadata.is_file() {
        warn!(passfile = %path.display(), "the password file is not a plain file and is not used");
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        warn!(
            passfile = %path.display(),
            "the password file can be read by others and is not used; chmod 600 fixes it"
        );
        return None;
    }
    match tokio::fs::read(path).await {
        Ok(content) => find(&String::from_utf8_lossy(&content), login),
        Err(error) => {
            warn!(passfile = %path.display(), %error, "the password file can't be read");
            None
        }
    }
}

/// The password of the first line that matches.
fn find(content: &str, login: Login<'_>) -> Option<Secret> {
    let port = login.port.to_string();
    let wanted = [login.host, &port, login.database, login.user];
    content.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for value in wanted {
            let (field, escaped, after) = field(rest);
            // Only a bare `*` matches everything: `\*` is the letter.
            if !(field == "*" && !escaped || field == value) {
                return None;
            }
            rest = after?;
        }
        let (password, _, _) = field(rest);
        Some(Secret::new(password))
    })
}

/// One field with its escapes undone, whether it had any, and what follows its colon.
fn field(text: &str) -> (String, bool, Option<&str>) {
    let (mut value, mut escaped) = (String::new(), false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => return (value, escaped, Some(chars.as_str())),
            '\\' => {
                escaped = true;
                value.push(chars.next().unwrap_or('\\'));
            }
            c => value.push(c),
        }
    }
    (value, escaped, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(content: &str) -> Option<String> {
        let login = Login { host: "db", port: 5432, database: "app", user: "relay" };
        find(content, login).map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn lines_match_and_unescape_as_in_libpq() {
        for (content, expected) in [
            ("db:5432:app:relay:pw", Some("pw")),
            ("*:*:*:*:pw\r\n", Some("pw")),
            ("other:*:*:*:no\ndb:*:*:relay:yes\n*:*:*:*:late", Some("yes")),
            ("#db:5432:app:relay:no\n*:*:*:*:yes", Some("yes")),
            (r"db:5432:app:relay:a\:b\\c", Some(r"a:b\c")),
            ("db:5432:app:relay:pw:ignored", Some("pw")),
            (r"d\b:5432:app:relay:pw", Some("pw")),
            (r"\*:5432:app:relay:pw", None),
            ("db:5433:*:*:pw", None),
            ("db:5432:app:relay", None),
            ("", None),
        ] {
            assert_eq!(found(content).as_deref(), expected, "{content:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_others_can_read_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "*:*:*:*:pw").expect("written");
        let login = Login { host: "db", port: 1, database: "app", user: "relay" };
        for (mode, used) in [(0o600, true), (0o640, false), (0o604, false)] {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(file.path(), permissions).expect("set");
            assert_eq!(look_up(file.path(), login).await.is_some(), used, "{mode:o}");
        }
    }
}
