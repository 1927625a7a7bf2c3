//! NATS with TLS and users: with the rights that docs/NATS.md lists all arrives; and what is wrong with a certificate,
//! a key or a right is named, and nothing is sent.

use std::time::{Duration, Instant};

use outbox_harness::{
    Harness,
    certificates::{Authority, write_private},
    event::Event,
    nats::{Nats, Stream},
    postgres::Postgres,
    relay::Settings,
    servers, wait,
};
use serde_json::json;

use crate::{connect, obeyed::says};

/// With characters that must be encoded in a URL.
const PASSWORD: &str = "pass@word:/%";

/// A server that knows three users: one that may do all, and the relay, by its nkey and by a password.
struct Secured {
    t: Harness,
    stream: Stream,
    settings: Settings,
    /// Files of the relay's.
    dir: tempfile::TempDir,
    /// The server's settings with other rights.
    config: Box<dyn Fn(Vec<String>) -> String>,
    nats: Nats,
}

impl Secured {
    /// `rights`: what the relay's user may publish to, but for its events.
    async fn start(rights: impl Fn(&str) -> Vec<String>) -> Self {
        Self::start_in(Harness::start().await, rights).await
    }

    async fn start_in(t: Harness, rights: impl Fn(&str) -> Vec<String>) -> Self {
        let name = t.database().name().to_owned();
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::new("an authority");
        let server = authority.issue("nats", &["localhost", "127.0.0.1"]);
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            write_private(&path, text);
            path.to_str().expect("UTF-8").to_owned()
        };
        let certificate = file("server.pem", &server.certificate);
        let key = file("server.key", &server.key);
        let trusted = file("trusted.pem", &authority.certificate());
        let user = nkeys::KeyPair::new_user();
        let seed = file("relay.nk", &user.seed().expect("a seed"));
        let (events, public_key) = (format!("{name}.orders.*"), user.public_key());
        let config = move |mut allowed: Vec<String>| {
            allowed.push(events.clone());
            format!(
                "tls {{ cert_file: {certificate:?}, key_file: {key:?} }}\n\
             allow_non_tls: true\n\
             authorization {{ users = [ {{ user: admin, password: admin }}, \
                 {{ user: relay, password: {PASSWORD:?}, permissions: {{ publish: {allowed:?}, \
                 subscribe: [\"_INBOX.>\"] }} }}, {{ nkey: {}, \
                 permissions: {{ publish: {allowed:?}, subscribe: [\"_INBOX.>\"] }} }} ] }}\n",
                public_key
            )
        };
        let nats = Nats::start_with(&config(rights(&name))).expect("a server of its own");
        let admin = format!("admin:admin@{}", nats.address());
        let subjects = [format!("{name}.orders.*"), format!("outbox-relay-progress.{name}")];
        let subjects = subjects.each_ref().map(String::as_str);
        let stream = nats.stream_of(&admin, &name, &subjects, &json!({})).await;
        let settings = t.relay().without("sink.properties.\"bootstrap.servers\"");
        let settings = settings
            .set("sink.kind", "nats")
            .set("sink.nats.url", &format!("tls://{}", nats.address()))
            .set("sink.nats.ca_file", &trusted)
            .set("sink.nats.nkey_file", &seed)
            .set("sink.nats.stream", &name)
            .set_toml("sink.nats.partitions", "4");
        Secured { t, stream, settings, dir, config: Box::new(config), nats }
    }

    async fn commit(&mut self) {
        let topic = format!("{}.orders", self.t.database().name());
        self.t.commit(["a", "b", "c"].map(|key| Event::to(&topic).key(key))).await;
    }

    async fn records(&self) -> usize {
        self.stream.records(&format!("{}.orders.*", self.t.database().name())).await.len()
    }

    async fn all_arrive(&self, count: usize) {
        let arrived = wait::until("all arrive", wait::PATIENCE, || async {
            match self.records().await {
                found if found == count => Ok(()),
                found => Err(format!("{found} records")),
            }
        });
        arrived.await.expect("they do");
    }
}

/// As docs/NATS.md lists them, beside the events' subjects.
fn rights(name: &str) -> Vec<String> {
    vec![
        format!("outbox-relay-progress.{name}"),
        format!("$JS.API.STREAM.INFO.{name}"),
        format!("$JS.API.STREAM.MSG.GET.{name}"),
    ]
}

#[tokio::test]
async fn over_tls_with_an_nkey_and_the_documented_rights_all_arrives() {
    let mut secured = Secured::start(rights).await;
    let _relay = secured.settings.clone().start().await;
    secured.commit().await;
    secured.all_arrive(3).await;
}

#[tokio::test]
async fn over_tls_with_a_password_in_the_url_all_arrives() {
    let mut secured = Secured::start(rights).await;
    let address = secured.stream.server().rsplit_once('@').expect("a user").1;
    let url = format!("tls://relay:pass%40word%3A%2F%25@{address}");
    let settings =
        secured.settings.clone().without("sink.nats.nkey_file").set("sink.nats.url", &url);
    let relay = settings.start().await;
    secured.commit().await;
    secured.all_arrive(3).await;
    assert!(!relay.log_text().contains("pass%40word"), "no secret is logged");
}

#[tokio::test]
async fn a_certificate_that_no_one_trusted_has_signed_is_named_and_nothing_is_sent() {
    let mut secured = Secured::start(rights).await;
    let other = secured.dir.path().join("other.pem");
    write_private(&other, &Authority::new("another authority").certificate());
    let settings =
        secured.settings.clone().set("sink.nats.ca_file", other.to_str().expect("UTF-8"));
    let relay = settings.spawn();
    secured.commit().await;
    relay.wait_log("certificate").await;
    assert_eq!(secured.records().await, 0);
    drop(relay);
    let _relay = secured.settings.clone().start().await;
    secured.all_arrive(3).await;
}

/// As a secret's rotation does it: the server forgets the old one first.
#[tokio::test]
async fn a_key_that_the_server_does_not_know_any_more_is_named_and_the_new_one_is_read() {
    let mut secured = Secured::start(rights).await;
    let seed = secured.dir.path().join("relay.nk");
    let known = std::fs::read_to_string(&seed).expect("its seed");
    let mut relay = secured.settings.clone().start().await;
    secured.commit().await;
    secured.all_arrive(3).await;
    let name = secured.t.database().name().to_owned();
    let config = (secured.config)(rights(&name));
    let public = |seed: &str| nkeys::KeyPair::from_seed(seed.trim()).expect("a seed").public_key();
    let new = nkeys::KeyPair::new_user().seed().expect("a seed");
    secured.nats.reload(&config.replace(&public(&known), &public(&new)));
    secured.commit().await;
    relay.wait_log("rejects the relay's login").await;
    relay.wait_for("/readyz", 503).await;
    let said = relay.status().await.to_string();
    assert!(said.contains("sink.nats.nkey_file"), "{said}");
    assert!(!said.contains(known.trim()), "no secret is told");
    assert_eq!(secured.records().await, 3);
    std::fs::write(&seed, &new).expect("written");
    relay.wait_ready().await;
    secured.all_arrive(6).await;
    // Nothing asks with the old one any more.
    let rejected = secured.nats.rejected();
    assert!(rejected > 0);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(secured.nats.rejected(), rejected);
}

/// As where a mounted secret is replaced.
#[tokio::test]
async fn a_file_with_a_key_that_is_away_is_named_and_read_once_it_is_back() {
    let mut secured = Secured::start(rights).await;
    let (seed, away) = (secured.dir.path().join("relay.nk"), secured.dir.path().join("away.nk"));
    let mut relay = secured.settings.clone().start().await;
    secured.commit().await;
    secured.all_arrive(3).await;
    std::fs::rename(&seed, &away).expect("moved");
    connect::cut(&secured.t).await;
    let detail = says(&relay, "sink.nats.nkey_file can't be used").await;
    assert!(detail.contains("name a file that the relay may read"), "{detail}");
    secured.commit().await;
    assert_eq!(secured.records().await, 3);
    std::fs::rename(&away, &seed).expect("moved");
    relay.wait_ready().await;
    secured.all_arrive(6).await;
}

#[tokio::test]
async fn each_right_that_is_missing_is_named() {
    for missing in ["$JS.API.STREAM.INFO.", "$JS.API.STREAM.MSG.GET.", "outbox-relay-progress."] {
        let secured = Secured::start(|name| {
            rights(name).into_iter().filter(|right| !right.starts_with(missing)).collect()
        });
        let mut secured = secured.await;
        let relay = secured.settings.clone().spawn();
        secured.commit().await;
        let told = format!("may not publish to {missing}{}", secured.t.database().name());
        relay.wait_log(&told).await;
        assert_eq!(secured.records().await, 0);
    }
}

/// Nothing is to be delivered, and so nothing is stored either: the relay asks whether it may.
#[tokio::test]
async fn a_right_to_store_progress_that_is_revoked_while_nothing_is_delivered_is_noticed_soon() {
    // Of its own: each mebibyte of others' WAL would have progress stored.
    let ((postgres, _server), kafka) = tokio::join!(Postgres::private(), servers::kafka());
    let mut secured = Secured::start_in(Harness::with(postgres, kafka).await, rights).await;
    let mut relay = secured.settings.clone().start().await;
    secured.commit().await;
    secured.all_arrive(3).await;
    // Progress is stored, and the next time is far.
    let (mut last, mut since) = (secured.stream.last().await, Instant::now());
    let begun = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        assert!(begun.elapsed() < wait::PATIENCE, "progress is stored again and again");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = secured.stream.last().await;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    relay.wait_ready().await;
    let name = secured.t.database().name().to_owned();
    let left =
        rights(&name).into_iter().filter(|right| !right.starts_with("outbox-relay-progress"));
    secured.nats.reload(&(secured.config)(left.collect()));
    let revoked = Instant::now();
    relay.wait_for("/readyz", 503).await;
    let took = revoked.elapsed();
    let said = relay.status().await.to_string();
    assert!(said.contains(&format!("may not publish to outbox-relay-progress.{name}")), "{said}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    // Since the server's own WAL moves on, progress itself may have been stored once more. What asks is empty.
    assert!(secured.stream.last().await <= last + 1, "what asks is not stored");
    let stored = secured.stream.payloads(&format!("outbox-relay-progress.{name}")).await;
    assert!(stored.len() == 1 && !stored.concat().is_empty(), "what asks is not stored");
    secured.nats.reload(&(secured.config)(rights(&name)));
    relay.wait_ready().await;
    eprintln!("noticed after {took:?}");
}
