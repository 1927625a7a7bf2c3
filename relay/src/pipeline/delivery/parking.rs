//! Parks what a delivery can't deliver, and what follows it in its lane.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Course, Delivery, Origin, alone, desk::Parcel, reached};
use crate::{
    core::{
        position::RowPosition,
        printable,
        progress::ParkedId,
        record::{Batch, RefusedRecord},
    },
    dead_letter::{
        BEHIND, BEHIND_ERROR, DeadLetters, Lane, Letter, PutBack,
        pending::{SUSPECTED, UNKNOWN_TOPIC},
    },
    fault::{self, Point},
    pipeline::error::PipelineError,
    route::reason,
    sink::Publisher,
    state::Board,
};

impl<P: Publisher, D: DeadLetters + 'static> Delivery<P, D> {
    /// What a repair reads and was parked already is delivered from the table alone, or was discarded there.
    pub(super) async fn leave_to_the_table(
        &mut self,
        batch: &mut Arc<Batch>,
    ) -> Result<(), PipelineError> {
        self.until_parked().await?;
        let there = self.desk.table().find(batch).await?;
        if !there.is_empty() {
            tracing::info!(
                events = there.len(),
                "left to outbox.dead_letters, where they are already"
            );
            alone(batch).leave_out(&there);
        }
        Ok(())
    }

    /// So that it is missed when the table lacks it. As last counted, and what was parked since: so no record
    /// covers an event that was parked and does not know of it. What is not known stays as it was.
    pub(super) fn note_parked(&mut self) {
        if let Some(parked) = self.board.parked_last() {
            self.progress.parked = (parked.events > 0).then_some(parked);
        }
    }

    /// What is released with this is not missed when its row is deleted, as history may be.
    pub(super) fn note_released(&mut self, batch: &Batch, range: Range<usize>) {
        let released = || batch.iter().skip(range.start).take(range.len());
        let is_released = |known: &ParkedId| {
            released().any(|record| record.event_id() == Some(known.id.as_bytes()))
        };
        self.board.parked_less(is_released);
        self.note_parked();
    }

    /// Parks the records that are refused (`fit`: records all the same), and of those from `followers`
    /// on the ones whose lane is parked by then; takes them out of the batch. Returns which they
    /// were, ascending.
    pub(super) async fn park<C: Course>(
        &mut self,
        batch: &mut Arc<Batch>,
        refused: &[RefusedRecord],
        fit: bool,
        followers: usize,
        course: &C,
    ) -> Result<Vec<usize>, PipelineError> {
        let origin = course.origin();
        self.ask(batch).await?;
        let mut refused = refused.iter().peekable();
        let mut letters = Vec::new();
        let mut parked = Vec::new();
        for (index, record) in batch.iter().enumerate() {
            let refused = refused.next_if(|refused| refused.index == index);
            if refused.is_none() && (index < followers || self.lanes.is_empty()) {
                continue;
            }
            let lane = Lane::of(record.topic, record.key, record.partition);
            let (reason, error, fit) = match refused {
                Some(RefusedRecord { reason: reason::MALFORMED_ROW, error, .. }) => {
                    let (position, error) = (record.position, error.clone());
                    return Err(PipelineError::Malformed { position, error });
                }
                // What is ahead of it in its lane is asked about first.
                Some(refused)
                    if refused.reason == SUSPECTED && self.lanes.hold(lane, record.position) =>
                {
                    (BEHIND, BEHIND_ERROR, true)
                }
                // It is a record, of no one's.
                Some(refused) if refused.reason == reason::NO_ROUTE => {
                    (reason::NO_ROUTE, refused.error.as_str(), true)
                }
                Some(refused) => (refused.reason, refused.error.as_str(), fit),
                None if self.lanes.hold(lane, record.position) => (BEHIND, BEHIND_ERROR, true),
                None => continue,
            };
            if let Some(lane) = lane {
                self.lanes.park(lane, record.position);
            }
            letters.push(Letter { record, lane, reason, error, fit });
            parked.push(index);
        }
        if letters.is_empty() {
            return Ok(parked);
        }
        fault::point(Point::Parking);
        match origin {
            Origin::Stream if self.publisher.is_apart() => {
                while !self.desk.has_room(&letters, batch.limits()) {
                    let Some(parcel) = self.desk.next().await else { break };
                    self.are_parked(&parcel?.letters());
                }
                self.desk.add(Parcel::of(&letters, batch.limits()));
            }
            Origin::Stream | Origin::Repair => {
                self.until_parked().await?;
                self.desk.table().park(&letters).await?;
                self.are_parked(&letters);
            }
            Origin::Release { id, first } => {
                let place = |position: RowPosition| position.ordinal.saturating_sub(first.ordinal);
                // Of the batch's own, `letters` has all that go back: an edited one may have left the
                // lane that its row still has.
                let last = batch.len().checked_sub(1).and_then(|last| batch.get(last));
                let from = last.map_or(0, |last| place(last.position) + 1);
                let back: Vec<PutBack<'_>> = letters
                    .iter()
                    .map(|letter| PutBack {
                        ordinal: place(letter.record.position),
                        lane: letter.lane,
                        reason: letter.reason,
                        error: letter.error,
                    })
                    .collect();
                self.until_parked().await?;
                self.desk.table().put_back(id, &back, from).await?;
                self.are_back(&letters);
            }
        }
        drop(letters);
        let mut next = parked.iter().copied().peekable();
        alone(batch).withdraw(|index| next.next_if_eq(&index).is_none());
        Ok(parked)
    }

    /// These are parked by now, and durably.
    pub(super) fn are_parked(&mut self, letters: &[Letter<'_>]) {
        let ids = letters.iter().filter_map(|Letter { record, .. }| {
            let id = String::from_utf8_lossy(record.event_id()?).into_owned();
            Some(ParkedId { id, place: Some(record.position), xid: record.xid })
        });
        self.board.parked_more(letters.len() as u64, self.lanes.len(), ids);
        self.are_back(letters);
    }

    /// As [`Delivery::are_parked`], of events that were in the table before.
    fn are_back(&mut self, letters: &[Letter<'_>]) {
        fault::point(Point::Parked);
        self.settling.delivered(true, reached(&self.progress));
        let metrics = self.board.metrics();
        letters.iter().for_each(|letter| metrics.parked(letter.reason));
        for letter in letters.iter().filter(|l| ![BEHIND, SUSPECTED].contains(&l.reason)) {
            tell(&self.board, &mut self.told, letter);
        }
        if letters.iter().any(|letter| letter.reason == UNKNOWN_TOPIC) {
            self.missing.notify_one();
        }
        let suspected = letters.iter().filter(|letter| letter.reason == SUSPECTED).count();
        if suspected > 0 {
            self.suspected.notify_one();
            tracing::info!(
                events = suspected,
                "the broker refuses many events, and to ask it about each would keep others waiting: \
                 these are parked with the reason `suspected`, and the broker is asked about them later"
            );
        }
        self.board.parked_lanes(self.lanes.len());
        self.board.parking_changed();
    }

    /// Waits until what is being parked is.
    ///
    /// # Errors
    /// [`PipelineError::DeadLetters`].
    pub(in crate::pipeline) async fn until_parked(&mut self) -> Result<(), PipelineError> {
        while let Some(parcel) = self.desk.next().await {
            self.are_parked(&parcel?.letters());
        }
        Ok(())
    }

    /// Takes notice of what is parked by now, and waits for the rest where that takes long.
    pub(super) async fn look_at_desk(&mut self) -> Result<(), PipelineError> {
        while let Some(parcel) = self.desk.parked().await {
            self.are_parked(&parcel?.letters());
        }
        if self.desk.is_overdue() {
            self.until_parked().await?;
        }
        Ok(())
    }

    /// Whether something is being parked.
    pub(in crate::pipeline) fn is_parking(&self) -> bool {
        self.desk.is_busy()
    }

    /// The broker was asked for the last time at `asked`, and refused something. Whether asking has
    /// kept the others waiting for so long that it is to end.
    pub(super) fn has_waited_enough(&mut self, asked: Instant) -> bool {
        let now = Instant::now();
        self.suspicion.asked(now - asked, now - self.refused_at);
        self.refused_at = now;
        self.suspicion.is_exhausted(Duration::ZERO)
    }

    /// Asks the table about those lanes of the batch of which memory does not know.
    async fn ask(&mut self, batch: &Batch) -> Result<(), PipelineError> {
        if !self.lanes.may_doubt() {
            return Ok(());
        }
        // What it says replaces what is known of lanes that were parked since it was asked last.
        self.until_parked().await?;
        let lanes = batch.iter().filter_map(|r| Lane::of(r.topic, r.key, r.partition));
        let mut doubtful: Vec<Lane> = lanes.filter(|lane| self.lanes.doubtful(*lane)).collect();
        doubtful.sort_unstable();
        doubtful.dedup();
        let parked = match doubtful.is_empty() {
            true => Vec::new(),
            false => self.desk.table().parked_of(&doubtful).await?,
        };
        self.lanes.told(parked);
        Ok(())
    }
}

/// Counts a refusal whose event is parked, and logs the first of its kind.
fn tell(board: &Board, told: &mut Vec<&'static str>, letter: &Letter<'_>) {
    let Letter { record, reason, error, .. } = letter;
    board.metrics().refused(reason);
    if told.contains(reason) {
        return;
    }
    told.push(reason);
    let (position, topic) = (record.position, record.topic);
    let event_id = record.event_id().map(String::from_utf8_lossy).unwrap_or_default();
    let (event_id, topic) = (printable::short(&event_id), printable::short(topic));
    let relay = board.name();
    tracing::warn!(
        %event_id, %topic, %position, reason, error,
        "an event can't be delivered: it and later events of its key are parked; all others are \
         delivered. Look at it with `outbox-relay dead-letters list --name {relay} \
         --reason {reason}`; when the cause is corrected, deliver it with `outbox-relay \
         dead-letters release --name {relay} --reason {reason}`. Others refused for the same \
         reason are not logged"
    );
}
