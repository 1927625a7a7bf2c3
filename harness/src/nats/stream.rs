//! A stream: what administrators do to it, and what is stored in it.

use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use super::jetstream::{ASK, api, client, overwrite, part};
use crate::topic::Record;

/// A stream of a server.
#[derive(Clone, Debug)]
pub struct Stream {
    pub(super) server: String,
    pub(super) name: String,
}

#[derive(Deserialize)]
struct Message {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

impl Stream {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the server that has it listens.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Changes its settings; what is not named stays.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn change(&self, settings: &Value) {
        self.try_change(settings).await.expect("the stream is changed");
    }

    /// As [`Stream::change`], for a server that may be away.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub async fn try_change(&self, settings: &Value) -> Result<()> {
        let client = client(&self.server).await;
        let info = api(&client, &format!("STREAM.INFO.{}", self.name), &json!({})).await?;
        let mut config = part(info, "config");
        overwrite(&mut config, settings);
        api(&client, &format!("STREAM.UPDATE.{}", self.name), &config).await?;
        Ok(())
    }

    /// Deletes all its messages, as a person does who wants room.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn purge(&self) {
        let client = client(&self.server).await;
        let purge = format!("STREAM.PURGE.{}", self.name);
        api(&client, &purge, &json!({})).await.expect("it is purged");
    }

    /// Removes it with all that is in it.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn remove(&self) {
        let client = client(&self.server).await;
        let remove = format!("STREAM.DELETE.{}", self.name);
        api(&client, &remove, &json!({})).await.expect("it is removed");
    }

    /// Deletes the newest message that a subject has.
    ///
    /// # Panics
    /// When the subject has no message, or the server refuses.
    pub async fn delete_newest(&self, subject: &str) {
        let client = client(&self.server).await;
        let newest = self.messages(subject, 0).await.pop().expect("a message");
        let delete = format!("STREAM.MSG.DELETE.{}", self.name);
        let message = json!({ "seq": newest.seq });
        api(&client, &delete, &message).await.expect("it is deleted");
    }

    /// Publishes a message as anybody may who has the right.
    ///
    /// # Panics
    /// When the stream does not take it.
    pub async fn publish(&self, subject: &str, headers: &[(&str, &str)], payload: &str) {
        let mut map = async_nats::HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.append(*name, *value));
        let request = async_nats::Request::new()
            .headers(map)
            .payload(payload.to_owned().into())
            .timeout(Some(ASK));
        let client = client(&self.server).await;
        let answer = client.send_request(subject.to_owned(), request).await.expect("an answer");
        let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert_eq!(answer.get("error"), None);
    }

    /// The place of what was stored last, which goes up with each message.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn last(&self) -> u64 {
        let client = client(&self.server).await;
        let info = api(&client, &format!("STREAM.INFO.{}", self.name), &json!({})).await;
        let state = part(info.expect("it is there"), "state");
        state.get("last_seq").and_then(Value::as_u64).expect("a number")
    }

    /// What is stored under subjects that `filter` takes, in the stream's order, each as the record that
    /// it was made from. The last token of a subject is the partition.
    ///
    /// # Panics
    /// When the server does not answer, or a message is not as documented.
    pub async fn records(&self, filter: &str) -> Vec<Record> {
        self.records_after(filter, 0).await
    }

    /// As [`Stream::records`], of what is behind this offset.
    ///
    /// # Panics
    /// As [`Stream::records`].
    pub async fn records_after(&self, filter: &str, offset: i64) -> Vec<Record> {
        self.messages(filter, offset).await.iter().map(record).collect()
    }

    /// The bytes of each message under such subjects, whatever it is.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn payloads(&self, filter: &str) -> Vec<Vec<u8>> {
        let messages = self.messages(filter, 0).await;
        messages.iter().map(|it| STANDARD.decode(&it.data).expect("Base64")).collect()
    }

    async fn messages(&self, filter: &str, offset: i64) -> Vec<Message> {
        let client = client(&self.server).await;
        let get = format!("STREAM.MSG.GET.{}", self.name);
        let mut found = Vec::new();
        let mut from = u64::try_from(offset).expect("an offset") + 1;
        loop {
            let next = json!({ "seq": from, "next_by_subj": filter });
            let answer = api(&client, &get, &next).await;
            let message: Message = match answer {
                Ok(answer) => serde_json::from_value(part(answer, "message")).expect("a message"),
                Err(error) if error.to_string().contains("10037") => return found,
                Err(error) => panic!("{error}"),
            };
            from = message.seq + 1;
            found.push(message);
        }
    }
}

/// Headers are sorted by name, the id before all: clients of NATS keep no order among names.
fn record(message: &Message) -> Record {
    let decoded = |text: &str| STANDARD.decode(text).expect("Base64");
    let (topic, partition) = message.subject.rsplit_once('.').expect("a partition");
    let block = String::from_utf8(decoded(&message.hdrs)).expect("headers are text");
    let mut headers: Vec<(String, String)> = Vec::new();
    let (mut key, mut payload, mut timestamp_ms) = (None, Some(decoded(&message.data)), None);
    for line in block.split("\r\n").skip(1).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').expect("a name and a value");
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "outbox-key" => key = Some(value.as_bytes().to_vec()),
            "outbox-key-base64" => key = Some(decoded(value)),
            "outbox-tombstone" => payload = None,
            "outbox-created-at" => {
                let time: jiff::Timestamp = value.parse().expect("RFC 3339");
                timestamp_ms = Some(time.as_millisecond());
            }
            _ if name.starts_with("Nats-") => {}
            _ => headers.push((name.to_owned(), value.to_owned())),
        }
    }
    headers.sort_by_key(|(name, _)| (name != "outbox-id", name.clone()));
    Record {
        topic: topic.to_owned(),
        partition: partition.parse().expect("a number"),
        offset: i64::try_from(message.seq).expect("a sequence"),
        key,
        payload,
        headers,
        timestamp_ms,
    }
}
