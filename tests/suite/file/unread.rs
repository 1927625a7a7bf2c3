//! A relay whose standard output no one reads: it waits, says so, and repeats nothing.

use std::{
    io::{BufRead as _, Write as _},
    path::{Path, PathBuf},
};

use outbox_harness::{Harness, check, event::Event, relay::Relay, wait};
use serde_json::json;

use super::{PARTITIONS, all_written, to_file};

/// A relay whose standard output is a pipe that no one reads, with more events than go into it.
async fn unread() -> (Harness, Relay, std::fs::File, PathBuf) {
    let mut t = Harness::start().await;
    let (settings, path) = to_file(&t);
    let settings = settings.set("sink.kind", "stdout").without("sink.file.path");
    let pipe = t.dir().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    // Both ends, so that neither is waited for.
    let ours = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).expect("a pipe");
    let relay = settings.stdout(&pipe).start().await;
    let large = json!({ "text": "x".repeat(4_000) });
    t.commit((0..60).map(|_| Event::to("orders").key("a").payload(large.clone()))).await;
    relay.wait_log("nothing can be written now").await;
    (t, relay, ours, path)
}

/// Reads the pipe from now on, and writes into the file what of its lines is whole.
fn read_on(pipe: std::fs::File, path: &Path) {
    let mut file = std::fs::File::create(path).expect("a file");
    std::thread::spawn(move || {
        for line in std::io::BufReader::new(pipe).lines().map_while(Result::ok) {
            if serde_json::from_str::<serde_json::Value>(&line).is_ok() {
                file.write_all(format!("{line}\n").as_bytes()).expect("written");
            }
        }
    });
}

#[tokio::test]
async fn a_reader_that_stands_still_is_named_and_costs_neither_the_lead_nor_a_repetition() {
    let (t, mut relay, pipe, path) = unread().await;
    relay.wait_for("/readyz", 503).await;
    let status = relay.status().await;
    let why = status["not_ready_because"].as_str().unwrap_or_default();
    assert!(why.contains("standard output is not read since 20"), "{why}");
    assert_eq!((&status["phase"], &status["role"]), (&json!("streaming"), &json!("leader")));
    read_on(pipe, &path);
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_exactly_once();
    relay.wait_ready().await;
    relay.wait_log("lines are written again").await;
    let log = relay.log_text();
    assert_eq!(log.matches("nothing can be written now").count(), 1, "{log}");
    assert!(!log.contains("will try again"), "it has kept its lead: {log}");
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn a_lead_that_is_lost_while_nobody_reads_is_given_up_and_taken_again() {
    let (t, mut relay, pipe, path) = unread().await;
    let end = "select pg_terminate_backend(pid) from pg_stat_activity \
               where application_name like '%outbox%' and datname = current_database() \
                   and pid <> pg_backend_pid() and usename <> session_user";
    t.database().superuser().query(end, &[]).await.expect("ended");
    relay.wait_log("gave up a write that does not end").await;
    wait::until("it leads again, and waits again", wait::PATIENCE, || async {
        match relay.log_text().matches("nothing can be written now").count() {
            2.. => Ok(()),
            _ => Err(relay.log_text()),
        }
    })
    .await
    .expect("it does");
    read_on(pipe, &path);
    let records = all_written(&t, &path).await;
    check::compare(&t.committed().await, &records, PARTITIONS).assert_at_least_once();
    relay.wait_ready().await;
    assert!(relay.sigterm().await.success());
}

/// A stop has a limit, too.
#[tokio::test]
async fn a_relay_that_nobody_reads_stops_when_it_is_told_to() {
    let (_t, mut relay, _pipe, _path) = unread().await;
    assert!(relay.sigterm().await.success());
}
