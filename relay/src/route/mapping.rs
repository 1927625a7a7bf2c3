//! Settings that make sense: which column serves which purpose, whatever the tables look like.

use super::{role::Role, share::Share, style::HeaderStyle, table::TableName, template::Template};
use crate::core::finding::Finding;

/// Distinct columns that may be mapped.
pub(super) const MAPPED_MAX: usize = 24;

/// The format in which the stream carries values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The types' text forms: any type may serve.
    Text,
    /// Their binary forms: cheaper for the server, and only known types may serve.
    Binary,
}

/// Settings that make sense, made by [`Settings::validate`](super::Settings::validate).
#[derive(Clone, Debug)]
pub struct Mapping {
    pub(super) tables: Vec<TableName>,
    /// Topic and headers apart.
    pub(super) columns: Vec<(Role, String)>,
    pub(super) topic: TopicFrom,
    pub(super) relay_name: String,
    pub(super) header_style: HeaderStyle,
    /// Debezium's `id` header is written as well.
    pub(super) debezium_id: bool,
    pub(super) header_columns: Vec<(String, String)>,
    /// Former name and present one: rows that were written before a column was renamed.
    pub(super) former_columns: Vec<(String, String)>,
    pub(super) record_bytes_max: usize,
    pub(super) share: Option<Share>,
}

#[derive(Clone, Debug)]
pub(super) enum TopicFrom {
    Column(String),
    Template(Template),
}

impl Mapping {
    /// The mapped tables, in the order of the settings.
    pub fn tables(&self) -> &[TableName] {
        &self.tables
    }

    /// Whether the only table is the one of our own migration.
    pub fn is_ours(&self) -> bool {
        self.tables.iter().all(|name| name.is("outbox", "events"))
    }

    /// Whether rows of this table become records.
    pub fn maps(&self, schema: &str, table: &str) -> bool {
        self.tables.iter().any(|name| name.is(schema, table))
    }

    /// The column of the event's id.
    pub fn id_column(&self) -> &str {
        self.column_of(Role::Id).expect("settings without it are refused")
    }

    /// The column of the record's timestamp, where there is one.
    pub fn created_at_column(&self) -> Option<&str> {
        self.column_of(Role::CreatedAt)
    }

    /// The column of the topic, unless it is made of several.
    pub fn topic_column(&self) -> Option<&str> {
        match &self.topic {
            TopicFrom::Column(column) => Some(column),
            TopicFrom::Template(_) => None,
        }
    }

    fn column_of(&self, role: Role) -> Option<&str> {
        self.columns.iter().find(|(r, _)| *r == role).map(|(_, column)| column.as_str())
    }

    /// Whether a column of a row is read: a mapped one, or what one was called before.
    pub fn reads(&self, column: &str) -> bool {
        self.column_names().contains(&column)
            || self.former_columns.iter().any(|(former, _)| former == column)
    }

    /// The columns that are mapped, each once.
    pub fn column_names(&self) -> Vec<&str> {
        let topic: Vec<&str> = match &self.topic {
            TopicFrom::Column(column) => vec![column],
            TopicFrom::Template(template) => template.columns().collect(),
        };
        let others = self.columns.iter().map(|(_, column)| column.as_str());
        let headers = self.header_columns.iter().map(|(column, _)| column.as_str());
        let mut names: Vec<&str> = Vec::new();
        for name in others.chain(topic).chain(headers) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    pub(super) fn check_size(&self) -> Result<(), Vec<Finding>> {
        let count = self.column_names().len() + self.former_columns.len();
        if count <= MAPPED_MAX {
            return Ok(());
        }
        Err(vec![Finding {
            key: "outbox.header_columns".to_owned(),
            what: format!("{count} columns are mapped, {MAPPED_MAX} at most can be"),
            remedy: "put the values into the headers column".to_owned(),
        }])
    }
}
