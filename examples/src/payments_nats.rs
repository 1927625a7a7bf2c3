//! The same service as `payments`, from NATS JetStream.
//!
//! `cargo run -p outbox-examples --bin payments-nats -- POSTGRES_URL nats://HOST:PORT STREAM`, until Ctrl-C or SIGTERM. With
//! `shipping` as its last argument it is the other service: another durable consumer of the stream, with an inbox of its own.
//!
//! The server keeps what it has delivered from others for `ACK_WAIT`, and delivers what is behind that meanwhile. So where a
//! process dies, orders of one customer may be paid in another order; each is paid once.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use async_nats::jetstream::{self, AckKind, consumer::pull};
use futures_util::StreamExt;
use outbox_examples::{acknowledged, service};
use outbox_idempotency::{Source, dispatch::Answer};

const ACK_WAIT: Duration = Duration::from_secs(5);
/// No more of it is delivered than this service may have in memory.
const UNACKNOWLEDGED_MAX: i64 = 2_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: payments-nats POSTGRES_URL NATS_URL STREAM [payments|shipping]";
    let (service, [server, stream]) = service::start(usage).await?;

    let nats = jetstream::new(async_nats::connect(server).await?);
    let stream = nats.get_stream_no_info(&stream).await?;
    let settings = pull::Config {
        durable_name: Some(service.name.to_owned()),
        filter_subject: "orders.*".to_owned(),
        ack_wait: ACK_WAIT,
        max_ack_pending: UNACKNOWLEDGED_MAX,
        ..pull::Config::default()
    };
    let consumer = stream.get_or_create_consumer(service.name, settings).await?;
    let mut messages = consumer.messages().await?;

    let receive = async || loop {
        let message = messages.next().await.context("the stream of messages has ended")??;
        let (message, handle) = message.split();
        let headers = message.headers.unwrap_or_default();
        let headers = headers.iter().flat_map(|(name, values)| {
            values.iter().map(|value| (name.to_string(), Some(value.as_str().to_owned())))
        });
        let source = Source::of_queue("orders");
        match acknowledged::message(source, headers.collect(), message.payload.into()) {
            Some(message) => return Ok((message, Arc::new(handle))),
            None => {
                tracing::warn!(subject = %message.subject, "a message without an id is left out");
                // Unanswered it would come again without end.
                handle.ack_with(AckKind::Term).await.map_err(anyhow::Error::from_boxed)?;
            }
        }
    };
    let tell = async |answer: Answer<Arc<jetstream::message::Acker>>| {
        let told = match answer {
            Answer::Acknowledge(handle) => handle.ack().await,
            Answer::Return(handle, after) => handle.ack_with(AckKind::Nak(Some(after))).await,
            Answer::Extend(handle) => handle.ack_with(AckKind::Progress).await,
            _ => Ok(()),
        };
        told.map_err(anyhow::Error::from_boxed)
    };
    acknowledged::consume(service.processor, Some(ACK_WAIT), receive, tell, service::stop()?).await
}
