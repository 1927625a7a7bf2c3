//! Why a command did nothing.

use crate::dead_letter::{edit::EditError, error::DeadLetterError};

/// Why a command did nothing.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The database's answer, or a table that is not there.
    #[error(transparent)]
    DeadLetters(#[from] DeadLetterError),
    /// There is no such dead letter of this relay.
    #[error("relay {relay} has no dead letter {id}; see `outbox-relay dead-letters list --all`")]
    Unknown {
        /// The number that was given.
        id: i64,
        /// The relay's name.
        relay: String,
    },
    /// No one of that name has been here.
    #[error(
        "no relay of the name {relay} has parked anything in this database, and none has a slot \
         {slot} in it; names that are known here: {known}; give one with --name"
    )]
    NoRelay {
        /// The name that was given.
        relay: String,
        /// Its slot.
        slot: String,
        /// Those that are, separated by commas.
        known: String,
    },
    /// The selection names something that is not there.
    #[error("nothing that is parked is of {selection}; {there}")]
    NothingChosen {
        /// What was asked for.
        selection: String,
        /// Topics and reasons that there are.
        there: String,
    },
    /// While somebody was asked, others were parked, released or discarded.
    #[error(
        "the selection has changed meanwhile: it had {asked} parked events and has {now}; nothing was \
         discarded"
    )]
    Changed {
        /// Events that were spoken of.
        asked: i64,
        /// Of these and what came since, those that are parked now.
        now: i64,
    },
    /// It is not parked any more.
    #[error(
        "dead letter {id} is {state}, not parked: {}",
        match state.as_str() {
            "releasing" => "wait until it is delivered, or parked again, and then look at the list",
            _ => "it can't be changed any more",
        }
    )]
    NotParked {
        /// Its number.
        id: i64,
        /// Its state.
        state: String,
    },
    /// The event can't be what it would become.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// In its new lane it would overtake what is parked there.
    #[error(
        "{count} events of the lane that dead letter {id} would go to are parked, and it would \
         overtake them: release or discard these first"
    )]
    LaneIsParked {
        /// Its number.
        id: i64,
        /// Parked events of the lane.
        count: i64,
    },
}
