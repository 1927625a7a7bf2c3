//! Between a broker and the [`Processor`](crate::Processor): lanes, workers, limits, acknowledgements.
//!
//! Knows no broker. A runner brings what it receives, workers take it lane by lane, and the runner tells the
//! broker what is finished: each message by itself ([`Deliveries`], for SQS, AMQP, JetStream and the like), or, as
//! the runner for Kafka does, the offset behind which all is.

mod deliveries;
mod each;
mod lanes;
mod limits;
#[cfg(any(feature = "kafka-plain", test))]
mod offsets;
mod queue;
mod worker;

pub use deliveries::Deliveries;
pub use each::Answer;
#[cfg(all(feature = "kafka-plain", feature = "fault-points"))]
pub(crate) use worker::work_once;
#[cfg(feature = "kafka-plain")]
pub(crate) use {
    lanes::LaneScheduler,
    limits::Limits,
    offsets::{Partition, PrefixOffsets},
    queue::DispatchQueue,
    worker::work,
};
