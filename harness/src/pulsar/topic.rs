//! A topic of Pulsar, and what a consumer that begins at its beginning finds in each partition.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use outbox_relay_pulsar::wire::{
    frame,
    proto::{
        Command, Connect, Flow, GetLastMessageId, Kind, Lookup, MessageId, Metadata, Subscribe,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{topic::Record, wait};

/// How long the broker may take to say something.
const ASK: Duration = Duration::from_secs(10);
/// Of a frame, with the message in it.
const FRAME_MAX: usize = 128 << 20;
/// No message is there: as the broker says it.
const NONE: u64 = u64::MAX;

/// A topic, and where its broker is.
#[derive(Clone, Debug)]
pub struct PulsarTopic {
    address: String,
    name: String,
    partitions: i32,
}

impl PulsarTopic {
    pub(super) fn new(address: String, name: &str, partitions: i32) -> Self {
        PulsarTopic { address, name: name.to_owned(), partitions }
    }

    /// Its name, without tenant and namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its broker is.
    pub fn url(&self) -> String {
        format!("pulsar://{}", self.address)
    }

    /// All that is there, each partition in its order.
    ///
    /// # Panics
    /// When the broker does not answer, or a message is not as documented.
    pub async fn records(&self) -> Vec<Record> {
        let read = wait::until("the topic is read", wait::PATIENCE, || async {
            // A broker that is ended meanwhile answers nothing more.
            self.read_all().await
        });
        read.await.expect("the broker answers")
    }

    async fn read_all(&self) -> Result<Vec<Record>> {
        let mut all = Vec::new();
        for partition in 0..self.partitions {
            let name = format!("persistent://public/default/{}-partition-{partition}", self.name);
            let mut line = Line::open(&self.address).await?;
            for (offset, (metadata, payload)) in (0..).zip(line.messages(&name).await?) {
                all.push(record(&self.name, partition, offset, metadata, &payload));
            }
        }
        Ok(all)
    }
}

struct Line {
    stream: TcpStream,
    read: BytesMut,
}

impl Line {
    async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let mut line = Line { stream, read: BytesMut::new() };
        let connect = Connect {
            client_version: "tests".into(),
            protocol_version: Some(19),
            ..Connect::default()
        };
        let hello =
            Command { kind: Kind::Connect.into(), connect: Some(connect), ..Command::default() };
        line.say(&hello).await?;
        line.until(|command| command.connected.is_some()).await?;
        Ok(line)
    }

    async fn say(&mut self, command: &Command) -> Result<()> {
        Ok(self.stream.write_all(&frame::command(command)).await?)
    }

    async fn hear(&mut self) -> Result<(Command, Bytes)> {
        loop {
            if let Some(heard) =
                frame::next(&mut self.read, FRAME_MAX).map_err(anyhow::Error::msg)?
            {
                return Ok(heard);
            }
            let bytes = timeout(ASK, self.stream.read_buf(&mut self.read)).await??;
            if bytes == 0 {
                bail!("the broker closed the connection");
            }
        }
    }

    async fn until(&mut self, is_it: impl Fn(&Command) -> bool) -> Result<Command> {
        loop {
            let (command, _) = self.hear().await?;
            if let Some(error) = &command.error {
                bail!("the broker said: {}", error.message);
            }
            if is_it(&command) {
                return Ok(command);
            }
        }
    }

    /// From the first one to the one that is the last by now.
    async fn messages(&mut self, topic: &str) -> Result<Vec<(Metadata, Bytes)>> {
        let lookup = Lookup { topic: topic.to_owned(), request_id: 1, authoritative: Some(false) };
        let lookup =
            Command { kind: Kind::Lookup.into(), lookup: Some(lookup), ..Command::default() };
        self.say(&lookup).await?;
        let found = self.until(|command| command.lookup_response.is_some()).await?;
        let found = found.lookup_response.context("a lookup")?;
        if found.response != Some(1) {
            bail!("the topic has no broker: {:?}", found.message);
        }
        let subscribe = Subscribe {
            topic: topic.to_owned(),
            subscription: format!("tests-{}", uuid::Uuid::now_v7()),
            sub_type: 0,
            consumer_id: 1,
            request_id: 2,
            durable: Some(false),
            start_message_id: Some(MessageId { ledger: NONE, entry: NONE }),
        };
        let subscribe = Command {
            kind: Kind::Subscribe.into(),
            subscribe: Some(subscribe),
            ..Command::default()
        };
        self.say(&subscribe).await?;
        self.until(|command| command.success.is_some()).await?;
        let last = GetLastMessageId { consumer_id: 1, request_id: 3 };
        let last = Command {
            kind: Kind::GetLastMessageId.into(),
            get_last_message_id: Some(last),
            ..Command::default()
        };
        self.say(&last).await?;
        let last = self.until(|command| command.get_last_message_id_response.is_some()).await?;
        let last = last.get_last_message_id_response.context("a message's id")?.last_message_id;
        let mut messages = Vec::new();
        if last.entry == NONE {
            return Ok(messages);
        }
        let flow = Flow { consumer_id: 1, message_permits: 10_000_000 };
        let flow = Command { kind: Kind::Flow.into(), flow: Some(flow), ..Command::default() };
        self.say(&flow).await?;
        loop {
            let (command, behind) = self.hear().await?;
            let Some(delivered) = command.message else { continue };
            messages.push(frame::split(behind).map_err(anyhow::Error::msg)?);
            let id = delivered.message_id;
            if (id.ledger, id.entry) >= (last.ledger, last.entry) {
                return Ok(messages);
            }
        }
    }
}

fn record(topic: &str, partition: i32, offset: i64, metadata: Metadata, payload: &Bytes) -> Record {
    let is_base64 = metadata.partition_key_b64_encoded();
    let is_tombstone = metadata.null_value();
    let key = metadata.partition_key.map(|key| match is_base64 {
        true => STANDARD.decode(key).expect("Base64"),
        false => key.into_bytes(),
    });
    Record {
        topic: topic.to_owned(),
        partition,
        offset,
        key,
        payload: (!is_tombstone).then(|| payload.to_vec()),
        headers: metadata.properties.into_iter().map(|pair| (pair.key, pair.value)).collect(),
        timestamp_ms: metadata.event_time.map(|time| i64::try_from(time).expect("a time")),
    }
}
