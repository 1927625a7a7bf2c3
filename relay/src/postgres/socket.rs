//! The transport under a connection: TCP, TLS over TCP, or a Unix socket.
//!
//! Opens one address and negotiates TLS as told; which address, which mode and how often is left
//! to `dial`. Carries bytes for `sql` and for `source`.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{certificate, conninfo::TcpSettings, error::ConnectError, tls};

/// What the URL does not say: a line of which nothing comes back is given up within a minute, also
/// while nothing is being asked. The system's own default is two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// An open connection to a server. Reading and writing are cancel safe as for the streams within.
#[derive(Debug)]
pub enum Socket {
    /// Unencrypted TCP.
    Tcp(TcpStream),
    /// A Unix socket; PostgreSQL has no TLS over these.
    Unix(UnixStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

/// How to come to TLS on a fresh TCP connection.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) server_name: ServerName<'static>,
    /// Without asking first.
    pub(crate) direct: bool,
    /// Go on unencrypted if the server has no TLS.
    pub(crate) optional: bool,
}

impl Socket {
    pub(crate) async fn open_unix(path: &Path) -> Result<Self, ConnectError> {
        UnixStream::connect(path)
            .await
            .map(Socket::Unix)
            .map_err(|error| ConnectError::io("can't connect", error))
    }

    pub(crate) async fn open_tcp(
        address: SocketAddr,
        tcp: &TcpSettings,
    ) -> Result<TcpStream, ConnectError> {
        TcpStream::connect(address)
            .await
            .and_then(|stream| configure(&stream, tcp).map(|()| stream))
            .map_err(|error| ConnectError::io(&format!("can't connect to {address}"), error))
    }

    /// Whether the line is encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Socket::Tls(_))
    }

    /// Wakes the reader only when `bytes` are there (or the connection ends): fewer, larger reads.
    /// The kernel holds it below half of its receive buffer. Under TLS it counts encrypted bytes.
    /// A read that is tried anyway still takes what is there. Does nothing on a Unix socket.
    ///
    /// # Errors
    /// The kernel refuses the option.
    pub fn set_read_low_water(&self, bytes: usize) -> io::Result<()> {
        let stream = match self {
            Socket::Tcp(stream) => stream,
            Socket::Tls(stream) => stream.get_ref().0,
            Socket::Unix(_) => return Ok(()),
        };
        let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open as long as `stream` is borrowed, and the pointer and
        // length describe `value`, which the kernel only reads during the call.
        let result = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw const value).cast(),
                length,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The data that SCRAM binds to this line, where TLS and the certificate provide it.
    pub(crate) fn channel_binding(&self) -> Option<Vec<u8>> {
        let Socket::Tls(stream) = self else { return None };
        let (_, session) = stream.get_ref();
        certificate::channel_binding(session.peer_certificates()?.first()?)
    }
}

fn configure(stream: &TcpStream, tcp: &TcpSettings) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(tcp.user_timeout.unwrap_or(USER_TIMEOUT)))?;
    if tcp.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(tcp.keepalive_idle.unwrap_or(KEEPALIVE_IDLE))
            .with_interval(tcp.keepalive_interval.unwrap_or(KEEPALIVE_INTERVAL))
            .with_retries(tcp.keepalive_retries.unwrap_or(KEEPALIVE_RETRIES));
        socket.set_tcp_keepalive(&keepalive)?;
    }
    Ok(())
}

impl Handshake {
    /// Asks for TLS and shakes hands; the stream is lost if that fails.
    pub(crate) async fn perform(&self, mut stream: TcpStream) -> Result<Socket, ConnectError> {
        if !self.direct && !ask_for_tls(&mut stream).await? {
            return if self.optional {
                Ok(Socket::Tcp(stream))
            } else {
                Err(ConnectError::permanent(
                    "the server has no TLS",
                    "set ssl = on there, or sslmode=prefer or disable in postgres.url, or in PGSSLMODE, which \
                     stands in where postgres.url has no sslmode",
                ))
            };
        }
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector
            .connect(self.server_name.clone(), stream)
            .await
            .map_err(|error| ConnectError::io("the TLS handshake failed", error))?;
        if self.direct && stream.get_ref().1.alpn_protocol() != Some(tls::ALPN) {
            return Err(ConnectError::permanent(
                "the server did not agree to speak PostgreSQL directly over TLS",
                "remove sslnegotiation=direct",
            ));
        }
        Ok(Socket::Tls(Box::new(stream)))
    }
}

/// Sends SSLRequest. Reads no byte past the answer: what follows belongs to TLS, and plain text
/// slipped in by somebody on the way must not be taken for the server's.
async fn ask_for_tls(stream: &mut TcpStream) -> Result<bool, ConnectError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    let lost = |error| ConnectError::io("asking for TLS", error);
    stream.write_all(&request).await.map_err(lost)?;
    match stream.read_u8().await.map_err(lost)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // The text of an error is not shown: anyone on the way could have written it.
        b'E' => {
            Err(ConnectError::transient("the server answered the request for TLS with an error"))
        }
        _ => Err(ConnectError::permanent(
            "the answer to the request for TLS is not PostgreSQL's",
            "check host and port",
        )),
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
