//! Encrypted and authenticated connections to Kafka: each SASL mechanism, client certificates, what
//! a refusal says, and what a principal may not write. In the default build, with nothing
//! installed.
//!
//! A broker of its own, with certificates of its own; everything the relay does goes through the
//! secured listener, the making of its progress topic included.

mod documented;
mod rights;

use std::{path::PathBuf, process::Output};

use outbox_harness::{
    Harness,
    acl::forbid_creation,
    certificates::{Authority, write_private},
    event::Event,
    host,
    kafka::Kafka,
    local_kafka::{self, LocalKafka},
    relay::Settings,
    topic::Topic,
};
use outbox_relay::throwaway;
use tokio::sync::OnceCell;

use crate::{connect, obeyed::says};

const USER: &str = "relay";
const PASSWORD: &str = "correct-horse";
const PRINCIPAL: &str = "User:relay";
/// Has the same password, and may create no topic.
const NEWCOMER: &str = "newcomer";

struct Broker {
    /// A listener without any of it, for the test's own clients.
    plain: &'static Kafka,
    /// SASL over TLS.
    sasl: String,
    /// TLS with certificates on both sides.
    mutual: String,
    /// SASL over TLS, with one mechanism alone.
    narrow: String,
    /// What clients hold.
    dir: PathBuf,
}

impl Broker {
    /// The one broker of this file.
    async fn get() -> &'static Broker {
        static BROKER: OnceCell<Broker> = OnceCell::const_new();
        BROKER.get_or_init(Broker::start).await
    }

    async fn start() -> Broker {
        let address = || format!("localhost:{}", host::free_port());
        let (plain, sasl, mutual, controller) = (address(), address(), address(), address());
        let narrow = address();
        let dir =
            tempfile::Builder::new().prefix("outbox-tls-").tempdir().expect("a directory").keep();
        throwaway::guardian::remove_at_exit(&dir).expect("the guardian");
        let authority = Authority::new("the right one");
        let server = authority.issue("broker", &["localhost"]);
        let client = authority.issue("relay", &[]);
        for (file, text) in [
            ("root.crt", &authority.certificate()),
            ("other.crt", &Authority::new("another").certificate()),
            ("relay.crt", &client.certificate),
            ("relay.key", &client.key),
        ] {
            write_private(&dir.join(file), text);
        }

        let one_line = |pem: &str| pem.trim().replace('\n', "\\n");
        let module = "org.apache.kafka.common.security";
        let scram = format!("{module}.scram.ScramLoginModule required;");
        let mut properties = local_kafka::small();
        let listeners =
            format!("PLAINTEXT://{plain},SASL://{sasl},MUTUAL://{mutual},NARROW://{narrow}");
        properties.extend(
            [
                ("listeners", format!("{listeners},CONTROLLER://{controller}")),
                ("advertised.listeners", listeners),
                (
                    "listener.security.protocol.map",
                    "PLAINTEXT:PLAINTEXT,SASL:SASL_SSL,MUTUAL:SSL,NARROW:SASL_SSL,CONTROLLER:PLAINTEXT".into(),
                ),
                ("controller.quorum.voters", format!("1@{controller}")),
                ("ssl.keystore.type", "PEM".into()),
                ("ssl.keystore.certificate.chain", one_line(&server.certificate)),
                ("ssl.keystore.key", one_line(&server.key)),
                ("ssl.truststore.type", "PEM".into()),
                ("ssl.truststore.certificates", one_line(&authority.certificate())),
                ("listener.name.mutual.ssl.client.auth", "required".into()),
                // Everything is allowed to everybody until an entry says otherwise.
                (
                    "authorizer.class.name",
                    "org.apache.kafka.metadata.authorizer.StandardAuthorizer".into(),
                ),
                ("allow.everyone.if.no.acl.found", "true".into()),
                ("super.users", "User:ANONYMOUS".into()),
                ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER".into()),
                (
                    "listener.name.sasl.plain.sasl.jaas.config",
                    format!("{module}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\" user_{NEWCOMER}=\"{PASSWORD}\";"),
                ),
                ("listener.name.narrow.sasl.enabled.mechanisms", "SCRAM-SHA-512".into()),
                ("listener.name.narrow.scram-sha-512.sasl.jaas.config", scram.clone()),
                ("listener.name.sasl.scram-sha-256.sasl.jaas.config", scram.clone()),
                ("listener.name.sasl.scram-sha-512.sasl.jaas.config", scram),
                (
                    "listener.name.sasl.oauthbearer.sasl.jaas.config",
                    format!("{module}.oauthbearer.OAuthBearerLoginModule required;"),
                ),
            ]
            .map(|(key, value)| (key.to_owned(), value)),
        );
        let credentials = ["SCRAM-SHA-256", "SCRAM-SHA-512"]
            .map(|mechanism| format!("{mechanism}=[name={USER},password={PASSWORD}]"));
        let [first, second] = credentials.each_ref().map(String::as_str);
        let format = ["--add-scram", first, "--add-scram", second];
        let local = LocalKafka::start(&properties, &format).expect("a broker");
        let plain = Kafka::private(&plain).await;
        forbid_creation(plain, &format!("User:{NEWCOMER}")).await;
        // Dropping the handle would end the broker; the guardian does that at the end.
        std::mem::forget(local);
        Broker { plain, sasl, mutual, narrow, dir }
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// A relay of a database of its own, with its topic in the secured broker.
struct Case {
    harness: Harness,
    broker: &'static Broker,
    topic: Topic,
}

impl Case {
    async fn new() -> Case {
        let (harness, broker) = tokio::join!(Harness::start(), Broker::get());
        let topic = Self::topic(&harness, broker, "secure").await;
        Case { harness, broker, topic }
    }

    async fn topic(harness: &Harness, broker: &Broker, name: &str) -> Topic {
        let name = format!("{}.{name}", harness.database().name());
        Topic::new(broker.plain, name).create(2).await
    }

    /// Another topic of the case.
    async fn other(&self, name: &str) -> Topic {
        Self::topic(&self.harness, self.broker, name).await
    }

    fn relay(&self, servers: &str, properties: &[(&str, &str)]) -> Settings {
        let root = self.broker.file("root.crt");
        let all = [("bootstrap.servers", servers), ("ssl.ca.location", root.as_str())];
        let all = all.into_iter().chain(properties.iter().copied());
        all.fold(self.harness.relay(), |settings, (name, value)| {
            settings.set(&format!("sink.properties.\"{name}\""), value)
        })
    }

    fn relay_by_password(&self, mechanism: &str, password: &str) -> Settings {
        self.relay_of(USER, mechanism, password)
    }

    fn relay_of(&self, user: &str, mechanism: &str, password: &str) -> Settings {
        self.relay(
            &self.broker.sasl,
            &[
                ("security.protocol", "SASL_SSL"),
                ("sasl.mechanism", mechanism),
                ("sasl.username", user),
                ("sasl.password", password),
            ],
        )
    }

    /// Runs a relay until an event has gone through, and ends it.
    async fn deliver(mut self, settings: Settings) {
        let mut relay = settings.start().await;
        self.harness.commit([Event::to(self.topic.name()).key("k")]).await;
        self.harness.count(&self.topic, 2).await.assert_exactly_once();
        assert!(relay.sigterm().await.success());
        assert!(!relay.logs_contain(PASSWORD), "the password is in the log");
    }

    /// What `check` says, which ends by itself and must find a problem.
    async fn refused(&self, settings: &Settings) -> String {
        let Output { status, stdout, stderr } = settings.command(&["check"]).await;
        let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        assert_eq!(status.code(), Some(1), "{text}");
        text
    }
}

async fn delivers_by_password(mechanism: &str) {
    let case = Case::new().await;
    let settings = case.relay_by_password(mechanism, PASSWORD);
    case.deliver(settings).await;
}

#[tokio::test]
async fn plain_over_tls_delivers() {
    delivers_by_password("PLAIN").await;
}

#[tokio::test]
async fn scram_sha_256_over_tls_delivers() {
    delivers_by_password("SCRAM-SHA-256").await;
}

#[tokio::test]
async fn scram_sha_512_over_tls_delivers() {
    delivers_by_password("SCRAM-SHA-512").await;
}

#[tokio::test]
async fn oauthbearer_over_tls_delivers() {
    let case = Case::new().await;
    let settings = case.relay(
        &case.broker.sasl,
        &[
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "OAUTHBEARER"),
            ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
            ("sasl.oauthbearer.config", "principal=relay"),
        ],
    );
    case.deliver(settings).await;
}

#[tokio::test]
async fn a_client_certificate_delivers() {
    let case = Case::new().await;
    let (certificate, key) = (case.broker.file("relay.crt"), case.broker.file("relay.key"));
    let settings = case.relay(
        &case.broker.mutual,
        &[
            ("security.protocol", "SSL"),
            ("ssl.certificate.location", &certificate),
            ("ssl.key.location", &key),
        ],
    );
    case.deliver(settings).await;
}

#[tokio::test]
async fn a_wrong_password_is_named_and_does_not_show() {
    let case = Case::new().await;
    let settings = case.relay_by_password("SCRAM-SHA-512", "wrong-battery");
    let said = case.refused(&settings).await;
    for words in
        ["refuse the relay's login", "SCRAM-SHA-512", "correct sasl.username and sasl.password"]
    {
        assert!(said.contains(words), "{words} is not in: {said}");
    }
    assert!(!said.contains("wrong-battery"), "{said}");
    let mut relay = settings.spawn();
    relay.wait_for("/readyz", 503).await;
    relay.wait_log("refuse the relay's login").await;
    relay.wait_log("correct sasl.").await;
    assert!(relay.sigterm().await.success());
    assert!(!relay.logs_contain("wrong-battery"), "the password is in the log");
}

#[tokio::test]
async fn a_mechanism_that_the_broker_has_not_enabled_is_named_with_those_that_it_has() {
    let case = Case::new().await;
    let settings = case
        .relay_by_password("PLAIN", PASSWORD)
        .set("sink.properties.\"bootstrap.servers\"", &case.broker.narrow);
    let said = case.refused(&settings).await;
    let words =
        ["refuse the relay's login", "set sasl.mechanism in sink.properties", "SCRAM-SHA-512"];
    words.iter().for_each(|word| assert!(said.contains(word), "{word} is not in: {said}"));
    let mut relay = settings.spawn();
    relay.wait_log("set sasl.mechanism in sink.properties").await;
    assert!(relay.sigterm().await.success());
}

#[tokio::test]
async fn a_broker_that_the_wrong_authority_vouches_for_is_refused() {
    let case = Case::new().await;
    let other = case.broker.file("other.crt");
    let settings = case
        .relay_by_password("PLAIN", PASSWORD)
        .set("sink.properties.\"ssl.ca.location\"", &other);
    let said = case.refused(&settings).await;
    assert!(said.to_lowercase().contains("ssl"), "{said}");
}

/// As in a container or on a laptop: nothing but `security.protocol` is set, and the authority is
/// one that the system trusts.
#[tokio::test]
async fn authorities_that_the_system_trusts_need_no_setting() {
    let case = Case::new().await;
    let unnamed = |file: &str| {
        case.relay_by_password("PLAIN", PASSWORD)
            .without("sink.properties.\"ssl.ca.location\"")
            .env("SSL_CERT_FILE", &case.broker.file(file))
            .env("SSL_CERT_DIR", "")
    };
    let said = case.refused(&unnamed("other.crt")).await;
    assert!(said.to_lowercase().contains("ssl"), "{said}");

    let output = unnamed("none.crt").command(&["check"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let told = ["no trusted certificate", "none.crt", "ssl.ca.location", "ca-certificates"];
    assert!(told.iter().all(|part| said.contains(part)), "{said}");

    let settings = unnamed("root.crt");
    let output = settings.command(&["check"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 authorities of SSL_CERT_FILE="), "{said}");
    case.deliver(settings).await;
}

/// As where a mounted secret is replaced: each start of the clients reads it.
#[tokio::test]
async fn a_certificate_that_is_away_while_the_relay_runs_is_named_and_read_once_it_is_back() {
    let mut case = Case::new().await;
    let (root, away) = (case.harness.dir().join("root.crt"), case.harness.dir().join("away.crt"));
    std::fs::copy(case.broker.file("root.crt"), &root).expect("copied");
    let settings = case
        .relay_by_password("PLAIN", PASSWORD)
        .set("sink.properties.\"ssl.ca.location\"", root.to_str().expect("UTF-8"));
    let mut relay = settings.start().await;
    let event = Event::to(case.topic.name()).key("k");
    case.harness.commit([event.clone()]).await;
    case.harness.count(&case.topic, 2).await.assert_exactly_once();
    std::fs::rename(&root, &away).expect("moved");
    connect::cut(&case.harness).await;
    let detail = says(&relay, "ssl.ca.location").await;
    assert!(
        detail.contains("root.crt can't be read") && detail.contains("put it back"),
        "{detail}"
    );
    case.harness.commit([event]).await;
    std::fs::rename(&away, &root).expect("moved");
    relay.wait_ready().await;
    case.harness.count(&case.topic, 2).await.assert_exactly_once();
}
