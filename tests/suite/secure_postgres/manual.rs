//! Certificates as PostgreSQL's manual makes them: the relay takes them as psql does.

use std::path::{Path, PathBuf};

use super::{Case, Server, assert_encrypted, directory};
use outbox_harness::wait;

/// Runs `openssl` in a directory.
fn openssl(dir: &Path, arguments: &str) {
    let mut command = std::process::Command::new("openssl");
    let output = command.args(arguments.split(' ')).current_dir(dir).output();
    let output = output.expect("openssl: apt-get install openssl");
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority of its own and a server's certificate that it signs, by the commands of
/// PostgreSQL's manual: of X.509 version 1, without a subjectAltName.
fn the_manuals_files() -> PathBuf {
    let dir = directory();
    for name in ["root", "other"] {
        openssl(
            &dir,
            &format!(
                "req -new -nodes -text -out {name}.csr -keyout {name}.key -subj /CN=authority"
            ),
        );
        openssl(
            &dir,
            &format!(
                "x509 -req -in {name}.csr -text -days 3650 -extfile /etc/ssl/openssl.cnf \
                 -extensions v3_ca -signkey {name}.key -out {name}.crt"
            ),
        );
    }
    openssl(&dir, "req -new -nodes -text -out server.csr -keyout server.key -subj /CN=localhost");
    openssl(
        &dir,
        "x509 -req -in server.csr -text -days 365 -CA root.crt -CAkey root.key -CAcreateserial \
         -out server.crt",
    );
    let text = std::fs::read_to_string(dir.join("server.crt")).expect("it was made");
    assert!(text.contains("Version: 1 (0x0)"), "{text}");
    dir
}

#[tokio::test]
async fn certificates_that_postgresqls_manual_makes_are_taken_as_psql_takes_them() {
    let server: &'static Server = Box::leak(Box::new(Server::with(the_manuals_files()).await));
    let case = Case::on(server).await;
    let (root, other) = (server.file("root.crt"), server.file("other.crt"));
    let itself = server.file("server.crt");
    let settings = |host, mode, root| {
        case.relay("by_scram", host, &[("sslmode", mode), ("sslrootcert", root)])
    };
    let full = case.sessions("by_scram", settings("localhost", "verify-full", &root)).await;
    assert_encrypted(&full);
    for (host, mode, root, refusal) in [
        ("127.0.0.1", "verify-ca", &root, None),
        ("127.0.0.1", "verify-full", &root, Some("common name")),
        ("localhost", "verify-ca", &other, Some("sslrootcert")),
        ("localhost", "verify-full", &itself, None),
    ] {
        let (taken, said) = case.check(&settings(host, mode, root)).await;
        match refusal {
            None => assert!(taken, "{host} {mode} {root}: {said}"),
            Some(text) => assert!(!taken && said.contains(text), "{host} {mode} {root}: {said}"),
        }
    }
    // The manual's first recipe: one that has signed itself, and is its own root.
    let alone = directory();
    openssl(
        &alone,
        "req -new -x509 -days 365 -nodes -text -out server.crt -keyout server.key -subj /CN=localhost",
    );
    std::fs::copy(alone.join("server.crt"), alone.join("root.crt")).expect("copied");
    server.secure(&server.superuser("postgres").await, &alone).await;
    let own = alone.join("root.crt").display().to_string();
    for (host, mode, root, taken) in [
        ("localhost", "verify-full", &own, true),
        ("127.0.0.1", "verify-full", &own, false),
        ("localhost", "verify-full", &root, false),
    ] {
        wait::until(&format!("{host} {mode} is as expected"), wait::PATIENCE, || async {
            let (found, said) = case.check(&settings(host, mode, root)).await;
            if found == taken { Ok(()) } else { Err(said) }
        })
        .await
        .expect("as psql");
    }
}
