//! What tests write into the outbox, and what the database says was committed.

use std::collections::BTreeMap;

use serde_json::Value;
use tokio_postgres::Client;

/// Header that carries the event's number within its lane, from 1: the truth about order.
pub const SEQUENCE: &str = "sequence";

/// An event to be written.
#[derive(Clone, Debug)]
pub struct Event {
    topic: String,
    key: Option<String>,
    kind: Option<String>,
    payload: Option<Value>,
    headers: BTreeMap<String, String>,
    partition: Option<i32>,
}

/// A committed row of `outbox.events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Event id.
    pub id: String,
    /// Destination.
    pub topic: String,
    /// Partition key.
    pub key: Option<String>,
    /// Event type.
    pub kind: Option<String>,
    /// The column's text, which is what a consumer is to get, byte for byte.
    pub payload: Option<String>,
    /// The row's own headers.
    pub headers: BTreeMap<String, String>,
    /// Explicit partition.
    pub partition: Option<i32>,
    /// Milliseconds since the Unix epoch.
    pub created_ms: i64,
}

impl Event {
    /// An event with a small payload and neither key nor type.
    pub fn to(topic: &str) -> Self {
        Event {
            topic: topic.to_owned(),
            key: None,
            kind: None,
            payload: Some(serde_json::json!({ "total": 12.50, "note": "grüß dich" })),
            headers: BTreeMap::new(),
            partition: None,
        }
    }

    /// With a key.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// With an event type.
    #[must_use]
    pub fn kind(mut self, kind: &str) -> Self {
        self.kind = Some(kind.to_owned());
        self
    }

    /// With another payload.
    #[must_use]
    pub fn payload(mut self, payload: Value) -> Self {
        self.payload = Some(payload);
        self
    }

    /// Without a payload.
    #[must_use]
    pub fn tombstone(mut self) -> Self {
        self.payload = None;
        self
    }

    /// With a header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With an explicit partition.
    #[must_use]
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// What must stay in order with this event: its topic and key, or its topic and explicit
    /// partition; `None` when it stands alone.
    pub fn lane(&self) -> Option<String> {
        let within = match (&self.key, self.partition) {
            (Some(key), _) => key.clone(),
            (None, Some(partition)) => format!("#{partition}"),
            (None, None) => return None,
        };
        Some(format!("{} {within}", self.topic))
    }

    /// Writes it in the client's open transaction. The row lock on its lane makes writers of one
    /// lane take turns until they end, so numbers are given in commit order.
    ///
    /// # Errors
    /// The database's.
    pub async fn insert(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        let mut headers = self.headers.clone();
        if let Some(lane) = self.lane() {
            let row = client
                .query_one(
                    "insert into test.lanes as l values ($1, 1) \
                     on conflict (lane) do update set last = l.last + 1 returning last",
                    &[&lane],
                )
                .await?;
            headers.insert(SEQUENCE.to_owned(), row.get::<_, i64>(0).to_string());
        }
        let headers = serde_json::to_value(headers).expect("a map of strings has a JSON form");
        let payload = self.payload.as_ref();
        client
            .execute(
                "insert into outbox.events (topic, key, type, payload, headers, partition) \
                 values ($1, $2, $3, $4, $5, $6)",
                &[&self.topic, &self.key, &self.kind, &payload, &headers, &self.partition],
            )
            .await?;
        Ok(())
    }
}

/// Everything that is committed in `outbox.events`, in no order that means anything.
///
/// # Panics
/// When the table can't be read.
pub async fn committed(client: &Client) -> Vec<Committed> {
    let rows = client
        .query(
            "select id::text, topic, key, type, payload::text, headers, partition, \
             (extract(epoch from date_trunc('milliseconds', created_at)) * 1000)::bigint \
             from outbox.events",
            &[],
        )
        .await
        .expect("outbox.events can be read");
    rows.iter()
        .map(|row| Committed {
            id: row.get(0),
            topic: row.get(1),
            key: row.get(2),
            kind: row.get(3),
            payload: row.get(4),
            headers: serde_json::from_value(row.get(5)).expect("headers are strings"),
            partition: row.get(6),
            created_ms: row.get(7),
        })
        .collect()
}
