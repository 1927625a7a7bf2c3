//! What a broker must do for the relay: store records durably and in order ([`Sink`]); keep progress
//! for one relay at a time ([`ProgressStore`]); and, where it can, both in one step ([`Publisher`]).
//!
//! All of them know records and opaque progress bytes, and neither rows nor WAL. They are called by
//! `pipeline` (deliveries) and `daemon` (start-up), by one caller at a time. None retries a delivery
//! whose outcome is uncertain: retry is replay, from the progress that is read back.

pub mod any;
pub mod apart;
pub mod aws;
mod directory;
pub mod doctor;
pub mod file;
mod files;
pub mod kafka;
pub mod lane_order;
mod message;
pub mod nats;
pub mod partition;
pub mod progress_table;
pub mod pulsar;
pub mod rabbitmq;

use std::{
    future::Future,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

pub use crate::core::record::RefusedRecord;
use crate::core::{
    position::{Confirmable, Position},
    record::Batch,
};

/// Of so few records a sink tells at least one that is refused for certain: it sends them one in a
/// batch, so that the broker's answer is about one.
pub const ALONE_MAX: usize = 100;

/// A progress record is smaller, with all that is stored beside it.
const PROGRESS_BYTES_MAX: usize = 66_000;

/// Any error of a library below, kept as the cause.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Stores records, and knows nothing of progress.
pub trait Sink: Send {
    /// After how long a delivery is given up; `None` where it is not.
    fn delivery_limit(&self) -> Option<Duration> {
        None
    }

    /// Stores the records of `range` in order. Returns when all of them are durable.
    ///
    /// Not cancel safe: dropped half-way, the outcome is uncertain, and the sink must be recreated.
    ///
    /// # Errors
    /// See [`SinkError`]; after any but `Refused` the sink must be recreated.
    fn deliver(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
    ) -> impl Future<Output = Result<Delivered, SinkError>> + Send;
}

/// Keeps the relay's progress, for one relay at a time.
pub trait ProgressStore: Send {
    /// Reads the newest progress record that can be read now; a delivery under way may hide a newer
    /// one. For who may be looking at another relay's progress: it disturbs no one and waits for no
    /// one.
    fn peek(&mut self) -> impl Future<Output = Result<StoredProgress, SinkError>> + Send;

    /// Makes this the only relay of its name that can store progress; what an older one left
    /// unfinished is undone.
    fn fence(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Reads the newest progress record that is stored. Called after [`ProgressStore::fence`]; waits
    /// until nothing that an older relay left open can hide a newer one.
    fn read(&mut self) -> impl Future<Output = Result<StoredProgress, SinkError>> + Send;

    /// Stores progress alone. Returns when it is durable. Not cancel safe, as a delivery.
    ///
    /// # Errors
    /// See [`SinkError`]; the store must be recreated.
    fn store(&mut self, progress: Bytes) -> impl Future<Output = Result<Stored, SinkError>> + Send;
}

/// What the pipeline publishes through: a sink, and where the progress goes that belongs to what it
/// delivers.
pub trait Publisher: ProgressStore {
    /// As [`Sink::delivery_limit`].
    fn delivery_limit(&self) -> Option<Duration>;

    /// Whether records can be stored before their progress. Where not, both are one step, which makes
    /// the delivery exactly-once.
    fn is_apart(&self) -> bool;

    /// How many records a delivery may have.
    fn records_max(&self) -> usize {
        usize::MAX
    }

    /// Stores the records of `range` in order, as [`Sink::deliver`] does. Who can store `progress`
    /// along with them does so, and returns the proof; otherwise the caller stores it, with
    /// [`ProgressStore::store`], when it sees fit. `None` where it may not be stored yet: only who
    /// [`Publisher::is_apart`] is given that.
    ///
    /// Not cancel safe: dropped half-way, the outcome is uncertain, and all must be recreated.
    ///
    /// # Errors
    /// See [`SinkError`]; after any but `Refused` all must be recreated.
    fn publish(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        progress: Option<Bytes>,
    ) -> impl Future<Output = Result<Receipt, SinkError>> + Send;

    /// Waits until then. Cancel safe. A simulation has a clock of its own.
    fn wait_until(&self, at: Instant) -> impl Future<Output = ()> + Send {
        tokio::time::sleep_until(at.into())
    }
}

/// What became of a delivery that succeeded.
#[derive(Debug)]
pub struct Receipt {
    /// How many records were given the time of their delivery as timestamp, and not their event's:
    /// these are so old that the broker would soon delete them.
    pub restamped: u64,
    /// The proof that progress is stored as well; `None` where only the records are.
    pub progress: Option<Stored>,
}

/// Proof that records are durable. Their progress is not.
#[derive(Debug)]
#[must_use = "their progress is to be stored"]
pub struct Delivered {
    /// As [`Receipt::restamped`].
    pub restamped: u64,
}

/// What is stored as progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredProgress {
    /// The newest that this relay stored, `None` when there is none.
    pub own: Option<Bytes>,
    /// What another has stored under its name since: it does not count.
    pub stranger: Option<Bytes>,
}

impl StoredProgress {
    /// Where no one else can store anything.
    #[cfg(test)]
    pub(crate) fn of_own(own: Option<Bytes>) -> Self {
        StoredProgress { own, stranger: None }
    }
}

/// Proof that progress is durable, and what it covers delivered. Only this module's own can make one,
/// so nothing else can move the position that PostgreSQL is told.
#[derive(Debug)]
#[must_use = "only what is stored may be confirmed"]
pub struct Stored(());

impl Stored {
    /// The position whose progress this proves.
    pub fn confirms(self, position: Position) -> Confirmable {
        Confirmable::stored(position)
    }

    /// What a scripted sink of a test gives.
    #[cfg(test)]
    pub(crate) fn scripted() -> Self {
        Stored(())
    }
}

/// Why a delivery or a start-up step failed, sorted by what the caller must do next.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Nothing is certain, and the broker may take it later: wait, start again from progress.
    #[error("{doing}")]
    Unavailable {
        /// What was being done, such as `committing a transaction of 512 records`.
        doing: String,
        /// The library's error.
        #[source]
        source: BoxError,
    },
    /// Records that were not taken. Where none is certain, deliver fewer at a time: one refused alone
    /// never will be.
    #[error("{} of the records were refused, the first because {}", .records.len(), .records.first().map_or("", |r| r.error.as_str()))]
    Refused {
        /// Which, by index in the batch, ascending and not empty.
        records: Vec<RefusedRecord>,
        /// What became of the other records of the range.
        rest: Rest,
    },
    /// Another relay of the same name has taken over: send nothing more, go back to standby.
    #[error("fenced by another relay of the same name")]
    Fenced(#[source] BoxError),
    /// Only a person can correct it: a wrong setting, a progress topic with the wrong settings.
    #[error("{what}; {remedy}")]
    Misconfigured {
        /// What is wrong.
        what: String,
        /// The setting or command that corrects it.
        remedy: String,
    },
}

/// "Not now." Each call is a state that the relay tries to outlast, and docs/RETRIES.md has a line for it.
pub(crate) fn unavailable(doing: impl Into<String>, source: impl Into<BoxError>) -> SinkError {
    SinkError::Unavailable { doing: doing.into(), source: source.into() }
}

impl SinkError {
    /// With one more thing to do, where a person must do something.
    pub(crate) fn and_remedy(mut self, more: &str) -> Self {
        if let SinkError::Misconfigured { remedy, .. } = &mut self {
            remedy.push_str("; ");
            remedy.push_str(more);
        }
        self
    }

    /// What a sink says that is used after an outcome that it does not know: retry is replay, by another one.
    pub(crate) fn spent() -> Self {
        unavailable(
            "using the sink",
            "an earlier outcome is uncertain: the sink must be opened again",
        )
    }
}

/// What became of the records that were not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// None of them was sent: the refusal was known in advance. Those that are refused may lie
    /// behind the range as well, up to the batch's end.
    NotSent,
    /// None of them is stored: the transaction was aborted.
    NotStored,
    /// All of them are stored, the progress is not.
    Stored,
    /// All of them are stored but those that follow a refused one in its lane: they were not sent. The progress
    /// is not stored.
    StoredButFollowers,
}
