//! What a relay wrote to a file, read as a consumer would: a line of JSON for each record.

use std::path::Path;

use serde::Deserialize;

use crate::{murmur2, topic::Record};

/// A line, as documented; all of ours are text.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    topic: String,
    key: Option<String>,
    partition: Option<i32>,
    timestamp_ms: Option<i64>,
    headers: Vec<(String, String)>,
    payload: Option<String>,
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
    let key = key.map(String::into_bytes);
    let by_key = || key.as_ref().map(|key| murmur2::partition(key, partitions));
    let partition = partition.or_else(by_key).unwrap_or(0);
    let payload = payload.map(String::into_bytes);
    Record { topic, partition, offset, payload, headers, timestamp_ms, key }
}
