//! Standard output: whole lines, whatever was left of one before. Written past the standard library's
//! buffer, which would keep what a failed write left and add it later.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// Whether the last that this process wrote was a whole line. It has one standard output, and each attempt
/// makes a sink of its own.
static AFTER_A_LINE: AtomicBool = AtomicBool::new(false);

/// Ends the line that a crash or a full disk may have left a part of; nothing of ours is in it then.
pub(super) fn begin() -> io::Result<()> {
    if !AFTER_A_LINE.load(Relaxed) && !ends_in_a_line(&stdout()?)? {
        write(b"\n")?;
    }
    Ok(())
}

pub(super) fn write(lines: &[u8]) -> io::Result<()> {
    AFTER_A_LINE.store(false, Relaxed);
    stdout()?.write_all(lines)?;
    AFTER_A_LINE.store(true, Relaxed);
    Ok(())
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
