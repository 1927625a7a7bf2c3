//! Logging in over the replication protocol: trust, clear text, MD5, SCRAM-SHA-256 with and
//! without channel binding.
//!
//! The channel binding's data comes from the transport; whether it must be used, from the
//! settings. Called by `connect`, after the start-up packet and before anything else.

use std::io;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::wire::{Wire, malformed};
use crate::{
    core::secret::Secret,
    postgres::{
        conninfo::ChannelBinding,
        error::{ConnectError, ServerError},
    },
};

/// What a login may use.
pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a Secret>,
    pub(super) channel_binding: ChannelBinding,
    /// What this line can be bound to: `None` without TLS, or where the certificate has no hash.
    pub(super) end_point: Option<Vec<u8>>,
}

/// Answers the server's requests until it says that the login is good.
///
/// # Errors
/// The server's refusal, sorted; or a permanent error where the settings can't be met.
pub(super) async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    credentials: Credentials<'_>,
) -> Result<(), ConnectError> {
    let mut answer = BytesMut::new();
    match next(wire).await? {
        Message::AuthenticationOk => return unbound(&credentials),
        Message::AuthenticationCleartextPassword => {
            unbound(&credentials)?;
            let password = password(&credentials)?.expose();
            frontend::password_message(password.as_bytes(), &mut answer)
                .map_err(|e| unencodable(&e))?;
            send(wire, &answer).await?;
        }
        Message::AuthenticationMd5Password(body) => {
            unbound(&credentials)?;
            let password = password(&credentials)?.expose().as_bytes();
            let hash = md5_hash(credentials.user.as_bytes(), password, body.salt());
            frontend::password_message(hash.as_bytes(), &mut answer)
                .map_err(|e| unencodable(&e))?;
            send(wire, &answer).await?;
        }
        Message::AuthenticationSasl(body) => scram(wire, &body, credentials).await?,
        Message::AuthenticationGss
        | Message::AuthenticationSspi
        | Message::AuthenticationKerberosV5
        | Message::AuthenticationScmCredential => {
            return Err(ConnectError::permanent(
                "the server asks for a login that is not supported (GSSAPI, SSPI or the like)",
                "use scram-sha-256 or cert in pg_hba.conf",
            ));
        }
        _ => return Err(unexpected()),
    }
    match next(wire).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(unexpected()),
    }
}

async fn scram<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    body: &AuthenticationSaslBody,
    credentials: Credentials<'_>,
) -> Result<(), ConnectError> {
    let (mut offered, mut plus_offered) = (false, false);
    let mut mechanisms = body.mechanisms();
    while let Some(mechanism) = mechanisms.next().map_err(during)? {
        offered |= mechanism == SCRAM_SHA_256;
        plus_offered |= mechanism == SCRAM_SHA_256_PLUS;
    }
    let wanted = credentials.channel_binding != ChannelBinding::Disable;
    let end_point = credentials.end_point.clone().filter(|_| wanted);
    let (mechanism, binding) = match end_point {
        Some(hash) if plus_offered => {
            (SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash))
        }
        // Says "I could have bound": a server that did offer it sees that somebody on the way
        // took the offer out.
        Some(_) if offered => (SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None if offered => (SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
        _ => {
            return Err(ConnectError::permanent(
                "the server offers no mechanism of SASL that is supported",
                "use scram-sha-256 in pg_hba.conf",
            ));
        }
    };
    if mechanism != SCRAM_SHA_256_PLUS {
        unbound(&credentials)?;
    }
    let mut scram = ScramSha256::new(password(&credentials)?.expose().as_bytes(), binding);
    let mut answer = BytesMut::new();
    frontend::sasl_initial_response(mechanism, scram.message(), &mut answer)
        .map_err(|e| unencodable(&e))?;
    send(wire, &answer).await?;
    let Message::AuthenticationSaslContinue(body) = next(wire).await? else {
        return Err(unexpected());
    };
    scram.update(body.data()).map_err(|e| not_proven(&e))?;
    answer.clear();
    frontend::sasl_response(scram.message(), &mut answer).map_err(|e| unencodable(&e))?;
    send(wire, &answer).await?;
    let Message::AuthenticationSaslFinal(body) = next(wire).await? else {
        return Err(unexpected());
    };
    scram.finish(body.data()).map_err(|e| not_proven(&e))
}

/// The next message that is neither an error nor a notice.
async fn next<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
) -> Result<Message, ConnectError> {
    loop {
        match wire.message().await.map_err(during)? {
            Message::ErrorResponse(body) => {
                let error = ServerError::read(body.fields()).map_err(during)?;
                return Err(ConnectError::server(&error));
            }
            Message::NoticeResponse(_) => {}
            message => return Ok(message),
        }
    }
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    answer: &[u8],
) -> Result<(), ConnectError> {
    wire.send(answer).await.map_err(during)
}

fn password<'a>(credentials: &Credentials<'a>) -> Result<&'a Secret, ConnectError> {
    credentials.password.ok_or_else(|| {
        ConnectError::permanent(
            "the server asks for a password and none is given",
            "give it in the url, in a passfile or as PGPASSWORD",
        )
    })
}

/// Whether the login may continue without channel binding.
fn unbound(credentials: &Credentials<'_>) -> Result<(), ConnectError> {
    if credentials.channel_binding != ChannelBinding::Require {
        return Ok(());
    }
    Err(ConnectError::permanent(
        "channel_binding=require, but this login is not bound to the TLS connection",
        "use scram-sha-256 over TLS with a certificate signed by RSA or ECDSA",
    ))
}

fn during(error: io::Error) -> ConnectError {
    ConnectError::io("while logging in", error)
}

fn not_proven(error: &io::Error) -> ConnectError {
    ConnectError::permanent(
        format!("SCRAM failed: {error}"),
        "the server does not know the password, or is not the one it claims to be",
    )
}

fn unencodable(error: &io::Error) -> ConnectError {
    ConnectError::permanent(
        format!("the password can't be sent: {error}"),
        "it must not hold a zero byte",
    )
}

fn unexpected() -> ConnectError {
    during(malformed("an unexpected message"))
}

#[cfg(test)]
mod tests;
