//! The table of dead letters as the pipeline needs it.

use std::future::Future;

use super::{error::DeadLetterError, lane::Lane};
use crate::core::{
    position::RowPosition,
    progress::ReleaseRecord,
    record::{Announced, Batch, Record},
};

/// Reason of an event that was not refused itself.
pub const BEHIND: &str = "lane_parked";
/// What there is to say of such an event.
pub const BEHIND_ERROR: &str = "it was parked behind an earlier event of its lane";

/// An event to be parked.
#[derive(Clone, Copy, Debug)]
pub struct Letter<'a> {
    /// What is known of it; its topic is empty where there is none.
    pub record: Record<'a>,
    /// Its lane; `None` for an event that stands alone.
    pub lane: Option<Lane>,
    /// A stable word, [`BEHIND`] for one that only follows.
    pub reason: &'static str,
    /// What is wrong, for a person.
    pub error: &'a str,
    /// Whether it is a record; if not, it must be edited before it can be delivered.
    pub fit: bool,
}

/// A released event that goes back among the parked ones.
#[derive(Clone, Copy, Debug)]
pub struct PutBack<'a> {
    /// Its place in the release.
    pub ordinal: u64,
    /// Its lane now: an edit may have given it another one.
    pub lane: Option<Lane>,
    /// As in [`Letter`].
    pub reason: &'static str,
    /// As in [`Letter`].
    pub error: &'a str,
}

/// A release at the moment when the stream has come to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// Lanes that are parked no more, unless one of the release's own events is refused again.
    pub lanes: Vec<Lane>,
    /// Its events have places below this; 0 where it only changes which lanes are parked.
    pub end: u64,
}

/// What the table says to an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Rows wait for it.
    Due,
    /// No row does: it is done, or no one's.
    Nothing,
    /// Its transaction has committed and can't be seen yet, as under synchronous replication. It is
    /// not waited for any longer: where rows wait for it, the leader announces it again.
    NotYet,
}

/// Where events are parked, as the pipeline needs it. Every call is durable when it returns, may be
/// repeated with the same effect, and is made by one caller at a time. Not cancel safe: dropped
/// half-way, its outcome is uncertain, which a repetition resolves.
pub trait DeadLetters: Send {
    /// Parks events, in order; one that is there already (same position, same id) is left as it is, unless
    /// it was released and delivered.
    ///
    /// # Errors
    /// [`DeadLetterError`]; a beginning of the letters may be parked.
    fn park(
        &mut self,
        letters: &[Letter<'_>],
    ) -> impl Future<Output = Result<(), DeadLetterError>> + Send;

    /// Which records of the batch are in the table already, under whatever position: parked, announced or
    /// discarded. Their indexes, ascending.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    fn find(
        &mut self,
        batch: &Batch,
    ) -> impl Future<Output = Result<Vec<usize>, DeadLetterError>> + Send;

    /// Of these lanes the ones that are parked now, or announced and not yet delivered, each with its
    /// first event's position.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    fn parked_of(
        &mut self,
        lanes: &[Lane],
    ) -> impl Future<Output = Result<Vec<(Lane, RowPosition)>, DeadLetterError>> + Send;

    /// What there is to do for each announcement, in one look. A commit is in the stream a moment
    /// before it is visible: that moment is waited for, and no longer.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    fn look_up(
        &mut self,
        announced: &[Announced],
    ) -> impl Future<Output = Result<Vec<Seen>, DeadLetterError>> + Send;

    /// Marks what `known` (the releases of progress) counts as delivered. Takes into the release whatever
    /// else waits in its lanes by now, and gives each of its events its place, in the order of positions,
    /// none below what is delivered of it already. `None` where no row belongs to it any more.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    fn begin(
        &mut self,
        release: &str,
        known: &[ReleaseRecord],
    ) -> impl Future<Output = Result<Option<Release>, DeadLetterError>> + Send;

    /// Adds the release's events from place `from` on to `batch` until that is full; the event at
    /// place 0 has the position `first`. Returns the place after the last one that was read, `None`
    /// when there is none left.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    fn read(
        &mut self,
        release: &str,
        from: u64,
        first: RowPosition,
        batch: &mut Batch,
    ) -> impl Future<Output = Result<Option<u64>, DeadLetterError>> + Send;

    /// Puts events back among the parked ones, with them all of the release that is behind them in
    /// their lanes and not before place `from`.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    fn put_back(
        &mut self,
        release: &str,
        letters: &[PutBack<'_>],
        from: u64,
    ) -> impl Future<Output = Result<(), DeadLetterError>> + Send;

    /// What stored progress counts of the release is delivered, and its discards have had their effect.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    fn finish(
        &mut self,
        release: &ReleaseRecord,
    ) -> impl Future<Output = Result<(), DeadLetterError>> + Send;
}
