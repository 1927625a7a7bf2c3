//! Connections to PostgreSQL: how the settings are written, how a server is reached and trusted.
//!
//! One road for SQL and for replication: [`conninfo`] reads the settings, [`dial`] walks the
//! hosts, [`socket`] opens the transport, [`tls`] decides whom to trust, `pins` settles the session.
//! What is spoken over it is left to [`sql`] (tokio-postgres) and to `source::connect` (the replication protocol).

pub mod catalog;
mod certificate;
pub mod conninfo;
pub mod dial;
pub mod error;
pub(crate) mod holders;
pub(crate) mod literal;
mod login;
mod meter;
mod passfile;
pub(crate) mod pins;
pub(crate) mod shortage;
pub mod socket;
pub mod sql;
pub mod tls;
pub(crate) mod watch;

pub use conninfo::{ConnInfoError, ConnectSettings};
pub use error::ConnectError;
