//! Who has the file locked, as far as the kernel tells (`/proc/locks`).

use std::{fs, fs::File, os::unix::fs::MetadataExt as _};

/// In a sentence: why the relay waits, for whom, and what ends it.
pub(super) fn by_whom(file: &File) -> String {
    let waits = "this one waits until it lets go, and nothing is lost";
    match holder(file) {
        Some(pid) if pid == std::process::id() => {
            format!("an earlier delivery of this relay was given up and has not ended yet; {waits}")
        }
        Some(pid) => {
            let process = process(pid);
            format!(
                "process {pid}{process} has the file locked, which may be another relay; {waits}. If it is to \
                 have no lock, end it, and take the right to read the file from who may not hold the \
                 relay back"
            )
        }
        None => format!(
            "another process has the file locked, which may be another relay; {waits}. `lslocks` on its host \
             names it"
        ),
    }
}

/// The process that took the lock; `None` where that is not told, as on another host or outside of the
/// container.
fn holder(file: &File) -> Option<u32> {
    let about = file.metadata().ok()?;
    let (major, minor) = (libc::major(about.dev()), libc::minor(about.dev()));
    let id = format!("{major:02x}:{minor:02x}:{}", about.ino());
    holder_in(&fs::read_to_string("/proc/locks").ok()?, &id)
}

/// Such as `1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF`; who waits has an arrow behind the number.
fn holder_in(locks: &str, id: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, at, ..] if *at == id => pid.parse().ok().filter(|pid| *pid > 0),
            _ => None,
        }
    })
}

/// Its name and its user.
fn process(pid: u32) -> String {
    let folder = format!("/proc/{pid}");
    let name = fs::read_to_string(format!("{folder}/comm")).unwrap_or_default();
    let user =
        fs::metadata(folder).map(|about| format!("user {}", about.uid())).unwrap_or_default();
    match (name.trim(), user.as_str()) {
        ("", _) => String::new(),
        (name, user) => format!(" ({name}, {user})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_holds_the_lock_is_found_among_others() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 08:01:131 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 8 08:01:132 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 9 08:01:131 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 10 08:01:131 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 0 08:01:133 0 EOF\n";
        assert_eq!(holder_in(locks, "08:01:131"), Some(9));
        assert_eq!(holder_in(locks, "08:01:133"), None, "of another container");
        assert_eq!(holder_in(locks, "08:01:134"), None);
    }
}
