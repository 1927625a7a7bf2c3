//! What a relay wrote to a file, read as a consumer would: a line of JSON for each record.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    path::Path,
    ptr,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::{murmur2, topic::Record};

/// A line, as documented; all headers of ours are text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    topic: String,
    key: Option<Bytes>,
    partition: Option<i32>,
    timestamp_ms: Option<i64>,
    headers: Vec<(String, String)>,
    payload: Option<Bytes>,
}

/// As documented: text where it is UTF-8.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Bytes {
    Text(String),
    Other { base64: String },
}

impl Bytes {
    fn decoded(self) -> Vec<u8> {
        match self {
            Bytes::Text(text) => text.into_bytes(),
            Bytes::Other { base64 } => STANDARD.decode(base64).expect("it is Base64"),
        }
    }
}

/// The records of the file's whole lines, in their order; none where there is no file. Without a
/// partition of its own a record gets the one that its key has in a topic of `partitions`.
///
/// # Panics
/// When a whole line is not as documented.
pub fn records(path: &Path, partitions: i32) -> Vec<Record> {
    let Ok(text) = std::fs::read_to_string(path) else { return vec![] };
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.zip(0..).map(|(line, offset)| record(line, offset, partitions)).collect()
}

fn record(line: &str, offset: i64, partitions: i32) -> Record {
    let line: Line = serde_json::from_str(line).expect("a line is as documented");
    let Line { topic, key, partition, timestamp_ms, headers, payload } = line;
    let key = key.map(Bytes::decoded);
    let by_key = || key.as_ref().map(|key| murmur2::partition(key, partitions));
    let partition = partition.or_else(by_key).unwrap_or(0);
    let payload = payload.map(Bytes::decoded);
    Record { topic, partition, offset, payload, headers, timestamp_ms, key }
}

/// Kilobytes of the file that are in this machine's memory alone: a crash of it would take them.
///
/// # Panics
/// When the file can't be looked at.
pub fn not_on_disk(path: &Path) -> u64 {
    let mapping = Mapping::of(path).expect("the file can be mapped");
    let maps = fs::read_to_string("/proc/self/smaps").expect("Linux tells of mappings");
    let begins = format!("{:x}-", mapping.at as usize);
    let lines = maps.lines().skip_while(|line| !line.starts_with(&begins)).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("VmFlags:"));
    let dirty = lines.filter_map(|line| line.split_once("_Dirty:"));
    let dirty = dirty.filter(|(whose, _)| ["Shared", "Private"].contains(whose));
    dirty.map(|(_, size)| size.trim().trim_end_matches(" kB").parse::<u64>().expect("kB")).sum()
}

/// A file in this process's memory, every page of it.
struct Mapping {
    at: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let bytes = usize::try_from(file.metadata()?.len()).expect("a small file");
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping, which nothing reads: it is there to be looked at in /proc.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ, flags, file.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Mapping { at, bytes })
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: of this very mapping, which no one has a reference into.
        unsafe { libc::munmap(self.at, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Else nothing could be said of a file that is.
    #[test]
    fn what_is_not_on_disk_is_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x");
        let mut file = File::create(&path).expect("a file");
        file.write_all(&[1; 20_000]).expect("written");
        assert!(not_on_disk(&path) > 0);
        file.sync_data().expect("on disk");
        assert_eq!(not_on_disk(&path), 0);
    }
}
