//! RabbitMQ: an exchange with quorum queues, and a bare loop that fills them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use amqprs::{
    Ack, BasicProperties, Cancel, CloseChannel, FieldTable, FieldValue, Nack, Return,
    callbacks::ChannelCallback,
    channel::{
        BasicCancelArguments, BasicConsumeArguments, BasicPublishArguments, Channel,
        ConfirmSelectArguments, ConsumerMessage, QueueDeclareArguments, QueuePurgeArguments,
    },
    connection::{Connection, OpenConnectionArguments},
};
use anyhow::{Context, Result};
use outbox_harness::{Harness, murmur2, rabbit::Exchange, relay::Settings, servers};
use tokio::sync::mpsc;

use super::HEADERS;
use crate::{
    backlog::{PARTITIONS, Shape, number},
    consumer::Count,
};

const WINDOW: usize = 2_000;
/// What one answer may take.
const ASK: Duration = Duration::from_secs(20);

pub(super) struct Place {
    orders: Exchange,
    bare: Exchange,
    /// Of one key several messages are under way at once.
    many: bool,
}

impl Place {
    pub(super) async fn of(t: &Harness, many: bool) -> Self {
        let (name, broker) = (t.database().name().to_owned(), servers::rabbit().await);
        let orders = broker.exchange(&format!("{name}.orders"), PARTITIONS).await;
        let bare = broker.exchange(&format!("{name}.bare"), PARTITIONS).await;
        Place { orders, bare, many }
    }

    pub(super) fn to(&self, settings: Settings) -> Settings {
        settings
            .to("rabbitmq")
            .set("sink.delivery", "at-least-once")
            .set("sink.rabbitmq.url", &self.orders.url())
            .set("sink.rabbitmq.in_flight_per_lane", if self.many { "many" } else { "1" })
            .set_toml("sink.rabbitmq.partitions", &PARTITIONS.to_string())
    }

    async fn channel(&self) -> Result<(Connection, Channel)> {
        let url = self.orders.url();
        let (host, port) = url.trim_start_matches("amqp://").split_once(':').context("a port")?;
        let arguments = OpenConnectionArguments::new(host, port.parse()?, "guest", "guest");
        let connection = Connection::open(&arguments).await?;
        let channel = connection.open_channel(None).await?;
        Ok((connection, channel))
    }

    /// Seconds that messages take of which so many are unconfirmed.
    pub(super) async fn confirms(&self, shape: &Shape) -> Result<f64> {
        let (connection, channel) = self.channel().await?;
        let (confirmed_tx, mut confirmed) = mpsc::unbounded_channel();
        channel.register_callback(Confirms(confirmed_tx)).await?;
        channel.confirm_select(ConfirmSelectArguments::default()).await?;
        let messages: Vec<_> = (0..shape.keys).map(message).collect();
        let payload = shape.payload(1_000_000).into_bytes();
        let (mut sent, mut under_way) = (0, BTreeSet::new());
        let began = Instant::now();
        while sent < shape.rows || !under_way.is_empty() {
            if sent < shape.rows && under_way.len() < WINDOW {
                let (routing_key, properties) = messages.get(sent % shape.keys).context("a key")?;
                let mut to = BasicPublishArguments::new(self.bare.name(), routing_key);
                to.mandatory(true);
                channel.basic_publish(properties.clone(), payload.clone(), to).await?;
                sent += 1;
                under_way.insert(sent as u64);
                while let Ok(ack) = confirmed.try_recv() {
                    settle(&mut under_way, &ack);
                }
            } else {
                let ack = tokio::time::timeout(ASK, confirmed.recv()).await?.context("an end")?;
                settle(&mut under_way, &ack);
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        for partition in 0..PARTITIONS {
            let queue = format!("{}.{partition}", self.bare.name());
            channel.queue_purge(QueuePurgeArguments::new(&queue)).await?;
        }
        connection.close().await?;
        Ok(seconds)
    }

    pub(super) async fn verify(&self, shape: &Shape) -> Result<()> {
        let (connection, channel) = self.channel().await?;
        let mut count = Count::new(shape.rows, shape.keys);
        for partition in 0..PARTITIONS {
            let queue = format!("{}.{partition}", self.orders.name());
            let mut passive = QueueDeclareArguments::new(&queue);
            passive.passive(true);
            let (_, ready, _) = channel.queue_declare(passive).await?.context("an answer")?;
            let (tag, mut messages) = consumer(&channel, &queue).await?;
            for _ in 0..ready {
                let message = tokio::time::timeout(ASK, messages.recv()).await;
                let message = message.with_context(|| format!("{count:?}"))?.context("an end")?;
                count.add(message.content.as_deref().and_then(number));
            }
            channel.basic_cancel(BasicCancelArguments::new(&tag)).await?;
        }
        connection.close().await?;
        count.finish()
    }

    /// What comes to all queues from now on.
    pub(super) async fn consume(&self) -> Result<(Connection, mpsc::UnboundedReceiver<Vec<u8>>)> {
        let (connection, channel) = self.channel().await?;
        let (came_tx, came) = mpsc::unbounded_channel();
        for partition in 0..PARTITIONS {
            let queue = format!("{}.{partition}", self.orders.name());
            let (_, mut messages) = consumer(&channel, &queue).await?;
            let (came_tx, channel) = (came_tx.clone(), channel.clone());
            tokio::spawn(async move {
                while let Some(message) = messages.recv().await {
                    // Whoever waits for it may be gone.
                    drop(came_tx.send(message.content.unwrap_or_default()));
                }
                // It ends with its last handle.
                drop(channel);
            });
        }
        Ok((connection, came))
    }
}

async fn consumer(
    channel: &Channel,
    queue: &str,
) -> Result<(String, mpsc::UnboundedReceiver<ConsumerMessage>)> {
    let mut consume = BasicConsumeArguments::new(queue, "");
    consume.manual_ack(false);
    Ok(channel.basic_consume_rx(consume).await?)
}

/// Of a key: the routing key, and what goes along with the payload.
fn message(n: usize) -> (String, BasicProperties) {
    let key = format!("k{n}");
    let partition = murmur2::partition(key.as_bytes(), PARTITIONS);
    let mut headers = FieldTable::new();
    for (name, value) in HEADERS.into_iter().chain([("outbox-key", key.as_str())]) {
        headers.insert(name.try_into().expect("short"), FieldValue::from(value));
    }
    let mut properties = BasicProperties::default();
    properties
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_message_id(HEADERS[0].1)
        .with_message_type(HEADERS[1].1)
        .with_timestamp(1_796_000_000);
    (partition.to_string(), properties)
}

fn settle(under_way: &mut BTreeSet<u64>, ack: &Ack) {
    if ack.mutiple() {
        *under_way = under_way.split_off(&(ack.delivery_tag() + 1));
    } else {
        under_way.remove(&ack.delivery_tag());
    }
}

/// Hands on what is confirmed.
struct Confirms(mpsc::UnboundedSender<Ack>);

type Handled = Result<(), amqprs::error::Error>;

#[async_trait::async_trait]
impl ChannelCallback for Confirms {
    async fn close(&mut self, _: &Channel, _: CloseChannel) -> Handled {
        Ok(())
    }

    async fn cancel(&mut self, _: &Channel, _: Cancel) -> Handled {
        Ok(())
    }

    async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool, amqprs::error::Error> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        drop(self.0.send(ack));
    }

    async fn publish_nack(&mut self, _: &Channel, _: Nack) {}

    async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {}
}
