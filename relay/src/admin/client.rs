//! One GET over HTTP/1.0, for `outbox-relay status` and probes: no client library for one line.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// For connecting, asking and reading together.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than `/status` and `/metrics` ever are.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// No answer that could be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there, or it does not answer.
    #[error("no relay answers on {address}: is it running, with admin.listen at that address?")]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something else listens there.
    #[error("what answers on {address} is not a relay's admin address")]
    NotHttp {
        /// Where it was looked for.
        address: String,
    },
}

/// Status code and body of `path`.
///
/// # Errors
/// [`ClientError`]; nothing was changed on the other side.
pub async fn get(address: &str, path: &str) -> Result<(u16, String), ClientError> {
    let unreachable = |source| ClientError::Unreachable { address: address.to_owned(), source };
    let answer = timeout(PATIENCE, fetch(address, path))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    parse(&answer).ok_or_else(|| ClientError::NotHttp { address: address.to_owned() })
}

async fn fetch(address: &str, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    // No Host: the name in `address` need not be among those that the relay answers to.
    let request = format!("GET {path} HTTP/1.0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.to_owned()))
}
