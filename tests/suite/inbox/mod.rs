//! The consumer's half on a real PostgreSQL.

mod core;
mod effects;
mod processor;
mod retention;
