//! Publishes a PostgreSQL outbox through logical replication: to Kafka, NATS JetStream, RabbitMQ, SQS, SNS, Pulsar, or
//! a file.
//!
//! ```text
//! PostgreSQL WAL ─► source ─────► route ─────► sink ─────► broker
//!                   (decode)      (pure)       (deliver)
//!       ▲                                         │
//!       └────────── confirmed position ◄──────────┘
//! ```
//!
//! Rows go forward; one position comes back. The daemon is the product; the library is public so
//! that tests, fuzzing and benchmarks reach the parts. `ARCHITECTURE.md` has the map.

pub mod admin;
mod allocator;
mod backoff;
pub mod capacity;
mod causes;
pub mod cli;
pub mod config;
pub mod core;
pub mod daemon;
pub mod dead_letter;
pub mod demo;
pub mod fault;
mod leader;
pub mod logging;
pub mod metrics;
pub mod pipeline;
pub mod postgres;
mod progress_key;
pub mod reconcile;
pub mod repair;
mod rights;
pub mod route;
pub mod seal;
#[cfg(test)]
mod sim;
pub mod sink;
pub mod source;
pub mod state;
mod table_fit;
pub mod throwaway;
