//! A producer of one topic or partition: numbers what it sends, and has the receipts come in that order.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::sync::mpsc;

use super::{
    connection::{Connection, Told},
    frame,
    proto::{self, CloseProducer, Command, KeyValue, Kind, Metadata},
};
use crate::{Held, Message, Producer, Said, What};

/// How a producer is opened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode {
    Shared,
    Fencing,
    /// As the one that had the topic to itself in this epoch.
    Again(u64),
}

#[derive(Debug)]
pub(super) struct WireProducer {
    connection: Arc<Connection>,
    id: u64,
    name: String,
    epoch: Option<u64>,
    heard: mpsc::UnboundedReceiver<Told>,
    /// Numbers begin at 0 with each producer, whose name the broker makes up: where it drops copies by number, it finds none.
    next: u64,
    awaited: u64,
}

impl WireProducer {
    pub(super) async fn open(
        connection: Arc<Connection>,
        topic: &str,
        mode: Mode,
    ) -> Result<Self, Said> {
        let (id, request_id) = (connection.id(), connection.id());
        let (access_mode, topic_epoch) = match mode {
            Mode::Shared => (0, None),
            Mode::Again(epoch) => (1, Some(epoch)),
            Mode::Fencing => (3, None),
        };
        let producer = proto::Producer {
            topic: topic.to_owned(),
            producer_id: id,
            request_id,
            user_provided_producer_name: Some(false),
            access_mode: Some(access_mode),
            topic_epoch,
        };
        let command =
            Command { kind: Kind::Producer.into(), producer: Some(producer), ..Command::default() };
        // From here on it is closed when it is dropped, also where the answer is not waited for.
        let heard = connection.listens(id);
        let mut opened = WireProducer {
            connection: Arc::clone(&connection),
            id,
            name: String::new(),
            epoch: None,
            heard,
            next: 0,
            awaited: 0,
        };
        let success = connection.ask(request_id, &command).await?.producer_success;
        let success = success.ok_or_else(super::another)?;
        if success.producer_ready == Some(false) {
            return Err(Said::new(What::NotNow, "another producer has the topic to itself"));
        }
        opened.name = success.producer_name;
        // Brokers tell others as well in which epoch the topic is.
        opened.epoch = success.topic_epoch.filter(|_| !matches!(mode, Mode::Shared));
        Ok(opened)
    }

    /// # Errors
    /// The receipts are not in order: nothing is known.
    fn is_next(&mut self, sequence: u64) -> Result<(), Said> {
        if sequence != self.awaited {
            let text = format!("the broker speaks of message {sequence} before {}", self.awaited);
            return Err(Said::uncertain(text));
        }
        self.awaited += 1;
        Ok(())
    }
}

#[async_trait::async_trait]
impl Producer for WireProducer {
    fn bytes_max(&self) -> usize {
        self.connection.server.bytes_max
    }

    fn held(&self) -> Option<Held> {
        self.epoch.map(|epoch| Held { epoch, name: self.name.clone() })
    }

    async fn send(&mut self, message: &Message<'_>) -> Result<(), Said> {
        let send = proto::Send { producer_id: self.id, sequence_id: self.next };
        let command = Command { kind: Kind::Send.into(), send: Some(send), ..Command::default() };
        let metadata = metadata(&self.name, self.next, message);
        let frame = frame::message(&command, &metadata, message.payload.unwrap_or_default());
        self.connection.send(frame).await?;
        self.next += 1;
        Ok(())
    }

    async fn receipt(&mut self) -> Result<Result<(), Said>, Said> {
        match self.heard.recv().await {
            Some(Told::Stored { sequence, is_there }) => {
                self.is_next(sequence)?;
                if !is_there {
                    let text = "the broker confirms a message that it has dropped as a copy";
                    return Err(Said::uncertain(text));
                }
                Ok(Ok(()))
            }
            Some(Told::NotStored { sequence, said }) => {
                self.is_next(sequence)?;
                Ok(Err(said))
            }
            Some(Told::Closed) => Err(Said::new(What::Fenced, "the broker closed the producer")),
            None => Err(self.connection.ended()),
        }
    }
}

impl Drop for WireProducer {
    fn drop(&mut self) {
        let close = CloseProducer { producer_id: self.id, request_id: self.connection.id() };
        let command = Command {
            kind: Kind::CloseProducer.into(),
            close_producer: Some(close),
            ..Command::default()
        };
        self.connection.forget(self.id, &command);
    }
}

pub(super) fn metadata(producer: &str, sequence_id: u64, message: &Message<'_>) -> Metadata {
    let (partition_key, is_base64) = match message.key.map(|key| (key, std::str::from_utf8(key))) {
        None => (None, None),
        Some((_, Ok(text))) => (Some(text.to_owned()), None),
        Some((key, Err(_))) => (Some(STANDARD.encode(key)), Some(true)),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let pairs = message.properties.iter();
    Metadata {
        producer_name: producer.to_owned(),
        sequence_id,
        publish_time: u64::try_from(now.as_millis()).unwrap_or(0),
        properties: pairs
            .map(|(key, value)| KeyValue { key: (*key).to_owned(), value: (*value).to_owned() })
            .collect(),
        partition_key,
        event_time: message.event_time_ms,
        partition_key_b64_encoded: is_base64,
        null_value: message.payload.is_none().then_some(true),
    }
}
