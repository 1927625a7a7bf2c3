//! Standard output: whole lines, whatever was left of one before. Written past the standard library's
//! buffer, which would keep what a failed write left and add it later.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::FileExt as _,
    },
    sync::atomic::{
        AtomicBool,
        Ordering::{Relaxed, SeqCst},
    },
};

use super::waiting::Waiting;

/// Whether the last that this process wrote was a whole line. It has one standard output, and each attempt
/// makes a sink of its own.
static AFTER_A_LINE: AtomicBool = AtomicBool::new(false);
/// Whether a delivery of this process writes, also one that no one waits for any more.
static WRITING: AtomicBool = AtomicBool::new(false);

/// A pipe that can be written has room for so many bytes (`PIPE_BUF`): a write of no more returns.
const AT_ONCE: usize = 4096;
/// Whoever is abandoned sees it within this time.
const LOOK_MS: libc::c_int = 250;

/// The right to write, of one delivery at a time; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(());

impl Turn {
    /// `None` while an earlier delivery still writes.
    pub(super) fn take() -> Option<Self> {
        (!WRITING.swap(true, SeqCst)).then_some(Turn(()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        WRITING.store(false, SeqCst);
    }
}

/// Ends the line that a crash or a full disk may have left a part of; nothing of ours is in it then.
pub(super) fn begin(waiting: &Waiting) -> io::Result<()> {
    if !AFTER_A_LINE.load(Relaxed) && !ends_in_a_line(&stdout()?)? {
        write(b"\n", waiting)?;
    }
    Ok(())
}

pub(super) fn write(lines: &[u8], waiting: &Waiting) -> io::Result<()> {
    AFTER_A_LINE.store(false, Relaxed);
    write_whole(&stdout()?, lines, waiting)?;
    AFTER_A_LINE.store(true, Relaxed);
    Ok(())
}

/// Waits where the other end takes nothing now, until no one wants the delivery any more. Standard output may be
/// non-blocking: that belongs to the pipe, not to the process, and any that shares it can set it. An error
/// instead would begin the batch again, without end. Where it blocks, no more is written at a time than is taken.
fn write_whole(mut to: &File, mut lines: &[u8], waiting: &Waiting) -> io::Result<()> {
    let at_once = if to.metadata()?.is_file() { usize::MAX } else { AT_ONCE };
    while !lines.is_empty() {
        if at_once == AT_ONCE {
            wait_until_writable(to, waiting)?;
        }
        let chunk = lines.get(..at_once).unwrap_or(lines);
        match to.write(chunk) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                lines = lines.get(written..).unwrap_or_default();
                waiting.steps();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that has the pipe was faster.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_until_writable(to: &File, waiting: &Waiting) -> io::Result<()> {
    let mut polled = libc::pollfd { fd: to.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    loop {
        if waiting.is_abandoned() {
            return Err(io::Error::other("the delivery was given up meanwhile"));
        }
        // SAFETY: the one entry is ours, and the descriptor is open as long as `to` is.
        match unsafe { libc::poll(&raw mut polled, 1, LOOK_MS) } {
            0 => {}
            -1 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
            _ => return Ok(()), // Writable, or the other end has gone: the next write says which.
        }
    }
}

/// A shell may have made it a file. A pipe or a terminal has no disk.
pub(super) fn sync() -> io::Result<()> {
    let stdout = stdout()?;
    if stdout.metadata()?.is_file() { stdout.sync_data() } else { Ok(()) }
}

fn stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// As far as it can be seen: a pipe does not tell what was written to it.
fn ends_in_a_line(stdout: &File) -> io::Result<bool> {
    let about = stdout.metadata()?;
    let Some(last) = about.len().checked_sub(1) else { return Ok(about.is_file()) };
    let Ok(file) = File::open("/dev/stdout") else { return Ok(false) };
    let mut byte = [0];
    Ok(about.is_file() && file.read_at(&mut byte, last)? == 1 && byte == *b"\n")
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::fd::FromRawFd as _, thread};

    use super::*;

    #[test]
    fn a_pipe_that_does_not_block_gets_all_of_it_as_its_reader_takes_it() {
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written to an array of two, and each is owned once from then on.
        let (mut reader, writer) = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
        };
        // SAFETY: the descriptor is ours.
        assert_eq!(unsafe { libc::fcntl(ends[1], libc::F_SETFL, libc::O_NONBLOCK) }, 0);
        let lines: Vec<u8> = b"one line\n".iter().copied().cycle().take(900_000).collect();
        let full = (&writer).write(&vec![0; 1 << 20]).expect("as much as fits");
        assert!((&writer).write(&lines).is_err(), "it is full, and does not block");
        let reading = thread::spawn(move || {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).map(|_| read)
        });
        write_whole(&writer, &lines, &Waiting::default()).expect("written");
        drop(writer);
        let read = reading.join().expect("no panic").expect("read");
        assert_eq!(read.get(full..), Some(lines.as_slice()));
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_left_when_nobody_wants_the_delivery_any_more() {
        let mut ends = [0; 2];
        // SAFETY: two descriptors are written to an array of two, and each is owned once from then on.
        let (_reader, writer) = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
        };
        let waiting = Waiting::default();
        thread::scope(|scope| {
            let writing = scope.spawn(|| write_whole(&writer, &vec![b'\n'; 1 << 20], &waiting));
            while polled(&writer) {
                thread::yield_now();
            }
            assert!(!writing.is_finished(), "it waits");
            waiting.abandon();
            writing.join().expect("no panic").expect_err("not all of it was taken");
        });
    }

    fn polled(writer: &File) -> bool {
        let mut polled = libc::pollfd { fd: writer.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
        // SAFETY: the one entry is ours, and the descriptor is open as long as `writer` is.
        unsafe { libc::poll(&raw mut polled, 1, 0) == 1 }
    }

    #[test]
    fn two_deliveries_of_one_process_do_not_write_at_the_same_time() {
        let turn = Turn::take().expect("free");
        assert!(Turn::take().is_none());
        drop(turn);
        assert!(Turn::take().is_some());
    }
}
