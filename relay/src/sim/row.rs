//! A parked event as the table has it.

use crate::{
    core::{lsn::Lsn, progress::ReleaseRecord},
    dead_letter::Lane,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Parked,
    Releasing,
    Released,
    Discarded,
}

#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Given to one after the other.
    pub(super) number: usize,
    pub(super) id: usize,
    pub(super) at: (Lsn, u64),
    pub(super) lane: Option<Lane>,
    pub(super) key: Option<Vec<u8>>,
    pub(super) fit: bool,
    /// It says that it may have come before.
    pub(super) repaired: bool,
    pub(super) state: State,
    pub(super) release: Option<String>,
    pub(super) place: Option<u64>,
}

impl Row {
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, State::Parked | State::Releasing)
    }

    pub(super) fn is_of(&self, release: &str) -> bool {
        self.release.as_deref() == Some(release)
    }

    pub(super) fn is_leaving(&self, release: &str) -> bool {
        self.state == State::Releasing && self.is_of(release)
    }

    pub(super) fn is_delivered(&self, known: &ReleaseRecord) -> bool {
        self.is_leaving(&known.id) && self.place.is_some_and(|place| place < known.delivered)
    }
}
