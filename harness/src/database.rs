//! A database of a test's own, with the migrations applied and the three roles of `docs/ROLES.md`.
//!
//! Each is a copy of one template, made on first use by the owner's role, so the grants that the
//! documentation gives are the ones that every test runs with.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use outbox_migrations::Set;
use tokio_postgres::Config;

pub use crate::rights::{Grant, Role};
use crate::{
    host,
    postgres::{PASSWORD, Postgres, Session},
    rights::{documented, named},
    servers, wait,
};

/// What the writers of `load` need to number events: not part of the product.
const SEQUENCES: &str = "
    create schema test;
    create table test.lanes (lane text primary key, last bigint not null);
    grant usage on schema test to outbox_writer;
    grant select, insert, update on test.lanes to outbox_writer;
";

/// How long a session that is told to end may take.
const ENDS: Duration = Duration::from_secs(5);

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
        let template = template(postgres).await;
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
        template(postgres).await; // Makes the roles.
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
        let database = Self::create().await;
        let mut owner = database.connect(Role::Owner).await;
        outbox_migrations::apply(&mut owner, Set::Inbox).await.expect("the inbox is migrated");
        let grants = documented(3, &database.name).expect("docs/ROLES.md has its statements");
        owner.batch_execute(&grants).await.expect("the documented grants");
        database
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
        let name = unique_name("t");
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
    fn drop(&mut self) {
        let (postgres, name) = (self.postgres, self.name.clone());
        // Dropping must wait, or slots would pin WAL for the rest of the run; and it must not
        // block the test's own runtime, so it has a thread and a runtime to itself.
        let dropped = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(drop_database(postgres, &name))
        })
        .join();
        if let Ok(Err(error)) = dropped {
            host::report(&format!("dropping {}: {error:#}", self.name));
        }
    }
}

async fn drop_database(postgres: &Postgres, name: &str) -> Result<()> {
    let maintenance = postgres.connect(&postgres.superuser("postgres")).await?;
    // All at once, and looked for often: the server itself looks every 100 ms whether one has ended, and one
    // after another.
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = $1";
    maintenance.execute(end, &[&name]).await?;
    let left = "select count(*) from pg_stat_activity where datname = $1";
    // Whoever stays longer is for `force` below, which tells if it can't.
    let _left = wait::until("its sessions have ended", ENDS, || async {
        match maintenance.query_one(left, &[&name]).await.map(|row| row.get::<_, i64>(0)) {
            Ok(0) => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
    maintenance
        .execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
             where database = $1",
            &[&name],
        )
        .await?;
    maintenance.batch_execute(&format!("drop database if exists {name} with (force)")).await?;
    Ok(())
}

/// Name that no other test of this or another run has; letters, digits and underscores.
pub(crate) fn unique_name(prefix: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}_{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

async fn template(postgres: &'static Postgres) -> String {
    let template = postgres
        .template
        .get_or_init(|| async {
            make_template(postgres)
                .await
                .map_err(|error| format!("making the template database: {error:#}"))
        })
        .await;
    match template {
        Ok(name) => name.clone(),
        Err(error) => panic!("{error}"),
    }
}

/// Roles once per cluster, then one database as `docs/ROLES.md` has it made.
async fn make_template(postgres: &'static Postgres) -> Result<String> {
    let name = unique_name("outbox_template_");
    let maintenance = postgres.connect(&postgres.superuser("postgres")).await?;
    maintenance.batch_execute(&documented(0, &name)?).await.context("creating the roles")?;
    // Of the cluster, so once: two tests that grant it at the same time clash in pg_auth_members.
    let publishes = named("grant outbox_writer to inbox_consumer", &name);
    maintenance.batch_execute(&publishes).await.context("consumers that publish")?;
    for role in Role::ALL {
        let statement = format!("alter role {} password '{PASSWORD}'", role.name());
        maintenance.batch_execute(&statement).await?;
    }
    maintenance.batch_execute(&format!("create database {name} template template0")).await?;
    maintenance.batch_execute(&documented(1, &name)?).await?;
    if postgres.is_external() {
        clear_at_exit(postgres, &name);
    }

    let mut owner = postgres.connect(&postgres.role(&Role::Owner.name(), &name)).await?;
    outbox_migrations::apply(&mut owner, Set::Outbox).await?;
    owner.batch_execute(&documented(2, &name)?).await.context("the grants of docs/ROLES.md")?;
    let superuser = postgres.connect(&postgres.superuser(&name)).await?;
    superuser.batch_execute(&named(SEQUENCES, &name)).await?;
    Ok(name)
}

/// A cluster that is not ours keeps neither template nor roles. Only an orderly exit does this: a
/// killed run leaves them, named by its process id.
fn clear_at_exit(postgres: &'static Postgres, template: &str) {
    static TEMPLATE: std::sync::OnceLock<(&Postgres, String)> = std::sync::OnceLock::new();
    extern "C" fn clear() {
        let Some((postgres, template)) = TEMPLATE.get() else { return };
        let cleared = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                drop_database(postgres, template).await?;
                let maintenance = postgres.connect(&postgres.superuser("postgres")).await?;
                for role in Role::ALL {
                    maintenance.batch_execute(&format!("drop role {}", role.name())).await?;
                }
                anyhow::Ok(())
            })
        })
        .join();
        if let Ok(Err(error)) = cleared {
            host::report(&format!("clearing OUTBOX_TEST_POSTGRES: {error:#}"));
        }
    }
    if TEMPLATE.set((postgres, template.to_owned())).is_ok() {
        // SAFETY: `clear` has the signature that atexit takes and does not unwind: the thread
        // that may panic is joined.
        let registered = unsafe { libc::atexit(clear) };
        assert_eq!(registered, 0, "atexit takes a handler");
    }
}
