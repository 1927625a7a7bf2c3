//! The values that the others share: pure, without a socket, a clock or a task.
//!
//! Nothing here imports anything of the relay's but its neighbours in this folder.

pub mod charset;
pub mod destination;
pub(crate) mod epoch;
pub mod finding;
pub mod halt;
pub mod header;
pub mod identity;
pub(crate) mod landmark;
pub mod leaves;
pub mod look;
pub mod lsn;
pub mod position;
pub mod printable;
pub mod progress;
pub mod progress_home;
pub mod published;
pub mod record;
pub mod row;
pub mod secret;
pub mod snapshot;
pub mod streamed;
pub(crate) mod witness;
