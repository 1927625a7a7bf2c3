//! What a broker must do for the relay: store records durably, in order, together with progress.
//!
//! A sink knows records and opaque progress bytes; it knows neither rows nor WAL. It is called by
//! `pipeline` (deliver) and `daemon` (start-up), by one caller at a time. It never retries a
//! delivery whose outcome is uncertain: retry is replay, from the progress that is read back.

pub mod kafka;
pub mod partition;

use std::{future::Future, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;

pub use crate::record::RefusedRecord;
use crate::{
    position::{Confirmable, Position},
    record::Batch,
};

/// Of so few records a sink tells at least one that is refused for certain: it sends them one in a
/// batch, so that the broker's answer is about one.
pub const ALONE_MAX: usize = 100;

/// Any error of a library below, kept as the cause.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A place to publish to. See the module's documentation for what it promises.
pub trait Sink: Send {
    /// Reads the newest progress record that can be read now; a
    /// delivery under way may hide a newer one. For who may be looking at another relay's
    /// progress: nobody is disturbed, nobody waited for.
    fn glance_at_progress(
        &mut self,
    ) -> impl Future<Output = Result<StoredProgress, SinkError>> + Send;

    /// Makes this the only relay of its name that can deliver; what an older one left unfinished
    /// is undone.
    fn fence(&mut self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// Reads the newest progress record that is stored. Called after
    /// [`Sink::fence`]; waits until nothing that an older relay left open can hide a newer one.
    fn read_progress(&mut self) -> impl Future<Output = Result<StoredProgress, SinkError>> + Send;

    /// After how long a delivery is given up; `None` where it is not.
    fn delivery_limit(&self) -> Option<Duration> {
        None
    }

    /// Stores the records of `range` in order, and `progress` with them: at once where the
    /// delivery is exactly-once, after them where it is at-least-once. Returns when all of it is
    /// durable. An empty range stores progress alone.
    ///
    /// Not cancel safe: dropped half-way, the outcome is uncertain, and the sink must be made anew.
    ///
    /// # Errors
    /// See [`SinkError`]; after any but `Refused` the sink must be made anew.
    fn deliver(
        &mut self,
        batch: &Arc<Batch>,
        range: Range<usize>,
        progress: Bytes,
    ) -> impl Future<Output = Result<Stored, SinkError>> + Send;
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
    /// Where nobody else can store anything.
    #[cfg(test)]
    pub(crate) fn of_own(own: Option<Bytes>) -> Self {
        StoredProgress { own, stranger: None }
    }
}

/// Proof that a delivery and its progress are durable. Only a sink can make one, so nothing else
/// can move the position that PostgreSQL is told.
#[derive(Debug)]
#[must_use = "only what is stored may be confirmed"]
pub struct Stored {
    /// Records whose timestamp is the time of their delivery and not their event's: these are so
    /// old that the broker would soon delete them.
    restamped: u64,
}

impl Stored {
    /// The position whose progress was part of the delivery that this proves.
    pub fn confirms(self, position: Position) -> Confirmable {
        Confirmable::stored(position)
    }

    /// Records that were given the time of their delivery.
    pub fn restamped(&self) -> u64 {
        self.restamped
    }

    /// What a scripted sink of a test gives.
    #[cfg(test)]
    pub(crate) fn scripted() -> Self {
        Stored { restamped: 0 }
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
    /// Only a person can mend it: a wrong setting, a progress topic with the wrong settings.
    #[error("{what}; {remedy}")]
    Misconfigured {
        /// What is wrong.
        what: String,
        /// The setting or command that mends it.
        remedy: String,
    },
}

/// What became of the records that were not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// None of them was sent: the refusal was known beforehand. Those that are refused may lie
    /// behind the range as well, up to the batch's end.
    NotSent,
    /// None of them is stored: the transaction was aborted.
    NotStored,
    /// All of them are stored, the progress is not.
    Stored,
}
