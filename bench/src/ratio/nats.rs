//! NATS: a stream, and two ways to fill it without a relay.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use async_nats::{Client, ConnectOptions, HeaderMap, Request, Subscriber};
use futures_util::StreamExt as _;
use outbox_harness::{Harness, murmur2, nats::Stream, relay::Settings, servers};
use serde_json::{Value, json};

use super::HEADERS;
use crate::{
    backlog::{PARTITIONS, Shape, number},
    consumer::Count,
};

const BATCH: usize = 999;
const WINDOW: usize = 1_000;
/// A second, when what is stored is read: a server cuts off who is slower than what it pushes.
const READ_BITS: u64 = 200_000_000;
/// What one answer may take.
const ASK: Duration = Duration::from_secs(20);

pub(super) struct Place {
    pub(super) stream: Stream,
    topic: String,
    bare: String,
}

impl Place {
    pub(super) async fn of(t: &Harness) -> Self {
        let (name, server) = (t.database().name().to_owned(), servers::nats().await);
        let (topic, bare) = (format!("{name}.orders"), format!("{name}.bare"));
        let subjects = [format!("{topic}.*"), format!("{bare}.*"), format!("{name}.progress.*")];
        let subjects = subjects.each_ref().map(String::as_str);
        Place { stream: server.stream(&name, &subjects, &json!({})).await, topic, bare }
    }

    pub(super) fn to(&self, settings: Settings, relay: &str) -> Settings {
        let progress = format!("{}.progress.{relay}", self.stream.name());
        settings
            .to("nats")
            .set("sink.nats.url", &format!("nats://{}", self.stream.server()))
            .set("sink.nats.stream", self.stream.name())
            .set("sink.nats.progress_subject", &progress)
            .set_toml("sink.nats.partitions", &PARTITIONS.to_string())
    }

    async fn client(&self) -> Result<Client> {
        let options = ConnectOptions::new().subscription_capacity(1 << 20);
        Ok(options.connect(self.stream.server()).await?)
    }

    /// Of each key its subject and headers; making them is not what is measured.
    fn messages(&self, shape: &Shape) -> Vec<(String, HeaderMap)> {
        let message = |n: usize| {
            let key = format!("k{n}");
            let partition = murmur2::partition(key.as_bytes(), PARTITIONS);
            let mut headers = HeaderMap::new();
            HEADERS.iter().for_each(|(name, value)| headers.insert(*name, *value));
            headers.insert("outbox-key", key.as_str());
            (format!("{}.{partition}", self.bare), headers)
        };
        (0..shape.keys).map(message).collect()
    }

    /// Seconds that atomic batches take.
    pub(super) async fn batches(&self, shape: &Shape) -> Result<f64> {
        let (client, messages) = (self.client().await?, self.messages(shape));
        let payload = shape.payload(1_000_000);
        let began = Instant::now();
        for first in (0..shape.rows).step_by(BATCH) {
            let last = (first + BATCH).min(shape.rows);
            let id = format!("{:032x}", rand::random::<u128>());
            let of_batch = |mut headers: HeaderMap, sequence: usize| {
                headers.insert("Nats-Batch-Id", id.as_str());
                headers.insert("Nats-Batch-Sequence", sequence.to_string());
                headers
            };
            for n in first..last {
                let (subject, headers) = messages.get(n % shape.keys).context("a key")?.clone();
                let headers = of_batch(headers, n - first + 1);
                client.publish_with_headers(subject, headers, payload.clone().into()).await?;
            }
            // As long as the relay's progress.
            let mut headers = of_batch(HeaderMap::new(), last - first + 1);
            headers.insert("Nats-Batch-Commit", "1");
            let commit = Request::new().headers(headers).payload(vec![b'x'; 600].into());
            let commit = commit.timeout(Some(ASK));
            let answer = client.send_request(format!("{}.commit", self.bare), commit).await?;
            let answer: Value = serde_json::from_slice(&answer.payload)?;
            ensure!(answer.get("error").is_none(), "{answer}");
        }
        Ok(began.elapsed().as_secs_f64())
    }

    /// Seconds that messages take that are acknowledged one by one.
    pub(super) async fn window(&self, shape: &Shape) -> Result<f64> {
        let (client, messages) = (self.client().await?, self.messages(shape));
        let payload = shape.payload(1_000_000);
        let inbox = client.new_inbox();
        let mut answers = client.subscribe(inbox.clone()).await?;
        let (mut under_way, before) = (0, self.stream.last().await);
        let began = Instant::now();
        for n in 0..shape.rows {
            if under_way == WINDOW {
                acknowledged(&mut answers).await?;
                under_way -= 1;
            }
            let (subject, headers) = messages.get(n % shape.keys).context("a key")?.clone();
            let payload = payload.clone().into();
            let sent =
                client.publish_with_reply_and_headers(subject, inbox.clone(), headers, payload);
            sent.await?;
            under_way += 1;
        }
        for _ in 0..under_way {
            acknowledged(&mut answers).await?;
        }
        let seconds = began.elapsed().as_secs_f64();
        let stored = self.stream.last().await - before;
        ensure!(stored == shape.rows as u64, "{stored} of {} are stored", shape.rows);
        Ok(seconds)
    }

    pub(super) async fn verify(&self, shape: &Shape, from: u64) -> Result<()> {
        let mut messages = self.consume(Some(from + 1)).await?;
        let mut count = Count::new(shape.rows, shape.keys);
        while count.delivered < shape.rows {
            let message = tokio::time::timeout(ASK, messages.next()).await;
            let message = message.with_context(|| format!("{count:?}"))?.context("an end")?;
            count.add(number(&message.payload));
        }
        count.finish()
    }

    /// What is stored from a place on, or from now on.
    pub(super) async fn consume(&self, from: Option<u64>) -> Result<Subscriber> {
        let client = self.client().await?;
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await?;
        let mut config = json!({
            "deliver_subject": inbox, "ack_policy": "none", "deliver_policy": "new",
            "filter_subject": format!("{}.*", self.topic), "mem_storage": true,
            "rate_limit_bps": READ_BITS,
        });
        if let (Some(from), Some(config)) = (from, config.as_object_mut()) {
            config.insert("deliver_policy".into(), "by_start_sequence".into());
            config.insert("opt_start_seq".into(), from.into());
        }
        let asked = json!({ "stream_name": self.stream.name(), "config": config });
        let create = format!("$JS.API.CONSUMER.CREATE.{}", self.stream.name());
        let answer = client.request(create, asked.to_string().into()).await?;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        ensure!(answer.get("error").is_none(), "{answer}");
        Ok(messages)
    }
}

async fn acknowledged(answers: &mut Subscriber) -> Result<()> {
    let answer = tokio::time::timeout(ASK, answers.next()).await?.context("an end")?;
    let is_stored = !answer.payload.windows(7).any(|part| part == br#""error""#);
    ensure!(is_stored, "{}", String::from_utf8_lossy(&answer.payload));
    Ok(())
}
