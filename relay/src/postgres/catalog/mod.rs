//! What the server's catalogs say: slots, publications, tables, encodings, settings. Reads only.

pub mod altered;
pub mod blame;
pub mod characters;
mod columns;
mod error;
pub mod kept;
pub mod meddling;
pub mod publication;
pub mod renamed;
mod rows;
pub mod slot;
pub mod standby_slots;
mod suspects;
pub mod table;

pub use self::error::InspectError;
