//! A message as a handler sees it, and as the tables keep it.

use std::sync::Arc;

use crate::message_id::MessageId;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

/// What came from the broker.
#[derive(Clone, Debug, PartialEq)]
pub struct Message<T> {
    /// Its identity, the same in every copy.
    pub id: MessageId,
    /// Its key: messages of one key are handled in order, one at a time.
    pub key: Option<Vec<u8>>,
    /// What it says.
    pub payload: T,
    /// As the broker gave them.
    pub headers: Headers,
    /// Where it was found; of a message that was parked or replayed, where it was found first.
    pub source: Source,
    /// 1 the first time, then 2, …; a message that waited behind another begins with 1.
    pub attempt: u32,
}

/// A message with its payload as the broker has it; `None` is a tombstone.
pub type RawMessage = Message<Option<Vec<u8>>>;

/// Where a message was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Topic, or whatever another broker calls its streams.
    pub topic: Arc<str>,
    /// Partition; 0 where there are none.
    pub partition: i32,
    /// Offset; 0 where there are none.
    pub offset: i64,
}

/// Headers in their order; names may repeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, Option<Vec<u8>>)>);

impl Headers {
    /// The first header of that name, if its value is text.
    pub fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    /// The event's type as the relay gives it.
    pub fn event_type(&self) -> Option<&str> {
        self.text("outbox-type").or_else(|| self.text("ce_type"))
    }

    /// As `inbox.parked.headers` describes.
    pub(crate) fn to_json(&self) -> Value {
        let value = |value: &Option<Vec<u8>>| match value.as_deref().map(std::str::from_utf8) {
            None => Value::Null,
            // jsonb has no U+0000.
            Some(Ok(text)) if !text.contains('\0') => text.into(),
            Some(_) => json!({ "base64": BASE64.encode(value.as_deref().unwrap_or_default()) }),
        };
        self.0.iter().map(|(name, v)| json!([name.replace('\0', ""), value(v)])).collect()
    }

    /// What [`Headers::to_json`] wrote; anything else is left out.
    pub(crate) fn from_json(json: &Value) -> Self {
        let header = |pair: &Value| {
            let [name, value] = pair.as_array()?.as_slice() else { return None };
            let value = match value {
                Value::String(text) => Some(text.clone().into_bytes()),
                Value::Object(map) => Some(BASE64.decode(map.get("base64")?.as_str()?).ok()?),
                _ => None,
            };
            Some((name.as_str()?.to_owned(), value))
        };
        Headers(json.as_array().into_iter().flatten().filter_map(header).collect())
    }
}

impl<T> Message<T> {
    /// The same with another payload.
    pub(crate) fn with<U>(self, payload: U) -> Message<U> {
        let Message { id, key, headers, source, attempt, .. } = self;
        Message { id, key, payload, headers, source, attempt }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_survive_the_table(headers: Vec<(String, Option<Vec<u8>>)>) {
            let headers: Vec<_> =
                headers.into_iter().map(|(n, v)| (n.replace('\0', ""), v)).collect();
            let headers = Headers(headers);
            prop_assert_eq!(Headers::from_json(&headers.to_json()), headers);
        }
    }
}
