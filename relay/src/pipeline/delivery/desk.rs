//! The table of dead letters, and what is being parked in it while the other lanes are delivered.
//!
//! Where records are stored before their progress, only progress must wait for what is parked. So a parcel of
//! letters owns what it holds, and is parked beside what continues. Parcels are parked in order, one at a time; who
//! needs the table for anything else waits until all of them are, for it has one caller at a time.

use std::{
    collections::VecDeque,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use crate::{
    core::record::{Batch, BatchLimits},
    dead_letter::{DeadLetterError, DeadLetters, Lane, Letter},
};

/// Beside what is parked no progress is stored. After so long it is waited for, however much there is
/// to park: the position must move.
const BESIDE_MAX: Duration = Duration::from_secs(2);
/// What is being parked is no more than so many full batches, beyond one parcel that is more alone.
const BATCHES: usize = 2;

/// Letters that own what they hold.
#[derive(Debug)]
pub(super) struct Parcel {
    batch: Batch,
    letters: Vec<Kept>,
}

/// What a letter has beside its record.
#[derive(Debug)]
struct Kept {
    lane: Option<Lane>,
    reason: &'static str,
    error: String,
    fit: bool,
}

impl Parcel {
    /// A copy.
    pub(super) fn of(letters: &[Letter<'_>], limits: BatchLimits) -> Self {
        let mut batch = Batch::new(limits);
        let keep = |letter: &Letter<'_>| {
            batch.copy(&letter.record);
            let Letter { lane, reason, error, fit, .. } = *letter;
            Kept { lane, reason, error: error.to_owned(), fit }
        };
        let letters = letters.iter().map(keep).collect();
        Parcel { batch, letters }
    }

    /// As they were given.
    pub(super) fn letters(&self) -> Vec<Letter<'_>> {
        let letter = |(record, kept)| {
            let Kept { lane, reason, error, fit }: &Kept = kept;
            Letter { record, lane: *lane, reason, error, fit: *fit }
        };
        self.batch.iter().zip(&self.letters).map(letter).collect()
    }
}

/// What parks a parcel, and has the table meanwhile.
type UnderWay<D> = Pin<Box<dyn Future<Output = (D, Parcel, Result<(), DeadLetterError>)> + Send>>;

/// The table, or what is done with it.
pub(super) struct Desk<D> {
    /// `None` while a parcel is parked, and after that failed.
    table: Option<D>,
    under_way: Option<UnderWay<D>>,
    waiting: VecDeque<Parcel>,
    /// Of all that is being parked.
    records: usize,
    bytes: usize,
    /// Since when anything has been parked here; `None` when nothing is.
    busy_since: Option<Instant>,
}

impl<D> fmt::Debug for Desk<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl<D: DeadLetters + 'static> Desk<D> {
    pub(super) fn new(table: D) -> Self {
        let (under_way, waiting, busy_since) = (None, VecDeque::new(), None);
        Desk { table: Some(table), under_way, waiting, records: 0, bytes: 0, busy_since }
    }

    /// Whether something is being parked.
    pub(super) fn is_busy(&self) -> bool {
        self.busy_since.is_some()
    }

    /// Whether it has been for so long that it is to be waited for.
    pub(super) fn is_overdue(&self) -> bool {
        self.busy_since.is_some_and(|since| since.elapsed() >= BESIDE_MAX)
    }

    /// As if it had been for so long.
    #[cfg(test)]
    pub(super) fn is_late(&mut self) {
        self.busy_since = Instant::now().checked_sub(BESIDE_MAX);
    }

    /// Whether there is room for a parcel of these.
    pub(super) fn has_room(&self, letters: &[Letter<'_>], limits: BatchLimits) -> bool {
        let bytes = || letters.iter().map(|letter| letter.record.size_bytes()).sum::<usize>();
        !self.is_busy()
            || (self.records + letters.len() <= BATCHES * limits.records_max
                && self.bytes + bytes() <= BATCHES * limits.bytes_max)
    }

    /// Parks it when its turn comes; see that there is room.
    pub(super) fn add(&mut self, parcel: Parcel) {
        self.records += parcel.batch.len();
        self.bytes += parcel.batch.size_bytes();
        self.waiting.push_back(parcel);
        self.busy_since.get_or_insert_with(Instant::now);
        self.start();
    }

    fn start(&mut self) {
        let Some(parcel) = self.waiting.pop_front() else { return };
        match self.table.take() {
            Some(mut table) => {
                self.under_way = Some(Box::pin(async move {
                    let letters = parcel.letters();
                    let parked = table.park(&letters).await;
                    drop(letters);
                    (table, parcel, parked)
                }));
            }
            None => self.waiting.push_front(parcel),
        }
    }

    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Parcel, DeadLetterError>>> {
        let Some(under_way) = &mut self.under_way else { return Poll::Ready(None) };
        let Poll::Ready((table, parcel, parked)) = under_way.as_mut().poll(context) else {
            return Poll::Pending;
        };
        self.under_way = None;
        self.records -= parcel.batch.len();
        self.bytes -= parcel.batch.size_bytes();
        if let Err(error) = parked {
            return Poll::Ready(Some(Err(error)));
        }
        self.table = Some(table);
        self.start();
        self.busy_since = self.busy_since.filter(|_| self.under_way.is_some());
        Poll::Ready(Some(Ok(parcel)))
    }

    /// Waits until the next parcel is parked; `None` when nothing is being parked. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Result<Parcel, DeadLetterError>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The next parcel that is parked by now.
    pub(super) async fn parked(&mut self) -> Option<Result<Parcel, DeadLetterError>> {
        poll_fn(|context| match self.poll_next(context) {
            Poll::Ready(parked) => Poll::Ready(parked),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    /// The table, once nothing is being parked.
    pub(super) fn table(&mut self) -> &mut D {
        self.table.as_mut().expect("whoever needs the table waits for what is being parked")
    }
}
