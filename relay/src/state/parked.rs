//! What is parked, as the board knows it: counted now and then, and told of what is parked meanwhile.

use super::{Board, State};
use crate::core::{
    printable::counted,
    progress::{PARKED_IDS_MAX, ParkedId, ParkedRecord},
};

/// What they are about in [`Board::concern`].
const LOST: &str = "parked events";
const RESTORED: &str = "restored parked events";

impl Board {
    /// How many lanes are parked.
    pub fn parked_lanes(&self, count: usize) {
        self.0.parked_lanes.set(count as u64);
    }

    /// What is parked is about to be counted: what is parked from now on may not be among it.
    pub fn parked_count_begins(&self) {
        self.state().parked_since = ParkedRecord::default();
    }

    /// What is parked was counted.
    pub fn parked(&self, counted: &ParkedRecord) {
        self.0.parked_events.set(counted.events);
        if !self.streams() {
            self.0.parked_lanes.set(counted.lanes);
        }
        let mut state = self.state();
        let mut parked = counted.clone();
        let State { parked_since, .. } = &*state;
        add(&mut parked, parked_since);
        state.parked = Some(parked);
    }

    /// These were parked: whatever stored progress covers them knows it. `ids` are those of them that have
    /// an id, in their order.
    pub fn parked_more(&self, events: u64, lanes: usize, ids: impl Iterator<Item = ParkedId>) {
        let ids = ids.filter(|it| is_plain(&it.id)).collect();
        let more = ParkedRecord { table: 0, lanes: lanes as u64, events, ids };
        let mut state = self.state();
        add(&mut state.parked_since, &more);
        add(state.parked.get_or_insert_default(), &more);
    }

    /// These are released: their rows may be deleted.
    pub fn parked_less(&self, is_released: impl Fn(&ParkedId) -> bool) {
        let mut state = self.state();
        let State { parked, parked_since, .. } = &mut *state;
        for known in [parked.as_mut(), Some(parked_since)].into_iter().flatten() {
            let before = known.ids.len();
            known.ids.retain(|id| !is_released(id));
            known.events = known.events.saturating_sub((before - known.ids.len()) as u64);
        }
    }

    /// What stored progress says was parked, where nothing was counted yet; it is in this table, but for what
    /// is known to be lost.
    pub fn parked_before(&self, stored: &ParkedRecord, table: u32, lost: Option<&ParkedRecord>) {
        let mut state = self.state();
        let parked = state.parked.get_or_insert_with(|| stored.clone());
        parked.table = table;
        if let Some(lost) = lost {
            parked.events = parked.events.saturating_sub(lost.events);
            parked.ids.retain(|id| !lost.ids.contains(id));
        }
    }

    /// What was parked when it was last counted, in this table or any other, and since.
    pub fn parked_last(&self) -> Option<ParkedRecord> {
        self.state().parked.clone()
    }

    /// The same, where it was another table.
    pub fn parked_elsewhere(&self, table: u32) -> Option<ParkedRecord> {
        self.parked_last().filter(|parked| ![0, table].contains(&parked.table))
    }

    /// What there is to say of events that the table has lost, and how many they are; `None` where none
    /// is. Returns whether that is news.
    pub fn parked_events_are_lost(&self, lost: Option<(u64, String)>) -> bool {
        let (events, said) = lost.unzip();
        self.0.parked_lost.set(events.unwrap_or_default());
        self.concern(LOST, said.clone());
        let said = said.unwrap_or_default();
        std::mem::replace(&mut self.state().lost_told, said.clone()) != said
    }

    /// What there is to say of events that came into the table from a copy; `None` where none did. Returns whether
    /// that is news.
    pub fn parked_events_are_restored(&self, said: Option<String>) -> bool {
        self.concern(RESTORED, said)
    }

    /// How much is parked, in words; `None` where nothing is.
    pub(super) fn waits_parked(&self) -> Option<String> {
        let lanes = self.0.parked_lanes.get().filter(|lanes| *lanes > 0)?;
        let events = match self.0.parked_events.get()? {
            0 => return None,
            // More lanes than were counted: the number of events is not known yet.
            events if events < lanes => String::new(),
            events => format!(" ({})", counted(events, "event")),
        };
        let (are, their) = if lanes == 1 { ("is", "its") } else { ("are", "their") };
        Some(format!(
            "{} {are} parked{events}, and {their} later events wait: `outbox-relay dead-letters list` says why",
            counted(lanes, "lane")
        ))
    }

    /// Another relay leads.
    pub(super) fn parked_is_anothers(&self, state: &mut State) {
        for known in [&self.0.parked_lanes, &self.0.parked_events, &self.0.parked_lost] {
            known.clear();
        }
        state.parked = None;
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

/// `more` was parked after `parked`, though some of it may have been counted.
fn add(parked: &mut ParkedRecord, more: &ParkedRecord) {
    let is_of = |id: &ParkedId, ids: &[ParkedId]| ids.iter().any(|other| other.is(id));
    let known = more.ids.iter().filter(|id| is_of(id, &parked.ids)).count() as u64;
    parked.events += more.events.saturating_sub(known);
    parked.lanes = parked.lanes.max(more.lanes);
    parked.ids.retain(|id| !is_of(id, &more.ids));
    // The newest first.
    let newest = more.ids.iter().rev().take(PARKED_IDS_MAX);
    parked.ids.splice(0..0, newest.cloned());
    parked.ids.truncate(PARKED_IDS_MAX);
}

/// Such as can be typed between quotes, as the count takes them.
fn is_plain(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    (1..=64).contains(&id.len()) && id.bytes().all(plain)
}
