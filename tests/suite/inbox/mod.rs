//! The consumer's half on a real PostgreSQL.

mod anew;
mod cliffs;
mod command;
mod conformance;
mod core;
pub(crate) mod effects;
mod flow;
mod isolation;
mod kafka;
mod kit;
mod matrix;
mod memory;
mod model;
mod outages;
mod parked;
mod processor;
mod records;
mod retention;
mod sessions;
mod settings;
mod start;
mod storm;
mod topics;
mod unstorable;
pub(crate) mod watermark;
