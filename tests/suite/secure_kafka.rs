//! Encrypted and authenticated connections to Kafka: each SASL mechanism, client certificates, and
//! what a refusal says. In the default build, with nothing installed.
//!
//! A broker of its own, with certificates of its own; everything the relay does goes through the
//! secured listener, the making of its progress topic included.

use std::{path::PathBuf, process::Output};

use outbox_relay::throwaway;
use outbox_tests::{
    Harness,
    certificates::{Authority, write_private},
    event::Event,
    kafka::Kafka,
    local_kafka::{self, LocalKafka},
    relay::Settings,
    servers,
    topic::Topic,
};
use tokio::sync::OnceCell;

const USER: &str = "relay";
const PASSWORD: &str = "correct-horse";

struct Broker {
    /// A listener without any of it, for the test's own clients.
    plain: &'static Kafka,
    /// SASL over TLS.
    sasl: String,
    /// TLS with certificates on both sides.
    mutual: String,
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
        let address = || format!("localhost:{}", servers::free_port());
        let (plain, sasl, mutual, controller) = (address(), address(), address(), address());
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
        let listeners = format!("PLAINTEXT://{plain},SASL://{sasl},MUTUAL://{mutual}");
        properties.extend(
            [
                ("listeners", format!("{listeners},CONTROLLER://{controller}")),
                ("advertised.listeners", listeners),
                (
                    "listener.security.protocol.map",
                    "PLAINTEXT:PLAINTEXT,SASL:SASL_SSL,MUTUAL:SSL,CONTROLLER:PLAINTEXT".into(),
                ),
                ("controller.quorum.voters", format!("1@{controller}")),
                ("ssl.keystore.type", "PEM".into()),
                ("ssl.keystore.certificate.chain", one_line(&server.certificate)),
                ("ssl.keystore.key", one_line(&server.key)),
                ("ssl.truststore.type", "PEM".into()),
                ("ssl.truststore.certificates", one_line(&authority.certificate())),
                ("listener.name.mutual.ssl.client.auth", "required".into()),
                ("sasl.enabled.mechanisms", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER".into()),
                (
                    "listener.name.sasl.plain.sasl.jaas.config",
                    format!("{module}.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"),
                ),
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
        // Dropping the handle would end the broker; the guardian does that at the end.
        std::mem::forget(local);
        Broker { plain, sasl, mutual, dir }
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
        let name = format!("{}.secure", harness.database().name());
        let topic = Topic::new(broker.plain, name).create(2).await;
        Case { harness, broker, topic }
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
        self.relay(
            &self.broker.sasl,
            &[
                ("security.protocol", "SASL_SSL"),
                ("sasl.mechanism", mechanism),
                ("sasl.username", USER),
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
    assert!(said.contains("sasl"), "{said}");
    assert!(!said.contains("wrong-battery"), "{said}");
    let mut relay = settings.spawn();
    relay.wait_for("/readyz", 503).await;
    relay.wait_log("mend sasl.").await;
    assert!(relay.sigterm().await.success());
    assert!(!relay.logs_contain("wrong-battery"), "the password is in the log");
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
