//! The walk over hosts, addresses and `sslmode`'s fallbacks until a session stands.
//!
//! The same for SQL and for replication: what is said once a line is open comes in as a
//! `Startup`. One attempt, from the first packet to the end of authentication, is bounded by
//! `connect_timeout`. Retrying later is the caller's.

mod failure;

use std::{
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rand::seq::SliceRandom;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, time::timeout};
use tracing::debug;

use self::failure::Failure;
use super::{
    conninfo::{ConnectSettings, Endpoint, Host, SslMode, TargetSession, TcpSettings},
    error::ConnectError,
    passfile,
    socket::{Handshake, Socket},
    tls,
};
use crate::core::secret::Secret;

/// How one kind of session begins on an open line.
pub(crate) trait Startup: Sync {
    /// What stands in the end.
    type Session: Send;

    /// Sends the start-up packet and authenticates.
    fn start(&self, line: Line)
    -> impl Future<Output = Result<Self::Session, ConnectError>> + Send;

    /// Runs a query of one row and one column.
    fn ask(
        &self,
        session: &mut Self::Session,
        query: &'static str,
    ) -> impl Future<Output = Result<String, ConnectError>> + Send;
}

/// An open line, and what belongs to it.
pub(crate) struct Line {
    pub(crate) socket: Socket,
    /// How it was opened, for a cancel request that must reach the same server.
    pub(crate) route: Route,
    pub(crate) password: Option<Secret>,
}

/// One way to one server.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// Host and port, for a person.
    pub(crate) host: String,
    place: Place,
    tcp: TcpSettings,
    timeout: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Place {
    Unix(PathBuf),
    Tcp { address: SocketAddr, handshake: Option<Handshake> },
}

/// Ends a command that a server is running, over a line of its own.
#[derive(Clone, Debug)]
pub struct CancelHandle {
    route: Route,
    process_id: i32,
    secret_key: i32,
}

impl CancelHandle {
    pub(crate) fn new(route: Route, process_id: i32, secret_key: i32) -> Self {
        CancelHandle { route, process_id, secret_key }
    }

    /// Asks the server to end what the connection is running, and returns when it has taken
    /// note. Whether the command was still running is not known from this.
    ///
    /// # Errors
    /// The server can't be reached.
    pub async fn cancel(&self) -> Result<(), ConnectError> {
        let ask = async {
            let mut socket = self.route.reopen().await?;
            let mut request = BytesMut::new();
            frontend::cancel_request(self.process_id, self.secret_key, &mut request);
            let lost = |error| ConnectError::io("cancelling a command", error);
            socket.write_all(&request).await.map_err(lost)?;
            socket.flush().await.map_err(lost)?;
            // The server answers by closing, when the signal is sent.
            match socket.read_u8().await {
                Ok(_) | Err(_) => Ok(()),
            }
        };
        within(self.route.timeout, ask).await.map_err(|error| error.at(&self.route.host))
    }
}

impl Route {
    /// Another line to the same server, in the same way.
    ///
    /// # Errors
    /// The server can't be reached.
    pub(crate) async fn reopen(&self) -> Result<Socket, ConnectError> {
        self.open().await.map_err(Failure::into_error)
    }

    async fn open(&self) -> Result<Socket, Failure> {
        match &self.place {
            Place::Unix(path) => Socket::open_unix(path).await.map_err(Failure::Reach),
            Place::Tcp { address, handshake } => {
                let stream = Socket::open_tcp(*address, &self.tcp).await.map_err(Failure::Reach)?;
                match handshake {
                    None => Ok(Socket::Tcp(stream)),
                    Some(handshake) => handshake.perform(stream).await.map_err(Failure::Handshake),
                }
            }
        }
    }
}

/// Tries every host until one gives the kind of session that is asked for.
///
/// # Errors
/// That of the host that refused permanently, else all hosts' errors in one.
pub(crate) async fn dial<S: Startup>(
    settings: &ConnectSettings,
    startup: &S,
) -> Result<S::Session, ConnectError> {
    let dialer = Dialer { settings, startup, tls: load_tls(settings).await? };
    let mut endpoints: Vec<_> = settings.endpoints.iter().collect();
    if settings.load_balance {
        endpoints.shuffle(&mut rand::rng());
    }
    let targets: &[TargetSession] = match &settings.target {
        TargetSession::PreferStandby => &[TargetSession::Standby, TargetSession::Any],
        target => std::slice::from_ref(target),
    };
    let mut failed: Option<ConnectError> = None;
    for target in targets {
        for endpoint in &endpoints {
            match dialer.endpoint(endpoint, *target).await {
                Ok(session) => return Ok(session),
                Err(error) => failed = Some(another_failed(failed, error)?),
            }
        }
    }
    Err(failed.unwrap_or_else(|| ConnectError::permanent("no host is given", "set host")))
}

/// What is known when one more place has failed and others are left. As in libpq, a server that answered and
/// refused ends the walk.
fn another_failed(
    earlier: Option<ConnectError>,
    error: ConnectError,
) -> Result<ConnectError, ConnectError> {
    if error.sqlstate().is_some() && !error.is_transient() {
        return Err(error);
    }
    Ok(match earlier {
        Some(earlier) => earlier.and(error),
        None => error,
    })
}

/// `None` when no line of these settings can need TLS.
async fn load_tls(settings: &ConnectSettings) -> Result<Option<Arc<ClientConfig>>, ConnectError> {
    let unix = |endpoint: &Endpoint| matches!(endpoint.host, Host::Unix(_));
    if settings.tls.mode == SslMode::Disable || settings.endpoints.iter().all(unix) {
        return Ok(None);
    }
    let tls = settings.tls.clone();
    // It reads files, and parses some hundred certificates of the system's.
    let loaded = tokio::task::spawn_blocking(move || tls::client_config(&tls)).await;
    match loaded {
        Ok(Ok(config)) => Ok(Some(Arc::new(config))),
        Ok(Err(error)) => Err(ConnectError::permanent(
            error.to_string(),
            "correct sslrootcert, sslcert or sslkey",
        )),
        Err(error) => Err(ConnectError::transient(format!("loading certificates: {error}"))),
    }
}

struct Dialer<'a, S> {
    settings: &'a ConnectSettings,
    startup: &'a S,
    tls: Option<Arc<ClientConfig>>,
}

impl<S: Startup> Dialer<'_, S> {
    async fn endpoint(
        &self,
        endpoint: &Endpoint,
        target: TargetSession,
    ) -> Result<S::Session, ConnectError> {
        let host = endpoint.to_string();
        let limit = self.settings.connect_timeout;
        let places = match &endpoint.host {
            Host::Unix(directory) => vec![Place::Unix(endpoint.socket_path(directory))],
            Host::Tcp(name) => within(limit, self.resolve(endpoint, name))
                .await
                .map_err(|error| error.at(&host))?
                .into_iter()
                .map(|address| Place::Tcp { address, handshake: None })
                .collect(),
        };
        let password = self.password(endpoint).await;
        let mut failed: Option<ConnectError> = None;
        for place in places {
            let tcp = self.settings.tcp;
            let route = Route { host: host.clone(), place, tcp, timeout: limit };
            let connected = AtomicBool::new(false);
            let attempt = async {
                let mut session = self.attempt(endpoint, route, &password, &connected).await?;
                self.require(&mut session, target).await?;
                Ok(session)
            };
            let attempted =
                within(limit, attempt).await.map_err(|error| match connected.load(Relaxed) {
                    true => error.during_login().at(&host),
                    false => error.at(&host),
                });
            match attempted {
                Ok(session) => {
                    debug!(%host, "connected");
                    return Ok(session);
                }
                Err(error) => failed = Some(another_failed(failed, error)?),
            }
        }
        Err(failed.unwrap_or_else(|| ConnectError::transient("the name has no address").at(&host)))
    }

    async fn resolve(
        &self,
        endpoint: &Endpoint,
        name: &str,
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        if let Some(address) = endpoint.address {
            return Ok(vec![SocketAddr::new(address, endpoint.port)]);
        }
        let found = tokio::net::lookup_host((name, endpoint.port)).await;
        let found = found.map_err(|error| ConnectError::io("can't look the name up", error))?;
        let mut addresses: Vec<_> = found.collect();
        if self.settings.load_balance {
            addresses.shuffle(&mut rand::rng());
        }
        Ok(addresses)
    }

    async fn password(&self, endpoint: &Endpoint) -> Option<Secret> {
        if let Some(password) = &self.settings.password {
            return Some(password.clone());
        }
        let host = passfile::host_name(&endpoint.host);
        let login = passfile::Login {
            host: &host,
            port: endpoint.port,
            database: &self.settings.database,
            user: &self.settings.user,
        };
        passfile::look_up(self.settings.passfile.as_deref()?, login).await
    }

    /// One address, in the one or two ways that `sslmode` allows.
    async fn attempt(
        &self,
        endpoint: &Endpoint,
        plain: Route,
        password: &Option<Secret>,
        connected: &AtomicBool,
    ) -> Result<S::Session, ConnectError> {
        let mode = self.settings.tls.mode;
        let encrypted = self.encrypted(endpoint, &plain);
        let (first, second) = match (mode, encrypted) {
            (_, None) => (plain, None),
            (SslMode::Disable, Some(_)) => (plain, None),
            (SslMode::Allow, Some(encrypted)) => (plain, encrypted.ok()),
            (SslMode::Prefer, Some(Ok(encrypted))) => (encrypted, Some(plain)),
            (_, Some(encrypted)) => (encrypted?, None),
        };
        let failure = match self.once(first, password, connected).await {
            Ok(session) => return Ok(session),
            Err(failure) => failure,
        };
        match second {
            Some(second) if failure.leaves_another_way(mode) => {
                let error = failure.into_error();
                self.once(second, password, connected).await.map_err(|failure| {
                    let other = failure.into_error();
                    if error.sqlstate() == other.sqlstate() { error } else { error.and(other) }
                })
            }
            _ => Err(failure.into_error()),
        }
    }

    /// The same route with TLS; `None` where there is none, as on a Unix socket.
    fn encrypted(&self, endpoint: &Endpoint, plain: &Route) -> Option<Result<Route, ConnectError>> {
        let config = self.tls.as_ref()?;
        let (Place::Tcp { address, .. }, Host::Tcp(name)) = (&plain.place, &endpoint.host) else {
            return None;
        };
        let server_name = match ServerName::try_from(name.clone()) {
            Ok(server_name) => server_name,
            Err(_) => {
                return Some(Err(ConnectError::permanent(
                    "TLS needs a host name or address",
                    "correct host",
                )));
            }
        };
        let handshake = Handshake {
            config: Arc::clone(config),
            server_name,
            direct: self.settings.tls.direct,
            optional: self.settings.tls.mode == SslMode::Prefer,
        };
        let place = Place::Tcp { address: *address, handshake: Some(handshake) };
        Some(Ok(Route { place, ..plain.clone() }))
    }

    /// `connected` is set once the line is open.
    async fn once(
        &self,
        route: Route,
        password: &Option<Secret>,
        connected: &AtomicBool,
    ) -> Result<S::Session, Failure> {
        let socket = route.open().await?;
        connected.store(true, Relaxed);
        let tls = socket.is_tls();
        let line = Line { socket, route, password: password.clone() };
        self.startup.start(line).await.map_err(|error| Failure::Startup { error, tls })
    }

    async fn require(
        &self,
        session: &mut S::Session,
        target: TargetSession,
    ) -> Result<(), ConnectError> {
        const RECOVERY: &str = "select pg_catalog.pg_is_in_recovery()";
        const READ_ONLY: &str = "show transaction_read_only";
        let (query, wanted, asked_for, is) = match target {
            TargetSession::Any | TargetSession::PreferStandby => return Ok(()),
            TargetSession::ReadWrite => (READ_ONLY, "off", "read-write", "a standby, or read-only"),
            TargetSession::ReadOnly => {
                (READ_ONLY, "on", "read-only", "a primary that takes writes")
            }
            TargetSession::Primary => (RECOVERY, "f", "primary", "a standby"),
            TargetSession::Standby => (RECOVERY, "t", "standby", "a primary"),
        };
        if self.startup.ask(session, query).await? == wanted {
            return Ok(());
        }
        // Transient: a failover may be under way.
        Err(ConnectError::transient(format!(
            "the server is {is}, and not what target_session_attrs={asked_for} asks for"
        )))
    }
}

/// Bounds one step of the walk.
async fn within<T>(
    limit: Option<Duration>,
    step: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    match limit {
        None => step.await,
        Some(limit) => {
            timeout(limit, step).await.unwrap_or_else(|_| Err(ConnectError::late(limit)))
        }
    }
}
