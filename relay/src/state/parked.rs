//! What is parked, and what of it is lost.

use super::Board;
use crate::{core::progress::ParkedRecord, dead_letter::lost};

impl Board {
    /// How many lanes are parked.
    pub fn parked_lanes(&self, count: usize) {
        self.0.parked_lanes.set(count as u64);
    }

    /// What is parked was counted. Returns what was in a table that is gone, each time that one is.
    pub fn parked(&self, counted: &ParkedRecord) -> Option<ParkedRecord> {
        self.0.parked_events.set(counted.events);
        if !self.streams() {
            self.0.parked_lanes.set(counted.lanes);
        }
        let before = self.state().parked.replace(counted.clone())?;
        lost::lost(&before, counted)
    }

    /// What stored progress says was parked. Returns as [`Board::parked`] does.
    pub fn parked_before(&self, stored: &ParkedRecord) -> Option<ParkedRecord> {
        let mut state = self.state();
        let now = state.parked.get_or_insert_with(|| stored.clone());
        lost::lost(stored, now)
    }

    /// What was parked and is lost to the relay, until somebody has sent it again.
    pub fn lose_parked(&self, lost: &ParkedRecord) {
        self.state().lost_parked = Some(lost.clone());
    }

    /// As [`Board::lose_parked`] was told.
    pub fn lost_parked(&self) -> Option<ParkedRecord> {
        self.state().lost_parked.clone()
    }

    /// What was lost is there again.
    pub fn found_parked(&self) {
        self.state().lost_parked = None;
        self.concern("parked events", None);
    }

    /// What was parked when it was last counted, also where it can't be any more.
    pub fn parked_last(&self) -> Option<ParkedRecord> {
        self.state().parked.clone()
    }

    /// What is parked has changed: it is to be counted soon.
    pub fn parking_changed(&self) {
        self.batch_goes_on();
        self.0.parking.notify_one();
    }

    /// Returns when what is parked has changed since the last call. Cancel safe.
    pub async fn parking_has_changed(&self) {
        self.0.parking.notified().await;
    }

    /// How much is parked could not be asked.
    pub fn parked_unknown(&self) {
        self.0.parked_events.clear();
        if !self.streams() {
            self.0.parked_lanes.clear();
        }
    }
}
