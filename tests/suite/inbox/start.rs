//! What a new user sees of README's consumer before it consumes anything.

use std::{
    process::Stdio,
    time::{SystemTime, UNIX_EPOCH},
};

use outbox_harness::{
    consumer::{Consumer, effects_so_far, make_effects},
    database::Database,
    member::Plan,
    relay, servers,
    topic::Topic,
    wait,
};
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
async fn a_database_or_role_that_does_not_exist_is_called_wrong_and_not_unavailable() {
    let database = Database::create_inbox().await;
    let url = database.superuser_url();
    let (server, _) = url.rsplit_once('/').expect("the database's name is last");
    let (_, host) = url.split_once('@').expect("a role");
    let absent = format!("{server}/absent_database");
    let stranger = format!("postgres://absent_role:secret@{host}");
    for (url, named) in [(absent, "absent_database"), (stranger, "absent_role")] {
        let ended = consumer(&[("DATABASE_URL", &url), ("KAFKA", "127.0.0.1:1")]).output().await;
        let ended = ended.expect("it runs");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(!ended.status.success() && said.contains(named), "{said}");
        assert!(said.contains("correct the user, password or database"), "{said}");
        assert!(!said.contains("unavailable"), "{said}");
    }
}

#[tokio::test]
async fn a_consumer_says_how_it_starts_what_waits_and_that_no_broker_answers() {
    // No one listens on a port that is reserved; a broker that is frozen takes connections.
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let frozen = (frozen.local_addr().expect("its address").to_string(), frozen);
    for broker in ["127.0.0.1:1", &frozen.0] {
        let database = Database::create_inbox().await;
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        let file = std::fs::File::create(&log).expect("a log");
        let mut consumer =
            consumer(&[("DATABASE_URL", &*database.superuser_url()), ("KAFKA", broker)]);
        consumer.env("NO_COLOR", "1").stdout(file.try_clone().expect("a handle")).stderr(file);
        let mut running = consumer.spawn().expect("it starts");
        let brokers = format!("brokers=\"{broker}\"");
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
                &*brokers,
            ];
            match all.into_iter().find(|text| !said.contains(text)) {
                None => Ok(()),
                Some(text) => Err(format!("{text} is not in {said}")),
            }
        })
        .await
        .expect("it is said");
        let said = std::fs::read_to_string(&log).expect("a log");
        assert!(!said.contains("give the pool"), "32 are enough: {said}");
        let silent = logged_at(&said, "no Kafka broker has answered yet")
            - logged_at(&said, "the consumer starts");
        // Three seconds, where the machine has time.
        assert!(silent.rem_euclid(86_400.0) < 15.0, "{silent} s: {said}");
        running.kill().await.expect("it is ended");
    }
}

/// The second of the day at which the line with these words was written.
fn logged_at(said: &str, words: &str) -> f64 {
    let line = said.lines().find(|line| line.contains(words)).expect(words);
    let (_, time) = line.split_once('T').expect("a time");
    let time = time.split('Z').next().expect("its end");
    time.split(':').fold(0.0, |all, part| all * 60.0 + part.parse::<f64>().expect("a number"))
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

#[tokio::test]
async fn a_pool_that_is_too_small_for_the_handlers_is_told_with_the_size_that_it_needs() {
    let (kafka, database) = (servers::kafka().await, Database::create_inbox().await);
    let topic = Topic::new(kafka, format!("{}.small", database.name())).create(1).await;
    let dir = tempfile::tempdir().expect("a directory");
    let consumer = Consumer::start(dir.path(), "a", &database, kafka, &topic, &Plan::default());
    consumer.wait_log("the pool has 24 connections for 16 handlers and 9 tasks beside them").await;
    consumer.wait_log("give the pool max_size(25)").await;
}

#[tokio::test]
async fn a_pattern_that_the_broker_takes_for_a_whole_name_is_told_and_the_one_to_write_is_read() {
    let (kafka, database) = (servers::kafka().await, Database::create_inbox().await);
    make_effects(&database).await;
    let topic = Topic::new(kafka, format!("{}.orders.eu", database.name())).create(1).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    topic.produce(i64::try_from(now).expect("a time"), "{}").await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut plan = Plan { in_flight_bytes: Some(1 << 20), ..Plan::default() };
    plan.kafka.insert("group.protocol".into(), "consumer".into());
    let start = |pattern: String, name: &str| {
        let pattern = Topic::new(kafka, pattern);
        Consumer::start(dir.path(), name, &database, kafka, &pattern, &plan)
    };
    let mut odd = start(format!("^{}.orders", database.name()), "odd");
    odd.wait_log("matches a pattern against whole names").await;
    odd.wait_log(&format!("write ^{}.orders.*", database.name())).await;
    assert!(odd.sigterm().await.success());
    let mut whole = start(format!("^{}.orders.*", database.name()), "whole");
    wait::until("it takes effect", wait::PATIENCE, || async {
        match effects_so_far(&database).await {
            1 => Ok(()),
            count => Err(format!("{count}")),
        }
    })
    .await
    .expect("it is read");
    assert_eq!(whole.log_count("whole names"), 0);
    assert!(whole.sigterm().await.success());
}
