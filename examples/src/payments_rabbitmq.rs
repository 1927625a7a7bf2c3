//! The same service as `payments`, from RabbitMQ.
//!
//! `cargo run -p outbox-examples --bin payments-rabbitmq -- POSTGRES_URL amqp://HOST:PORT`, until Ctrl-C or SIGTERM. It reads the
//! queues `orders.0` to `orders.3`, as docs/RABBITMQ.md has them: with a single active consumer each, so that a customer's
//! orders are paid as they came. With `shipping` as its last argument it is the other service, with an inbox of its own: it reads
//! `shipping.0` to `shipping.3`, which are bound to the same exchange by the same keys.

use amqprs::{
    FieldValue,
    callbacks::{DefaultChannelCallback, DefaultConnectionCallback},
    channel::{
        BasicAckArguments, BasicConsumeArguments, BasicNackArguments, BasicQosArguments,
        ConsumerMessage,
    },
    connection::{Connection, OpenConnectionArguments},
};
use anyhow::Context;
use outbox_examples::{acknowledged, service};
use outbox_idempotency::{Source, dispatch::Answer};
use tokio::sync::mpsc;

const QUEUES: u8 = 4;
/// No more is delivered from each queue than this service may have in memory.
const UNACKNOWLEDGED_MAX: u16 = 500;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: payments-rabbitmq POSTGRES_URL AMQP_URL [payments|shipping]";
    let (service, [broker]) = service::start(usage).await?;
    let queues = if service.name == "payments" { "orders" } else { service.name };

    let arguments = OpenConnectionArguments::try_from(broker.as_str())?;
    let connection = Connection::open(&arguments).await?;
    connection.register_callback(DefaultConnectionCallback).await?;
    let channel = connection.open_channel(None).await?;
    channel.register_callback(DefaultChannelCallback).await?;
    channel.basic_qos(BasicQosArguments::new(0, UNACKNOWLEDGED_MAX, false)).await?;
    let (forward, mut messages) = mpsc::channel::<ConsumerMessage>(1);
    for partition in 0..QUEUES {
        let queue = format!("{queues}.{partition}");
        let consume = BasicConsumeArguments::new(&queue, "");
        let (_tag, mut delivered) = channel.basic_consume_rx(consume).await?;
        let forward = forward.clone();
        tokio::spawn(async move {
            while let Some(message) = delivered.recv().await
                && forward.send(message).await.is_ok()
            {}
        });
    }
    drop(forward);

    let receive = async || loop {
        let message = messages.recv().await.context("the broker has ended the channel")?;
        let (properties, deliver) = (message.basic_properties, message.deliver);
        let handle = deliver.context("the broker gives no delivery tag")?.delivery_tag();
        let headers = properties.and_then(|properties| properties.headers().cloned());
        let headers = headers.iter().flat_map(|table| table.as_ref()).map(|(name, value)| {
            // The relay writes text, or an array where a header comes twice.
            let text = match value {
                FieldValue::S(text) => Some(text.as_ref().as_bytes().to_vec()),
                _ => None,
            };
            (name.to_string(), text)
        });
        let body = message.content.unwrap_or_default();
        match acknowledged::message(Source::of_queue("orders"), headers.collect(), body) {
            Some(message) => return Ok((message, handle)),
            None => {
                tracing::warn!("a message without an id is left out");
                // Unanswered it would take up room for as long as the channel lasts. A dead-letter exchange gets it.
                channel.basic_nack(BasicNackArguments::new(handle, false, false)).await?;
            }
        }
    };
    let tell = async |answer: Answer<u64>| {
        match answer {
            Answer::Acknowledge(tag) => {
                channel.basic_ack(BasicAckArguments::new(tag, false)).await?
            }
            Answer::Return(tag, _) => {
                channel.basic_nack(BasicNackArguments::new(tag, false, true)).await?;
            }
            _ => {} // There is no lease to extend.
        }
        anyhow::Ok(())
    };
    acknowledged::consume(service.processor, None, receive, tell, service::stop()?).await?;
    channel.close().await?;
    Ok(connection.close().await?)
}
