//! The few calls into librdkafka that the `rdkafka` crate has no good form for; all `unsafe` of
//! the sink is in this folder.
//!
//! - Flush (`producer`): the crate's sleeps to a 100 ms boundary while anything is in flight.
//! - Produce (`topic`): the crate allocates for the topic's name and for each header's, and looks the topic
//!   up by name, per record.
//! - Producer: the crate's has no place for what a refused transaction needs (`producer`).
//! - Describe: the crate has no request for what we are allowed on topics (`describe`).
//! - Read (`reader`): the crate drops the offset of an end-of-partition event, the one thing that tells how
//!   far a reader has come past transaction markers.
//!
//! Sound by construction: a handle keeps the client that it belongs to alive.

mod client;
pub(super) mod describe;
pub(super) mod producer;
mod reader;
mod topic;

pub(super) use self::{
    client::{Consumer, controller},
    producer::Producer,
    reader::{PartitionReader, Read},
    topic::{Outgoing, Topic},
};
