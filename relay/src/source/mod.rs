//! The replication stream: reads the WAL through a logical slot, and tells PostgreSQL how far the
//! relay has come. Knows nothing of records' meaning or of brokers; called by `pipeline`.

mod auth;
mod command;
pub mod connect;
mod copy;
pub mod decoder;
pub mod handover;
pub mod intake;
mod oversized;
pub mod pgoutput;
pub mod stream;
mod wire;
