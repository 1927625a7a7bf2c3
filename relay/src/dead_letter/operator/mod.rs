//! The operator's side of `outbox.dead_letters`: look, edit, release, discard.
//!
//! It speaks to PostgreSQL alone, with no more rights than `docs/ROLES.md` gives an operator. What
//! changes which lanes are parked is announced by a WAL message in the same transaction, and takes
//! effect when the relay's stream has come to it. Called by `cli`.

mod discard;
mod edit;
mod error;
mod listing;
mod release;
mod selection;
mod session;

pub use self::{
    edit::Edited,
    error::OperatorError,
    listing::{By, Counted, Entry, Group, Letter},
    release::{Far, Released},
    selection::Selection,
    session::Operator,
};
