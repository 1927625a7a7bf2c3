//! Parked events: what the broker refused permanently, and what waits behind it in its lane.
//!
//! They live in `outbox.dead_letters`, in the database that the events come from, and their
//! identity is the event's position there together with its id, so that parking one again changes
//! nothing. `pipeline` parks and delivers; an operator's command changes rows and announces, by a
//! WAL [`Message`] of the same transaction, where in the stream the change takes its place.
//! [`Store`] is the relay's side of the table, [`operator`] the command's.

mod announcement;
mod answer;
mod changes;
mod count;
mod edit;
mod error;
mod headers;
pub mod history;
mod lane;
pub mod lost;
mod message;
pub mod notice;
pub mod operator;
pub mod pending;
pub mod restored;
mod store;
mod table;

pub use self::{
    announcement::{announce, waiting, wal_end},
    count::{absent, count, which_table},
    edit::{Edit, EditError},
    error::DeadLetterError,
    lane::{Lane, Lanes},
    message::Message,
    store::Store,
    table::{BEHIND, BEHIND_ERROR, DeadLetters, Letter, PutBack, Release, Seen},
};
