//! How many files this process may have open, and how many threads: each connection is a file, and a limit that is too
//! low shows in errors that name anything else.

use std::fs;
use std::io;

const FILES: &str = "this process has as many files open as it may: raise the limit (`ulimit -n 1024` before it \
                                is started, LimitNOFILE in a unit of systemd), and restart the relay";

const THREADS: &str = "the system gives the relay no further thread: raise the limit (`ulimit -u`, TasksMax in a unit of \
                       systemd, the container's limit of processes), or end other processes of this user or container";

/// What to do, where an error's text says that this process has run out of files or threads.
pub(super) fn remedy(text: &str) -> Option<&'static str> {
    let of_threads = || text.contains("thread") && text.contains(&words(libc::EAGAIN));
    if is_of_files(text) { Some(FILES) } else { of_threads().then_some(THREADS) }
}

/// Whether an error's text says that this process may open no further file. Rust gives the number beside the
/// words; a client library in C gives the words alone, which are its C library's.
fn is_of_files(text: &str) -> bool {
    let of_process = words(libc::EMFILE);
    // The words for the whole machine's limit may begin with the same ones.
    let elsewhere = text.replace(&words(libc::ENFILE), "");
    elsewhere.contains(&of_process)
}

fn words(number: i32) -> String {
    let text = io::Error::from_raw_os_error(number).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Connections to PostgreSQL and to some brokers, a start's further ones, and those of the admin address.
const FILES_MIN: u64 = 256;

/// Says so at the start, where the limit is low.
pub(super) fn warn_of_files() {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if let Some(files) = open_files(&limits).filter(|files| *files < FILES_MIN) {
        tracing::warn!(
            files,
            "this process may have few files open, and each connection is one: raise the limit to 1024 or more \
             (`ulimit -n`, LimitNOFILE in a unit of systemd)"
        );
    }
}

/// The soft limit; `None` where there is none.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_recognised_from_rust_and_from_a_library_in_c() {
        let rust = io::Error::from_raw_os_error(libc::EMFILE).to_string();
        assert!(is_of_files(&format!("connecting: {rust}")));
        assert!(is_of_files("no answer (failed to create socket: Too many open files)"));
        let machine = io::Error::from_raw_os_error(libc::ENFILE).to_string();
        assert!(!is_of_files(&format!("connecting: {machine}")));
        assert!(!is_of_files("connection refused"));
    }

    #[test]
    fn a_thread_that_can_not_be_made_is_told_from_a_read_that_would_wait() {
        let error = io::Error::from_raw_os_error(libc::EAGAIN);
        let started = format!("starting the Kafka thread: {error}");
        assert!(remedy(&started).is_some_and(|remedy| remedy.contains("no further thread")));
        let library =
            "Client creation error: Failed to create thread: Resource temporarily unavailable (11)";
        assert_eq!(remedy(library), remedy(&started));
        assert_eq!(remedy(&format!("reading: {error}")), None);
    }

    #[test]
    fn the_soft_limit_is_read_and_none_is_no_limit() {
        let of = |soft| {
            open_files(&format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max open files            {soft}                 1048576              files\n"
            ))
        };
        assert_eq!(of("12"), Some(12));
        assert_eq!(of("unlimited"), None);
        assert_eq!(open_files(""), None);
    }
}
