//! A database of a test's own, with the migrations applied and the three roles of `docs/ROLES.md`.
//!
//! Each is a copy of one template, made on first use by the owner's role, so the grants that the
//! documentation gives are the ones that every test runs with.

use anyhow::Result;
use tokio_postgres::Config;

pub use crate::rights::{Grant, Role};
use crate::{
    host,
    postgres::{PASSWORD, Postgres, Session},
    rights::documented,
    servers, template, wait,
};

/// A database that is dropped, with its slots, when this is.
#[derive(Debug)]
pub struct Database {
    postgres: &'static Postgres,
    name: String,
    superuser: Session,
}

impl Database {
    /// A database with the outbox set applied.
    ///
    /// # Panics
    /// When there is no PostgreSQL; the text says what to install.
    pub async fn create() -> Self {
        Self::create_in(servers::postgres().await).await
    }

    /// As [`Database::create`], in a cluster of the test's own.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn create_in(postgres: &'static Postgres) -> Self {
        let template = template::outbox(postgres).await;
        Self::copy(postgres, &template).await.expect("a database for the test")
    }

    /// A database without anything of the product in it; the roles may connect, and the owner may
    /// migrate.
    ///
    /// # Panics
    /// As [`Database::create`].
    pub async fn create_empty() -> Self {
        Self::create_empty_with("").await
    }

    /// As [`Database::create_empty`], with options of CREATE DATABASE, such as an encoding.
    ///
    /// # Panics
    /// As [`Database::create`].
    pub async fn create_empty_with(options: &str) -> Self {
        Self::create_empty_in(servers::postgres().await, options).await
    }

    /// As [`Database::create_empty_with`], in a cluster of the test's own.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn create_empty_in(postgres: &'static Postgres, options: &str) -> Self {
        template::outbox(postgres).await; // Makes the roles.
        let template = format!("template0 {options}");
        let database = Self::copy(postgres, &template).await.expect("a database for the test");
        let grants = documented(1, &database.name).expect("docs/ROLES.md has its statements");
        database.superuser.batch_execute(&grants).await.expect("the documented grants");
        database
    }

    /// A consumer's database: the sets inbox and outbox applied, since a consumer may publish.
    ///
    /// # Panics
    /// As [`Database::create`].
    pub async fn create_inbox() -> Self {
        let postgres = servers::postgres().await;
        let template = template::inbox(postgres).await;
        Self::copy(postgres, &template).await.expect("a database for the test")
    }

    /// The documented grants, for both sets, which are there.
    ///
    /// # Panics
    /// When one fails.
    pub async fn grant(&self) {
        for block in [2, 3] {
            let grants = documented(block, &self.name).expect("docs/ROLES.md has its statements");
            self.superuser.batch_execute(&grants).await.expect("the documented grants");
        }
    }

    /// The names of all roles, in this run.
    pub fn roles(&self) -> [String; Role::ALL.len()] {
        Role::ALL.map(Role::name)
    }

    /// Connections of a role, for what takes a pool.
    ///
    /// # Panics
    /// When it can't be made, which asks nothing of the server.
    pub fn pool(&self, role: Role, connections: usize) -> deadpool_postgres::Pool {
        pool(self.config(role), connections)
    }

    /// Another database with all that is in this one. Whoever is connected to this one is cut off.
    ///
    /// # Panics
    /// When the server does not make it.
    pub async fn copied(&self) -> Self {
        let maintenance = self.postgres.connect(&self.postgres.superuser("postgres")).await;
        let end = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = $1";
        let maintenance = maintenance.expect("a session");
        maintenance.execute(end, &[&self.name]).await.expect("nobody uses it");
        Self::copy(self.postgres, &self.name).await.expect("a copy")
    }

    async fn copy(postgres: &'static Postgres, template: &str) -> Result<Self> {
        let name = template::unique_name("t");
        let maintenance = postgres.connect(&postgres.superuser("postgres")).await?;
        maintenance.batch_execute(&format!("create database {name} template {template}")).await?;
        let superuser = postgres.connect(&postgres.superuser(&name)).await?;
        // Privileges on the database itself are not copied with a template.
        superuser.batch_execute(&documented(1, &name)?).await?;
        Ok(Database { postgres, name, superuser })
    }

    /// Its name; other names of the test (slot, relay, topics) derive from it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A session with every right: for looking, and for what an administrator would do.
    pub fn superuser(&self) -> &Session {
        &self.superuser
    }

    /// A new superuser's session, after its server was away.
    ///
    /// # Panics
    /// When the server does not come back.
    pub async fn reconnect(&mut self) {
        let config = self.postgres.superuser(&self.name);
        let connected =
            wait::until("PostgreSQL is back", wait::PATIENCE, || self.postgres.connect(&config));
        self.superuser = connected.await.expect("a session");
    }

    /// It is on another server by now, which was its standby.
    ///
    /// # Panics
    /// When that does not answer.
    pub async fn fail_over(&mut self, to: &'static Postgres) {
        self.postgres = to;
        self.reconnect().await;
    }

    /// The cluster that it is in.
    pub fn postgres(&self) -> &'static Postgres {
        self.postgres
    }

    /// A new session of a role.
    ///
    /// # Panics
    /// When the role can't connect.
    pub async fn connect(&self, role: Role) -> Session {
        self.postgres.connect(&self.config(role)).await.expect("a session for the test")
    }

    /// The grants of the producer's schema, as `docs/ROLES.md` has them after the migration.
    ///
    /// # Panics
    /// When the owner may not give them.
    pub async fn grant_outbox(&self) {
        let grants = documented(2, &self.name).expect("docs/ROLES.md has its statements");
        let owner = self.connect(Role::Owner).await;
        owner.batch_execute(&grants).await.expect("the documented grants");
    }

    /// Every single grant that `docs/ROLES.md` gives a role on a schema's objects.
    ///
    /// # Panics
    /// When the document is not of its shape.
    pub fn documented_grants(&self) -> Vec<Grant> {
        let blocks = [2, 3].map(|index| documented(index, &self.name).expect("a block of SQL"));
        blocks.iter().flat_map(|block| block.split(';')).flat_map(Grant::parse).collect()
    }

    /// A role's name in this run.
    pub fn name_of(&self, role: Role) -> String {
        role.name()
    }

    /// How a role connects.
    pub fn config(&self, role: Role) -> Config {
        self.postgres.role(&role.name(), &self.name)
    }

    /// How the superuser connects, in libpq's `key=value` form.
    pub fn superuser_settings(&self) -> String {
        let config = self.postgres.superuser(&self.name);
        let (host, port) = self.postgres.address();
        let password = String::from_utf8_lossy(config.get_password().unwrap_or_default());
        [
            ("host", host.as_str()),
            ("port", &port.to_string()),
            ("user", config.get_user().unwrap_or("postgres")),
            ("password", &password),
            ("dbname", &self.name),
        ]
        .map(|(key, value)| format!("{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'")))
        .join(" ")
    }

    /// How the superuser connects, as a URL over TCP.
    pub fn superuser_url(&self) -> String {
        let config = self.postgres.superuser(&self.name);
        let (host, port) = self.postgres.address();
        let password = String::from_utf8_lossy(config.get_password().unwrap_or_default());
        let user = config.get_user().unwrap_or("postgres");
        format!("postgres://{user}:{password}@{host}:{port}/{}", self.name)
    }

    /// How a role connects, as a URL over TCP.
    pub fn url(&self, role: Role) -> String {
        let (host, port) = self.postgres.address();
        format!("postgres://{}:{PASSWORD}@{host}:{port}/{}", role.name(), self.name)
    }

    /// How a role connects, as a URL over the Unix socket; `None` when the server is not ours or
    /// not on this machine.
    pub fn unix_url(&self, role: Role) -> Option<String> {
        let dir = self.postgres.socket_dir()?.display();
        let (_, port) = self.postgres.address();
        Some(format!("postgres://{}@/{}?host={dir}&port={port}", role.name(), self.name))
    }
}

/// Connections by a configuration, such as one that leads through a proxy.
///
/// # Panics
/// When it can't be made, which asks nothing of the server.
pub fn pool(config: Config, connections: usize) -> deadpool_postgres::Pool {
    let manager = deadpool_postgres::Manager::new(config, tokio_postgres::NoTls);
    deadpool_postgres::Pool::builder(manager).max_size(connections).build().expect("a pool")
}

impl Drop for Database {
    /// Where the server ends with this process, nothing waits for it: PostgreSQL waits in DROP DATABASE until each session
    /// has noticed, and one whose login is under way on this very thread never would.
    fn drop(&mut self) {
        let (postgres, name) = (self.postgres, self.name.clone());
        // Not on the test's own runtime, which may be the one that drops it.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let done = runtime
                .map_err(anyhow::Error::new)
                .and_then(|runtime| runtime.block_on(template::remove(postgres, &name)));
            if let Err(error) = done {
                host::report(&format!("dropping {name}: {error:#}"));
            }
        });
        if self.postgres.is_external() {
            let _panicked = dropped.join();
        }
    }
}
