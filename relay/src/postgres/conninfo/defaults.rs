//! What keys mean, and what stands in for those that are not given.
//!
//! Pairs and an environment go in; validated settings, or every problem at once, come out.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use super::{
    ChannelBinding, ClientCertificate, ConnInfoError, ConnectSettings, Endpoint, Host, Roots,
    SslMode, TargetSession, TcpSettings, TlsSettings, text::Pairs,
};
use crate::core::secret::{MASK, Secret, is_secret_name};

/// A server that accepts and never answers would hold a daemon for ever.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Debian's and upstream's; the first whose socket answers is used.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Every key that is understood, and libpq's environment variable for it.
const KEYS: [(&str, &str); 29] = [
    ("application_name", ""),
    ("channel_binding", "PGCHANNELBINDING"),
    ("client_encoding", ""),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("dbname", "PGDATABASE"),
    ("gssencmode", ""),
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("keepalives", ""),
    ("keepalives_count", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_retries", ""),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("options", "PGOPTIONS"),
    ("passfile", "PGPASSFILE"),
    ("password", "PGPASSWORD"),
    ("port", "PGPORT"),
    ("sslcert", "PGSSLCERT"),
    ("sslcompression", ""),
    ("sslkey", "PGSSLKEY"),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslsni", ""),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("tcp_user_timeout", ""),
    ("user", "PGUSER"),
    ("fallback_application_name", ""),
];

/// What the process's surroundings say; a value, so that tests have their own.
pub(crate) struct Environment<'a> {
    pub(crate) variable: &'a dyn Fn(&str) -> Option<String>,
    pub(crate) os_user: Option<String>,
    pub(crate) home: Option<PathBuf>,
    pub(crate) exists: &'a dyn Fn(&Path) -> bool,
}

impl Environment<'static> {
    pub(crate) fn of_process() -> Self {
        Environment {
            variable: &|name| std::env::var(name).ok(),
            os_user: whoami::username().ok(),
            home: std::env::home_dir().filter(|home| !home.as_os_str().is_empty()),
            exists: &|path| path.exists(),
        }
    }
}

/// Whether libpq calls sockets in this directory `localhost`.
pub(crate) fn is_default_directory(directory: &Path) -> bool {
    SOCKET_DIRECTORIES.iter().any(|default| directory == Path::new(default))
}

/// Variables that stand in for what a connection string does not have, with the key of each. Empty where it
/// can't be read.
pub(crate) fn standing_in(
    text: &str,
    environment: &Environment<'_>,
) -> Vec<(&'static str, &'static str, String)> {
    let Ok(pairs) = super::text::pairs(text) else { return Vec::new() };
    let given = |key: &str| pairs.iter().any(|(name, value)| name == key && !value.is_empty());
    let stands = KEYS.iter().filter(|(key, variable)| !variable.is_empty() && !given(key));
    stands
        .filter_map(|&(key, variable)| {
            let value = (environment.variable)(variable).filter(|value| !value.is_empty())?;
            Some((key, variable, if is_secret_name(key) { MASK.to_owned() } else { value }))
        })
        .collect()
}

/// Given values by key, and the problems met so far.
pub(super) struct Values<'a> {
    given: BTreeMap<String, String>,
    environment: &'a Environment<'a>,
    problems: Vec<String>,
}

impl<'a> Values<'a> {
    pub(super) fn new(pairs: Pairs, environment: &'a Environment<'a>) -> Self {
        let mut values = Values { given: BTreeMap::new(), environment, problems: Vec::new() };
        let mut after_secret = false;
        for (key, value) in pairs {
            if !KEYS.iter().any(|(known, _)| *known == key) {
                // An & or a space in a password makes a parameter of the rest of it.
                let key = if after_secret { "a parameter behind a secret one" } else { &key };
                values.problem(format!("{key}: this client has no such connection parameter"));
            }
            after_secret |= is_secret_name(&key);
            // The later of two counts, and an empty value is no value, as in libpq.
            values.given.insert(key, value);
        }
        for (key, variable) in KEYS {
            let absent = values.given.get(key).is_none_or(String::is_empty);
            if absent && !variable.is_empty() {
                values.given.extend((environment.variable)(variable).map(|v| (key.to_owned(), v)));
            }
        }
        values.given.retain(|_, value| !value.is_empty());
        values
    }

    pub(super) fn settings(mut self) -> Result<ConnectSettings, ConnInfoError> {
        let endpoints = self.endpoints();
        let tls = self.tls();
        let tcp = self.tcp();
        let connect_timeout = match self.number::<i64>("connect_timeout") {
            // 0 is libpq's word for no limit, and every wait has one here.
            Some(seconds) => match u64::try_from(seconds) {
                Ok(seconds) if seconds > 0 => Some(Duration::from_secs(seconds)),
                _ => Some(CONNECT_TIMEOUT),
            },
            None => Some(CONNECT_TIMEOUT),
        };
        let target = self.word(
            "target_session_attrs",
            &[
                ("any", TargetSession::Any),
                ("read-write", TargetSession::ReadWrite),
                ("read-only", TargetSession::ReadOnly),
                ("primary", TargetSession::Primary),
                ("standby", TargetSession::Standby),
                ("prefer-standby", TargetSession::PreferStandby),
            ],
        );
        let channel_binding = self.channel_binding(tls.mode);
        let load_balance = self.word("load_balance_hosts", &[("disable", false), ("random", true)]);
        self.refuse_what_can_not_be_done();
        let user = self.take("user").or_else(|| self.environment.os_user.clone());
        let user = user.unwrap_or_else(|| {
            self.problem("user: not given, and the operating system knows none for this process");
            String::new()
        });
        let home = self.environment.home.as_ref();
        let settings = ConnectSettings {
            endpoints,
            database: self.take("dbname").unwrap_or_else(|| user.clone()),
            user,
            password: self.take("password").map(Secret::new),
            passfile: self
                .take("passfile")
                .map(PathBuf::from)
                .or_else(|| home.map(|home| home.join(".pgpass"))),
            options: self.take("options"),
            application_name: self
                .take("application_name")
                .or_else(|| self.take("fallback_application_name")),
            tls,
            tcp,
            connect_timeout,
            target: target.unwrap_or(TargetSession::Any),
            channel_binding,
            load_balance: load_balance.unwrap_or(false),
            file: None,
        };
        if self.problems.is_empty() {
            Ok(settings)
        } else {
            Err(ConnInfoError { problems: self.problems })
        }
    }

    fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.given.remove(key)
    }

    fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let value = self.take(key)?;
        let found = words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.problem(format!("{key}: {value:?} is none of {}", known.join(", ")));
        }
        found
    }

    fn number<T: FromStr>(&mut self, key: &str) -> Option<T> {
        let value = self.take(key)?;
        let number = value.trim().parse().ok();
        if number.is_none() {
            self.problem(format!("{key}: {value:?} is not a whole number in range"));
        }
        number
    }

    /// A count of `unit`s; zero and less mean the system's default, as in libpq.
    fn duration(&mut self, key: &str, unit: fn(u64) -> Duration) -> Option<Duration> {
        let count = self.number::<i64>(key)?;
        u64::try_from(count).ok().filter(|count| *count > 0).map(unit)
    }

    fn endpoints(&mut self) -> Vec<Endpoint> {
        let list = |value: Option<String>| {
            let value = value.unwrap_or_default();
            value.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>()
        };
        let (hosts, addresses) = (self.take("host"), self.take("hostaddr"));
        let (by_name, by_address) = (hosts.is_some(), addresses.is_some());
        let (hosts, addresses) = (list(hosts), list(addresses));
        let ports = list(self.take("port"));
        let count = hosts.len().max(addresses.len());
        if by_name && by_address && hosts.len() != addresses.len() {
            self.problem(format!(
                "hostaddr: {} addresses for {} hosts: give one for each",
                addresses.len(),
                hosts.len()
            ));
        }
        if ports.len() > 1 && ports.len() != count {
            self.problem(format!(
                "port: {} ports for {count} hosts: give one, or one for each",
                ports.len()
            ));
        }
        let mut endpoints = Vec::new();
        for index in 0..count {
            let port = ports.get(index).or(ports.first()).map_or("", String::as_str);
            let port = self.port(port);
            let address = addresses.get(index).map_or("", String::as_str);
            let address = self.address(address);
            let named = match (hosts.get(index).map_or("", String::as_str), address) {
                ("", Some(address)) => vec![Host::Tcp(address.to_string())],
                ("", None) => SOCKET_DIRECTORIES.map(|d| Host::Unix(d.into())).into(),
                (path, _) if path.starts_with('/') => vec![Host::Unix(path.into())],
                (name, _) => vec![Host::Tcp(name.to_owned())],
            };
            endpoints.extend(named.into_iter().map(|host| Endpoint { host, address, port }));
        }
        endpoints
    }

    fn port(&mut self, text: &str) -> u16 {
        match text.parse() {
            Ok(port) if port > 0 => port,
            _ if text.is_empty() => 5432,
            _ => {
                // The text is not repeated: where an @ is missing it is part of a password.
                self.problem("port: not a number from 1 to 65535; in a URL, a password with / in it needs %2F");
                5432
            }
        }
    }

    fn address(&mut self, text: &str) -> Option<IpAddr> {
        let address = text.parse().ok();
        if address.is_none() && !text.is_empty() {
            self.problem(format!(
                "hostaddr: {text:?} is not a numeric address; use host for names"
            ));
        }
        address
    }

    fn tls(&mut self) -> TlsSettings {
        let mode = self.word(
            "sslmode",
            &[
                ("disable", SslMode::Disable),
                ("allow", SslMode::Allow),
                ("prefer", SslMode::Prefer),
                ("require", SslMode::Require),
                ("verify-ca", SslMode::VerifyCa),
                ("verify-full", SslMode::VerifyFull),
            ],
        );
        let given = mode;
        let mut mode = mode.unwrap_or(SslMode::Prefer);
        let existing = |name: &str| {
            let home = self.environment.home.as_ref()?;
            let path = home.join(".postgresql").join(name);
            (self.environment.exists)(&path).then_some(path)
        };
        let (root, certificate, key) =
            (existing("root.crt"), existing("postgresql.crt"), existing("postgresql.key"));
        let roots = match self.take("sslrootcert").as_deref() {
            Some("system") => {
                // As libpq: anyone can get a certificate from a public authority for some name.
                if given.is_some_and(|mode| mode != SslMode::VerifyFull) {
                    self.problem("sslrootcert: system needs sslmode=verify-full");
                }
                mode = SslMode::VerifyFull;
                Some(Roots::System)
            }
            Some(path) => Some(Roots::File(path.into())),
            None => root.map(Roots::File),
        };
        match (mode, &roots) {
            (SslMode::Require, Some(_)) => mode = SslMode::VerifyCa,
            (SslMode::VerifyCa, None) => self.problem(
                "sslmode: verify-ca needs sslrootcert, the authority's certificate; \
                 verify-full can use the system's",
            ),
            _ => {}
        }
        let direct = self.word("sslnegotiation", &[("postgres", false), ("direct", true)]);
        let direct = direct.unwrap_or(false);
        if direct && matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer) {
            self.problem("sslnegotiation: direct needs sslmode=require or stronger");
        }
        let certificate = self.take("sslcert").map(PathBuf::from).or(certificate);
        let key = self.take("sslkey").map(PathBuf::from).or(key);
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
            (Some(certificate), None) => {
                self.problem(format!(
                    "sslkey: not given, the certificate {} needs its key",
                    certificate.display()
                ));
                None
            }
            (None, _) => None,
        };
        TlsSettings { mode, direct, roots: roots.unwrap_or(Roots::System), client }
    }

    fn tcp(&mut self) -> TcpSettings {
        let keepalive = self.number::<i64>("keepalives").is_none_or(|on| on != 0);
        let user_timeout = self.duration("tcp_user_timeout", Duration::from_millis);
        let keepalive_idle = self.duration("keepalives_idle", Duration::from_secs);
        let keepalive_interval = self.duration("keepalives_interval", Duration::from_secs);
        // libpq's name and tokio-postgres' for the same thing.
        let count = self.number::<u32>("keepalives_count");
        let retries = self.number::<u32>("keepalives_retries");
        let keepalive_retries = count.or(retries).filter(|count| *count > 0);
        TcpSettings {
            user_timeout,
            keepalive,
            keepalive_idle,
            keepalive_interval,
            keepalive_retries,
        }
    }

    fn channel_binding(&mut self, mode: SslMode) -> ChannelBinding {
        let binding = self.word(
            "channel_binding",
            &[
                ("disable", ChannelBinding::Disable),
                ("prefer", ChannelBinding::Prefer),
                ("require", ChannelBinding::Require),
            ],
        );
        if binding == Some(ChannelBinding::Require) && mode == SslMode::Disable {
            self.problem("channel_binding: require needs TLS, but sslmode is disable");
        }
        binding.unwrap_or(ChannelBinding::Prefer)
    }

    /// Keys that libpq has and whose only acceptable values ask for nothing.
    fn refuse_what_can_not_be_done(&mut self) {
        for (key, harmless, instead) in [
            ("client_encoding", &["UTF8", "utf8", "UTF-8", "auto"][..], "the relay speaks UTF8"),
            ("gssencmode", &["disable", "prefer"], "GSSAPI is not supported, use TLS"),
            ("sslcompression", &["0"], "TLS compression is not supported"),
            ("sslsni", &["1"], "the host's name is always sent"),
        ] {
            if self.take(key).is_some_and(|value| !harmless.contains(&value.as_str())) {
                self.problem(format!("{key}: {instead}; remove it"));
            }
        }
    }
}
