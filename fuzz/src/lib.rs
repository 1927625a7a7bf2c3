//! The relay's pure modules, compiled from the same files and without the rest of it: a fuzz
//! build takes seconds and not the minutes that librdkafka and OpenSSL take. That it compiles
//! shows that decoding and routing need no socket, clock or task.

#[allow(dead_code)] // Some of it is for the relay alone.
#[path = "../../relay/src/core/mod.rs"]
pub mod core;
#[allow(dead_code, unused_imports)] // Some are for the relay's other modules.
#[path = "../../relay/src/route/mod.rs"]
pub mod route;
pub mod source;
