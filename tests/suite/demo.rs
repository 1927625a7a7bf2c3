//! `outbox-relay demo`: its count is right, can be wrong, and nothing is left behind.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use outbox_harness::{
    Harness,
    nats::{self, Nats},
    relay, wait,
};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// A demo's whole time, on a machine that is busy with the rest of the suite.
const RUN: Duration = Duration::from_secs(120);

/// A directory for what the demo puts on disk. Its PostgreSQL runs as another user where we are
/// root, so others may pass.
fn scratch() -> TempDir {
    let dir = tempfile::Builder::new().prefix("outbox-t-").tempdir().expect("a directory");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("its mode is set");
    dir
}

fn entries(dir: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path()).expect("it can be read");
    entries.flatten().map(|entry| entry.path().display().to_string()).collect()
}

fn start(dir: &TempDir, arguments: &[&str]) -> Child {
    start_with(dir, arguments, &std::env::var("PATH").expect("PATH"))
}

fn start_with(dir: &TempDir, arguments: &[&str], path: &str) -> Child {
    Command::new(relay::binary().expect("a relay"))
        .arg("demo")
        .env("PATH", path)
        .args(arguments)
        .env("TMPDIR", dir.path())
        // Not this user's own programs of Go.
        .env("HOME", dir.path())
        .env_remove("GOBIN")
        .env_remove("GOPATH")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the demo starts")
}

async fn end(demo: Child) -> Output {
    let output = tokio::time::timeout(RUN, demo.wait_with_output()).await;
    output.expect("the demo ends in time").expect("its output is read")
}

fn text(output: &Output) -> String {
    let both = [&output.stderr, &output.stdout].map(|part| String::from_utf8_lossy(part));
    both.concat()
}

#[tokio::test]
async fn the_demo_on_real_servers_repeats_nothing_and_leaves_nothing() {
    let t = Harness::start().await;
    let dir = scratch();
    let postgres = t.database().superuser_settings();
    let brokers = t.kafka().brokers();
    let servers = ["--postgres", &postgres, "--kafka", brokers];
    let sizes = ["--events", "1500", "--writers", "4", "--kills", "2"];
    let output = end(start(&dir, &[servers.as_slice(), &sizes].concat())).await;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let ending = "\nrepeated by the broker 0 (read_committed)\n\
                  committed 1500 · delivered 1500 · lost 0 · duplicated 0 · out of order 0\n";
    assert!(text.ends_with(ending), "{text}");
    assert_eq!(text.matches("kill -9 of process").count(), 2, "{text}");

    assert_eq!(entries(&dir), [""; 0]);
    let left = "select count(*) from pg_database where datname like 'outbox\\_demo\\_%'";
    let left = t.database().superuser().query_one(left, &[]).await.expect("counted");
    assert_eq!(left.get::<_, i64>(0), 0, "databases");
    let topics = t.kafka().topics().await;
    let of_demo = |topic: &&String| topic.contains("outbox-demo") || topic.contains("outbox_demo");
    assert_eq!(topics.iter().find(of_demo), None);
}

#[tokio::test]
async fn the_demo_brings_its_own_servers_and_its_count_can_tell() {
    let dir = scratch();
    let arguments = ["--events", "1200", "--kills", "1", "--tamper"];
    let output = end(start(&dir, &arguments)).await;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let ending = "\ncommitted 1200 · delivered 1199 · lost 1 · duplicated 1 · out of order 1\n";
    assert!(text.ends_with(ending), "{text}");
    assert_eq!(entries(&dir), [""; 0]);
}

#[tokio::test]
async fn the_demo_on_nats_repeats_nothing_and_leaves_nothing() {
    let program = nats::program().expect("a server's program");
    let path = std::env::var("PATH").expect("PATH");
    let path = format!("{path}:{}", program.parent().expect("its folder").display());
    let server = Nats::start().expect("a server");
    let url = format!("nats://{}", server.address());
    let sizes = ["--events", "1500", "--writers", "4", "--kills", "2"];
    for broker in [["--sink", "nats"], ["--nats", &url]] {
        let dir = scratch();
        let output = end(start_with(&dir, &[&broker, sizes.as_slice()].concat(), &path)).await;
        let text = text(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        let ending = "\nrepeated by the broker 0 (atomic batches)\n\
                      committed 1500 · delivered 1500 · lost 0 · duplicated 0 · out of order 0\n";
        assert!(text.ends_with(ending), "{text}");
        assert_eq!(text.matches("kill -9 of process").count(), 2, "{text}");
        assert_eq!(entries(&dir), [""; 0]);
    }
    assert_eq!(server.streams().await, [""; 0]);
}

#[tokio::test]
async fn a_demo_without_a_nats_server_says_how_to_install_one() {
    let dir = scratch();
    let output = end(start_with(&dir, &["--sink", "nats"], "/usr/bin:/bin")).await;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("`go install github.com/nats-io/nats-server/v2@latest`"), "{text}");
    assert_eq!(entries(&dir), [""; 0]);
}

#[tokio::test]
async fn ctrl_c_ends_the_demo_and_leaves_nothing() {
    let dir = scratch();
    // More than it gets to.
    let demo = start(&dir, &["--events", "1000000"]);
    wait::until("its relay runs", RUN, || async {
        let running = entries(&dir).iter().any(|entry| {
            entry.contains("outbox-demo-") && Path::new(entry).join("relay.log").exists()
        });
        if running { Ok(()) } else { Err("no relay's log") }
    })
    .await
    .expect("it gets on");
    let pid = libc::pid_t::try_from(demo.id().expect("it runs")).expect("a process id");
    // SAFETY: kill takes any numbers; the demo was not waited for, so this one is still its.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    let output = end(demo).await;
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("stopped before the end"), "{text}");
    assert_eq!(entries(&dir), [""; 0]);
}
