//! What has come from a broker and is not finished: lanes for the workers, and what the broker may be told.
//!
//! Knows no broker. A runner pushes what it receives, workers take it lane by lane, and what they have
//! finished is acknowledged by the runner.

mod lanes;
mod queue;
mod worker;

pub(crate) use lanes::{LaneScheduler, Partition};
pub(crate) use queue::DispatchQueue;
pub(crate) use worker::work;
#[cfg(feature = "fault-points")]
pub(crate) use worker::work_once;
