//! Reads one setting at a time: with its type, and where it came from; a wrong type becomes a problem.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use config::ValueKind;

use super::{
    Column,
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

/// Takes settings out of what was merged, one by one.
pub(super) struct Reader<'a> {
    pub(super) merged: Merged,
    pub(super) problems: &'a mut Vec<Problem>,
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

    pub(super) fn text(&mut self, key: &str) -> Opt<String> {
        self.parse(key, "text in quotes, not empty", |kind, _| {
            text_of(kind).filter(|text| !text.trim().is_empty()).map(str::to_owned)
        })
    }

    pub(super) fn text_or_empty(&mut self, key: &str) -> Opt<String> {
        self.parse(key, "text in quotes", |kind, _| text_of(kind).map(str::to_owned))
    }

    pub(super) fn path(&mut self, key: &str) -> Opt<PathBuf> {
        self.parse(key, "a path in quotes", |kind, _| {
            text_of(kind).filter(|text| !text.is_empty()).map(PathBuf::from)
        })
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Opt<T> {
        let quoted: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        self.parse(key, &quoted.join(" or "), |kind, _| {
            let text = text_of(kind)?;
            choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
        })
    }

    pub(super) fn flag(&mut self, key: &str, expected: &str) -> Opt<bool> {
        self.parse(key, expected, bool_of)
    }

    pub(super) fn number(&mut self, key: &str) -> Opt<u64> {
        self.parse(key, "a whole number, not negative", number_of)
    }

    pub(super) fn size(&mut self, key: &str) -> Opt<Size> {
        self.parse(key, "a number of bytes, or a size such as \"16 MiB\"", |kind, origin| {
            number_of(kind, origin).map(Size).or_else(|| Size::parse(text_of(kind)?))
        })
    }

    pub(super) fn duration(&mut self, key: &str) -> Opt<Duration> {
        self.parse(key, "a duration with its unit, such as \"10s\" or \"500ms\"", |kind, _| {
            humantime::parse_duration(text_of(kind)?).ok()
        })
    }

    pub(super) fn duration_or_off(&mut self, key: &str) -> Opt<Option<Duration>> {
        self.parse(key, "a duration with its unit, such as \"30d\", or \"off\"", |kind, _| {
            match text_of(kind)? {
                "off" => Some(None),
                text => humantime::parse_duration(text).ok().map(Some),
            }
        })
    }

    pub(super) fn list(&mut self, key: &str, example: &str) -> Opt<Vec<String>> {
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

    pub(super) fn column(&mut self, key: &str) -> Opt<Column> {
        self.parse(key, "a column's name, or false when the table has none", |kind, origin| {
            if bool_of(kind, origin) == Some(false) {
                return Some(Column::Absent);
            }
            text_of(kind).filter(|name| !name.is_empty()).map(|n| Column::Named(n.to_owned()))
        })
    }

    /// All settings below a table with free keys, by their name there.
    pub(super) fn open(&mut self, table: &str) -> BTreeMap<String, Given<String>> {
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
    let secret = ["postgres.url", "sink.nats.url", "sink.rabbitmq.url"].contains(&key)
        || key.starts_with("sink.properties.");
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
