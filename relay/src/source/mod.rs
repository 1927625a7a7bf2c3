//! The replication stream: reads the WAL through a logical slot, and tells PostgreSQL how far the
//! relay has come. Knows nothing of records' meaning or of brokers; called by `pipeline`.

mod auth;
mod command;
pub mod connect;
pub mod intake;
pub mod slot;
mod wire;
