//! The replication stream: reads the WAL through a logical slot, and tells PostgreSQL how far the
//! relay has come. Knows nothing of records' meaning or of brokers; called by `pipeline`.

pub mod intake;
pub mod pgoutput;
