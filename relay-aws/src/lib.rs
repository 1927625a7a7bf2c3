//! What the relay needs of Amazon SQS and SNS: to find a queue or topic, to send a batch of messages there, and to know
//! what became of each ([`Service`]). What a message holds, and in which order they go, is for the relay.
//!
//! The AWS SDK is large, so it is behind the feature `sdk`; without it [`open`] says that it is missing. It is told to
//! repeat nothing by itself: the relay knows what may be sent again, and when.

mod said;
#[cfg(feature = "sdk")]
mod sdk;

use std::{collections::HashMap, fmt::Debug, path::PathBuf, sync::Arc};

pub use said::{Said, What};

/// Messages in one request, at most.
pub const ENTRIES_MAX: usize = 10;
/// Bytes of one message, and of one request, that no queue or topic exceeds.
pub const BYTES_MAX: usize = 1 << 20;
/// Attributes of one message, at most. SNS discards a message with more that it delivers raw to a queue.
pub const ATTRIBUTES_MAX: usize = 10;

/// Whether this program has the AWS SDK in it.
pub const HAS_SDK: bool = cfg!(feature = "sdk");

/// One of the two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Queues.
    Sqs,
    /// Topics.
    Sns,
}

/// Where a service is; what is not given is found as the AWS SDK finds it.
#[derive(Clone, Debug)]
pub struct Place {
    /// Which one.
    pub kind: Kind,
    /// Such as `eu-west-1`.
    pub region: Option<String>,
    /// A URL in place of the region's own.
    pub endpoint: Option<String>,
    /// A file of profiles, in place of the one in the home directory.
    pub credentials_file: Option<PathBuf>,
    /// Certificates in PEM that are trusted beside the system's.
    pub trusted: Option<Vec<u8>>,
    /// Who owns the queues, where it is another account.
    pub account: Option<String>,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Not empty.
    pub body: String,
    /// Names and values, all of them text; [`ATTRIBUTES_MAX`] at most.
    pub attributes: Vec<(String, String)>,
    /// What a FIFO queue or topic wants.
    pub fifo: Option<Fifo>,
}

/// Which messages stay in order, and which are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fifo {
    /// Messages of a group stay in order.
    pub group: String,
    /// Of two messages with the same one, sent within five minutes, the service keeps the first.
    pub deduplication: String,
}

/// A queue or topic that exists.
#[derive(Clone, Debug)]
pub struct Found {
    /// A queue's URL, a topic's ARN: what [`Service::send`] is given.
    pub address: String,
    /// As the service names them; why not, where they may not be read.
    pub attributes: Result<HashMap<String, String>, Said>,
}

/// A service, and the right to use it.
#[async_trait::async_trait]
pub trait Service: Debug + Send + Sync {
    /// Looks for a queue by its name, or a topic by its ARN.
    ///
    /// # Errors
    /// What the service said, or why nothing was said.
    async fn find(&self, name: &str) -> Result<Found, Said>;

    /// Sends so many messages in one request, [`ENTRIES_MAX`] at most. Returns what became of each, in their order.
    ///
    /// Dropped half-way, the outcome is uncertain.
    ///
    /// # Errors
    /// Why the request as a whole failed: then no message of it is stored, unless that is uncertain.
    async fn send(&self, address: &str, entries: Vec<Entry>)
    -> Result<Vec<Result<(), Said>>, Said>;
}

/// A service with the credentials that the AWS SDK finds. They are looked for at the first request.
///
/// # Errors
/// No region is known, a certificate can't be read, or the SDK is missing.
#[cfg(feature = "sdk")]
pub async fn open(place: &Place) -> Result<Arc<dyn Service>, String> {
    // The SDK's future has tens of kilobytes.
    Box::pin(sdk::open(place)).await
}

/// A service with the credentials that the AWS SDK finds.
///
/// # Errors
/// Always: the SDK is missing.
#[cfg(not(feature = "sdk"))]
#[expect(clippy::unused_async, reason = "it is not, with the SDK")]
pub async fn open(_place: &Place) -> Result<Arc<dyn Service>, String> {
    Err("this program was built without the AWS SDK".into())
}
