//! What speaks as Amazon SQS and SNS do, for tests: [`ElasticMq`] for queues, [`Moto`] for topics too, and a [`Toll`] in
//! front of either that throttles, or fails a part of a request. None of them is AWS, and docs/AWS.md says so.
//!
//! Nothing here knows the AWS SDK: what the relay sent is read by other means.

mod account;
mod elasticmq;
mod http;
mod moto;
mod queue;
mod toll;
mod topic;

pub use self::{
    account::{REGION, credentials, write_key},
    elasticmq::ElasticMq,
    moto::Moto,
    queue::Queue,
    toll::{Toll, Verdict},
    topic::SnsTopic,
};
