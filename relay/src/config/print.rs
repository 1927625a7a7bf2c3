//! The effective settings as TOML: what holds, and where it came from.

use std::fmt::Write as _;

use super::{
    Column, Config, Delivery, HeaderStyle, Kind, LogFormat, Origin, Preset, Progress, Start,
    broker, keys,
    shown::{path, quoted, size},
};
use crate::{core::printable, postgres::conninfo};

/// Of one relay, or of each route below what is the same for all of them.
pub(super) fn print(configs: &[Config]) -> String {
    let tables = configs.iter().map(|config| match &config.route {
        None => settings(config, "", |_| true),
        Some(route) => {
            settings(config, &format!("routes.{}.", route.name), |key| !keys::is_of_process(key))
        }
    });
    let of_process = configs.first().filter(|first| first.route.is_some());
    let of_process = of_process.map(|first| settings(first, "", keys::is_of_process));
    of_process.into_iter().chain(tables).collect::<Vec<_>>().join("\n")
}

/// Every setting that has a value, in the order of [`keys::KEYS`], with each table once.
fn settings(config: &Config, below: &str, is_here: impl Fn(&str) -> bool) -> String {
    let mut sections: Vec<(&str, String)> = Vec::new();
    let shown = |key: &&keys::Key| {
        is_here(key.name)
            && (is_of(config.sink.kind, key.name) || config.origin(key.name) != Origin::Default)
    };
    for key in keys::KEYS.iter().filter(shown) {
        for (name, value) in values(config, key.name) {
            let (above, last) = split(key.name);
            let place = sections.iter().position(|(section, _)| *section == above);
            let place = place.unwrap_or_else(|| {
                let table = format!("{below}{above}");
                let table = table.trim_end_matches('.');
                let header = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
                sections.push((above, header));
                sections.len() - 1
            });
            let Some((_, out)) = sections.get_mut(place) else { continue };
            let origin = origin(config, key.name, &name);
            let shown = if last == "*" { quoted(&name) } else { last.to_owned() };
            let line = format!("{shown} = {value}");
            // Writing to a string can't fail.
            let _ = writeln!(out, "{line:<50} # {origin}");
            if key.name == "postgres.url" {
                out.push_str(&standing_in(config.postgres.url.expose()));
            }
        }
    }
    sections.iter().map(|(_, lines)| lines.as_str()).collect::<Vec<_>>().join("\n")
}

/// Where the value was set, `name` standing for `*`. Of a value that is made of several settings: where those were.
fn origin(config: &Config, key: &str, name: &str) -> String {
    let key = key.strip_prefix("routes.*.").unwrap_or(key);
    let whole = config.origin(&key.replace('*', name));
    match key {
        "postgres.url" | "sink.rabbitmq.url" if whole == Origin::Default => {
            config.origin(&format!("{key}_file")).to_string()
        }
        "sink.create_topics" if config.sink.create_topics.is_some() => {
            let partitions = config.origin("sink.create_topics.partitions").to_string();
            let replicas = config.origin("sink.create_topics.replication_factor").to_string();
            if partitions == replicas { partitions } else { format!("{partitions}, {replicas}") }
        }
        _ => whole.to_string(),
    }
}

/// Whether the setting means something with that kind of sink. One that does not is shown where somebody has set it.
fn is_of(kind: Kind, key: &str) -> bool {
    let has_topics = !matches!(kind, Kind::File | Kind::Stdout);
    match key {
        "sink.topic_grace" | "sink.reserved_topics" => has_topics,
        "sink.create_topics" | "sink.created_topics_max" => kind == Kind::Kafka,
        _ => true,
    }
}

/// libpq's variables, of what the connection string lacks: as comments, for they are no settings here.
fn standing_in(url: &str) -> String {
    let variables = conninfo::standing_in(url);
    let line = |(key, variable, value): (&str, &str, String)| {
        let line = format!("#   {key}={}", printable::line(&value));
        format!("{line:<50} # variable {variable}\n")
    };
    variables.into_iter().map(line).collect()
}

/// Table and name in it.
fn split(key: &'static str) -> (&'static str, &'static str) {
    let key = key.strip_prefix("routes.*.").unwrap_or(key);
    key.rsplit_once('.').unwrap_or(("", key))
}

/// The TOML value of a key, with the name that stands for `*`; none when it holds nothing.
fn values(c: &Config, key: &str) -> Vec<(String, String)> {
    let value = match key {
        "outbox.header_columns.*" => {
            let pairs = c.outbox.header_columns.iter();
            return pairs.map(|(column, header)| (column.clone(), quoted(header))).collect();
        }
        "outbox.former_columns.*" => {
            let pairs = c.outbox.former_columns.iter();
            return pairs.map(|(former, column)| (former.clone(), quoted(column))).collect();
        }
        "sink.properties.*" => {
            let pairs = c.sink.properties.masked();
            return pairs.map(|(name, value)| (name.to_owned(), quoted(value))).collect();
        }
        key if key.starts_with("outbox.") => outbox(c, key),
        key if key.starts_with("sink.") => sink(c, key),
        "name" => Some(quoted(&c.name)),
        "routes.*.topics" => c.route.as_ref().and_then(|it| it.topics.as_deref()).map(list),
        "routes.*.required" => c.route.as_ref().map(|it| it.required.to_string()),
        "postgres.url" => {
            let url = c.postgres.url.expose();
            (!url.is_empty()).then(|| quoted(&conninfo::masked(url)))
        }
        "postgres.slot" => Some(quoted(&c.postgres.slot)),
        "postgres.publication" => Some(quoted(&c.postgres.publication)),
        "postgres.start" => c.postgres.start.map(|start| {
            quoted(match start {
                Start::Now => "now",
                Start::All => "all",
            })
        }),
        "batch.records_max" => Some(c.batch.records_max.to_string()),
        "batch.bytes_max" => Some(size(c.batch.bytes_max)),
        "batch.record_bytes_max" => Some(size(c.batch.record_bytes_max)),
        "parking.lanes_max" => Some(c.parking.lanes_max.to_string()),
        "retention.keep_dead_letters" => {
            Some(c.retention.keep_dead_letters.map_or_else(|| quoted("off"), duration))
        }
        "leader.timeout" => Some(duration(c.leader.timeout)),
        "admin.listen" => Some(quoted(c.admin.listen.as_deref().unwrap_or("off"))),
        "admin.hosts" => (!c.admin.hosts.is_empty()).then(|| list(&c.admin.hosts)),
        "log.format" => Some(quoted(match c.log.format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        })),
        "log.level" => Some(quoted(&c.log.level)),
        _ => None,
    };
    value.map(|value| (String::new(), value)).into_iter().collect()
}

fn outbox(c: &Config, key: &str) -> Option<String> {
    let columns = &c.outbox.columns;
    let column = |column: &Column| match column {
        Column::Preset => None,
        Column::Named(name) => Some(quoted(name)),
        Column::Absent => Some("false".to_owned()),
    };
    match key {
        "outbox.tables" => Some(list(&c.outbox.tables)),
        "outbox.preset" => Some(quoted(match c.outbox.preset {
            Preset::Default => "default",
            Preset::Debezium => "debezium",
        })),
        "outbox.rows_kept" => Some(c.outbox.rows_kept.to_string()),
        "outbox.topic" => c.outbox.topic.as_deref().map(quoted),
        "outbox.headers" => Some(quoted(match c.outbox.headers {
            HeaderStyle::Outbox => "outbox",
            HeaderStyle::CloudEvents => "cloudevents",
        })),
        "outbox.columns.id" => column(&columns.id),
        "outbox.columns.topic" => column(&columns.topic),
        "outbox.columns.key" => column(&columns.key),
        "outbox.columns.type" => column(&columns.r#type),
        "outbox.columns.payload" => column(&columns.payload),
        "outbox.columns.headers" => column(&columns.headers),
        "outbox.columns.partition" => column(&columns.partition),
        "outbox.columns.created_at" => column(&columns.created_at),
        _ => None,
    }
}

fn sink(c: &Config, key: &str) -> Option<String> {
    match key {
        "sink.kind" => Some(quoted(c.sink.kind.name())),
        "sink.file.path" => c.sink.file_path.as_deref().map(path),
        "sink.delivery" => Some(quoted(match c.sink.delivery {
            Delivery::ExactlyOnce => "exactly-once",
            Delivery::AtLeastOnce => "at-least-once",
        })),
        "sink.progress" => Some(quoted(match c.sink.progress {
            Progress::Broker => "broker",
            Progress::Postgres => "postgres",
        })),
        "sink.create_topics" => Some(match c.sink.create_topics {
            None => "false".into(),
            Some(how) => format!(
                "{{ partitions = {}, replication_factor = {} }}",
                how.partitions, how.replication_factor
            ),
        }),
        "sink.created_topics_max" => Some(c.sink.created_topics_max.to_string()),
        "sink.topic_grace" => Some(duration(c.sink.topic_grace)),
        "sink.reserved_topics" => {
            let patterns: Vec<_> = c.sink.reserved_topics.iter().map(|p| quoted(p)).collect();
            Some(format!("[{}]", patterns.join(", ")))
        }
        key => broker::shown(c.sink.broker.as_ref()?, key),
    }
}

fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

fn duration(duration: std::time::Duration) -> String {
    quoted(&humantime::format_duration(duration).to_string())
}
