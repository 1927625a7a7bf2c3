//! What `check` says of a service, and whom the relay believes.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use outbox_harness::{
    aws::{Toll, Verdict, write_key},
    certificates::{Authority, write_private},
    event::Event,
    host,
    relay::Settings,
    servers, wait,
};

use super::{SECRET, World};
use crate::{checks, dead_letters::wait_parked};

#[tokio::test]
async fn check_names_what_is_missing_and_shows_no_secret() {
    let mut world = World::new(".fifo").await;
    let found = async |settings: &Settings, verdict: &str, words: &[&str]| {
        let findings = checks::check(settings).await;
        let texts: Vec<String> = findings
            .iter()
            .filter(|it| it.verdict == verdict)
            .map(|it| format!("{}: {} {}", it.name, it.seen, it.remedy))
            .collect();
        let is_there = texts.iter().any(|text| words.iter().all(|word| text.contains(word)));
        assert!(is_there, "{words:?} in {verdict}: {findings:#?}");
        assert!(!format!("{findings:?}").contains(SECRET), "{findings:#?}");
    };
    let fine = world.relay();
    found(&fine, "ok", &["SQS", "answers", "FIFO"]).await;
    let missing = format!("{}.none", world.t.database().name());
    world.t.commit([Event::to(&missing).key("a")]).await;
    found(&fine, "warning", &["-none.fifo does not exist", "create the queue"]).await;
    let away = world.relay_at(&format!("http://127.0.0.1:{}", host::free_port()));
    found(&away, "problem", &["SQS", "sink.sqs.endpoint"]).await;
    let nameless = world
        .relay()
        .without("sink.sqs.credentials_file")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("HOME", world.t.dir().to_str().expect("UTF-8"));
    found(&nameless, "problem", &["SQS", "credentials"]).await;
}

#[tokio::test]
async fn a_certificate_that_no_one_vouches_for_is_not_believed() {
    let world = World::new(".fifo").await;
    let authority = Authority::new("an authority");
    let identity = authority.issue("sqs", &["localhost", "127.0.0.1"]);
    let dir = world.t.dir().to_owned();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        write_private(&path, text);
        path
    };
    let server =
        TlsServer::start(&file("sqs.pem", &identity.certificate), &file("sqs.key", &identity.key));
    let trusted = file("trusted.pem", &authority.certificate());
    let stranger = file("stranger.pem", &Authority::new("a stranger").certificate());
    let settings = world.relay_at(&format!("https://127.0.0.1:{}", server.port));
    let with = |ca: &Path| settings.clone().set("sink.sqs.ca_file", ca.to_str().expect("UTF-8"));
    let told = async |settings: &Settings| {
        let findings = checks::check(settings).await;
        let found = findings.into_iter().find(|it| it.name == "SQS").expect("it is looked at");
        format!("{}: {}", found.verdict, found.seen)
    };
    let is_certificate = |text: &str| text.starts_with("problem") && text.contains("certificate");
    let answers = wait::until("it listens", wait::PATIENCE, || async {
        match told(&with(&stranger)).await {
            text if is_certificate(&text) => Ok(()),
            text => Err(text),
        }
    });
    answers.await.expect("a stranger's word is not taken");
    assert!(is_certificate(&told(&settings).await), "nor is no one's");
    // It is no SQS, but it is spoken with.
    let text = told(&with(&trusted)).await;
    assert!(!text.contains("certificate"), "{text}");
}

/// The files of a service are read at a start of the sink: one that is away later is a halt, and not a bad setting.
#[tokio::test]
async fn a_service_that_can_not_be_used_is_named_and_all_arrives_once_it_can() {
    let mut world = World::new(".fifo").await;
    let topic = world.topic();
    let ca_file = world.t.dir().join("authorities.pem");
    write_private(&ca_file, &Authority::new("an authority").certificate());
    let settings = world.relay().set("sink.sqs.ca_file", ca_file.to_str().expect("UTF-8"));
    let mut relay = settings.start().await;
    world.t.commit([Event::to(&topic).key("a")]).await;
    world.all_arrive().await.assert_exactly_once();
    std::fs::remove_file(&ca_file).expect("removed");
    let ended = "select pg_terminate_backend(active_pid) from pg_replication_slots \
                 where database = current_database() and active";
    world.t.database().superuser().batch_execute(ended).await.expect("ended");
    world.t.commit([Event::to(&topic).key("a")]).await;
    relay.wait_log("SQS can't be used").await;
    assert!(relay.logs_contain("set sink.sqs.region and sink.sqs.ca_file"), "{}", relay.log_text());
    write_private(&ca_file, &Authority::new("an authority").certificate());
    relay.wait_ready().await;
    world.all_arrive().await.assert_exactly_once();
    relay.kill9().await;

    let (relay, home) = (world.relay(), world.t.dir().to_owned());
    let nowhere = || {
        let settings = relay.clone().without("sink.sqs.region").files("nowhere");
        let settings = settings.env("AWS_EC2_METADATA_DISABLED", "true");
        settings.env("HOME", home.to_str().expect("UTF-8"))
    };
    let mut relay = nowhere().spawn();
    // Nothing is to be delivered yet, and nothing could be.
    relay.wait_log("streaming").await;
    relay.wait_for("/readyz", 503).await;
    world.t.commit([Event::to(&topic).key("a")]).await;
    relay.wait_log("SQS can't be used").await;
    relay.kill9().await;
    let settings = nowhere().env("AWS_REGION", "elasticmq");
    let _relay = settings.start().await;
    world.all_arrive().await.assert_exactly_once();
}

/// As where keys are rotated: a new one is there, and then the old one is taken away.
#[tokio::test]
async fn a_key_that_is_replaced_while_the_relay_runs_is_read_from_its_file_and_all_arrives() {
    const NEW: &str = "AKIANEWNEWNEWNEWNEWN";
    let mut world = World::new(".fifo").await;
    let only_new = Arc::new(AtomicBool::new(false));
    let is_rotated = Arc::clone(&only_new);
    let toll = Toll::asking(&servers::elasticmq().await.address(), move |key, _| {
        match key == NEW || !is_rotated.load(SeqCst) {
            true => Verdict::Pass,
            false => Verdict::Refuse("InvalidClientTokenId", "The security token is invalid."),
        }
    })
    .await;
    let topic = world.topic();
    let mut relay = world.relay_at(&toll.endpoint()).start().await;
    world.t.commit([Event::to(&topic).key("a")]).await;
    world.all_arrive().await.assert_exactly_once();
    only_new.store(true, SeqCst);
    world.t.commit([Event::to(&topic).key("a"), Event::to(&topic).key("b")]).await;
    relay.wait_log("does not accept the relay's credentials").await;
    relay.wait_for("/readyz", 503).await;
    write_key(&world.credentials, NEW);
    relay.wait_ready().await;
    world.all_arrive().await.assert_exactly_once();
    wait_parked(&world.t, |parked| parked == 0).await;
}

/// Of openssl: it speaks TLS, and as much of HTTP as it does.
struct TlsServer {
    port: u16,
    server: Child,
}

impl TlsServer {
    fn start(certificate: &Path, key: &Path) -> Self {
        let port = host::free_port();
        let server = Command::new("openssl")
            .args(["s_server", "-www", "-quiet", "-accept", &format!("127.0.0.1:{port}")])
            .arg("-cert")
            .arg(certificate)
            .arg("-key")
            .arg(key)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl starts");
        TlsServer { port, server }
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        // One that has ended already can't be killed, and is waited for all the same.
        let _ended_before = self.server.kill();
        let _status = self.server.wait();
    }
}
