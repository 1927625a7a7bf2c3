//! A queue as a user makes it, and what a consumer finds in it.

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::http;
use crate::{murmur2, topic::Record, wait};

/// A queue, and all that was taken from it.
#[derive(Debug)]
pub struct Queue {
    address: String,
    name: String,
    partitions: i32,
    taken: Mutex<Vec<Record>>,
}

/// A message, as it is received.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Message {
    receipt_handle: String,
    body: String,
    #[serde(default)]
    message_attributes: std::collections::BTreeMap<String, Attribute>,
    #[serde(default)]
    attributes: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute {
    string_value: String,
}

impl Queue {
    pub(super) fn new(address: String, name: &str, partitions: i32) -> Self {
        Queue { address, name: name.to_owned(), partitions, taken: Mutex::default() }
    }

    /// Makes it.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn make(&self) {
        let mut attributes = json!({});
        if self.is_fifo() {
            attributes = json!({ "FifoQueue": "true" });
        }
        let asked = json!({ "QueueName": self.name, "Attributes": attributes });
        http::sqs(&self.address, "CreateQueue", &asked).await.expect("the queue is made");
    }

    /// Its name there.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The topic that makes this name with `{topic}.fifo` or `{topic}`.
    pub fn topic(&self) -> &str {
        self.name.strip_suffix(".fifo").unwrap_or(&self.name)
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn is_fifo(&self) -> bool {
        self.name.ends_with(".fifo")
    }

    async fn url(&self) -> Result<String> {
        let asked = json!({ "QueueName": self.name });
        let found = http::sqs(&self.address, "GetQueueUrl", &asked).await?;
        Ok(found.get("QueueUrl").and_then(Value::as_str).context("a URL")?.to_owned())
    }

    /// All that came so far, in the order in which a consumer is given it.
    ///
    /// # Panics
    /// When the server does not answer, or a message is not as documented.
    pub async fn records(&self) -> Vec<Record> {
        let mut taken = self.taken.lock().await;
        let all = wait::until("the queue gives what it has", wait::PATIENCE, async || {
            self.take_all().await
        });
        for message in all.await.expect("the server answers") {
            let offset = i64::try_from(taken.len()).expect("not that many");
            taken.push(self.record(offset, message));
        }
        taken.clone()
    }

    async fn take_all(&self) -> Result<Vec<Message>> {
        let url = self.url().await?;
        let asked = json!({
            "QueueUrl": url, "MaxNumberOfMessages": 10, "MessageAttributeNames": ["All"], "AttributeNames": ["All"],
        });
        let mut all = Vec::new();
        loop {
            let mut found = http::sqs(&self.address, "ReceiveMessage", &asked).await?;
            let Some(found) = found.get_mut("Messages").map(Value::take) else { return Ok(all) };
            let found: Vec<Message> = serde_json::from_value(found)?;
            if found.is_empty() {
                return Ok(all);
            }
            let entries: Vec<_> = found
                .iter()
                .enumerate()
                .map(|(n, it)| json!({ "Id": n.to_string(), "ReceiptHandle": it.receipt_handle }))
                .collect();
            let delete = json!({ "QueueUrl": url, "Entries": entries });
            http::sqs(&self.address, "DeleteMessageBatch", &delete).await?;
            all.extend(found);
        }
    }

    fn record(&self, offset: i64, message: Message) -> Record {
        let attribute = |it: (String, Attribute)| (it.0, it.1.string_value);
        let mut all: Vec<(String, String)> =
            message.message_attributes.into_iter().map(attribute).collect();
        assert!(all.len() <= 10, "SQS takes no more: {all:?}");
        if let Some(more) = all.iter().position(|(name, _)| name == "outbox-headers") {
            let (_, list) = all.remove(more);
            let list: Vec<(String, String)> = serde_json::from_str(&list).expect("pairs of text");
            all.extend(list);
        }
        let (mut key, mut payload, mut partition, mut time) =
            (None, Some(message.body.into_bytes()), None, None);
        let mut headers = Vec::new();
        for (name, value) in all {
            match (name.as_str(), value.as_str()) {
                ("outbox-key", value) => key = Some(value.as_bytes().to_vec()),
                ("outbox-key-base64", value) => key = Some(STANDARD.decode(value).expect("Base64")),
                ("outbox-tombstone", _) => payload = None,
                ("outbox-encoding", "empty") => payload = Some(vec![]),
                ("outbox-encoding", "base64") => {
                    payload = payload.map(|it| STANDARD.decode(it).expect("Base64"));
                }
                ("outbox-partition", value) => partition = Some(value.parse().expect("a number")),
                ("outbox-created-at", value) => {
                    let at: jiff::Timestamp = value.parse().expect("RFC 3339");
                    time = Some(at.as_millisecond());
                }
                _ => headers.push((name, value)),
            }
        }
        headers.sort_by_key(|(name, _)| name != "outbox-id");
        let id = headers.first().filter(|(name, _)| name == "outbox-id").map(|(_, id)| id.clone());
        let id = id.expect("each has its event's id");
        if self.is_fifo() {
            let own = |name: &str| message.attributes.get(name).cloned().unwrap_or_default();
            let (group, deduplication) = (own("MessageGroupId"), own("MessageDeduplicationId"));
            let plain = key.as_deref().and_then(|it| std::str::from_utf8(it).ok());
            let plain =
                plain.filter(|it| it.bytes().all(|it| it.is_ascii_graphic()) && !it.is_empty());
            assert!(plain.is_none_or(|key| key == group), "the group {group} is the key {plain:?}");
            assert!(deduplication.starts_with(&format!("{id}@")), "{deduplication} is of {id}");
        }
        let by_key = || key.as_ref().map(|key| murmur2::partition(key, self.partitions));
        let partition = partition.or_else(by_key).unwrap_or(0);
        let topic = self.topic().to_owned();
        Record { topic, partition, offset, key, payload, headers, timestamp_ms: time }
    }
}
