//! One PostgreSQL for a run: `OUTBOX_TEST_POSTGRES` (a superuser's URL), else Docker
//! (`OUTBOX_TEST_POSTGRES_IMAGE`), else installed binaries (`OUTBOX_TEST_POSTGRES_BIN` chooses).
//!
//! It knows sessions and the cluster; databases and roles of a test are `database`'s.

use std::{
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use outbox_relay::throwaway::{self, LocalPostgres};
use testcontainers::{GenericImage, ImageExt, core::IntoContainerPort};
use tokio::{sync::OnceCell, task::JoinHandle};
use tokio_postgres::{Client, Config, NoTls, config::Host};

use crate::{
    docker, host,
    postgres_version::{self, Version},
    wait,
};

/// How long a server may take from start to its first answer.
const START: Duration = Duration::from_secs(60);
/// Password of every role that the harness makes.
pub const PASSWORD: &str = "outbox-tests";

/// What the suite needs beyond the defaults: logical decoding, and room for all tests at once.
/// Durability is off, in a container too; no test crashes the machine. So is the compilation of queries:
/// to the planner a question about a table is worth 0.1 s of it, for an answer of one row.
const SETTINGS: &[&str] = &[
    "wal_level=logical",
    "fsync=off",
    "full_page_writes=off",
    "max_connections=300",
    "max_wal_senders=120",
    "max_replication_slots=120",
    "max_prepared_transactions=20",
    "shared_buffers=128MB",
    "max_wal_size=4GB",
    "jit=off",
    "timezone=UTC",
];

/// A running cluster and how its superuser gets in.
#[derive(Debug)]
pub struct Postgres {
    superuser: Config,
    /// Directory of its Unix socket, where it is on this machine.
    socket_dir: Option<PathBuf>,
    /// Whether it was there before the run: then nothing of ours may stay in it.
    external: bool,
    /// Names of the databases that those of tests are copies of, once they were made.
    pub(crate) outbox_template: OnceCell<Result<String, String>>,
    pub(crate) inbox_template: OnceCell<Result<String, String>>,
}

/// A connection that is closed when dropped.
#[derive(Debug)]
pub struct Session {
    client: Client,
    connection: JoinHandle<()>,
}

impl Postgres {
    pub(crate) async fn start() -> Result<Self> {
        if let Ok(url) = std::env::var("OUTBOX_TEST_POSTGRES") {
            let superuser: Config = url.parse().context("OUTBOX_TEST_POSTGRES")?;
            let postgres = Postgres::new(superuser, None, true);
            postgres.connect(&postgres.superuser).await.context("OUTBOX_TEST_POSTGRES")?;
            return Ok(postgres);
        }
        // Binaries named on purpose are wanted on purpose.
        let chosen = std::env::var_os("OUTBOX_TEST_POSTGRES_BIN").map(PathBuf::from);
        let no_docker = match (&chosen, docker::engine().await) {
            (None, Ok(())) => match Self::start_container().await {
                Ok(postgres) => return Ok(postgres),
                Err(error) => error.context("Docker could not start PostgreSQL"),
            },
            (Some(_), _) => anyhow!("OUTBOX_TEST_POSTGRES_BIN is set, so Docker was not asked"),
            (None, Err(error)) => error,
        };
        let Some(bin) = chosen.or_else(throwaway::installed) else {
            bail!(
                "no PostgreSQL for the tests: {no_docker:#}; and no initdb in PATH or the usual \
                 places. Install PostgreSQL 14 or later (apt-get install postgresql, brew install \
                 postgresql), or start Docker, or set OUTBOX_TEST_POSTGRES to a superuser's URL"
            )
        };
        host::report(&format!("{no_docker:#}: using PostgreSQL from {}", bin.display()));
        Self::start_local(&bin).await
    }

    async fn start_container() -> Result<Self> {
        let (name, tag) = docker::image("OUTBOX_TEST_POSTGRES_IMAGE", "postgres:15");
        let request = GenericImage::new(name, tag)
            .with_exposed_port(5432.tcp())
            .with_env_var("POSTGRES_PASSWORD", PASSWORD)
            .with_startup_timeout(START)
            .with_cmd(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        let container = docker::start(request).await?;
        let mut superuser = Config::new();
        superuser
            .host(container.get_host().await?.to_string())
            .port(container.get_host_port_ipv4(5432.tcp()).await?)
            .user("postgres")
            .dbname("postgres")
            .password(PASSWORD);
        let postgres = Postgres::new(superuser, None, false);
        postgres.wait_ready().await?;
        // Dropping the handle would stop the container; the guardian does that at the end.
        std::mem::forget(container);
        Ok(postgres)
    }

    async fn start_local(bin: &Path) -> Result<Self> {
        let local = LocalPostgres::start(bin, PASSWORD, SETTINGS)?;
        let postgres = Self::of(&local);
        let ready = postgres.wait_ready().await;
        ready.with_context(|| format!("PostgreSQL's log:\n{}", throwaway::tail(&local.log())))?;
        Ok(postgres)
    }

    /// A server from installed binaries for one test, which may end it and start it again. The
    /// handle is never freed: tests end with their process.
    ///
    /// # Panics
    /// When there are no binaries, or it does not answer.
    pub async fn private() -> (&'static Self, LocalPostgres) {
        Self::private_of(&Self::programs()).await
    }

    /// The directory of the installed programs.
    ///
    /// # Panics
    /// When there are none.
    pub fn programs() -> PathBuf {
        let chosen = std::env::var_os("OUTBOX_TEST_POSTGRES_BIN").map(PathBuf::from);
        chosen.or_else(throwaway::installed).expect("initdb: apt-get install postgresql")
    }

    /// The directory of programs whose `pg_upgrade` keeps slots: those of
    /// `OUTBOX_TEST_POSTGRES_18_BIN` or `OUTBOX_TEST_POSTGRES_17_BIN`, else the installed ones, if they
    /// are new enough. What is fetched of another version has no `pg_upgrade`.
    pub fn programs_that_keep_slots() -> Option<PathBuf> {
        let named = ["OUTBOX_TEST_POSTGRES_18_BIN", "OUTBOX_TEST_POSTGRES_17_BIN"];
        let named = named.into_iter().filter_map(std::env::var_os).map(PathBuf::from);
        named.chain([Self::programs()]).find(|bin| {
            // Beside the real `initdb`: what is in PATH may be a link to it alone.
            let initdb = bin.join("initdb").canonicalize().unwrap_or_default();
            let version = Command::new(&initdb).arg("--version").output();
            let version = version.map(|output| output.stdout).unwrap_or_default();
            let version = String::from_utf8_lossy(&version);
            let digits = |part: &str| part.split('.').next().and_then(|n| n.parse::<u32>().ok());
            let major = version.split_whitespace().find_map(digits);
            major >= Some(17) && initdb.with_file_name("pg_upgrade").is_file()
        })
    }

    /// As [`Postgres::private`], of another version than the suite runs on.
    ///
    /// # Panics
    /// When it can't be fetched, or does not answer.
    pub async fn private_version(version: Version) -> (&'static Self, LocalPostgres) {
        let bin = postgres_version::bin(version).unwrap_or_else(|error| panic!("{error:#}"));
        Self::private_of(&bin).await
    }

    /// As [`Postgres::private`], with the programs in this directory.
    ///
    /// # Panics
    /// When it does not start, or does not answer.
    pub async fn private_of(bin: &Path) -> (&'static Self, LocalPostgres) {
        let local = LocalPostgres::start(bin, PASSWORD, SETTINGS).expect("a server");
        let postgres = Self::of(&local);
        postgres.wait_ready().await.expect("the server answers");
        (Box::leak(Box::new(postgres)), local)
    }

    /// A standby that streams from a server of the test's own, as [`Postgres::private`]. Where there
    /// is no `pg_basebackup`, the primary is restarted for it: both answer when this returns.
    ///
    /// # Panics
    /// When either does not answer.
    pub async fn standby_of(primary: &mut LocalPostgres) -> (&'static Self, LocalPostgres) {
        let local = primary.standby().expect("a standby");
        Self::of(primary).wait_ready().await.expect("the primary answers");
        let postgres = Self::of(&local);
        postgres.wait_ready().await.expect("the standby answers");
        (Box::leak(Box::new(postgres)), local)
    }

    /// The cluster that `pg_upgrade` makes of a server of the test's own, which is gone then.
    ///
    /// # Panics
    /// When it can't, or the new one does not answer.
    pub async fn upgrade(old: &mut LocalPostgres) -> (&'static Self, LocalPostgres) {
        let local = old.upgrade(PASSWORD).expect("pg_upgrade");
        let postgres = Self::of(&local);
        postgres.wait_ready().await.expect("the new cluster answers");
        (Box::leak(Box::new(postgres)), local)
    }

    fn of(local: &LocalPostgres) -> Self {
        let mut superuser = Config::new();
        superuser.host("127.0.0.1").port(local.port()).user("postgres").dbname("postgres");
        superuser.password(PASSWORD);
        Postgres::new(superuser, Some(local.socket_dir().to_owned()), false)
    }

    fn new(superuser: Config, socket_dir: Option<PathBuf>, external: bool) -> Self {
        let (outbox_template, inbox_template) = (OnceCell::new(), OnceCell::new());
        Postgres { superuser, socket_dir, external, outbox_template, inbox_template }
    }

    async fn wait_ready(&self) -> Result<()> {
        wait::until("PostgreSQL answers", START, || self.connect(&self.superuser)).await.map(drop)
    }

    /// How the superuser connects to `database`.
    pub(crate) fn superuser(&self, database: &str) -> Config {
        let mut config = self.superuser.clone();
        config.dbname(database);
        config
    }

    /// How a role that the harness made connects to `database`.
    pub(crate) fn role(&self, role: &str, database: &str) -> Config {
        let mut config = self.superuser(database);
        config.user(role).password(PASSWORD);
        config
    }

    /// Opens a session.
    pub async fn connect(&self, config: &Config) -> Result<Session> {
        let (client, connection) = config.connect(NoTls).await.context("connecting")?;
        // A connection's error is also the error of the statement that meets it.
        let connection = tokio::spawn(async move { drop(connection.await) });
        Ok(Session { client, connection })
    }

    /// Where it listens, as host and port.
    pub fn address(&self) -> (String, u16) {
        let host = match self.superuser.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            Some(Host::Unix(dir)) => dir.display().to_string(),
            None => "localhost".to_owned(),
        };
        (host, self.superuser.get_ports().first().copied().unwrap_or(5432))
    }

    /// Directory of the Unix socket, for a server on this machine that the harness started.
    pub fn socket_dir(&self) -> Option<&Path> {
        self.socket_dir.as_deref()
    }

    pub(crate) fn is_external(&self) -> bool {
        self.external
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// A program of PostgreSQL's, such as `pg_recvlogical`: beside the server's, else in PATH.
///
/// # Errors
/// It is in neither place.
pub fn program(name: &str) -> Result<PathBuf> {
    let chosen = std::env::var_os("OUTBOX_TEST_POSTGRES_BIN").map(PathBuf::from);
    let in_path = std::env::var_os("PATH");
    let in_path = in_path.iter().flat_map(std::env::split_paths);
    chosen
        .into_iter()
        .chain(throwaway::installed())
        .chain(in_path)
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
        .with_context(|| format!("no {name} beside initdb or in PATH: install PostgreSQL"))
}
