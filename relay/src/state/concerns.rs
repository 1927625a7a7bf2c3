//! What a person should change though no event waits for it.

use super::{Board, State};

/// The one concern that is not a leader's: what the broker grants the process.
pub const OF_PROCESS: &str = "quota";

/// Another relay leads.
pub(super) fn are_anothers(state: &mut State) {
    state.concerns.retain(|about, _| *about == OF_PROCESS);
}

impl Board {
    /// Something that a person should change, and that keeps no event waiting; `None` when it is changed.
    /// One for each `about`. Returns whether it is new.
    pub fn concern(&self, about: &'static str, what: Option<String>) -> bool {
        let mut state = self.state();
        match what {
            Some(what) => state.concerns.insert(about, what.clone()) != Some(what),
            None => {
                state.concerns.remove(about);
                false
            }
        }
    }

    /// What there is of concern.
    pub fn concerns(&self) -> Vec<String> {
        let parked = self.waits_parked();
        self.state().concerns.values().cloned().chain(parked).collect()
    }
}
