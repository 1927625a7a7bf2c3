//! The demo's PostgreSQL: a given server, an installed one started for the occasion, or a
//! container; and in it a database that is dropped at the end.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use outbox_migrations::Set;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::update::{Tell, Update, unless_stopped};
use crate::{
    postgres::{
        ConnectSettings,
        sql::{self, SqlSession},
    },
    throwaway::{self, LocalPostgres, guardian},
};

/// As `pg_stat_activity` shows the demo's own sessions.
const APPLICATION: &str = "outbox-relay demo";
/// The version the test suite runs on.
const IMAGE: &str = "postgres:15";
const SETTINGS: &[&str] = &["wal_level=logical", "max_connections=100"];
/// How long a server may take from start to its first answer.
const START: Duration = Duration::from_secs(60);
/// How long a walsender may take to notice that its relay is gone.
const RELEASE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

/// A server, and a connection string that may create databases in it.
#[derive(Debug)]
pub(super) struct Server {
    url: String,
}

impl Server {
    /// Finds or starts one, and waits until it answers. What it started goes with this process.
    pub(super) async fn obtain(
        given: Option<&str>,
        stop: &CancellationToken,
        tell: Tell<'_>,
    ) -> Result<Self> {
        if let Some(url) = given {
            let server = Server { url: url.to_owned() };
            let version = unless_stopped(stop, server.check()).await;
            let version = version.context("the PostgreSQL of --postgres")?;
            tell(Update::Line(format!("PostgreSQL {version}: the one of --postgres")));
            return Ok(server);
        }
        let password = format!("{:032x}", rand::random::<u128>());
        let Some(bin) = throwaway::installed() else {
            let started = unless_stopped(stop, Self::start_container(&password, tell)).await;
            let server = started.context(
                "no PostgreSQL for the demo: install one (apt-get install postgresql, brew install \
                 postgresql), or start Docker, or give --postgres URL of a server with \
                 wal_level = logical, where the demo makes and drops a database of its own",
            )?;
            let version = unless_stopped(stop, server.wait_ready()).await?;
            tell(Update::Line(format!("PostgreSQL {version}: a container of {IMAGE}")));
            return Ok(server);
        };
        let place = bin.display().to_string();
        let start = move || {
            let local = LocalPostgres::start(&bin, &password, SETTINGS)?;
            let port = local.port();
            let url = format!("postgres://postgres:{password}@127.0.0.1:{port}/postgres");
            anyhow::Ok((Server { url }, local.log()))
        };
        // Not to be stopped half-way: initdb would continue writing to a directory that is removed.
        let (server, log) = tokio::task::spawn_blocking(start)
            .await?
            .with_context(|| format!("starting PostgreSQL from {place}"))?;
        let ready = unless_stopped(stop, server.wait_ready()).await;
        let version = ready.with_context(|| format!("its log:\n{}", throwaway::tail(&log)))?;
        tell(Update::Line(format!("PostgreSQL {version}: started from {place}")));
        Ok(server)
    }

    async fn start_container(password: &str, tell: Tell<'_>) -> Result<Self> {
        let name = format!("outbox-demo-{:08x}", rand::random::<u32>());
        docker(&["version", "--format", "{{.Server.Version}}"]).await?;
        tell(Update::Line(format!("no PostgreSQL is installed: starting {IMAGE} with Docker")));
        // Before it starts: it must go also when we are stopped in between.
        guardian::remove_container_at_exit(&name)?;
        let variable = format!("POSTGRES_PASSWORD={password}");
        let mut run = vec!["run", "--detach", "--name", &name, "--env", &variable];
        run.extend(["--publish", "127.0.0.1::5432", IMAGE, "-c", "fsync=off"]);
        run.extend(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        docker(&run).await?;
        // `127.0.0.1:49153`
        let address = docker(&["port", &name, "5432/tcp"]).await?;
        let address = address.lines().next().context("docker tells no port")?;
        Ok(Server { url: format!("postgres://postgres:{password}@{address}/postgres") })
    }

    async fn wait_ready(&self) -> Result<String> {
        let deadline = Instant::now() + START;
        loop {
            match self.check().await {
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context("PostgreSQL was started and does not answer"));
                }
                Err(_) => tokio::time::sleep(POLL).await,
                Ok(version) => return Ok(version),
            }
        }
    }

    /// Its version, if it can decode its WAL.
    async fn check(&self) -> Result<String> {
        let session = self.connect().await?;
        let query = "select current_setting('server_version'), current_setting('wal_level')";
        let row = session.client().query_one(query, &[]).await?;
        let (version, wal_level): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if wal_level != "logical" {
            bail!(
                "its wal_level is {wal_level}: run `alter system set wal_level = logical` and \
                 restart it, or leave --postgres out"
            );
        }
        // Debian's packages say more after a space.
        Ok(version.split(' ').next().unwrap_or_default().to_owned())
    }

    async fn connect(&self) -> Result<SqlSession> {
        Ok(sql::connect(&ConnectSettings::parse(&self.url)?, APPLICATION).await?)
    }

    /// Creates a database; drop it with [`Database::drop`].
    pub(super) async fn create(self, name: &str) -> Result<Database> {
        let session = self.connect().await?;
        let create = format!("create database {name}");
        let created = session.client().batch_execute(&create).await;
        created.with_context(|| format!("creating the demo's database {name}"))?;
        // Of two values for one key the later counts, in either form.
        let url = match (self.url.contains("://"), self.url.contains('?')) {
            (true, true) => format!("{}&dbname={name}", self.url),
            (true, false) => format!("{}?dbname={name}", self.url),
            (false, _) => format!("{} dbname={name}", self.url),
        };
        Ok(Database { server: self, name: name.to_owned(), url })
    }
}

/// The demo's own database.
#[derive(Debug)]
pub(super) struct Database {
    server: Server,
    name: String,
    url: String,
}

impl Database {
    /// Connection string, with its password.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) async fn connect(&self) -> Result<SqlSession> {
        Ok(sql::connect(&ConnectSettings::parse(&self.url)?, APPLICATION).await?)
    }

    /// Makes the product's tables, and `tables`.
    pub(super) async fn migrate(&self, tables: &str) -> Result<()> {
        let mut session = self.connect().await?;
        outbox_migrations::apply(session.client_mut(), Set::Outbox).await?;
        Ok(session.client().batch_execute(tables).await?)
    }

    /// Drops it, with its slot.
    pub(super) async fn drop(self) -> Result<()> {
        let session = self.server.connect().await?;
        let client = session.client();
        let leave = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
        let free = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                    where database = $1";
        let deadline = Instant::now() + RELEASE;
        loop {
            client.execute(leave, &[&self.name]).await?;
            match client.execute(free, &[&self.name]).await {
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                Err(_) => tokio::time::sleep(POLL).await,
                Ok(_) => break,
            }
        }
        Ok(client.batch_execute(&format!("drop database {} with (force)", self.name)).await?)
    }
}

/// Runs `docker`, and returns what it printed. Cancel safe: dropped, the command is ended.
async fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("no PostgreSQL is installed, and the command docker does not start")?;
    if !output.status.success() {
        let command = arguments.first().unwrap_or(&"");
        bail!("docker {command}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
