//! What the brokers were heard to say.

use std::time::Duration;

use super::Board;

impl Board {
    /// The brokers have answered.
    pub fn broker_heard(&self) {
        self.0.broker_heard.set(self.now());
        let mut state = self.state();
        state.broker_error = None;
        state.broker_says = None;
    }

    /// The brokers have answered, and nothing can be delivered by what they say.
    pub fn broker_says(&self, what: String) {
        let mut state = self.state();
        state.broker_error = None;
        state.broker_says = Some(what);
    }

    /// What they said last, if that keeps events back.
    pub fn what_broker_says(&self) -> Option<String> {
        self.state().broker_says.clone()
    }

    /// What the step of a start waits for, where that is known.
    pub fn waits_for(&self, what: Option<String>) {
        self.state().waits_for = what;
    }

    /// The brokers have answered, if not by a sign of life that was asked for.
    pub fn broker_answered(&self) {
        self.state().broker_error = None;
    }

    /// The brokers were asked for a sign of life and gave none; who of them, and why.
    pub fn broker_silent(&self, who: String) {
        let now = self.now();
        let mut state = self.state();
        let since = state.broker_error.as_ref().map_or(now, |(since, _)| *since);
        state.broker_error = Some((since, who));
    }

    /// Whether the brokers have answered so recently.
    pub fn broker_heard_within(&self, time: Duration) -> bool {
        self.0.broker_heard.age(self.now()).is_some_and(|age| age < time)
    }

    /// Whether the brokers answered when they were last asked, and nothing that keeps events back.
    pub fn broker_answers(&self) -> bool {
        let state = self.state();
        state.broker_error.is_none() && state.broker_says.is_none()
    }

    /// Whether they gave no answer when they were last asked.
    pub fn broker_is_silent(&self) -> bool {
        self.state().broker_error.is_some()
    }
}
