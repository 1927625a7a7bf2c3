//! Standard error, for the log: a line that no one takes is left out, and counted.
//!
//! Where the log goes to a pipe whose reader has stopped, a write would keep the thread that logs, and with
//! it the relay's sign of life: it would lose its lead for its log.

use std::{
    io::{self, Write},
    os::fd::AsRawFd as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// A pipe that can be written has room for so many bytes (`PIPE_BUF`).
const AT_ONCE: usize = 4096;
/// A line is waited for so long; the next ones not at all, until one was taken.
const PATIENCE: Duration = Duration::from_millis(200);

/// What became of the lines before.
#[derive(Debug)]
struct Before {
    left_out: u64,
    /// The last one was written in part.
    cut: bool,
}

static BEFORE: Mutex<Before> = Mutex::new(Before { left_out: 0, cut: false });
static JSON: AtomicBool = AtomicBool::new(false);

/// What is said of lines that were left out is JSON.
pub(super) fn in_json() {
    JSON.store(true, Relaxed);
}

/// Takes whole lines.
#[derive(Debug)]
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write_line(&io::stderr(), line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_line(to: &(impl std::os::fd::AsFd + ?Sized), line: &[u8]) {
    let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    let until = Instant::now() + if before.left_out > 0 { Duration::ZERO } else { PATIENCE };
    let mut said = Vec::new();
    if before.cut {
        said.push(b'\n');
    }
    if before.left_out > 0 {
        said.extend(told(before.left_out).into_bytes());
    }
    let begun = said.len();
    said.extend(line);
    let written = written(to, &said, until);
    if written > 0 {
        before.cut = written < said.len() && said.get(written - 1) != Some(&b'\n');
    }
    if written > begun || begun > 0 && written == begun {
        before.left_out = 0;
    }
    if written < said.len() {
        before.left_out += 1;
    }
}

fn told(lines: u64) -> String {
    let what = format!(
        "{lines} lines of the log were left out, because no one was reading standard error"
    );
    match JSON.load(Relaxed) {
        true => format!(
            "{{\"timestamp\":\"{:.6}\",\"level\":\"WARN\",\"message\":\"{what}\"}}\n",
            jiff::Timestamp::now()
        ),
        false => format!("{:.6}  WARN {what}\n", jiff::Timestamp::now()),
    }
}

/// How many bytes were taken by then.
fn written(to: &(impl std::os::fd::AsFd + ?Sized), bytes: &[u8], until: Instant) -> usize {
    let to = to.as_fd();
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        let left = until.saturating_duration_since(Instant::now());
        let mut polled = libc::pollfd { fd: to.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        let left = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the one entry is ours, and the descriptor is borrowed for as long.
        if unsafe { libc::poll(&raw mut polled, 1, left) } <= 0 {
            return done;
        }
        let chunk = rest.len().min(AT_ONCE);
        // SAFETY: so many bytes of `rest` are there to be read.
        let taken = unsafe { libc::write(to.as_raw_fd(), rest.as_ptr().cast(), chunk) };
        match usize::try_from(taken) {
            Ok(taken) if taken > 0 => done += taken,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock && left > 0 => {}
            _ => return done,
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Read as _,
        os::fd::{AsFd as _, FromRawFd as _},
    };

    use super::*;

    #[test]
    fn a_log_that_nobody_reads_keeps_no_one_and_says_what_it_left_out() {
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written to an array of two, and each is owned once from then on.
        let (mut reader, writer) = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
        };
        let begun = Instant::now();
        let line = vec![b'x'; AT_ONCE - 1].into_iter().chain([b'\n']).collect::<Vec<_>>();
        for _ in 0..50 {
            write_line(&writer.as_fd(), &line);
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let mut some = vec![0; AT_ONCE * 8];
        reader.read_exact(&mut some).expect("what was taken");
        write_line(&writer.as_fd(), b"the last\n");
        drop(writer);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).expect("read");
        assert!(rest.contains("lines of the log were left out"), "{rest}");
        assert!(rest.ends_with("the last\n"), "{rest}");
    }
}
