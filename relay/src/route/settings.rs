//! What the operator says about the outbox's tables, and the check that makes it a [`Mapping`].

use serde::Deserialize;

use super::{
    headers,
    mapping::{Mapping, TopicFrom},
    role::Role,
    share::Share,
    style::HeaderStyle,
    table::TableName,
    template::Template,
};
use crate::core::{destination::reserved_by, finding::Finding};

/// The `outbox` section of the settings, with what routing needs of the others. Made by `config`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the relay, for headers.
    pub relay_name: String,
    /// Qualified names, `outbox.tables`; not empty. All are mapped alike.
    pub tables: Vec<String>,
    /// Layout of the tables, `outbox.preset`.
    pub preset: Preset,
    /// Column names that differ from the preset's, `outbox.columns`.
    pub columns: Columns,
    /// Topic template, `outbox.topic`; `None` is the preset's.
    pub topic: Option<String>,
    /// Style of the relay's own headers, `outbox.headers`.
    pub header_style: HeaderStyle,
    /// Further columns and the header that each becomes, `outbox.header_columns`; in order, after
    /// the relay's own headers and before the row's. A null makes no header.
    pub header_columns: Vec<(String, String)>,
    /// What mapped columns were called before, `outbox.former_columns`: former name and present one.
    pub former_columns: Vec<(String, String)>,
    /// Key, payload and headers of a record, `batch.record_bytes_max`.
    pub record_bytes_max: usize,
    /// Where several relays share the tables.
    pub share: Option<Share>,
}

/// A known layout of an outbox table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// The table that our own migration makes.
    #[default]
    Default,
    /// The one that Debezium's outbox event router expects: topic `outbox.event.<aggregatetype>`,
    /// key `aggregateid`, event id also in the header `id`. Bytes are what that router gives with
    /// its string converters: the payload as it stands, a null one as a tombstone. `type` becomes
    /// no header of its own, as there; `outbox-type` has it.
    Debezium,
}

/// Column names by purpose. `None` is the preset's; `""` says that there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Columns {
    /// Event id.
    pub id: Option<String>,
    /// Destination; contradicts a topic template.
    pub topic: Option<String>,
    /// Partition key.
    pub key: Option<String>,
    /// Event type.
    #[serde(rename = "type")]
    pub event_type: Option<String>,
    /// Payload.
    pub payload: Option<String>,
    /// Flat JSON object of the row's own headers.
    pub headers: Option<String>,
    /// Explicit partition.
    pub partition: Option<String>,
    /// Record timestamp; without it, the transaction's commit time.
    pub created_at: Option<String>,
}

impl Settings {
    /// Checks everything, without a database.
    ///
    /// # Errors
    /// All problems at once, never an empty list.
    pub fn validate(&self) -> Result<Mapping, Vec<Finding>> {
        let mut problems = Vec::new();
        let tables = self.validate_tables(&mut problems);
        let topic = self.validate_topic(&mut problems);
        let columns = self.validate_columns(&mut problems);
        self.validate_header_columns(&mut problems);
        if self.record_bytes_max == 0 {
            problem(
                &mut problems,
                "batch.record_bytes_max",
                "no record fits into 0 bytes",
                "set it to the largest record that is expected, such as \"1 MiB\"",
            );
        }
        let mapping = topic.map(|topic| Mapping {
            tables,
            columns,
            topic,
            relay_name: self.relay_name.clone(),
            header_style: self.header_style,
            debezium_id: self.preset == Preset::Debezium,
            header_columns: self.header_columns.clone(),
            former_columns: self.former_columns.clone(),
            record_bytes_max: self.record_bytes_max,
            share: self.share.clone(),
        });
        if let Some(mapping) = &mapping {
            self.validate_former_columns(mapping, &mut problems);
        }
        match mapping {
            Some(mapping) if problems.is_empty() => mapping.check_size().map(|()| mapping),
            _ => Err(problems),
        }
    }

    fn validate_tables(&self, problems: &mut Vec<Finding>) -> Vec<TableName> {
        const KEY: &str = "outbox.tables";
        const REMEDY: &str = "list qualified names, such as [\"outbox.events\"]";
        let mut tables: Vec<TableName> = Vec::new();
        for text in &self.tables {
            match TableName::parse(text) {
                Ok(table) if tables.contains(&table) => {
                    problem(problems, KEY, format!("{table} comes twice"), "remove one of them");
                }
                Ok(table) => tables.push(table),
                Err(what) => problem(problems, KEY, what, REMEDY),
            }
        }
        if self.tables.is_empty() {
            problem(problems, KEY, "no table is named", REMEDY);
        }
        tables
    }

    fn validate_topic(&self, problems: &mut Vec<Finding>) -> Option<TopicFrom> {
        if self.topic.is_some() && self.columns.topic.as_ref().is_some_and(|c| !c.is_empty()) {
            problem(
                problems,
                "outbox.topic",
                "contradicts outbox.columns.topic",
                "keep the one that says where the topic comes from",
            );
            return None;
        }
        let (template, column) = match (&self.topic, &self.columns.topic) {
            (Some(template), _) => (template.as_str(), None),
            (None, Some(column)) => ("", Some(column.as_str())),
            (None, None) => match self.preset {
                Preset::Default => ("", Some("topic")),
                Preset::Debezium => ("outbox.event.{aggregatetype}", None),
            },
        };
        match column {
            Some("") => {
                problem(
                    problems,
                    "outbox.columns.topic",
                    "nothing says which topic an event goes to",
                    "name the column that holds it, or set outbox.topic",
                );
                None
            }
            Some(column) => Some(TopicFrom::Column(column.to_owned())),
            None => Template::parse(template)
                .and_then(|template| match template.literal() {
                    Some(topic) if reserved_by(topic, &[]).is_some() => {
                        Err("it is no destination for events: others keep state in it".to_owned())
                    }
                    _ => Ok(TopicFrom::Template(template)),
                })
                .map_err(|what| {
                    let remedy = "write it as in \"outbox.event.{aggregatetype}\"";
                    problem(problems, "outbox.topic", what, remedy);
                })
                .ok(),
        }
    }

    /// Role and column of all but topic and further headers.
    fn validate_columns(&self, problems: &mut Vec<Finding>) -> Vec<(Role, String)> {
        let debezium = self.preset == Preset::Debezium;
        let ours = |name| if debezium { "" } else { name };
        let given = &self.columns;
        let roles = [
            (Role::Id, &given.id, "id"),
            (Role::Key, &given.key, if debezium { "aggregateid" } else { "key" }),
            (Role::Type, &given.event_type, "type"),
            (Role::Payload, &given.payload, "payload"),
            (Role::Headers, &given.headers, ours("headers")),
            (Role::Partition, &given.partition, ours("partition")),
            (Role::CreatedAt, &given.created_at, ours("created_at")),
        ];
        let mut columns = Vec::new();
        for (role, given, preset) in roles {
            let column = given.as_deref().unwrap_or(preset);
            if !column.is_empty() {
                columns.push((role, column.to_owned()));
                continue;
            }
            let why = match role {
                Role::Id => "every event needs an id",
                Role::Payload => "every event needs a payload",
                Role::Type if self.header_style == HeaderStyle::CloudEvents => {
                    "CloudEvents requires a type"
                }
                _ => continue,
            };
            problem(problems, role.setting(), why, "name the column that holds it");
        }
        columns
    }

    fn validate_former_columns(&self, mapping: &Mapping, problems: &mut Vec<Finding>) {
        let mapped = mapping.column_names();
        for (former, present) in &self.former_columns {
            let what = if !mapped.contains(&present.as_str()) {
                format!("no setting names a column {present:?}")
            } else if former.is_empty() || former == present {
                format!("{former:?} is no former name of {present:?}")
            } else {
                continue;
            };
            let remedy = "write former_name = \"name in outbox.columns\"";
            problem(problems, &format!("outbox.former_columns.{former}"), what, remedy);
        }
    }

    fn validate_header_columns(&self, problems: &mut Vec<Finding>) {
        const KEY: &str = "outbox.header_columns";
        let reserved = headers::Reserved {
            style: self.header_style,
            debezium_id: self.preset == Preset::Debezium,
        };
        let mut seen = Vec::new();
        for (column, header) in &self.header_columns {
            let what = if column.is_empty() {
                format!("header {header:?} has no column")
            } else if header.is_empty() || header.contains('\0') {
                format!("column {column:?} has no usable header name")
            } else if reserved.has(header) {
                format!("header {header:?} is the relay's own")
            } else if seen.contains(&header) {
                format!("header {header:?} comes twice")
            } else {
                seen.push(header);
                continue;
            };
            problem(problems, KEY, what, "write column = \"header name\", each name once");
        }
    }
}

fn problem(problems: &mut Vec<Finding>, key: &str, what: impl Into<String>, remedy: &str) {
    problems.push(Finding { key: key.to_owned(), what: what.into(), remedy: remedy.to_owned() });
}
