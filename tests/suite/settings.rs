//! Settings and commands: what is wrong is said at once, with exit codes that scripts rely on.

use outbox_harness::{Harness, event::Event};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

#[tokio::test]
async fn all_problems_are_reported_together_with_exit_code_2() {
    let t = Harness::start().await;
    let settings = t
        .relay()
        .set("name", "Not A Name")
        .set_toml("batch.records_max", "0")
        .set("sink.delivery", "sometimes")
        .set("sink.colour", "blue");
    let output = settings.command(&["run"]).await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for key in ["name", "batch.records_max", "sink.delivery", "sink.colour"] {
        assert!(text.contains(key), "{key} is missing from: {text}");
    }
}

#[tokio::test]
async fn a_property_that_would_break_a_guarantee_is_refused_by_its_name() {
    let t = Harness::start().await;
    let settings = t.relay().set("sink.properties.\"enable.idempotence\"", "false");
    let output = settings.command(&["run"]).await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("enable.idempotence"), "{text}");
}

/// `OUTBOX_RELAY_NAME` gave a relay no name, in silence. Others may have variables that begin like that.
#[tokio::test]
async fn a_variable_with_one_underscore_too_few_is_named_with_the_one_that_is_meant() {
    let t = Harness::start().await;
    let settings =
        t.relay().env("OUTBOX_RELAY_LOG_FORMAT", "json").env("OUTBOX_RELAY_PORT", "tcp://10.0.0.1");
    let findings = crate::checks::check(&settings).await;
    let found: Vec<_> = findings.iter().filter(|found| found.name == "settings").collect();
    let [found] = found[..] else { panic!("one is meant for a setting: {findings:#?}") };
    assert!(found.verdict == "warning" && found.seen.contains("OUTBOX_RELAY_LOG_FORMAT"));
    assert!(found.remedy.contains("OUTBOX_RELAY__LOG__FORMAT"), "{found:?}");
    let output = settings.command(&["config"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("name it OUTBOX_RELAY__LOG__FORMAT"), "{said}");
    let relay = settings.start().await;
    assert!(relay.logs_contain("OUTBOX_RELAY__LOG__FORMAT"), "{}", relay.log_text());
}

#[tokio::test]
async fn check_finds_nothing_wrong_where_nothing_is() {
    let t = Harness::start().await;
    let output = t.relay().command(&["check"]).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
}

#[tokio::test]
async fn check_names_a_missing_publication_and_exits_with_1() {
    let t = Harness::start().await;
    let drop = "drop publication outbox";
    t.database().superuser().batch_execute(drop).await.expect("dropped");
    let output = t.relay().command(&["check"]).await;
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("create publication outbox"), "the remedy is missing: {text}");
}

#[tokio::test]
async fn the_database_password_is_in_no_output() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let relay = t.relay().set("log.level", "debug").start().await;
    t.commit([outbox_harness::event::Event::to(topic.name())]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    let status = relay.page("/status").await;
    let metrics = relay.page("/metrics").await;
    for text in [relay.log_text(), status, metrics] {
        assert!(!text.contains(outbox_harness::postgres::PASSWORD), "{text}");
    }
}

/// Any user of the host can take it before the relay starts.
#[tokio::test]
async fn a_relay_whose_admin_port_is_taken_streams_names_who_has_it_and_takes_it_once_it_is_free() {
    let mut t = Harness::start().await;
    let topic = t.topic("orders").create(1).await;
    let stranger = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = stranger.local_addr().expect("bound").port();
    let mut relay = t.relay().spawn_at(port);
    t.commit([Event::to(topic.name()).key("k")]).await;
    t.count(&topic, 1).await.assert_exactly_once();
    relay.wait_log("another program has the admin address").await;
    let me = format!("process {}", std::process::id());
    assert!(relay.logs_contain(&me), "{}", relay.log_text());

    // It answers as another relay would.
    let other = serde_json::json!({
        "name": "other", "version": "1", "role": "leader", "phase": "streaming", "detail": "", "ready": true,
        "slot": "outbox_other", "records_delivered": 0, "bytes_delivered": 0, "batches": 0,
        "uptime_seconds": 1.0,
    });
    let answers = tokio::spawn(async move {
        loop {
            let (mut client, _) = stranger.accept().await.expect("a client");
            let mut request = [0; 1024];
            let _ = client.read(&mut request).await.expect("a request");
            let answer = format!("HTTP/1.1 200 OK\r\n\r\n{other}");
            client.write_all(answer.as_bytes()).await.expect("answered");
        }
    });
    let settings = t.relay().set("admin.listen", &format!("127.0.0.1:{port}"));
    let output = settings.command(&["status"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("says that it is the relay other"), "{said}");
    let output = settings.command(&["status", "--admin", &format!("127.0.0.1:{port}")]).await;
    assert_eq!(output.status.code(), Some(0), "who names the address asks whoever is there");

    answers.abort();
    relay.wait_ready().await;
    let output = settings.command(&["status"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn an_admin_address_of_another_machine_ends_the_start() {
    let t = Harness::start().await;
    let output = t.relay().set("admin.listen", "192.0.2.1:9464").command(&["run"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("can't listen on 192.0.2.1:9464"), "{said}");
}
