//! The relay's pure modules, compiled from the same files and without the rest of it: a fuzz
//! build takes seconds and not the minutes that librdkafka and OpenSSL take. That it compiles
//! shows that decoding and routing need no socket, clock or task.

#[path = "../../relay/src/charset.rs"]
pub mod charset;
#[path = "../../relay/src/destination.rs"]
pub mod destination;
#[path = "../../relay/src/header.rs"]
pub mod header;
#[path = "../../relay/src/landmark.rs"]
pub mod landmark;
#[path = "../../relay/src/lsn.rs"]
pub mod lsn;
#[path = "../../relay/src/position.rs"]
pub mod position;
#[path = "../../relay/src/record.rs"]
pub mod record;
#[allow(unused_imports)] // Some are for the relay's other modules.
#[path = "../../relay/src/route/mod.rs"]
pub mod route;
#[path = "../../relay/src/row.rs"]
pub mod row;
pub mod source;
#[path = "../../relay/src/snapshot.rs"]
pub mod snapshot;
#[path = "../../relay/src/witness.rs"]
pub mod witness;
