//! From what was written to what holds: defaults, ranges, and settings that contradict each other.

mod sink;

use std::{collections::BTreeMap, time::Duration};

use tracing_subscriber::EnvFilter;

use super::{
    AdminConfig, BatchConfig, Column, Columns, Config, HeaderStyle, Kind, LeaderConfig, LogConfig,
    LogFormat, OutboxConfig, ParkingConfig, PostgresConfig, Preset, Purpose, RetentionConfig,
    Route, SinkConfig, Size,
    broker::Common,
    checker::{Checker, value_or},
    problem::{Origin, Problem},
    reader::{Given, Opt},
    written::Written,
};
use crate::core::destination::RESERVED_BY_DEFAULT;

/// Checks everything. A route's relay is named after it, unless the route names it. What is wrong is added to `problems`, and a default stands in for it so
/// that the checks after it still run; the result holds only if there is no problem.
pub(super) fn check(
    written: Written,
    route: Option<Route>,
    purpose: Purpose,
    origins: BTreeMap<String, Origin>,
    problems: &mut Vec<Problem>,
) -> Config {
    let mut checker = Checker { problems };
    let w = written;
    let (url, url_file) = checker.url(w.url, w.url_file, purpose);
    let name = checker.name(w.name, &url, purpose);
    let name = match &route {
        Some(route) if !route.is_named() => checker.name_of_route(&name, &route.name),
        _ => name,
    };
    let slot = checker.slot(w.slot, &name);
    let publication = checker.identifier("postgres.publication", w.publication, "outbox");
    let preset = value_or(w.preset, Preset::Default);
    Config {
        postgres: PostgresConfig {
            url,
            url_file,
            slot,
            publication,
            start: w.start.map(|start| start.value),
        },
        outbox: OutboxConfig {
            tables: checker.tables(w.tables, preset),
            preset,
            columns: columns(w.columns),
            rows_kept: value_or(w.rows_kept, false),
            topic: w.topic.map(|topic| topic.value),
            headers: value_or(w.headers, HeaderStyle::Outbox),
            header_columns: checker.header_columns(w.header_columns),
            former_columns: w
                .former_columns
                .into_iter()
                .map(|(k, given)| (k, given.value))
                .collect(),
        },
        sink: {
            // In the order of the file, so that problems are reported in it.
            let kind = value_or(w.kind, Kind::Kafka);
            let delivery = checker.delivery(w.delivery, kind);
            let progress = checker.progress(w.progress, kind, delivery);
            let file_path = checker.file_path(w.file_path, kind);
            checker.foreign(kind, &origins);
            let common = Common {
                relay_name: name.clone(),
                topic_grace: value_or(w.topic_grace, Duration::from_secs(10)),
                reserved_topics: value_or(
                    w.reserved_topics,
                    RESERVED_BY_DEFAULT.map(str::to_owned).to_vec(),
                ),
            };
            let broker = checker.broker(w.broker, kind, purpose, &common);
            let create_topics =
                checker.create_topics(w.create_topics, w.create_partitions, w.create_replication);
            let (properties, properties_file) =
                checker.properties(w.properties_file, w.properties, kind, purpose);
            SinkConfig {
                kind,
                file_path,
                broker,
                delivery,
                progress,
                create_topics,
                created_topics_max: checker.created_topics_max(w.created_topics_max),
                topic_grace: common.topic_grace,
                reserved_topics: common.reserved_topics,
                properties,
                properties_file,
            }
        },
        batch: checker.batch(w.records_max, w.bytes_max, w.record_bytes_max),
        parking: ParkingConfig { lanes_max: checker.lanes_max(w.lanes_max) },
        retention: RetentionConfig {
            keep_dead_letters: checker.keep_dead_letters(w.keep_dead_letters),
        },
        leader: LeaderConfig { timeout: checker.leader_timeout(w.leader_timeout) },
        admin: AdminConfig { listen: checker.listen(w.listen), hosts: checker.hosts(w.hosts) },
        log: LogConfig {
            format: value_or(w.log_format, LogFormat::Text),
            level: checker.level(w.log_level),
        },
        name,
        route,
        origins,
    }
}

fn columns(given: [Opt<Column>; 8]) -> Columns {
    // In the order of `written::COLUMNS`.
    let [id, topic, key, r#type, payload, headers, partition, created_at] =
        given.map(|column| value_or(column, Column::Preset));
    Columns { id, topic, key, r#type, payload, headers, partition, created_at }
}

impl Checker<'_> {
    /// Whether each is a qualified name; quoting is for `route` to judge.
    fn tables(&mut self, given: Opt<Vec<String>>, preset: Preset) -> Vec<String> {
        const KEY: &str = "outbox.tables";
        let Some(given) = given else {
            if preset != Preset::Default && !self.is_reported(KEY) {
                self.problem(
                    KEY,
                    &Origin::Default,
                    "is not set, and outbox.preset says that the table is not our own",
                    "name it, such as tables = [\"public.outboxevent\"]",
                );
            }
            return vec!["outbox.events".into()];
        };
        let mut tables: Vec<String> = Vec::new();
        for table in given.value {
            let is_qualified = table
                .split_once('.')
                .is_some_and(|(schema, name)| !schema.is_empty() && !name.is_empty());
            if !is_qualified {
                let what = format!("{table:?} is not a table with its schema");
                self.problem(KEY, &given.origin, what, "write schema.table");
            } else if tables.contains(&table) {
                self.problem(KEY, &given.origin, format!("{table} is there twice"), "remove one");
            } else {
                tables.push(table);
            }
        }
        if tables.is_empty() && !self.is_reported(KEY) {
            self.problem(KEY, &given.origin, "is empty", "name a table, or leave it out");
        }
        tables
    }

    fn header_columns(
        &mut self,
        given: BTreeMap<String, Given<String>>,
    ) -> BTreeMap<String, String> {
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        for (column, header) in given {
            let key = format!("outbox.header_columns.{column}");
            let name = header.value;
            if name.is_empty() || name.starts_with(crate::core::header::RESERVED_PREFIX) {
                self.problem(
                    &key,
                    &header.origin,
                    format!("{name:?} can't be a header's name"),
                    format!(
                        "use a name that does not begin with {}",
                        crate::core::header::RESERVED_PREFIX
                    ),
                );
            } else if headers.values().any(|other| *other == name) {
                let what = format!("another column already becomes header {name:?}");
                self.problem(&key, &header.origin, what, "give each column a header of its own");
            }
            headers.insert(column, name);
        }
        headers
    }

    fn batch(&mut self, records: Opt<u64>, bytes: Opt<Size>, record: Opt<Size>) -> BatchConfig {
        const DEFAULT: Size = Size(16 << 20);
        const RECORDS: std::ops::RangeInclusive<u64> = 1..=1_000_000;
        const BYTES: std::ops::RangeInclusive<Size> = Size(64 << 10)..=Size(1 << 30);
        if let Some(given) = records.as_ref().filter(|given| !RECORDS.contains(&given.value)) {
            let what = format!("{} is out of range", given.value);
            self.problem("batch.records_max", &given.origin, what, "use 1 to 1000000");
        }
        if let Some(given) = bytes.as_ref().filter(|given| !BYTES.contains(&given.value)) {
            let what = format!("{} is out of range", given.value);
            self.problem("batch.bytes_max", &given.origin, what, "use 64 KiB to 1 GiB");
        }
        let bytes_max = value_or(bytes, DEFAULT);
        if let Some(given) = &record {
            let key = "batch.record_bytes_max";
            if given.value > bytes_max {
                let what = format!("{} is more than batch.bytes_max, {bytes_max}", given.value);
                self.problem(key, &given.origin, what, "lower it, or raise batch.bytes_max");
            } else if given.value < Size(1 << 10) {
                let what = format!("{} is out of range", given.value);
                self.problem(key, &given.origin, what, "use 1 KiB or more");
            }
        }
        let record_max = value_or(record, DEFAULT.min(bytes_max));
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        BatchConfig {
            records_max: count(value_or(records, 10_000)),
            bytes_max: count(bytes_max.0),
            record_bytes_max: count(record_max.0),
        }
    }

    fn lanes_max(&mut self, given: Opt<u64>) -> usize {
        self.count("parking.lanes_max", given, 100_000, 10_000_000)
    }

    fn created_topics_max(&mut self, given: Opt<u64>) -> usize {
        self.count("sink.created_topics_max", given, 1_000, 1_000_000)
    }

    /// A repair may begin at a snapshot that is some minutes old, and must still find what was
    /// discarded since.
    fn keep_dead_letters(&mut self, given: Opt<Option<Duration>>) -> Option<Duration> {
        const MIN: Duration = Duration::from_hours(1);
        const MAX: Duration = Duration::from_hours(100 * 365 * 24);
        let Some(given) = given else { return Some(Duration::from_hours(30 * 24)) };
        if let Some(keep) = given.value.filter(|keep| !(MIN..=MAX).contains(keep)) {
            let what = format!("{} is out of range", humantime::format_duration(keep));
            let remedy = "use 1h or more, or \"off\" to keep them for ever";
            self.problem("retention.keep_dead_letters", &given.origin, what, remedy);
        }
        given.value
    }

    fn leader_timeout(&mut self, given: Opt<Duration>) -> Duration {
        let Some(given) = given else { return Duration::from_secs(10) };
        if given.value < Duration::from_secs(2) {
            self.problem(
                "leader.timeout",
                &given.origin,
                format!(
                    "{} is shorter than a slow commit",
                    humantime::format_duration(given.value)
                ),
                "use 2s or more",
            );
        }
        given.value
    }

    fn listen(&mut self, given: Opt<String>) -> Option<String> {
        let Some(given) = given else { return Some("127.0.0.1:9464".into()) };
        let text = given.value.trim();
        if text.is_empty() || text == "off" {
            return None;
        }
        let is_address = text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !is_address {
            self.problem(
                "admin.listen",
                &given.origin,
                format!("{text:?} is not an address"),
                "write host:port, such as 127.0.0.1:9464, or off",
            );
        }
        Some(text.to_owned())
    }

    /// Names alone: an address needs no entry, and no port is compared.
    fn hosts(&mut self, given: Opt<Vec<String>>) -> Vec<String> {
        const KEY: &str = "admin.hosts";
        let Some(Given { value: names, origin }) = given else { return Vec::new() };
        let is_name = |name: &str| {
            let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
            !name.is_empty() && name.bytes().all(plain)
        };
        for name in names.iter().filter(|name| !is_name(name)) {
            let what = format!("{name:?} is not a host's name");
            self.problem(KEY, &origin, what, "write names without scheme, port or *");
        }
        names
    }

    fn level(&mut self, given: Opt<String>) -> String {
        let Some(given) = given else { return "info".into() };
        if !is_filter(&given.value) {
            self.problem(
                "log.level",
                &given.origin,
                format!("{:?} is not a level", given.value),
                "write error, warn, info, debug, trace, or a filter such as info,outbox_relay=debug",
            );
        }
        given.value
    }
}

/// A misspelt level (`inof`) would be taken for a module's name, and nothing would be logged.
fn is_filter(text: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_part = |part: &str| {
        LEVELS.contains(&part.to_ascii_lowercase().as_str()) || part.contains(['=', '[', '_', ':'])
    };
    text.split(',').all(|part| is_part(part.trim())) && EnvFilter::try_new(text).is_ok()
}
