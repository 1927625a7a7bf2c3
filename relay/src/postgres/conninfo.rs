//! Connection settings, written as a URL or as libpq's `key=value` list.
//!
//! Takes what libpq takes, with libpq's defaults and environment variables, and refuses by name
//! what this client can't do. Reads the environment once and asks which default files exist;
//! opens none of them and resolves no name. Used by `config`; read by `dial`, `tls`, `socket`.

mod defaults;
mod masked;
mod text;

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::core::secret::Secret;
pub(crate) use defaults::{Environment, is_default_directory};
pub(crate) use masked::masked;

/// Everything needed to reach a database. Prints without its password.
#[derive(Clone, Debug)]
pub struct ConnectSettings {
    /// In the order to try; never empty.
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) password: Option<Secret>,
    pub(crate) passfile: Option<PathBuf>,
    pub(crate) options: Option<String>,
    pub(crate) application_name: Option<String>,
    pub(crate) tls: TlsSettings,
    pub(crate) tcp: TcpSettings,
    /// For one attempt at one address, to the end of authentication. `None` waits for ever.
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) target: TargetSession,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) load_balance: bool,
    /// Where the connection string was read, and is read again for each connection.
    pub(crate) file: Option<PathBuf>,
}

/// One server to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) host: Host,
    /// Connected to instead of looking the host's name up.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
}

/// How a server is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A DNS name or an address.
    Tcp(String),
    /// The directory of a Unix socket.
    Unix(PathBuf),
}

/// TLS as the settings ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    pub(crate) mode: SslMode,
    /// Skip the request and begin with the handshake (`sslnegotiation=direct`).
    pub(crate) direct: bool,
    pub(crate) roots: Roots,
    pub(crate) client: Option<ClientCertificate>,
}

/// libpq's `sslmode`, after `require` with a root certificate has become `verify-ca`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl SslMode {
    pub(crate) fn verifies(self) -> bool {
        matches!(self, SslMode::VerifyCa | SslMode::VerifyFull)
    }
}

/// Keys and values of a connection string as they are written, nothing filled in; `None` when it
/// can't be read.
pub(crate) fn parameters(text: &str) -> Option<BTreeMap<String, String>> {
    text::pairs(text).ok().map(|pairs| pairs.into_iter().collect())
}

/// Variables of the environment that stand in for what a connection string lacks: key, variable, and value without
/// secrets.
pub(crate) fn standing_in(text: &str) -> Vec<(&'static str, &'static str, String)> {
    defaults::standing_in(text, &Environment::of_process())
}

/// Whose signature on a server's certificate is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    File(PathBuf),
    System,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct TcpSettings {
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) keepalive: bool,
    pub(crate) keepalive_idle: Option<Duration>,
    pub(crate) keepalive_interval: Option<Duration>,
    pub(crate) keepalive_retries: Option<u32>,
}

/// libpq's `target_session_attrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetSession {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// Why the text is no connection: every problem found, each with its key and what corrects it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("; "))]
pub struct ConnInfoError {
    problems: Vec<String>,
}

impl ConnInfoError {
    /// One text per problem; never empty, never holds the password.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl ConnectSettings {
    /// Reads `postgres://…`, `postgresql://…` or `host=… port=…`. What is not given comes from
    /// libpq's environment variables, then from its defaults; `connect_timeout` alone differs:
    /// 30 s for one attempt, since a server that never answers would hold a daemon for ever.
    ///
    /// # Errors
    /// [`ConnInfoError`] with all problems at once.
    pub fn parse(url: &str) -> Result<ConnectSettings, ConnInfoError> {
        Self::parse_in(url, &Environment::of_process())
    }

    pub(crate) fn parse_in(
        url: &str,
        environment: &Environment<'_>,
    ) -> Result<ConnectSettings, ConnInfoError> {
        let pairs =
            text::pairs(url).map_err(|problem| ConnInfoError { problems: vec![problem] })?;
        defaults::Values::new(pairs, environment).settings()
    }

    /// The same, read from a file, which may hold another connection string later.
    #[must_use]
    pub fn from_file(mut self, file: Option<PathBuf>) -> Self {
        self.file = file;
        self
    }

    /// As the file has it by now: whoever changes passwords rewrites it. While it can't be read, as
    /// in the middle of that, what was read last stays.
    pub(crate) async fn renewed(&self) -> ConnectSettings {
        let Some(file) = &self.file else { return self.clone() };
        let read = tokio::fs::read_to_string(file).await.map_err(|error| error.to_string());
        let parsed = read.and_then(|text| match text.trim() {
            "" => Err("it is empty".to_owned()),
            url => ConnectSettings::parse(url).map_err(|error| error.to_string()),
        });
        match parsed {
            Ok(settings) => settings.from_file(Some(file.clone())),
            Err(error) => {
                tracing::warn!(
                    file = %file.display(),
                    error,
                    "postgres.url_file can't be used now; the connection string that was read last is"
                );
                self.clone()
            }
        }
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The role's name.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Host, port and database for a log line, such as `db.internal:5432/app`.
    pub fn describe(&self) -> String {
        let hosts: Vec<_> = self.endpoints.iter().map(ToString::to_string).collect();
        format!("{}/{}", hosts.join(","), self.database)
    }

    /// Hosts beyond loopback and Unix sockets whose identity would not be verified: anyone on
    /// the way could read and change what passes. `sslmode=verify-full` corrects it.
    pub fn unverified_hosts(&self) -> Vec<String> {
        let verified = self.tls.mode.verifies();
        let outside = self.endpoints.iter().filter(|endpoint| !verified && !endpoint.is_local());
        outside.map(ToString::to_string).collect()
    }
}

impl fmt::Display for ConnectSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Endpoint {
    fn is_local(&self) -> bool {
        match (&self.host, self.address) {
            (Host::Unix(_), _) => true,
            (Host::Tcp(_), Some(address)) => address.is_loopback(),
            (Host::Tcp(name), None) => {
                name.eq_ignore_ascii_case("localhost")
                    || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
            }
        }
    }

    /// The socket's file, for a Unix host.
    pub(crate) fn socket_path(&self, directory: &Path) -> PathBuf {
        directory.join(format!(".s.PGSQL.{}", self.port))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Unix(directory) => write!(f, "{}", self.socket_path(directory).display()),
            Host::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Tcp(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests;
