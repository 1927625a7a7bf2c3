//! The open file: whole lines, one writer, on disk when asked for.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{line::LINE_BEGINS, locked, stdout, waiting::Waiting};
use crate::sink::{SinkError, unavailable};

/// Bytes that are read at a time, from the end, to find where the last whole line ends.
const TAIL: usize = 1 << 16;
/// Of a file that the relay makes: who may open a file may lock it, to read or to write, and so hold the relay back.
const MODE: u32 = 0o600;

/// What lines are written to.
#[derive(Debug)]
pub(super) struct Output {
    /// `None` is standard output.
    path: Option<PathBuf>,
    file: Option<File>,
    /// Of standard output.
    turn: Option<stdout::Turn>,
    waiting: Arc<Waiting>,
}

impl Output {
    /// Each step is told to `waiting`.
    pub(super) fn new(path: Option<PathBuf>, waiting: Arc<Waiting>) -> Self {
        Output { path, file: None, turn: None, waiting }
    }

    /// Opens the file, and again if another one has its name by now, as after a rotation of logs.
    pub(super) fn open(&mut self) -> Result<(), SinkError> {
        let Some(path) = &self.path else { return Ok(()) };
        if !self.file.as_ref().is_some_and(|file| is_at(file, path)) {
            self.file = None;
            self.file = Some(open(path)?);
        }
        Ok(())
    }

    /// Locks the file until [`Output::end`], and sees to it that it ends in a whole line.
    pub(super) fn begin(&mut self) -> Result<(), SinkError> {
        self.open()?;
        match (&self.path, &mut self.file) {
            (Some(path), Some(file)) => lock(path, file),
            _ => {
                if self.turn.is_none() {
                    self.turn = Some(stdout::Turn::take().ok_or_else(earlier)?);
                }
                stdout::begin(&self.waiting).map_err(|error| failed("standard output", error))
            }
        }
    }

    pub(super) fn write(&mut self, lines: &[u8]) -> Result<(), SinkError> {
        self.waiting.steps();
        match (&self.path, &mut self.file) {
            (None, _) => {
                let written = stdout::write(lines, &self.waiting);
                written.map_err(|error| failed("standard output", error))
            }
            (Some(path), Some(file)) => file.write_all(lines).map_err(|error| at(path, error)),
            (Some(path), None) => Err(at(path, io::Error::other("the file is not open"))),
        }
    }

    /// All that was written is on disk, where it is a disk.
    pub(super) fn end(&mut self) -> Result<(), SinkError> {
        self.waiting.steps();
        match (&self.path, &self.file) {
            (Some(path), Some(file)) => {
                let synced = file.sync_data().and_then(|()| file.unlock());
                synced.map_err(|error| at(path, error))
            }
            (Some(_), None) => Ok(()),
            (None, _) => {
                stdout::sync().map_err(|error| failed("standard output", error))?;
                self.turn = None;
                Ok(())
            }
        }
    }
}

/// What this process wrote before it gave up has not come to an end.
fn earlier() -> SinkError {
    unavailable(
        "writing to standard output",
        "an earlier delivery of this relay was given up and still waits for it; nothing more is \
         written until that has ended",
    )
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), path.metadata()) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

/// Opened to be added to; made where it is missing.
fn open(path: &Path) -> Result<File, SinkError> {
    let is_new = !path.exists();
    let file = OpenOptions::new().read(true).append(true).create(true).mode(MODE).open(path);
    let file = file.map_err(|error| at(path, error))?;
    if !file.metadata().map_err(|error| at(path, error))?.is_file() {
        return Err(SinkError::Misconfigured {
            what: format!("{} is not a regular file; nothing is published", path.display()),
            remedy: "set sink.file.path to a file, or sink.kind to \"stdout\"".into(),
        });
    }
    if is_new {
        // Its name is to survive a crash, too.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new(".")));
        folder.and_then(|folder| folder.sync_all()).map_err(|error| at(path, error))?;
    }
    Ok(file)
}

/// Locked, and without what a crash left of a line.
fn lock(path: &Path, file: &mut File) -> Result<(), SinkError> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let source = locked::by_whom(file);
            let doing = format!("locking {}", path.display());
            return Err(unavailable(doing, source));
        }
        Err(TryLockError::Error(error)) => return Err(at(path, error)),
    }
    let whole = whole_lines(file).map_err(|error| at(path, error))?;
    let length = file.metadata().map_err(|error| at(path, error))?.len();
    if whole < length {
        if !is_ours(file, whole).map_err(|error| at(path, error))? {
            return Err(SinkError::Misconfigured {
                what: format!(
                    "{} ends in a line that is not whole and that no relay wrote; it was left as it \
                     is, and nothing is published",
                    path.display()
                ),
                remedy: "set sink.file.path to another file, or end that line".into(),
            });
        }
        if is_json(file, whole).map_err(|error| at(path, error))? {
            // All of it is there but its end, which an editor may have left out: its record may be
            // delivered.
            return file.write_all(b"\n").map_err(|error| at(path, error));
        }
        tracing::warn!(
            file = %path.display(), bytes = length - whole,
            "the file ends in a part of a line, which a crash or a full disk has left: cutting it off; its record is \
             written again"
        );
        file.set_len(whole).map_err(|error| at(path, error))?;
    }
    Ok(())
}

/// Bytes up to the end of the last whole line.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut last = [b'\n'];
    if end > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last == [b'\n'] {
        return Ok(end);
    }
    let mut tail = Vec::with_capacity(TAIL);
    while end > 0 {
        let begin = end.saturating_sub(TAIL as u64);
        tail.clear();
        file.seek(SeekFrom::Start(begin))?;
        (&mut *file).take(end - begin).read_to_end(&mut tail)?;
        if let Some(at) = tail.iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + at as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

/// Whether what is there from `begin` on is the beginning of a relay's line.
fn is_ours(file: &mut File, begin: u64) -> io::Result<bool> {
    let mut start = Vec::with_capacity(LINE_BEGINS.len());
    file.seek(SeekFrom::Start(begin))?;
    file.take(LINE_BEGINS.len() as u64).read_to_end(&mut start)?;
    Ok(LINE_BEGINS.as_bytes().starts_with(&start))
}

/// Whether what is there from `begin` on is one whole value; read a little at a time.
fn is_json(file: &mut File, begin: u64) -> io::Result<bool> {
    file.seek(SeekFrom::Start(begin))?;
    match serde_json::from_reader::<_, serde::de::IgnoredAny>(io::BufReader::new(file)) {
        Ok(_) => Ok(true),
        Err(error) if error.is_io() => Err(error.into()),
        Err(_) => Ok(false),
    }
}

fn at(path: &Path, error: io::Error) -> SinkError {
    failed(&path.display().to_string(), error)
}

/// What only a person can change, and what may pass.
fn failed(name: &str, error: io::Error) -> SinkError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::PermissionDenied | Kind::NotFound | Kind::IsADirectory | Kind::ReadOnlyFilesystem => {
            SinkError::Misconfigured {
                what: format!(
                    "{name} can't be written: {error}; nothing is published until it can"
                ),
                remedy: match error.kind() {
                    Kind::NotFound => "create its folder, or set sink.file.path to another file",
                    Kind::IsADirectory => "set sink.file.path to a file",
                    _ => "let the relay's user write it, or set sink.file.path to another file",
                }
                .into(),
            }
        }
        Kind::BrokenPipe => SinkError::Misconfigured {
            what: format!("whoever read {name} has gone: {error}; nothing more is published"),
            remedy: "start the relay again with a reader".into(),
        },
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => unavailable(
            format!(
                "writing {name} (free space there, or raise the limit; events wait in PostgreSQL meanwhile, and the \
                 lines of the batch under way come again)"
            ),
            error,
        ),
        _ => unavailable(format!("writing {name}"), error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_full_disk_is_told_with_what_to_do() {
        let full = failed("lines", io::ErrorKind::StorageFull.into()).to_string();
        assert!(full.contains("free space") && full.contains("come again"), "{full}");
    }

    #[test]
    fn what_a_crash_left_of_a_line_is_cut_off_and_a_whole_one_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        for (before, after) in [
            ("", ""),
            ("a\nb\n", "a\nb\n"),
            ("a\n{\"topic\":\"orders\",\"key", "a\n"),
            ("{\"to", ""),
            ("a\n{\"topic\":1}", "a\n{\"topic\":1}\n"),
        ] {
            let path = folder.path().join("lines");
            std::fs::write(&path, before).unwrap();
            lock(&path, &mut open(&path).unwrap()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
        }
        let long = format!("{LINE_BEGINS}{}", "x".repeat(3 * TAIL));
        let path = folder.path().join("long");
        std::fs::write(&path, format!("whole\n{long}")).unwrap();
        lock(&path, &mut open(&path).unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole\n");
    }

    #[test]
    fn what_no_relay_wrote_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        std::fs::write(&path, "my notes").unwrap();
        let refused = lock(&path, &mut open(&path).unwrap()).unwrap_err();
        assert!(matches!(refused, SinkError::Misconfigured { .. }), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "my notes");
        let refused = open(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(refused, SinkError::Misconfigured { .. }), "{refused}");
    }

    #[test]
    fn a_file_has_one_writer_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let output = || Output::new(Some(path.clone()), Arc::default());
        let (mut first, mut second) = (output(), output());
        first.begin().unwrap();
        let refused = second.begin().unwrap_err();
        assert!(matches!(refused, SinkError::Unavailable { .. }), "{refused}");
        let why = crate::causes::of(&refused);
        assert!(why.contains("an earlier delivery of this relay"), "{why}");
        first.write(b"1\n").unwrap();
        first.end().unwrap();
        second.begin().unwrap();
    }

    #[test]
    fn a_file_that_the_relay_makes_is_its_users_alone_and_one_that_is_there_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        let path = folder.path().join("made");
        open(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        let path = folder.path().join("there");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        open(&path).unwrap();
        assert_eq!(mode(&path), 0o640);
    }

    #[test]
    fn a_file_that_was_renamed_is_followed_by_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut output = Output::new(Some(path.clone()), Arc::default());
        output.begin().unwrap();
        output.write(b"1\n").unwrap();
        std::fs::rename(&path, folder.path().join("old")).unwrap();
        output.begin().unwrap();
        output.write(b"2\n").unwrap();
        output.end().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n");
        assert_eq!(std::fs::read_to_string(folder.path().join("old")).unwrap(), "1\n");
    }
}
