//! What only a route has, beside the settings of its relay.

use std::collections::BTreeSet;

use super::keys::{ROUTES, section};
use crate::core::printable;

/// What is only a route's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// `[a-z0-9_]+`; the key of its table.
    pub name: String,
    /// Patterns of the topics that it takes; `None`: all.
    pub topics: Option<Vec<String>>,
    /// Patterns of the topics that the other routes take; `None`: one of them takes all.
    pub elsewhere: Option<Vec<String>>,
    /// Whether it parks what no route takes.
    pub parks_the_rest: bool,
    /// Whether `/readyz` answers 503 where it alone is not ready.
    pub required: bool,
    /// The relays that the other routes are.
    pub beside: Vec<String>,
    /// What its table says, by the keys without `routes.<r>.`.
    own: BTreeSet<String>,
}

impl Route {
    pub(super) fn new(name: String, own: BTreeSet<String>) -> Self {
        Route { name, own, ..Route::default() }
    }

    /// The text with commands that are for this route's relay.
    pub fn in_commands(&self, text: &str) -> String {
        printable::for_route(text, &self.name)
    }

    /// Whether it has a name of its own; otherwise its relay is named after it.
    pub(super) fn is_named(&self) -> bool {
        self.own.contains("name")
    }

    /// The key under which a person finds a setting of its relay.
    pub(super) fn full(&self, key: &str) -> String {
        let of_own_sink = self.own.contains("sink.kind") && section(key) == "sink";
        match self.own.contains(key) || of_own_sink {
            true => format!("{ROUTES}.{}.{key}", self.name),
            false => key.to_owned(),
        }
    }
}
