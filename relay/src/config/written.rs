//! Settings as typed by the user: each with its type, none with its consequences.
//!
//! Not serde: it stops at the first mistake, and all of them are to be reported at once. Each
//! setting is read by its own name (`reader`); one of a wrong type is left out.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{
    Column, Delivery, HeaderStyle, Kind, LogFormat, Preset, Progress, Start,
    broker::WrittenBroker,
    layers::Merged,
    problem::Problem,
    reader::{Given, Opt, Reader},
    sizes::Size,
};
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
    pub(super) progress: Opt<Progress>,
    pub(super) file_path: Opt<PathBuf>,
    pub(super) broker: WrittenBroker,
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
            kind: from.choice("sink.kind", &Kind::ALL.map(|kind| (kind.name(), kind))),
            delivery: from.choice(
                "sink.delivery",
                &[
                    ("exactly-once", Delivery::ExactlyOnce),
                    ("at-least-once", Delivery::AtLeastOnce),
                ],
            ),
            progress: from.choice(
                "sink.progress",
                &[("broker", Progress::Broker), ("postgres", Progress::Postgres)],
            ),
            file_path: from.path("sink.file.path"),
            broker: WrittenBroker::read(&mut from),
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
