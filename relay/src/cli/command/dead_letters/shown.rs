//! Dead letters and releases as text, or as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    cli::output::members,
    core::printable::{self, counted},
    dead_letter::operator::{Edited, Entry, Far, Letter, Released},
};

/// Characters of an error in a list; `show` has it whole.
const ERROR_MAX: usize = 1_000;

/// What stands in the lines of a list; `history` has the state too.
pub(super) fn heading(history: bool) -> String {
    let state = if history { "  STATE" } else { "" };
    format!("{:>8}{state}  {:<20}  TOPIC  KEY  REASON: ERROR  (PARKED AT)", "ID", "POSITION")
}

/// One line: number, position, topic, key, reason, error.
pub(super) fn line(entry: &Entry) -> String {
    let Entry { id, position, reason, error, parked_at, .. } = entry;
    let topic = printable::short(entry.topic.as_deref().unwrap_or("(no topic)"));
    let key = shown(&entry.key);
    let error = printable::cut(error, ERROR_MAX);
    let state = entry.state.as_ref().map_or_else(String::new, |state| format!("  {state}"));
    let restored = entry.restored_at.as_ref();
    let restored = restored.map_or_else(String::new, |at| format!("  (from a copy, {at})"));
    format!(
        "{id:>8}{state}  {position:<20}  {topic}  {key}  {reason}: {error}  ({parked_at}){restored}"
    )
}

pub(super) fn shown(key: &Value) -> String {
    match key {
        Value::Null => "-".to_owned(),
        Value::String(key) => printable::short(key).into_owned(),
        other => printable::short(&other.to_string()).into_owned(),
    }
}

pub(super) fn letter(letter: &Letter, json: bool) -> String {
    members(&json!(letter), json)
}

/// What an edit has changed. `show` has the event itself.
pub(super) fn edited(edited: &Edited, json: bool) -> String {
    if json {
        return members(&json!(edited), true);
    }
    let Edited { letter: Letter { entry, .. }, edited } = edited;
    let id = entry.id;
    let event = printable::line(entry.event_id.as_deref().unwrap_or("without an id")).into_owned();
    if edited.is_empty() {
        return format!("dead letter {id}, event {event}, is what it was before: nothing differs");
    }
    let mut text = format!("dead letter {id}, event {event}, was edited:\n");
    for change in edited {
        text.push_str(&format!("  {}\n", printable::line(&change.to_string())));
    }
    text.push_str(&format!(
        "it stays parked until it is released: outbox-relay dead-letters release {id}"
    ));
    text
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
        "released {} of {}: the relay delivers them, in order, as soon as it has delivered what was committed before",
        counted(events.unsigned_abs(), "event"),
        counted(lanes.unsigned_abs(), "lane")
    );
    if !unfit.is_empty() {
        let unfit: Vec<String> = unfit.iter().map(ToString::to_string).collect();
        text.push_str(&format!(
            "\nbut these of them can't be sent as they are, and will be parked again, with what is behind them: \
             once they are, edit or discard them: {}",
            unfit.join(", ")
        ));
    }
    text
}

/// One line while a release lasts, which is to have some `total` events and began that long ago.
pub(super) fn how_far(far: Far, total: i64, begun: Duration) -> String {
    let Far { announced, delivered, undelivered_for } = far;
    let (of, seconds) = (total.max(announced), begun.as_secs_f64());
    if let Some(waited) = undelivered_for {
        return format!(
            "announced: {announced} of about {of} events. No relay has delivered any for {} s: the rest is \
             announced without waiting, and delivered, in order, when the relay runs",
            waited.as_secs()
        );
    }
    if delivered == 0 || seconds <= 0.0 {
        return format!(
            "announced: {announced} of about {of} events; the relay has delivered none of them yet"
        );
    }
    let rate = delivered as f64 / seconds;
    let left = (of - delivered) as f64 / rate;
    format!(
        "delivered: {delivered} of about {of} events, {rate:.0} a second, about {left:.0} s more"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_says_how_much_of_it_is_delivered_how_fast_and_how_long_it_will_take() {
        let shown = |announced, delivered, undelivered_for| {
            let far = Far { announced, delivered, undelivered_for };
            how_far(far, 10_000, Duration::from_secs(4))
        };
        let said = shown(6_000, 4_000, None);
        assert_eq!(said, "delivered: 4000 of about 10000 events, 1000 a second, about 6 s more");
        assert!(shown(2_000, 0, None).ends_with("the relay has delivered none of them yet"));
        assert!(shown(12_000, 8_000, None).contains("8000 of about 12000"), "others came behind");
        let alone = shown(4_000, 0, Some(Duration::from_secs(10)));
        assert!(alone.contains("for 10 s") && alone.ends_with("when the relay runs"), "{alone}");
    }
}
