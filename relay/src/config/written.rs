//! Settings as typed by the user: each with its type, none with its consequences.
//!
//! Not serde: it stops at the first mistake, and all of them are to be reported at once. Each
//! setting is read by its own name; a wrong type is noted and the setting left out.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use config::ValueKind;

use super::{
    Column, Delivery, HeaderStyle, Kind, LogFormat, Preset, Start,
    layers::Merged,
    problem::{Origin, Problem},
    sizes::Size,
};

/// A value and where it came from.
#[derive(Clone)]
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) origin: Origin,
}

/// What was given; `None` where nothing was, or nothing that could be read.
pub(super) type Opt<T> = Option<Given<T>>;

/// Everything that can be given. No `Debug`: there are secrets in it.
pub(super) struct Written {
    pub(super) name: Opt<String>,
    pub(super) url: Opt<String>,
    pub(super) url_file: Opt<PathBuf>,
    pub(super) slot: Opt<String>,
    pub(super) publication: Opt<String>,
    pub(super) start: Opt<Start>,
    pub(super) tables: Opt<Vec<String>>,
    pub(super) preset: Opt<Preset>,
    pub(super) rows_kept: Opt<bool>,
    pub(super) topic: Opt<String>,
    pub(super) headers: Opt<HeaderStyle>,
    /// In the order of [`COLUMNS`].
    pub(super) columns: [Opt<Column>; COLUMNS.len()],
    pub(super) header_columns: BTreeMap<String, Given<String>>,
    pub(super) former_columns: BTreeMap<String, Given<String>>,
    pub(super) kind: Opt<Kind>,
    pub(super) delivery: Opt<Delivery>,
    pub(super) file_path: Opt<PathBuf>,
    pub(super) create_topics: Opt<bool>,
    pub(super) create_partitions: Opt<u64>,
    pub(super) create_replication: Opt<u64>,
    pub(super) created_topics_max: Opt<u64>,
    pub(super) topic_grace: Opt<Duration>,
    pub(super) reserved_topics: Opt<Vec<String>>,
    pub(super) properties_file: Opt<PathBuf>,
    pub(super) properties: BTreeMap<String, Given<String>>,
    pub(super) records_max: Opt<u64>,
    pub(super) bytes_max: Opt<Size>,
    pub(super) record_bytes_max: Opt<Size>,
    pub(super) lanes_max: Opt<u64>,
    pub(super) keep_dead_letters: Opt<Option<Duration>>,
    pub(super) leader_timeout: Opt<Duration>,
    pub(super) listen: Opt<String>,
    pub(super) hosts: Opt<Vec<String>>,
    pub(super) log_format: Opt<LogFormat>,
    pub(super) log_level: Opt<String>,
}

/// Names below `outbox.columns`.
pub(super) const COLUMNS: [&str; 8] =
    ["id", "topic", "key", "type", "payload", "headers", "partition", "created_at"];

impl Written {
    /// Reads every setting; what has the wrong type becomes a problem.
    pub(super) fn read(merged: Merged, problems: &mut Vec<Problem>) -> Written {
        let mut from = Reader { merged, problems };
        Written {
            name: from.text("name"),
            url: from.text("postgres.url"),
            url_file: from.path("postgres.url_file"),
            slot: from.text("postgres.slot"),
            publication: from.text("postgres.publication"),
            start: from.choice("postgres.start", &[("now", Start::Now), ("all", Start::All)]),
            tables: from.list("outbox.tables", "[\"outbox.events\"]"),
            preset: from.choice(
                "outbox.preset",
                &[("default", Preset::Default), ("debezium", Preset::Debezium)],
            ),
            rows_kept: from.flag("outbox.rows_kept", "true or false"),
            topic: from.text("outbox.topic"),
            headers: from.choice(
                "outbox.headers",
                &[("outbox", HeaderStyle::Outbox), ("cloudevents", HeaderStyle::CloudEvents)],
            ),
            columns: COLUMNS.map(|name| from.column(&format!("outbox.columns.{name}"))),
            header_columns: from.open("outbox.header_columns."),
            former_columns: from.open("outbox.former_columns."),
            kind: from.choice(
                "sink.kind",
                &[("kafka", Kind::Kafka), ("file", Kind::File), ("stdout", Kind::Stdout)],
            ),
            delivery: from.choice(
                "sink.delivery",
                &[
                    ("exactly-once", Delivery::ExactlyOnce),
                    ("at-least-once", Delivery::AtLeastOnce),
                ],
            ),
            file_path: from.path("sink.file.path"),
            create_topics: from
                .flag("sink.create_topics", "false, or { partitions = 6, replication_factor = 3 }"),
            create_partitions: from.number("sink.create_topics.partitions"),
            create_replication: from.number("sink.create_topics.replication_factor"),
            created_topics_max: from.number("sink.created_topics_max"),
            topic_grace: from.duration("sink.topic_grace"),
            reserved_topics: from.list("sink.reserved_topics", "[\"audit-*\"]"),
            properties_file: from.path("sink.properties_file"),
            properties: from.open("sink.properties."),
            records_max: from.number("batch.records_max"),
            bytes_max: from.size("batch.bytes_max"),
            record_bytes_max: from.size("batch.record_bytes_max"),
            lanes_max: from.number("parking.lanes_max"),
            keep_dead_letters: from.duration_or_off("retention.keep_dead_letters"),
            leader_timeout: from.duration("leader.timeout"),
            listen: from.text_or_empty("admin.listen"),
            hosts: from.list("admin.hosts", "[\"relay.internal\"]"),
            log_format: from
                .choice("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
            log_level: from.text("log.level"),
        }
    }
}

struct Reader<'a> {
    merged: Merged,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    /// Takes the value out and has it parsed; `expected` completes "write …".
    fn parse<T>(
        &mut self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&ValueKind, &Origin) -> Option<T>,
    ) -> Opt<T> {
        let (kind, origin) = self.merged.remove(key)?;
        match parse(&kind, &origin) {
            Some(value) => Some(Given { value, origin }),
            None => {
                self.problems.push(Problem {
                    key: key.to_owned(),
                    what: describe(key, &kind),
                    remedy: format!("write {expected}"),
                    origin,
                });
                None
            }
        }
    }

    fn text(&mut self, key: &str) -> Opt<String> {
        self.parse(key, "text in quotes, not empty", |kind, _| {
            text_of(kind).filter(|text| !text.trim().is_empty()).map(str::to_owned)
        })
    }

    fn text_or_empty(&mut self, key: &str) -> Opt<String> {
        self.parse(key, "text in quotes", |kind, _| text_of(kind).map(str::to_owned))
    }

    fn path(&mut self, key: &str) -> Opt<PathBuf> {
        self.parse(key, "a path in quotes", |kind, _| {
            text_of(kind).filter(|text| !text.is_empty()).map(PathBuf::from)
        })
    }

    fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Opt<T> {
        let quoted: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        self.parse(key, &quoted.join(" or "), |kind, _| {
            let text = text_of(kind)?;
            choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
        })
    }

    fn flag(&mut self, key: &str, expected: &str) -> Opt<bool> {
        self.parse(key, expected, bool_of)
    }

    fn number(&mut self, key: &str) -> Opt<u64> {
        self.parse(key, "a whole number, not negative", number_of)
    }

    fn size(&mut self, key: &str) -> Opt<Size> {
        self.parse(key, "a number of bytes, or a size such as \"16 MiB\"", |kind, origin| {
            number_of(kind, origin).map(Size).or_else(|| Size::parse(text_of(kind)?))
        })
    }

    fn duration(&mut self, key: &str) -> Opt<Duration> {
        self.parse(key, "a duration with its unit, such as \"10s\" or \"500ms\"", |kind, _| {
            humantime::parse_duration(text_of(kind)?).ok()
        })
    }

    fn duration_or_off(&mut self, key: &str) -> Opt<Option<Duration>> {
        self.parse(key, "a duration with its unit, such as \"30d\", or \"off\"", |kind, _| {
            match text_of(kind)? {
                "off" => Some(None),
                text => humantime::parse_duration(text).ok().map(Some),
            }
        })
    }

    fn list(&mut self, key: &str, example: &str) -> Opt<Vec<String>> {
        let expected = format!("a list of texts, such as {example}");
        self.parse(key, &expected, |kind, origin| match (kind, origin) {
            (ValueKind::Array(items), _) => {
                items.iter().map(|item| text_of(&item.kind).map(str::to_owned)).collect()
            }
            (ValueKind::String(text), Origin::Env(_) | Origin::Flag(_)) => {
                Some(text.split(',').map(|item| item.trim().to_owned()).collect())
            }
            _ => None,
        })
    }

    fn column(&mut self, key: &str) -> Opt<Column> {
        self.parse(key, "a column's name, or false when the table has none", |kind, origin| {
            if bool_of(kind, origin) == Some(false) {
                return Some(Column::Absent);
            }
            text_of(kind).filter(|name| !name.is_empty()).map(|n| Column::Named(n.to_owned()))
        })
    }

    /// All settings below a table with free keys, by their name there.
    fn open(&mut self, table: &str) -> BTreeMap<String, Given<String>> {
        let keys: Vec<String> =
            self.merged.keys().filter(|key| key.starts_with(table)).cloned().collect();
        let mut found = BTreeMap::new();
        for key in keys {
            let value = self.parse(&key, "text, a number or a boolean", |kind, _| scalar(kind));
            if let (Some(value), Some(name)) = (value, key.strip_prefix(table)) {
                found.insert(name.to_owned(), value);
            }
        }
        found
    }
}

fn text_of(kind: &ValueKind) -> Option<&str> {
    match kind {
        ValueKind::String(text) => Some(text),
        _ => None,
    }
}

/// In a file `true` is not `"true"`; a variable or a flag has only text.
fn bool_of(kind: &ValueKind, origin: &Origin) -> Option<bool> {
    match (kind, origin) {
        (ValueKind::Boolean(value), _) => Some(*value),
        (ValueKind::String(text), Origin::Env(_) | Origin::Flag(_)) => text.parse().ok(),
        _ => None,
    }
}

fn number_of(kind: &ValueKind, origin: &Origin) -> Option<u64> {
    match (kind, origin) {
        (ValueKind::I64(number), _) => u64::try_from(*number).ok(),
        (ValueKind::U64(number), _) => Some(*number),
        (ValueKind::String(text), Origin::Env(_) | Origin::Flag(_)) => text.trim().parse().ok(),
        _ => None,
    }
}

fn scalar(kind: &ValueKind) -> Option<String> {
    match kind {
        ValueKind::String(text) => Some(text.clone()),
        ValueKind::Boolean(value) => Some(value.to_string()),
        ValueKind::I64(value) => Some(value.to_string()),
        ValueKind::U64(value) => Some(value.to_string()),
        ValueKind::Float(value) => Some(value.to_string()),
        _ => None,
    }
}

/// What is there instead; the value itself only where it can't be a secret.
fn describe(key: &str, kind: &ValueKind) -> String {
    let secret = key == "postgres.url" || key.starts_with("sink.properties.");
    match kind {
        ValueKind::Array(_) => "is a list, which is not valid here".into(),
        ValueKind::String(text) if text.trim().is_empty() => "is empty".into(),
        ValueKind::String(text) if !secret => format!("{text:?} is not valid"),
        kind => match scalar(kind).filter(|_| !secret) {
            Some(value) => format!("{value} is not valid"),
            None => "has a value of the wrong type".into(),
        },
    }
}
