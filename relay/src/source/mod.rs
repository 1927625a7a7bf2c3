//! The replication stream: reads the WAL through a logical slot, and tells PostgreSQL how far the
//! relay has come. Knows nothing of records' meaning or of brokers; called by `pipeline`.

mod auth;
pub mod characters;
mod command;
pub mod connect;
mod copy;
pub mod decoder;
pub mod handover;
pub mod intake;
pub mod pgoutput;
pub mod publication;
pub mod slot;
pub mod standby_slots;
pub mod stream;
pub mod table;
mod wire;
