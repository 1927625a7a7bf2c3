//! tokio-postgres' start-up over a line of ours, and what its errors mean.

use std::{error::Error as _, future::Ready};

use tokio_postgres::{Client, Config, Connection, tls::TlsConnect};

use super::{
    conninfo::{ChannelBinding, ConnectSettings},
    error::{ConnectError, ServerError},
    meter::Metered,
    pins, tls,
};
use crate::core::secret::Secret;

/// Logs in on a fresh line. Nothing moves but while the connection is polled.
///
/// # Errors
/// [`ConnectError`], sorted by whether waiting may help.
pub(super) async fn open(
    settings: &ConnectSettings,
    application_name: &str,
    socket: Metered,
    password: Option<&Secret>,
) -> Result<(Client, Connection<Metered, Metered>), ConnectError> {
    let mut config = Config::new();
    config.user(&settings.user).dbname(&settings.database);
    config.application_name(settings.application_name.as_deref().unwrap_or(application_name));
    if let Some(password) = password {
        config.password(password.expose());
    }
    config.options(pins::options(settings.options.as_deref()));
    config.channel_binding(match settings.channel_binding {
        ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
        ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
        ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
    });
    // The line is encrypted already, or not to be: tokio-postgres must not ask for TLS, and
    // its "direct" handshake is to take the line as it is, with its channel binding.
    if socket.is_tls() {
        config
            .ssl_mode(tokio_postgres::config::SslMode::Require)
            .ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct);
    } else {
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
    }
    let connected = config.connect_raw(socket, Encrypted).await;
    connected.map_err(|e| connect_error(e).naming(&settings.database, &settings.user, true))
}

/// Takes a line that is encrypted already for its own handshake's result.
struct Encrypted;

impl TlsConnect<Metered> for Encrypted {
    type Stream = Metered;
    type Error = std::convert::Infallible;
    type Future = Ready<Result<Metered, Self::Error>>;

    fn connect(self, stream: Metered) -> Self::Future {
        std::future::ready(Ok(stream))
    }
}

/// Sorts tokio-postgres' errors of the start-up.
pub(super) fn connect_error(error: tokio_postgres::Error) -> ConnectError {
    if let Some(error) = error.as_db_error() {
        return ConnectError::server(&ServerError::of(error));
    }
    if error.is_closed() {
        return ConnectError::transient("the server closed the connection during the start-up");
    }
    let source = error.source().map(ToString::to_string).unwrap_or_default();
    let what = match source.as_str() {
        "password missing" => {
            "the server asks for a password, and the settings have none".to_owned()
        }
        "" => error.to_string(),
        _ => format!("{error}: {source}"),
    };
    match error.into_source().map(|source| source.downcast::<std::io::Error>()) {
        // SCRAM's and the parser's verdicts on what the server said come as these kinds.
        Some(Ok(error))
            if tls::verdict(&error).is_some()
                || !matches!(
                    error.kind(),
                    std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData
                ) =>
        {
            ConnectError::io("during the start-up", *error)
        }
        _ => ConnectError::permanent(
            what,
            "check user, password (url, passfile or PGPASSWORD) and channel_binding",
        ),
    }
}
