//! The decoder, without the connection that feeds it.

#[path = "../../relay/src/source/pgoutput/mod.rs"]
pub mod pgoutput;
