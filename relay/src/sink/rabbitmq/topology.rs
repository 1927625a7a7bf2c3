//! Which exchanges there are: asked in advance, since a message to a missing one ends the channel, and with
//! it all that is known of what was published there.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use amqprs::{
    FieldTable, FieldValue,
    channel::{
        Channel, ExchangeDeclareArguments, ExchangeType, QueueBindArguments, QueueDeclareArguments,
    },
    connection::Connection,
};
use futures_util::StreamExt as _;
use tokio::time::{sleep, timeout};

use super::settings::Settings;
use crate::sink::{SinkError, unavailable};

/// What is known may be this old.
const KNOWN_FOR: Duration = Duration::from_secs(30);
/// So many names are remembered; rows may name any.
const NAMES_MAX: usize = 10_000;
/// Questions under way at once, each on a channel of its own.
const AT_A_TIME: usize = 64;
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// The pause between making queues and publishing to them. A broker stores the name of a new quorum queue up to a
/// second after it has answered. If it crashes before that, the queue is empty afterwards, whatever it had confirmed.
const NAMES_ARE_STORED: Duration = Duration::from_secs(2);

/// What was found out.
#[derive(Debug, Default)]
pub(super) struct Topology {
    /// Until when an exchange is taken to exist.
    exchanges: HashMap<String, Instant>,
}

impl Topology {
    /// Those of `exchanges` that don't exist now, and didn't a moment ago; makes them where that is set.
    pub(super) async fn missing(
        &mut self,
        connection: &Connection,
        settings: &Settings,
        exchanges: BTreeSet<&str>,
    ) -> Result<BTreeSet<String>, SinkError> {
        let now = Instant::now();
        let is_known = |name: &str| self.exchanges.get(name).is_some_and(|until| *until > now);
        // The default one always exists, and can't be asked for.
        let unknown = exchanges.into_iter().filter(|name| !name.is_empty() && !is_known(name));
        let unknown: Vec<String> = unknown.map(str::to_owned).collect();
        let looks = unknown.into_iter().map(|name| async move {
            let found = match exists(connection, &name).await? {
                true => Found::There,
                false if settings.declare => make(connection, settings, &name).await?,
                false => Found::Missing,
            };
            Ok((name, found))
        });
        let looks: Vec<Result<_, SinkError>> =
            futures_util::stream::iter(looks).buffer_unordered(AT_A_TIME).collect().await;
        // Also where another one could not be asked for: the next look finds it.
        if looks.iter().flatten().any(|(_, found)| *found == Found::Made) {
            sleep(NAMES_ARE_STORED).await;
        }
        let looks: Vec<_> = looks.into_iter().collect::<Result<_, _>>()?;
        let now = Instant::now();
        let (missing, there): (Vec<_>, Vec<_>) =
            looks.into_iter().partition(|(_, found)| *found == Found::Missing);
        if self.exchanges.len() + there.len() > NAMES_MAX {
            self.exchanges.clear();
        }
        self.exchanges.extend(there.into_iter().map(|(name, _)| (name, now + KNOWN_FOR)));
        Ok(missing.into_iter().map(|(name, _)| name).collect())
    }

    /// It is to be asked for again.
    pub(super) fn forget(&mut self) {
        self.exchanges.clear();
    }
}

/// The result of looking for an exchange.
#[derive(Clone, Copy, PartialEq)]
enum Found {
    There,
    /// By this relay, just now.
    Made,
    Missing,
}

/// Asks on a channel of its own, which a missing exchange ends.
pub(super) async fn exists(connection: &Connection, exchange: &str) -> Result<bool, SinkError> {
    let doing = || format!("looking for the exchange {exchange}");
    let channel = channel(connection).await?;
    let mut passive = ExchangeDeclareArguments::new(exchange, "direct");
    passive.passive(true);
    match timeout(ASK_LIMIT, channel.exchange_declare(passive)).await {
        Ok(Ok(())) => {
            drop(timeout(ASK_LIMIT, channel.close()).await);
            Ok(true)
        }
        // The broker answers by closing the channel. If it closes the connection, that is no answer.
        Ok(Err(_)) if connection.is_open() => Ok(false),
        Ok(Err(error)) => Err(unavailable(doing(), error)),
        Err(_) => Err(unavailable(doing(), format!("no answer within {ASK_LIMIT:?}"))),
    }
}

/// A durable direct exchange, and for each partition a quorum queue that is bound by its number, of which one
/// consumer at a time reads. It stays missing where the broker refuses it.
async fn make(
    connection: &Connection,
    settings: &Settings,
    exchange: &str,
) -> Result<Found, SinkError> {
    let channel = channel(connection).await?;
    let made = timeout(2 * ASK_LIMIT, declare(&channel, settings, exchange)).await;
    match made {
        Ok(Ok(())) => {
            tracing::info!(
                exchange,
                queues = settings.partitions,
                "made an exchange and its queues"
            );
            drop(timeout(ASK_LIMIT, channel.close()).await);
            Ok(Found::Made)
        }
        Ok(Err(error)) if connection.is_open() => {
            tracing::warn!(%error, exchange, "the broker does not let the relay make the exchange and its queues");
            Ok(Found::Missing)
        }
        Ok(Err(error)) => Err(unavailable(format!("making the exchange {exchange}"), error)),
        Err(_) => Err(unavailable(format!("making the exchange {exchange}"), "no answer")),
    }
}

async fn declare(
    channel: &Channel,
    settings: &Settings,
    exchange: &str,
) -> Result<(), amqprs::error::Error> {
    // The queues first: whoever finds the exchange finds them bound, but for a moment.
    for partition in 0..settings.partitions {
        let mut queue = QueueDeclareArguments::durable_client_named(&queue(exchange, partition));
        let mut arguments = FieldTable::new();
        for (name, value) in [
            ("x-queue-type", FieldValue::from("quorum")),
            ("x-single-active-consumer", FieldValue::from(true)),
        ] {
            if let Ok(name) = name.try_into() {
                arguments.insert(name, value);
            }
        }
        queue.arguments(arguments);
        channel.queue_declare(queue).await?;
    }
    let mut direct = ExchangeDeclareArguments::of_type(exchange, ExchangeType::Direct);
    direct.durable(true);
    channel.exchange_declare(direct).await?;
    for partition in 0..settings.partitions {
        let binding =
            QueueBindArguments::new(&queue(exchange, partition), exchange, &partition.to_string());
        channel.queue_bind(binding).await?;
    }
    Ok(())
}

/// Of a partition, where the relay makes it.
fn queue(exchange: &str, partition: i32) -> String {
    format!("{exchange}.{partition}")
}

async fn channel(connection: &Connection) -> Result<Channel, SinkError> {
    const DOING: &str = "opening a channel";
    match timeout(ASK_LIMIT, connection.open_channel(None)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(unavailable(DOING, error)),
        Err(_) => Err(unavailable(DOING, format!("no answer within {ASK_LIMIT:?}"))),
    }
}
