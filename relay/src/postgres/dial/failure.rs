//! Where an attempt to connect failed.

use crate::postgres::{conninfo::SslMode, error::ConnectError};

/// Where an attempt failed, which decides whether `sslmode` has another way.
pub(super) enum Failure {
    Reach(ConnectError),
    Handshake(ConnectError),
    Startup { error: ConnectError, tls: bool },
}

impl Failure {
    pub(super) fn into_error(self) -> ConnectError {
        match self {
            Failure::Reach(error) | Failure::Handshake(error) | Failure::Startup { error, .. } => {
                error
            }
        }
    }

    /// As libpq: `prefer` continues in plain text, `allow` with TLS, when the first way is refused.
    pub(super) fn leaves_another_way(&self, mode: SslMode) -> bool {
        let refused = |error: &ConnectError| {
            error.sqlstate().is_some_and(|sqlstate| sqlstate.starts_with("28"))
        };
        match (mode, self) {
            (SslMode::Prefer, Failure::Handshake(_)) => true,
            // In TLS 1.3 a client's certificate is refused after the handshake.
            (SslMode::Prefer, Failure::Startup { error, tls: true }) => {
                refused(error) || error.is_tls_verdict()
            }
            (SslMode::Allow, Failure::Startup { error, .. }) => refused(error),
            _ => false,
        }
    }
}
