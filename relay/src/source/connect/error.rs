//! Why a command, or the stream, was refused, by what may be done.

use std::io;

use crate::postgres::error::ServerError;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The server refused it. The connection continues.
    #[error("{doing}: {error}")]
    Refused {
        /// The command's purpose.
        doing: &'static str,
        /// What the server said.
        error: ServerError,
    },
    /// The connection is lost, or what came over it can't be read: make a new one.
    #[error("{doing}: {source}")]
    Lost {
        /// The command's purpose.
        doing: &'static str,
        /// The transport's error, or the protocol's violation.
        source: io::Error,
    },
    /// An earlier command was dropped half-way: make a new connection.
    #[error("{doing}: an earlier command on this connection was interrupted")]
    Interrupted {
        /// The command's purpose.
        doing: &'static str,
    },
}

impl QueryError {
    /// The server's code, if it was the server that refused.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            QueryError::Refused { error, .. } => Some(&error.sqlstate),
            _ => None,
        }
    }
}

/// Why the stream did not begin, sorted by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process streams from it: wait for its end, or terminate it.
    #[error("{0}")]
    SlotActive(ServerError, Option<i32>),
    /// There is no such slot: make it, or repair.
    #[error("{0}")]
    SlotMissing(ServerError),
    /// The server can't serve the slot: its WAL is gone, it was invalidated, belongs to another
    /// database, or `wal_level` is not `logical`. `slot::inspect` tells which.
    #[error("{0}")]
    SlotLost(ServerError),
    /// Connect again, after a while.
    #[error("the stream can't begin: {0}")]
    Transient(#[source] QueryError),
    /// Only a person can correct it.
    #[error("the stream can't begin: {0}")]
    Other(#[source] QueryError),
}
