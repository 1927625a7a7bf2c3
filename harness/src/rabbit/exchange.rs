//! An exchange with a queue for each partition, as a user makes it, and what a consumer of these gets.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use amqprs::{
    BasicProperties, FieldTable, FieldValue,
    channel::{
        BasicAckArguments, BasicCancelArguments, BasicConsumeArguments, BasicQosArguments, Channel,
        ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments, QueueUnbindArguments,
    },
    connection::{Connection, OpenConnectionArguments},
};
use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{topic::Record, wait};

/// How long the broker may take to send what it has.
const ASK: Duration = Duration::from_secs(10);

/// An exchange with a queue for each partition, and all that a consumer of these has had.
#[derive(Debug)]
pub struct Exchange {
    address: String,
    name: String,
    partitions: i32,
    /// Of its queues.
    arguments: Vec<(&'static str, FieldValue)>,
    /// Of each partition.
    taken: Mutex<Vec<Vec<Record>>>,
}

impl Exchange {
    pub(super) fn new(
        address: String,
        name: &str,
        partitions: i32,
        further: &[(&'static str, FieldValue)],
    ) -> Self {
        const KIND: &str = "x-queue-type";
        let mut arguments = further.to_vec();
        if further.iter().all(|(name, _)| *name != KIND) {
            arguments.push((KIND, FieldValue::from("quorum")));
        }
        let taken = Mutex::new((0..partitions).map(|_| Vec::new()).collect());
        Exchange { address, name: name.to_owned(), partitions, arguments, taken }
    }

    pub(super) async fn make(&self) {
        // A broker that has just started may refuse for a moment; what is there already stays.
        let made = wait::until("the exchange is made", wait::PATIENCE, || async {
            tokio::time::timeout(ASK, self.declare()).await.context("no answer")?
        });
        made.await.expect("the broker takes it");
    }

    async fn declare(&self) -> Result<()> {
        let (_connection, channel) = channel(&self.address).await;
        let mut direct = ExchangeDeclareArguments::new(&self.name, "direct");
        direct.durable(true);
        channel.exchange_declare(direct).await?;
        for partition in 0..self.partitions {
            self.queue(&channel, partition).await?;
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its broker is.
    pub fn url(&self) -> String {
        format!("amqp://{}", self.address)
    }

    fn queue_name(&self, partition: i32) -> String {
        format!("{}.{partition}", self.name)
    }

    async fn queue(&self, channel: &Channel, partition: i32) -> Result<()> {
        let name = self.queue_name(partition);
        let mut queue = QueueDeclareArguments::durable_client_named(&name);
        let mut arguments = FieldTable::new();
        for (name, value) in self.arguments.clone() {
            arguments.insert(name.try_into().expect("short"), value);
        }
        queue.arguments(arguments);
        channel.queue_declare(queue).await?;
        let binding = QueueBindArguments::new(&name, &self.name, &partition.to_string());
        Ok(channel.queue_bind(binding).await?)
    }

    /// Binds a partition's queue, which is made if it is missing.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn bind(&self, partition: i32) {
        let (_connection, channel) = channel(&self.address).await;
        self.queue(&channel, partition).await.expect("the queue is bound");
    }

    /// Takes a partition's queue off the exchange.
    ///
    /// # Panics
    /// When the broker refuses.
    pub async fn unbind(&self, partition: i32) {
        let (_connection, channel) = channel(&self.address).await;
        let binding = QueueUnbindArguments::new(
            &self.queue_name(partition),
            &self.name,
            &partition.to_string(),
        );
        channel.queue_unbind(binding).await.expect("the queue is unbound");
    }

    /// Binds a partition's queue, or takes it off the exchange; tried once.
    ///
    /// # Errors
    /// The broker is away, or refuses.
    pub async fn try_bind(&self, partition: i32, is_bound: bool) -> Result<()> {
        let asked = async {
            let (_connection, channel) = opened(&self.address).await?;
            let (name, key) = (self.queue_name(partition), partition.to_string());
            match is_bound {
                true => channel.queue_bind(QueueBindArguments::new(&name, &self.name, &key)).await,
                false => {
                    channel.queue_unbind(QueueUnbindArguments::new(&name, &self.name, &key)).await
                }
            }?;
            anyhow::Ok(())
        };
        tokio::time::timeout(ASK, asked).await.context("no answer")?
    }

    /// Takes what is there by now, so that a queue stays short; [`Exchange::records`] has it.
    ///
    /// # Errors
    /// The broker is away; what was not taken stays.
    pub async fn collect(&self) -> Result<()> {
        tokio::time::timeout(ASK, self.take_all()).await.context("no answer")?
    }

    /// All that came so far, each partition in the order of its queue.
    ///
    /// # Panics
    /// When the broker does not answer, or a message is not as documented.
    pub async fn records(&self) -> Vec<Record> {
        // A queue has no leader for a moment after its broker has started.
        let taken = wait::until("the queues give what they have", wait::PATIENCE, || async {
            // A broker that is ended meanwhile answers nothing more.
            self.collect().await
        });
        taken.await.expect("the broker answers");
        self.taken.lock().expect("no test panics with it").concat()
    }

    async fn take_all(&self) -> Result<()> {
        let (connection, channel) = opened(&self.address).await?;
        for partition in 0..self.partitions {
            self.take(&channel, partition).await?;
        }
        channel.close().await?;
        Ok(connection.close().await?)
    }

    /// What is in a queue by now. A queue with a single active consumer gives nothing to who only asks.
    async fn take(&self, channel: &Channel, partition: i32) -> Result<()> {
        let name = self.queue_name(partition);
        let mut passive = QueueDeclareArguments::new(&name);
        passive.passive(true);
        let (_, ready, _) = channel.queue_declare(passive).await?.context("no answer")?;
        if ready == 0 {
            return Ok(());
        }
        // No more than that: what comes beyond would be given back later, behind what follows it.
        let ready = u16::try_from(ready).unwrap_or(u16::MAX);
        channel.basic_qos(BasicQosArguments::new(0, ready, false)).await?;
        let consume = BasicConsumeArguments::new(&name, "");
        let (tag, mut messages) = channel.basic_consume_rx(consume).await?;
        let (mut came, mut last) = (Vec::new(), 0);
        for _ in 0..ready {
            let message =
                tokio::time::timeout(ASK, messages.recv()).await?.context("no message")?;
            last = message.deliver.context("no tag")?.delivery_tag();
            let properties = message.basic_properties.context("no properties")?;
            came.push((properties, message.content.context("no content")?));
        }
        channel.basic_cancel(BasicCancelArguments::new(&tag)).await?;
        channel.basic_ack(BasicAckArguments::new(last, true)).await?;
        let mut taken = self.taken.lock().expect("no test panics with it");
        let taken = taken.get_mut(usize::try_from(partition)?).context("no partition")?;
        for (properties, payload) in came {
            let offset = i64::try_from(taken.len())?;
            taken.push(record(&self.name, partition, offset, &properties, payload));
        }
        Ok(())
    }
}

pub(super) async fn channel(address: &str) -> (Connection, Channel) {
    answered(address).await.expect("the broker is up")
}

pub(super) async fn answered(address: &str) -> Result<(Connection, Channel)> {
    wait::until("RabbitMQ answers", wait::PATIENCE, || async {
        // One that starts may accept a connection before it can use it.
        tokio::time::timeout(ASK, opened(address)).await.context("no answer")?
    })
    .await
}

async fn opened(address: &str) -> Result<(Connection, Channel)> {
    let (host, port) = address.split_once(':').context("host and port")?;
    let arguments = OpenConnectionArguments::new(host, port.parse()?, "guest", "guest");
    let connection = Connection::open(&arguments).await?;
    let channel = connection.open_channel(None).await?;
    Ok((connection, channel))
}

/// Headers are sorted by name, the id before all: a table has no order.
fn record(
    topic: &str,
    partition: i32,
    offset: i64,
    properties: &BasicProperties,
    payload: Vec<u8>,
) -> Record {
    let (mut key, mut payload, mut timestamp_ms) = (None, Some(payload), None);
    let mut headers: Vec<(String, String)> = Vec::new();
    let table: Option<&HashMap<_, _>> = properties.headers().map(AsRef::as_ref);
    // Queues add headers of their own.
    let table = table.into_iter().flatten().filter(|(name, _)| !name.as_ref().starts_with("x-"));
    for (name, value) in table {
        let name = name.as_ref().as_str();
        let value = match value {
            FieldValue::S(text) => text.to_string(),
            FieldValue::A(values) => {
                for value in Vec::from(values.clone()) {
                    headers.push((name.to_owned(), value.to_string()));
                }
                continue;
            }
            other => panic!("{name} is {other:?}"),
        };
        match name {
            "outbox-key" => key = Some(value.into_bytes()),
            "outbox-key-base64" => key = Some(STANDARD.decode(value).expect("Base64")),
            "outbox-tombstone" => payload = None,
            "outbox-created-at" => {
                let time: jiff::Timestamp = value.parse().expect("RFC 3339");
                timestamp_ms = Some(time.as_millisecond());
            }
            name => headers.push((name.to_owned(), value)),
        }
    }
    headers.sort_by_key(|(name, _)| (name != "outbox-id", name.clone()));
    let id = headers.iter().find(|(name, _)| name == "outbox-id").map(|(_, id)| id);
    assert_eq!(properties.message_id(), id, "consumers find the id where AMQP has one");
    assert_eq!(properties.delivery_mode(), Some(2), "it outlives the broker");
    Record { topic: topic.to_owned(), partition, offset, key, payload, headers, timestamp_ms }
}
