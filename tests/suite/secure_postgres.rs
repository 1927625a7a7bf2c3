//! Encrypted and authenticated connections to PostgreSQL: who is trusted, and who is refused.
//!
//! A server of its own, with certificates of its own, in which each role of `pg_hba.conf` has one
//! way to log in. A relay has two sessions, and both must have come in that way.

mod manual;

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use outbox_harness::{
    Harness,
    certificates::{Authority, Identity, write_private},
    relay::Settings,
    topic::Topic,
    wait,
};
use outbox_migrations::Set;
use outbox_relay::throwaway::{self, LocalPostgres};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

const PASSWORD: &str = "öffentlich 'quoted'";

/// Each role's one way in. Nothing else is allowed.
const HBA: &str = "\
local all postgres trust
hostssl all by_scram 127.0.0.1/32 scram-sha-256
hostssl all by_cert 127.0.0.1/32 cert
hostssl all by_scram_and_cert 127.0.0.1/32 scram-sha-256 clientcert=verify-full
hostssl all by_md5 127.0.0.1/32 md5
hostnossl all unencrypted 127.0.0.1/32 scram-sha-256
";

struct Server {
    postgres: LocalPostgres,
    /// Certificates and keys for clients.
    dir: PathBuf,
}

impl Server {
    /// The one server of this file.
    async fn get() -> &'static Server {
        static SERVER: OnceCell<Server> = OnceCell::const_new();
        SERVER.get_or_init(Server::start).await
    }

    async fn start() -> Server {
        Self::with(clients_files()).await
    }

    /// One that shows what is in `dir`.
    async fn with(dir: PathBuf) -> Server {
        let bin = throwaway::installed().expect("initdb: apt-get install postgresql");
        let settings = ["wal_level=logical", "max_wal_senders=20", "max_replication_slots=20"];
        let postgres = LocalPostgres::start(&bin, PASSWORD, &settings).expect("a server");
        let server = Server { dir, postgres };
        let client = server.superuser("postgres").await;
        server.secure(&client, &server.dir).await;
        for role in ["by_scram", "by_cert", "by_scram_and_cert", "unencrypted"] {
            make_role(&client, role).await;
        }
        client.batch_execute("set password_encryption = 'md5'").await.expect("an old hash");
        make_role(&client, "by_md5").await;
        server
    }

    /// Turns TLS on, as the server's own user: a key must be owned by it.
    async fn secure(&self, client: &Client, dir: &Path) {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect(name);
        for (file, text) in [
            ("server.crt", read("server.crt")),
            ("server.key", read("server.key")),
            ("root.crt", read("root.crt")),
            ("pg_hba.conf", HBA.to_owned()),
        ] {
            let quoted = text.replace('\'', "''");
            let lines: Vec<String> = quoted.lines().map(|line| format!("('{line}')")).collect();
            let write = format!(
                "copy (values {}) to program 'cat > {file} && chmod 600 {file}'",
                lines.join(",")
            );
            client.batch_execute(&write).await.expect("the server writes its file");
        }
        for setting in ["ssl = on", "ssl_ca_file = 'root.crt'"] {
            client.batch_execute(&format!("alter system set {setting}")).await.expect("set");
        }
        client.batch_execute("select pg_reload_conf()").await.expect("reloaded");
        wait::until("the server speaks TLS", wait::PATIENCE, || async {
            let row = client.query_one("show ssl", &[]).await.map_err(|e| e.to_string())?;
            if row.get::<_, &str>(0) == "on" { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await
        .expect("TLS");
    }

    async fn superuser(&self, database: &str) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.postgres.socket_dir()).port(self.postgres.port());
        config.user("postgres").dbname(database);
        let connected = wait::until("the server answers", wait::PATIENCE, || config.connect(NoTls));
        let (client, connection) = connected.await.expect("the superuser connects");
        tokio::spawn(connection);
        client
    }

    /// A database with the outbox in it, which every role may stream from.
    async fn database(&self, name: &str) -> Client {
        let maintenance = self.superuser("postgres").await;
        maintenance.batch_execute(&format!("create database {name}")).await.expect("a database");
        let mut client = self.superuser(name).await;
        outbox_migrations::apply(&mut client, Set::Outbox).await.expect("migrated");
        let grants = "grant usage on schema outbox to public; \
                      grant select, insert, update, delete on all tables in schema outbox to public";
        client.batch_execute(grants).await.expect("granted");
        client
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

async fn make_role(client: &Client, role: &str) {
    let quoted = PASSWORD.replace('\'', "''");
    let statement = format!("create role {role} login replication password '{quoted}'");
    client.batch_execute(&statement).await.expect("a role");
}

/// Makes what the server and its clients hold. The server's certificate is for `localhost` alone,
/// so that 127.0.0.1 is a host whose name does not fit.
fn clients_files() -> PathBuf {
    let dir = tempfile::Builder::new().prefix("outbox-tls-").tempdir().expect("a directory").keep();
    throwaway::guardian::remove_at_exit(&dir).expect("the guardian");
    let authority = Authority::new("the right one");
    let write = |name: &str, text: &str| write_private(&dir.join(name), text);
    let identity = |name: &str, Identity { certificate, key }: Identity| {
        write(&format!("{name}.crt"), &certificate);
        write(&format!("{name}.key"), &key);
    };
    write("root.crt", &authority.certificate());
    write("other.crt", &Authority::new("another").certificate());
    identity("server", authority.issue("server", &["localhost"]));
    for role in ["by_cert", "by_scram_and_cert"] {
        identity(role, authority.issue(role, &[]));
    }
    dir
}

/// A relay of a database of its own, on the secured server.
struct Case {
    harness: Harness,
    server: &'static Server,
    database: Client,
    name: String,
    topic: Topic,
}

impl Case {
    async fn new() -> Case {
        Self::on(Server::get().await).await
    }

    async fn on(server: &'static Server) -> Case {
        let harness = Harness::start().await;
        let name = harness.database().name().to_owned();
        let database = server.database(&name).await;
        let topic = harness.topic("secure").create(1).await;
        Case { harness, server, database, name, topic }
    }

    /// Settings that connect as `role` to `host`, with these parameters.
    fn relay(&self, role: &str, host: &str, parameters: &[(&str, &str)]) -> Settings {
        let port = self.server.postgres.port();
        let quoted = PASSWORD.replace('\'', "\\'");
        let mut url = format!(
            "host={host} hostaddr=127.0.0.1 port={port} dbname={} user={role} password='{quoted}'",
            self.name
        );
        for (name, value) in parameters {
            url += &format!(" {name}='{value}'");
        }
        self.harness.relay().set("postgres.url", &url)
    }

    /// Starts the relay and returns, per session of the role, whether it is encrypted and which
    /// certificate it showed, once an event has gone through both of them.
    async fn sessions(&self, role: &str, settings: Settings) -> Vec<(bool, Option<String>)> {
        let mut relay = settings.start().await;
        let publish = format!("select outbox.publish('{}', '{{}}'::jsonb)", self.topic.name());
        self.database.batch_execute(&publish).await.expect("published");
        let row = self.database.query_one("select id::text from outbox.events", &[]).await;
        self.topic.records_with([row.expect("the event").get::<_, String>(0)]).await;
        let query = "select ssl, client_dn from pg_stat_ssl join pg_stat_activity using (pid) \
                     where usename = $1 and datname = current_database()";
        let rows = self.database.query(query, &[&role]).await.expect("its sessions");
        assert!(relay.sigterm().await.success());
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// What `check` says, which ends by itself.
    async fn check(&self, settings: &Settings) -> (bool, String) {
        let Output { status, stdout, stderr } = settings.command(&["check"]).await;
        let text = [stdout, stderr].concat();
        (status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

fn assert_encrypted(sessions: &[(bool, Option<String>)]) {
    assert!(sessions.len() >= 2, "one for SQL and one for the stream: {sessions:?}");
    assert!(sessions.iter().all(|(encrypted, _)| *encrypted), "{sessions:?}");
}

#[tokio::test]
async fn a_verified_server_and_a_bound_login_carry_the_stream() {
    let case = Case::new().await;
    let root = case.server.file("root.crt");
    let settings = case.relay(
        "by_scram",
        "localhost",
        &[("sslmode", "verify-full"), ("sslrootcert", &root), ("channel_binding", "require")],
    );
    assert_encrypted(&case.sessions("by_scram", settings).await);
}

#[tokio::test]
async fn a_client_certificate_is_a_login() {
    let case = Case::new().await;
    let file = |name: &str| case.server.file(name);
    let parameters = [
        ("sslmode", "verify-full".to_owned()),
        ("sslrootcert", file("root.crt")),
        ("sslcert", file("by_cert.crt")),
        ("sslkey", file("by_cert.key")),
    ];
    let parameters = parameters.each_ref().map(|(name, value)| (*name, value.as_str()));
    let settings = case.relay("by_cert", "localhost", &parameters);
    let sessions = case.sessions("by_cert", settings).await;
    assert_encrypted(&sessions);
    let shown = |(_, dn): &(bool, Option<String>)| dn.as_deref() == Some("/CN=by_cert");
    assert!(sessions.iter().all(shown), "{sessions:?}");
}

#[tokio::test]
async fn an_old_md5_password_still_logs_in() {
    let case = Case::new().await;
    let settings = case.relay("by_md5", "localhost", &[("sslmode", "require")]);
    assert_encrypted(&case.sessions("by_md5", settings).await);
}

#[tokio::test]
async fn a_password_may_come_from_a_passfile_and_prefer_finds_a_server_without_tls() {
    let case = Case::new().await;
    let file = Path::new(&case.server.dir).join(format!("{}.pgpass", case.name));
    write_private(&file, &format!("localhost:*:{}:unencrypted:{PASSWORD}\n", case.name));
    let url = format!(
        "host=localhost hostaddr=127.0.0.1 port={} dbname={} user=unencrypted passfile='{}'",
        case.server.postgres.port(),
        case.name,
        file.display()
    );
    let settings = case.harness.relay().set("postgres.url", &url);
    let sessions = case.sessions("unencrypted", settings).await;
    assert!(sessions.iter().all(|(encrypted, _)| !encrypted), "{sessions:?}");
}

/// Mode by mode: which servers are taken, and what the refusal says.
#[tokio::test]
async fn each_sslmode_trusts_as_libpq_does() {
    let case = Case::new().await;
    let (right, wrong) = (case.server.file("root.crt"), case.server.file("other.crt"));
    // Mode, host, root; what the refusal says, `None` where the server is taken.
    let table: &[(&str, &str, Option<&str>, Option<&str>)] = &[
        ("verify-full", "localhost", Some(&right), None),
        ("verify-full", "127.0.0.1", Some(&right), Some("subjectAltName")),
        ("verify-full", "localhost", Some(&wrong), Some("sslrootcert")),
        ("verify-ca", "127.0.0.1", Some(&right), None),
        ("verify-ca", "127.0.0.1", Some(&wrong), Some("sslrootcert")),
        ("require", "127.0.0.1", None, None),
        // As libpq: a root that is named is a root that counts.
        ("require", "127.0.0.1", Some(&wrong), Some("sslrootcert")),
        ("prefer", "127.0.0.1", None, None),
        ("allow", "127.0.0.1", None, None),
        ("disable", "127.0.0.1", None, Some("pg_hba.conf")),
    ];
    for (mode, host, root, refusal) in table {
        let mut parameters = vec![("sslmode", *mode)];
        parameters.extend(root.map(|root| ("sslrootcert", root)));
        let (taken, said) = case.check(&case.relay("by_scram", host, &parameters)).await;
        match refusal {
            None => assert!(taken, "{mode} {host} {root:?}: {said}"),
            Some(text) => {
                assert!(!taken && said.contains(text), "{mode} {host} {root:?}: {said}");
            }
        }
    }
}

#[tokio::test]
async fn a_login_that_lacks_its_certificate_or_binding_is_refused() {
    let case = Case::new().await;
    for (role, parameters, refusal) in [
        ("by_cert", vec![("sslmode", "require")], "certificate"),
        ("by_scram_and_cert", vec![("sslmode", "require")], "certificate"),
        ("unencrypted", vec![("sslmode", "disable"), ("channel_binding", "require")], "channel"),
        ("by_md5", vec![("sslmode", "require"), ("channel_binding", "require")], "channel"),
    ] {
        let (taken, said) = case.check(&case.relay(role, "localhost", &parameters)).await;
        assert!(!taken && said.contains(refusal), "{role} {parameters:?}: {said}");
        assert!(!said.contains(PASSWORD), "a password shows: {said}");
    }
}

fn directory() -> PathBuf {
    let dir = tempfile::Builder::new().prefix("outbox-tls-").tempdir().expect("a directory").keep();
    throwaway::guardian::remove_at_exit(&dir).expect("the guardian");
    dir
}
