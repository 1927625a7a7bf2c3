//! What an operator changes in a parked event, and whether it is a record then. Pure.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::headers;
use crate::core::{
    destination::reserved_by,
    header::{self, DEBEZIUM_ID, cloudevents},
};

/// Changes; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// Destination.
    pub topic: Option<String>,
    /// Partition key; `Some(None)` takes it away.
    pub key: Option<Option<String>>,
    /// Explicit partition; `Some(None)` takes it away.
    pub partition: Option<Option<i32>>,
    /// Event type.
    pub event_type: Option<String>,
    /// The value; `Some(None)` makes it a tombstone.
    pub payload: Option<Option<Vec<u8>>>,
    /// A flat JSON object of strings, in place of the row's own headers.
    pub headers: Option<String>,
    /// Record timestamp in milliseconds since the Unix epoch.
    pub timestamp_ms: Option<i64>,
}

/// The parts of a dead letter that can be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) topic: Option<String>,
    pub(super) key: Option<Vec<u8>>,
    pub(super) partition: Option<i32>,
    pub(super) timestamp_ms: Option<i64>,
    pub(super) payload: Option<Vec<u8>>,
    /// As the table holds them.
    pub(super) headers: Value,
}

/// Why the event would be no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Nothing is to be changed.
    #[error("nothing to change was given")]
    Nothing,
    /// There is no destination.
    #[error("the event has no topic: give one with --topic")]
    NoTopic,
    /// Others keep state in it.
    #[error(
        "the topic {0} is no destination for events, others keep state in it: give another one with --topic"
    )]
    Reserved(String),
    /// Below 0.
    #[error("partition {0} is negative")]
    Partition(i32),
    /// Before 1970.
    #[error("the timestamp is before 1970, which no record can carry")]
    Timestamp,
    /// Not usable as headers.
    #[error("{0}: give a flat JSON object of strings with --headers")]
    Headers(String),
    /// The row was too large to be kept.
    #[error(
        "the payload was above batch.record_bytes_max and is not in outbox.dead_letters: give it, or \
         a smaller one, with --payload FILE (the row is in the outbox's table, unless its retention \
         took it), or none with --tombstone"
    )]
    PayloadLost,
}

impl Edit {
    /// The event after the change. `payload_lost` says that its payload was never kept.
    pub(super) fn apply(&self, event: Event, payload_lost: bool) -> Result<Event, EditError> {
        if *self == Edit::default() {
            return Err(EditError::Nothing);
        }
        if payload_lost && self.payload.is_none() {
            return Err(EditError::PayloadLost);
        }
        let topic = self.topic.clone().or(event.topic).filter(|topic| !topic.is_empty());
        let topic = topic.ok_or(EditError::NoTopic)?;
        if self.topic.is_some() && reserved_by(&topic, &[]).is_some() {
            return Err(EditError::Reserved(topic));
        }
        let key = self.key.clone().map(|key| key.map(String::into_bytes)).unwrap_or(event.key);
        let partition = self.partition.unwrap_or(event.partition);
        if let Some(negative) = partition.filter(|partition| *partition < 0) {
            return Err(EditError::Partition(negative));
        }
        let timestamp_ms = self.timestamp_ms.or(event.timestamp_ms);
        if timestamp_ms.is_some_and(|ms| ms < 0) {
            return Err(EditError::Timestamp);
        }
        Ok(Event {
            topic: Some(topic),
            key,
            partition,
            timestamp_ms,
            payload: self.payload.clone().unwrap_or(event.payload),
            headers: self.headers(&event.headers)?,
        })
    }

    /// The relay's own headers as they were, but for id and type; then the row's.
    fn headers(&self, before: &Value) -> Result<Value, EditError> {
        let pairs = before.as_array().cloned().unwrap_or_default();
        let named =
            |pair: &Value| pair.get(0).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (mut own, mut rows): (Vec<Value>, Vec<Value>) =
            pairs.into_iter().partition(|pair| headers::is_own(&named(pair)));
        let is_id = |pair: &Value| [header::ID, cloudevents::ID].contains(&named(pair).as_str());
        // Debezium's preset says the id once more, before the row's headers.
        let id = own.iter().find(|pair| is_id(pair)).and_then(|pair| pair.get(1)).cloned();
        let repeats = |first: &Value| named(first) == DEBEZIUM_ID && first.get(1) == id.as_ref();
        let debezium = rows.first().is_some_and(repeats);
        if debezium {
            own.push(rows.remove(0));
        }
        let new = Uuid::now_v7().to_string();
        for pair in &mut own {
            let names_it = is_id(pair) || named(pair) == DEBEZIUM_ID;
            if names_it && pair.get(1).and_then(Value::as_str) == Some("") {
                *pair = json!([named(pair), new]);
            }
        }
        if let Some(event_type) = &self.event_type {
            let is_type = |name: &str| name == header::TYPE || name == cloudevents::TYPE;
            own.retain(|pair| !is_type(&named(pair)));
            let cloud = own.iter().any(|pair| named(pair) == cloudevents::SPECVERSION);
            let name = if cloud { cloudevents::TYPE } else { header::TYPE };
            own.insert(own.len().min(1 + usize::from(cloud)), json!([name, event_type]));
        }
        match &self.headers {
            Some(given) => own.extend(given_headers(given, debezium)?),
            None if rows.iter().any(|pair| named(pair) == header::UNREADABLE) => {
                return Err(EditError::Headers("the row's headers can't be used".into()));
            }
            None => own.extend(rows),
        }
        Ok(Value::Array(own))
    }
}

fn given_headers(text: &str, debezium: bool) -> Result<Vec<Value>, EditError> {
    let object: Map<String, Value> = serde_json::from_str(text)
        .map_err(|_| EditError::Headers("--headers is no JSON object".into()))?;
    if object.len() > header::COUNT_MAX {
        let error = format!("--headers has more than {} members", header::COUNT_MAX);
        return Err(EditError::Headers(error));
    }
    let pair = |(name, value): (String, Value)| {
        if name.is_empty() || name.contains('\0') {
            return Err(EditError::Headers("a header has no usable name".into()));
        }
        let is_own = headers::is_own(&name) || debezium && name == DEBEZIUM_ID;
        if is_own || name.starts_with(header::RESERVED_PREFIX) {
            return Err(EditError::Headers(format!("the header {name:?} is the relay's own")));
        }
        match value {
            Value::String(value) => Ok(json!([name, headers::to_value(value.as_bytes())])),
            _ => Err(EditError::Headers(format!("the header {name:?} is no string"))),
        }
    };
    object.into_iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            topic: Some("ordres".into()),
            key: Some(b"k".to_vec()),
            partition: None,
            timestamp_ms: Some(5),
            payload: Some(b"{}".to_vec()),
            headers: json!([["outbox-id", "e"], ["outbox-position", ""], ["trace", "1"]]),
        }
    }

    #[test]
    fn what_is_not_given_stays() {
        let edit = Edit { topic: Some("orders".into()), ..Edit::default() };
        let after = edit.apply(event(), false).expect("a record");
        assert_eq!(after, Event { topic: Some("orders".into()), ..event() });
        assert_eq!(Edit::default().apply(event(), false), Err(EditError::Nothing));
    }

    #[test]
    fn a_topic_in_which_others_keep_state_is_refused() {
        let topic = "__consumer_offsets".to_owned();
        let edit = Edit { topic: Some(topic.clone()), ..Edit::default() };
        assert_eq!(edit.apply(event(), false), Err(EditError::Reserved(topic)));
    }

    #[test]
    fn the_row_s_headers_are_replaced_and_the_relay_s_stay() {
        let edit = Edit { headers: Some(r#"{"b": "2"}"#.into()), ..Edit::default() };
        let after = edit.apply(event(), false).expect("a record");
        assert_eq!(after.headers, json!([["outbox-id", "e"], ["outbox-position", ""], ["b", "2"]]));
        for bad in
            ["[]", r#"{"a": 1}"#, r#"{"": "x"}"#, r#"{"outbox-id": "x"}"#, r#"{"ce_id": "x"}"#]
        {
            let edit = Edit { headers: Some(bad.into()), ..Edit::default() };
            assert!(matches!(edit.apply(event(), false), Err(EditError::Headers(_))), "{bad}");
        }
    }

    #[test]
    fn with_debezium_s_preset_the_id_stays_in_both_its_headers() {
        let edit = Edit { headers: Some(r#"{"b": "2"}"#.into()), ..Edit::default() };
        let of = |id: &str| Event {
            headers: json!([["outbox-id", id], ["outbox-position", ""], ["id", id], ["a", "1"]]),
            ..event()
        };
        let after = edit.apply(of("e"), false).expect("a record").headers;
        let expected =
            json!([["outbox-id", "e"], ["outbox-position", ""], ["id", "e"], ["b", "2"]]);
        assert_eq!(after, expected);
        let after = edit.apply(of(""), false).expect("a record").headers;
        assert_ne!(after.pointer("/0/1"), Some(&json!("")));
        assert_eq!(after.pointer("/2/1"), after.pointer("/0/1"), "{after}");
        let forged = Edit { headers: Some(r#"{"id": "x"}"#.into()), ..Edit::default() };
        assert!(matches!(forged.apply(of("e"), false), Err(EditError::Headers(_))));
        let own = forged.apply(event(), false).expect("a row's own header");
        assert_eq!(own.headers.pointer("/2"), Some(&json!(["id", "x"])));
    }

    #[test]
    fn a_type_is_set_or_changed_in_its_place() {
        let edit = Edit { event_type: Some("placed".into()), ..Edit::default() };
        let after = edit.apply(event(), false).expect("a record").headers;
        assert_eq!(after.get(1), Some(&json!(["outbox-type", "placed"])));
        let again = Event { headers: after.clone(), ..event() };
        assert_eq!(edit.apply(again, false).expect("a record").headers, after);
    }

    #[test]
    fn what_keeps_it_from_being_a_record_must_be_fixed() {
        let key = Edit { key: Some(None), ..Edit::default() };
        let no_topic = Event { topic: None, ..event() };
        assert_eq!(key.apply(no_topic, false), Err(EditError::NoTopic));
        let headers = json!([["outbox-id", ""], ["", "{\"a\": 1}"]]);
        let unreadable = Event { headers, ..event() };
        assert!(matches!(key.apply(unreadable.clone(), false), Err(EditError::Headers(_))));
        let edit = Edit { headers: Some("{}".into()), ..Edit::default() };
        let after = edit.apply(unreadable, false).expect("a record");
        let id = after.headers.pointer("/0/1").and_then(Value::as_str).expect("an id");
        assert!(id.parse::<Uuid>().is_ok(), "an event without an id is given one: {id}");
        assert_eq!(key.apply(event(), true), Err(EditError::PayloadLost));
        let tombstone = Edit { payload: Some(None), ..Edit::default() };
        assert_eq!(tombstone.apply(event(), true).expect("a record").payload, None);
        let partition = Edit { partition: Some(Some(-1)), ..Edit::default() };
        assert_eq!(partition.apply(event(), false), Err(EditError::Partition(-1)));
    }
}
