//! What `check` asks of a sink before the relay runs, and how it is answered: the same for every kind.

use super::SinkError;
use crate::core::record::Batch;

/// What was seen of a sink.
#[derive(Debug)]
pub struct Examined {
    /// In the order in which a person reads it.
    pub seen: Vec<Seen>,
    /// Whether progress may be there to be read; `None` where that can't be known, or all would fail.
    pub has_progress: Option<bool>,
}

impl Examined {
    /// Nothing can be delivered, and nothing more is known.
    pub(super) fn unusable(name: &'static str, what: String, remedy: impl Into<String>) -> Self {
        Examined { seen: vec![Seen::problem(name, what, remedy)], has_progress: None }
    }
}

/// One precondition.
#[derive(Debug)]
pub struct Seen {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub mark: Mark,
    /// What was seen.
    pub what: String,
    /// What corrects it; empty where nothing is to be corrected.
    pub remedy: String,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// As it should be.
    Fine,
    /// It works, and something is worth knowing.
    Warning,
    /// Nothing would be delivered.
    Problem,
}

impl Seen {
    pub(super) fn fine(name: &'static str, what: String) -> Self {
        Seen { name, mark: Mark::Fine, what, remedy: String::new() }
    }

    pub(super) fn warning(name: &'static str, what: String, remedy: impl Into<String>) -> Self {
        Seen { name, mark: Mark::Warning, what, remedy: remedy.into() }
    }

    pub(super) fn problem(name: &'static str, what: String, remedy: impl Into<String>) -> Self {
        Seen { name, mark: Mark::Problem, what, remedy: remedy.into() }
    }
}

/// What is to be delivered, as far as it is known in advance.
#[derive(Debug)]
pub struct Expected {
    /// The oldest events that wait.
    pub waiting: Batch,
    /// The newest events that the tables hold, delivered or not.
    pub newest: Batch,
    /// Topics that events wait for in other places.
    pub topics: Vec<String>,
    /// Bytes that an event may have.
    pub record_bytes_max: usize,
    /// The database, as SQL takes it, whose `outbox.publish` adds the events; `None` where nothing of ours
    /// does.
    pub published_in: Option<String>,
}

/// Something that a run would meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concern {
    /// Whether everything waits because of it.
    pub stops: bool,
    /// What it is.
    pub what: String,
    /// What a person can do.
    pub remedy: String,
}

/// What a run would meet; `None` from a sink that knows nothing in advance.
pub type Foreseen = Option<Result<Vec<Concern>, SinkError>>;
