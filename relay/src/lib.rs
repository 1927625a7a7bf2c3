//! Publishes a PostgreSQL outbox to Kafka through logical replication: exactly once, in key order.
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
mod charset;
pub mod check;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod dead_letter;
pub mod demo;
pub mod destination;
pub mod fault;
pub mod header;
mod landmark;
mod leader;
pub mod leaves;
pub mod logging;
pub mod lsn;
pub mod metrics;
pub mod migrate;
pub mod pipeline;
pub mod position;
pub mod postgres;
pub mod printable;
pub mod progress;
mod progress_key;
pub mod published;
pub mod reconcile;
pub mod record;
pub mod repair;
pub mod resume;
mod rights;
pub mod route;
pub mod row;
pub mod seal;
pub mod secret;
#[cfg(test)]
mod sim;
pub mod sink;
pub mod snapshot;
pub mod source;
mod table_fit;
pub mod throwaway;
mod witness;
