//! Dead letters and releases as text, or as JSON.

use serde_json::{Value, json};

use crate::{
    dead_letter::operator::{Entry, Letter, Released},
    printable::{self, counted},
};

/// Characters of an error in a list; `show` has it whole.
const ERROR_MAX: usize = 1_000;

/// One line: number, position, topic, key, reason, error.
pub(super) fn line(entry: &Entry) -> String {
    let Entry { id, position, reason, error, parked_at, .. } = entry;
    let topic = printable::short(entry.topic.as_deref().unwrap_or("(no topic)"));
    let key = shown(&entry.key);
    let error = printable::cut(error, ERROR_MAX);
    let state = entry.state.as_ref().map_or_else(String::new, |state| format!("  {state}"));
    format!("{id:>8}{state}  {position:<20}  {topic}  {key}  {reason}: {error}  ({parked_at})")
}

pub(super) fn shown(key: &Value) -> String {
    match key {
        Value::Null => "-".to_owned(),
        Value::String(key) => printable::short(key).into_owned(),
        other => printable::short(&other.to_string()).into_owned(),
    }
}

pub(super) fn letter(letter: &Letter, json: bool) -> String {
    let value = json!(letter);
    if json {
        return serde_json::to_string_pretty(&value).expect("plain data has a JSON form");
    }
    let members = value.as_object().into_iter().flatten();
    members
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name:<13} {}\n", printable::line(text)),
            other => format!("{name:<13} {}\n", printable::line(&other.to_string())),
        })
        .collect()
}

pub(super) fn released(released: &Released, json: bool) -> String {
    if json {
        return serde_json::to_string_pretty(released).expect("plain data has a JSON form");
    }
    let Released { releases, events, lanes, unfit } = released;
    if releases.is_empty() {
        return "nothing is parked".into();
    }
    let mut text = format!(
        "released {} of {}: the relay delivers them, in order, when its stream has come to this command",
        counted(events.unsigned_abs(), "event"),
        counted(lanes.unsigned_abs(), "lane")
    );
    if !unfit.is_empty() {
        let unfit: Vec<String> = unfit.iter().map(ToString::to_string).collect();
        text.push_str(&format!(
            "\nthese can't be sent as they are, and will be parked again with what is behind them; \
             edit or discard them: {}",
            unfit.join(", ")
        ));
    }
    text
}
