//! What a new user sees of README's consumer before it consumes anything.

use std::process::Stdio;

use outbox_tests::{database::Database, relay, wait};
use tokio::process::Command;

/// README's consumer, with the variables that are given and no others of its own.
fn consumer(variables: &[(&str, &str)]) -> Command {
    let program = relay::binary().expect("the programs are built");
    let mut command = Command::new(program.with_file_name("readme-consumer"));
    command.env_remove("DATABASE_URL").env_remove("KAFKA").stdin(Stdio::null());
    command.envs(variables.iter().copied()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn a_setting_that_is_missing_is_named() {
    let database = Database::create_inbox().await;
    let url = database.superuser_url();
    for (given, missing) in [(vec![], "DATABASE_URL"), (vec![("DATABASE_URL", &*url)], "KAFKA")] {
        let ended = consumer(&given).output().await.expect("it runs");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success() && said.contains(missing), "{said}");
        assert!(said.contains("environment variable not found"), "{said}");
    }
}

#[tokio::test]
async fn a_consumer_says_how_it_starts_what_waits_and_that_no_broker_answers() {
    let database = Database::create_inbox().await;
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log");
    let file = std::fs::File::create(&log).expect("a log");
    // Nobody listens on a port that is reserved.
    let variables = [("DATABASE_URL", &*database.superuser_url()), ("KAFKA", "127.0.0.1:1")];
    let mut consumer = consumer(&variables);
    consumer.env("NO_COLOR", "1").stdout(file.try_clone().expect("a handle")).stderr(file);
    let mut running = consumer.spawn().expect("it starts");
    wait::until("it has said so", wait::PATIENCE, || async {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let all = [
            "the consumer starts",
            "consumer=\"billing/charge\"",
            "group=\"billing\"",
            "topics=\"orders\"",
            "handlers=16",
            "connections=32",
            "parked=0",
            "no Kafka broker has answered yet",
            "brokers=\"127.0.0.1:1\"",
        ];
        match all.into_iter().find(|text| !said.contains(text)) {
            None => Ok(()),
            Some(text) => Err(format!("{text} is not in {said}")),
        }
    })
    .await
    .expect("it is said");
    running.kill().await.expect("it is ended");
}

#[tokio::test]
async fn an_inbox_that_is_not_there_is_an_error_in_words() {
    let database = Database::create().await;
    let url = database.superuser_url();
    let variables = [("DATABASE_URL", &*url), ("KAFKA", "127.0.0.1:1")];
    let ended = consumer(&variables).output().await.expect("it runs");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("outbox-relay migrate --set inbox"), "{said}");
    assert!(!said.contains("DbError"), "{said}");
}
