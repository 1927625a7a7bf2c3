//! What the server's catalogs say: slots, publications, tables, encodings, settings. Reads only.

pub mod characters;
pub mod publication;
pub mod slot;
pub mod standby_slots;
pub mod table;
