//! Counting: what was committed against what a consumer was given. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use crate::{
    event::{Committed, SEQUENCE},
    murmur2,
    topic::Record,
};

/// The outcome of a comparison. Only the first two may differ from zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Rows in the outbox.
    pub committed: usize,
    /// Of these, how many a consumer got.
    pub delivered: usize,
    /// Of these, how many a consumer did not get.
    pub lost: usize,
    /// Records beyond the first with the same id.
    pub duplicated: usize,
    /// Records that came after a later one of their lane.
    pub out_of_order: usize,
    /// Records on another partition than the row's own or Java's for the key.
    pub wrong_partition: usize,
    /// Records whose id was never committed: rolled back, or made up.
    pub uncommitted: usize,
    /// Records with another topic, key, payload, type, timestamp or own header than their row.
    pub altered: usize,
}

impl Count {
    /// # Panics
    /// When anything was lost, doubled, moved or changed.
    #[track_caller]
    pub fn assert_exactly_once(&self) {
        let (committed, delivered) = (self.committed, self.delivered);
        assert_eq!(*self, Count { committed, delivered, ..Count::default() }, "{self}");
        assert_eq!(committed, delivered, "{self}");
    }

    /// # Panics
    /// As [`Count::assert_exactly_once`], but for repetitions, which may come and may step back.
    #[track_caller]
    pub fn assert_at_least_once(&self) {
        let once = Count { duplicated: 0, ..self.clone() };
        once.assert_exactly_once();
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { committed, delivered, lost, duplicated, out_of_order, .. } = self;
        let Count { wrong_partition, uncommitted, altered, .. } = self;
        write!(
            f,
            "committed {committed} · delivered {delivered} · lost {lost} · duplicated {duplicated} \
             · out of order {out_of_order} · wrong partition {wrong_partition} · never committed \
             {uncommitted} · altered {altered}"
        )
    }
}

/// Compares rows with records; `records` in the order of their offsets within a partition, from
/// topics of `partitions` partitions each.
pub fn compare(truth: &[Committed], records: &[Record], partitions: i32) -> Count {
    let rows: HashMap<&str, &Committed> = truth.iter().map(|row| (row.id.as_str(), row)).collect();
    let mut count = Count { committed: rows.len(), ..Count::default() };
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut newest: HashMap<(&str, Lane<'_>), u64> = HashMap::new();
    for record in records {
        let Some(row) = record.id().and_then(|id| rows.get(id).copied()) else {
            count.uncommitted += 1;
            continue;
        };
        let times = seen.entry(&row.id).or_default();
        *times += 1;
        if *times > 1 {
            // Where it stands says nothing about order: what is repeated is repeated in a run.
            count.duplicated += 1;
            continue;
        }
        if !on_its_partition(row, record, partitions) {
            count.wrong_partition += 1;
        }
        if !same(row, record) {
            count.altered += 1;
        }
        if let Some((lane, sequence)) = lane(row).zip(sequence(row)) {
            let newest = newest.entry((&row.topic, lane)).or_default();
            if sequence < *newest {
                count.out_of_order += 1;
            }
            *newest = sequence.max(*newest);
        }
    }
    count.delivered = seen.len();
    count.lost = count.committed - count.delivered;
    count
}

/// Records that came for the first time after a later one of their lane that did not come again after
/// them, as text. At-least-once delivery has none: what shares a request with a refused record may
/// overtake, and is stored again then. `records` as for [`compare`].
pub fn overtaken(truth: &[Committed], records: &[Record]) -> Vec<String> {
    let rows: HashMap<&str, &Committed> = truth.iter().map(|row| (row.id.as_str(), row)).collect();
    let known = |record: &Record| record.id().and_then(|id| rows.get(id).copied());
    let mut lasts: HashMap<&str, usize> = HashMap::new();
    for (index, row) in records.iter().map(known).enumerate() {
        lasts.extend(row.map(|row| (row.id.as_str(), index)));
    }
    let mut seen = HashSet::new();
    let mut newest: HashMap<(&str, Lane<'_>), (u64, &Record)> = HashMap::new();
    let mut overtaken = Vec::new();
    for (index, record) in records.iter().enumerate() {
        let Some(row) = known(record) else { continue };
        let Some((lane, sequence)) = lane(row).zip(sequence(row)) else { continue };
        let newest = newest.entry((&row.topic, lane)).or_insert((0, record));
        if seen.insert(row.id.as_str()) && sequence < newest.0 {
            overtaken.push(format!("{} after {}", place(record), place(newest.1)));
        }
        if lasts.get(row.id.as_str()) == Some(&index) && sequence > newest.0 {
            *newest = (sequence, record);
        }
    }
    overtaken
}

/// Rows that no record is of, as text: each with what came before and after it in its lane, and what came last of its
/// partition. What was cut off at an end and what is missing in the middle differ there. `records` as for [`compare`].
pub fn missing(truth: &[Committed], records: &[Record], partitions: i32) -> Vec<String> {
    let came: HashSet<&str> = records.iter().filter_map(Record::id).collect();
    let missing = truth.iter().filter(|row| !came.contains(row.id.as_str()));
    let number = |it: &Record| it.header(SEQUENCE)?.parse::<u64>().ok();
    let told = |it: Option<&Record>| it.map_or("nothing".to_owned(), place);
    let one = |row: &Committed| {
        let key = row.key.as_deref().map(str::as_bytes);
        let partition = row.partition.or(key.map(|key| murmur2::partition(key, partitions)));
        let here = || records.iter().filter(|it| Some(it.partition) == partition);
        let lane = || here().filter(|it| it.key.as_deref() == key);
        let before = lane().filter(|it| number(it) < sequence(row)).max_by_key(|it| number(it));
        let after = lane().filter(|it| number(it) > sequence(row)).min_by_key(|it| number(it));
        format!(
            "missing: {} of {:?} in partition {partition:?}, created {}\n  before it: {}\n  after it: {}\n  \
             last of its partition: {}",
            row.id,
            row.key,
            row.created_ms,
            told(before),
            told(after),
            told(here().next_back())
        )
    };
    missing.map(one).collect()
}

fn place(record: &Record) -> String {
    let Record { topic, partition, offset, .. } = record;
    let header = |name| record.header(name).unwrap_or("-");
    let (id, sequence) = (header("outbox-id"), header(SEQUENCE));
    format!("{topic}/{partition}@{offset} {id} {sequence} at {}", header("outbox-position"))
}

/// Places where `outbox-position` does not grow within a partition, as text; empty when it does
/// everywhere in its era. Only for records that came from one relay on one timeline.
pub fn positions_that_step_back(records: &[Record]) -> Vec<String> {
    let mut last: BTreeMap<(&str, i32, Option<&str>), &str> = BTreeMap::new();
    let mut problems = Vec::new();
    for record in records {
        let position = record.header("outbox-position").unwrap_or("(none)");
        let era = record.header("outbox-era");
        let before = last.insert((&record.topic, record.partition, era), position);
        // Fixed widths make the text sort as the numbers do.
        if before.is_some_and(|before| before >= position) || !is_position(position) {
            let Record { topic, partition, offset, .. } = record;
            problems.push(format!("{topic}/{partition}@{offset}: {position} after {before:?}"));
        }
    }
    problems
}

/// `<system id>:<timeline>:<commit LSN>:<ordinal>`: decimal, decimal, 16 upper-case hex digits, 10
/// decimal digits.
fn is_position(text: &str) -> bool {
    let decimal = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = text.split(':').collect();
    let [system, timeline, commit, ordinal] = parts.as_slice() else { return false };
    decimal(system)
        && decimal(timeline)
        && commit.len() == 16
        && commit.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
        && ordinal.len() == 10
        && decimal(ordinal)
}

#[derive(PartialEq, Eq, Hash)]
enum Lane<'a> {
    Key(&'a str),
    Partition(i32),
}

fn lane(row: &Committed) -> Option<Lane<'_>> {
    row.key.as_deref().map(Lane::Key).or(row.partition.map(Lane::Partition))
}

fn sequence(row: &Committed) -> Option<u64> {
    row.headers.get(SEQUENCE)?.parse().ok()
}

fn on_its_partition(row: &Committed, record: &Record, partitions: i32) -> bool {
    let expected = match (row.partition, &row.key) {
        (Some(partition), _) => partition,
        (None, Some(key)) => murmur2::partition(key.as_bytes(), partitions),
        (None, None) => return true,
    };
    record.partition == expected
}

/// The event's own time, which a record that is older than its topic keeps has in a header.
fn event_ms(record: &Record) -> Option<i64> {
    match record.header("outbox-created-at") {
        Some(time) => time.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond),
        None => record.timestamp_ms,
    }
}

fn same(row: &Committed, record: &Record) -> bool {
    record.topic == row.topic
        && record.key.as_deref() == row.key.as_deref().map(str::as_bytes)
        && record.payload.as_deref() == row.payload.as_deref().map(str::as_bytes)
        && event_ms(record) == Some(row.created_ms)
        && row.headers.iter().all(|(name, value)| record.header(name) == Some(value))
        && match record.header("ce_id") {
            None => record.header("outbox-type") == row.kind.as_deref(),
            Some(_) => row.kind.is_none() || record.header("ce_type") == row.kind.as_deref(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, sequence: u64) -> Committed {
        Committed {
            id: id.into(),
            topic: "orders".into(),
            key: Some("21".into()),
            kind: None,
            payload: Some("{}".into()),
            headers: BTreeMap::from([(SEQUENCE.into(), sequence.to_string())]),
            partition: None,
            created_ms: 7,
        }
    }

    fn record(id: &str, sequence: u64) -> Record {
        Record {
            topic: "orders".into(),
            partition: murmur2::partition(b"21", 8),
            offset: 0,
            key: Some(b"21".to_vec()),
            payload: Some(b"{}".to_vec()),
            headers: vec![
                ("outbox-id".into(), id.into()),
                (SEQUENCE.into(), sequence.to_string()),
                ("outbox-position".into(), format!("1:1:00000000000000AA:{sequence:010}")),
            ],
            timestamp_ms: Some(7),
        }
    }

    #[test]
    fn what_is_as_it_was_committed_counts_as_exactly_once() {
        let count = compare(&[row("a", 1), row("b", 2)], &[record("a", 1), record("b", 2)], 8);
        count.assert_exactly_once();
        assert_eq!(count.delivered, 2);
    }

    #[test]
    fn each_fault_is_counted_under_its_name() {
        let truth = [row("a", 1), row("b", 2), row("c", 3)];
        let moved = Record { partition: 99, ..record("a", 1) };
        let changed = Record { payload: None, ..record("b", 2) };
        for (records, expected) in [
            (vec![record("a", 1)], Count { delivered: 1, lost: 2, ..Count::default() }),
            (
                vec![record("a", 1), record("b", 2), record("a", 1), record("c", 3)],
                Count { delivered: 3, duplicated: 1, ..Count::default() },
            ),
            (
                vec![record("b", 2), record("a", 1), record("c", 3)],
                Count { delivered: 3, out_of_order: 1, ..Count::default() },
            ),
            (
                vec![moved, changed, record("c", 3), record("rolled back", 4)],
                Count {
                    delivered: 3,
                    wrong_partition: 1,
                    altered: 1,
                    uncommitted: 1,
                    ..Count::default()
                },
            ),
        ] {
            assert_eq!(compare(&truth, &records, 8), Count { committed: 3, ..expected });
        }
    }

    #[test]
    fn what_overtook_must_come_again() {
        let truth = [row("a", 1), row("b", 2), row("c", 3)];
        for (order, expected) in [
            ("a b c", 0),
            ("a b a b c", 0),
            ("b a c", 1),
            ("b a b c", 0),
            ("c a b c", 0),
            ("b c a b", 1),
            ("b c b a c", 1),
            ("a b c a b", 0),
            ("c b a", 2),
        ] {
            let records: Vec<Record> = order.split(' ').map(|id| record(id, 0)).collect();
            assert_eq!(overtaken(&truth, &records).len(), expected, "{order}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_what_came_around_it() {
        let truth = [row("a", 1), row("b", 2), row("c", 3)];
        let told = missing(&truth, &[record("c", 3), record("a", 1)], 8);
        assert_eq!(told.len(), 1);
        let lines: Vec<_> = told.iter().flat_map(|it| it.lines()).collect();
        let wanted = ["missing: b", "before it: orders/", "after it: orders/", "last of its"];
        assert!(lines.iter().zip(wanted).all(|(line, words)| line.contains(words)), "{lines:#?}");
        let around = ["", " a 1 ", " c 3 ", " a 1 "];
        assert!(lines.iter().zip(around).all(|(line, id)| line.contains(id)), "{lines:#?}");
    }

    #[test]
    fn a_position_that_does_not_grow_is_named() {
        assert!(positions_that_step_back(&[record("a", 1), record("b", 2)]).is_empty());
        assert_eq!(positions_that_step_back(&[record("b", 2), record("a", 1)]).len(), 1);
        assert!(!is_position("1:1:aa:1") && !is_position("1:1:00000000000000AA:1"));
    }
}
