//! What the relay needs of Apache Pulsar: to learn how many partitions a topic has, to be its only producer, to send a
//! message there, and to know that it is stored ([`Cluster`], [`Producer`]). What a message holds, and in which order they
//! go, is for the relay.
//!
//! The protocol is behind the feature `client`; without it [`open`] says that it is missing. Nothing is sent twice, and a
//! producer that has ended is not opened again: the relay knows what may be sent again, and when.

mod said;
#[cfg(feature = "client")]
pub mod wire;

use std::{fmt::Debug, path::PathBuf, sync::Arc};

pub use said::{Said, What};

/// Whether this program can speak with Pulsar.
pub const HAS_CLIENT: bool = cfg!(feature = "client");
/// Bytes of a message that brokers take which say nothing of it.
pub const BYTES_MAX: usize = 5 << 20;

/// A broker's or a proxy's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Whether it wants TLS.
    pub tls: bool,
    /// A name or an IP address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Where a cluster is, and who asks.
#[derive(Clone, Debug)]
pub struct Place {
    /// Tried in this order.
    pub addresses: Vec<Address>,
    /// Whether the one that is asked serves all topics, whatever address it gives.
    pub one_broker: bool,
    /// A file with a token (JWT); read for each connection.
    pub token_file: Option<PathBuf>,
    /// A file of certificates that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The client's own certificate and its key, both files in PEM.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// What brokers show of this client.
    pub client_name: String,
}

/// Whom a producer lets produce beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    Shared,
    /// No one. Whoever produces there is closed, and stays so.
    Fencing,
}

/// By what a producer has a topic to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// How often the topic had had such a producer before.
    pub epoch: u64,
    /// The producer's name, which the broker has made up.
    pub name: String,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Any bytes.
    pub key: Option<&'a [u8]>,
    /// `None`: a tombstone.
    pub payload: Option<&'a [u8]>,
    /// Names and values, in their order.
    pub properties: Vec<(&'a str, &'a str)>,
    /// In milliseconds since the Unix epoch.
    pub event_time_ms: Option<u64>,
}

impl Message<'_> {
    /// As many as a broker counts and some more, which are as many for each message of a producer: of two messages the broker
    /// counts fewer for the one that has fewer here.
    pub fn bytes(&self) -> usize {
        /// Checksum, lengths, the producer's name, numbers.
        const OWN: usize = 200;
        /// A field whose number needs two bytes, with a truth.
        const MARK: usize = 3;
        let field = |bytes: usize| 1 + varint(bytes as u64) + bytes;
        let pair = |(name, value): &(&str, &str)| field(field(name.len()) + field(value.len()));
        let properties: usize = self.properties.iter().map(pair).sum();
        let key = self.key.map_or(0, |key| match std::str::from_utf8(key) {
            Ok(_) => field(key.len()),
            Err(_) => field(key.len().div_ceil(3) * 4) + MARK,
        });
        let time = self.event_time_ms.map_or(0, |time| 1 + varint(time));
        OWN + properties + key + time + self.payload.map_or(MARK, <[u8]>::len)
    }
}

/// Bytes of a number as the protocol writes it.
fn varint(number: u64) -> usize {
    (number.max(1).ilog2() / 7 + 1) as usize
}

/// A cluster, and the right to use it.
#[async_trait::async_trait]
pub trait Cluster: Debug + Send + Sync {
    /// Asks whether a broker answers. Returns its version.
    ///
    /// # Errors
    /// What it said, or why nothing was said.
    async fn version(&self) -> Result<String, Said>;

    /// How many partitions a topic has; `None` where it is not partitioned. Makes no topic.
    ///
    /// # Errors
    /// As above; [`What::Missing`] where the topic does not exist.
    async fn partitions(&self, topic: &str) -> Result<Option<u32>, Said>;

    /// Opens a producer of a topic that is not partitioned, or of a partition.
    ///
    /// # Errors
    /// As above.
    async fn producer(&self, topic: &str, access: Access) -> Result<Box<dyn Producer>, Said>;

    /// Whether another producer has taken the topic to itself since this one had it.
    async fn is_fenced(&self, topic: &str, held: &Held) -> bool;
}

/// A producer of one topic or partition. Dropped, it is closed.
#[async_trait::async_trait]
pub trait Producer: Debug + Send + Sync {
    /// Bytes of a message, at most.
    fn bytes_max(&self) -> usize;

    /// By what it has the topic to itself; `None` where others are let.
    fn held(&self) -> Option<Held>;

    /// Hands a message over. What becomes of it is said by [`Producer::receipt`].
    ///
    /// # Errors
    /// Nothing is known of what was under way, and the producer has ended.
    async fn send(&mut self, message: &Message<'_>) -> Result<(), Said>;

    /// What became of the oldest message of which it was not said. Cancel safe.
    ///
    /// # Errors
    /// The outer one: the producer has ended, and nothing is known of what was under way. The inner one: this message is not
    /// stored, the others may be.
    async fn receipt(&mut self) -> Result<Result<(), Said>, Said>;
}

/// A cluster. Nothing is connected before it is asked.
///
/// # Errors
/// A file can't be read, or the client is missing.
#[cfg(feature = "client")]
pub fn open(place: &Place) -> Result<Arc<dyn Cluster>, String> {
    Ok(Arc::new(wire::Wire::new(place.clone())?))
}

/// A cluster.
///
/// # Errors
/// Always: the client is missing.
#[cfg(not(feature = "client"))]
pub fn open(_place: &Place) -> Result<Arc<dyn Cluster>, String> {
    Err("this program was built without Pulsar's client".into())
}
