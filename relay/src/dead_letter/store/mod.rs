//! The relay's side of `outbox.dead_letters`.
//!
//! It speaks through the session that holds the leader's lock, which others use too: so each step
//! is one statement, a transaction of its own, and may be repeated with the same effect.

mod beginning;
mod letters;
mod numbers;
mod recognised;
mod session;
mod table;
mod taking;

pub use self::session::Store;
