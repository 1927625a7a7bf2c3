//! Encrypted and authenticated connections to Kafka: each SASL mechanism, client certificates, what
//! a refusal says, and what a principal may not write. In the default build, with nothing
//! installed.
//!
//! A broker of its own, with certificates of its own; everything the relay does goes through the
//! secured listener, the making of its progress topic included.

use std::{
    path::PathBuf,
    process::Output,
    time::{Duration, Instant},
};

use outbox_harness::{
    Harness,
    acl::{Operation, allow_transactions, forbid_creation},
    certificates::{Authority, write_private},
    check,
    event::Event,
    host,
    kafka::Kafka,
    local_kafka::{self, LocalKafka},
    relay::{Relay, Settings},
    topic::Topic,
    wait,
};
use outbox_relay::throwaway;
use tokio::sync::OnceCell;

use crate::dead_letters::{
    count_parked, dead_letters, list, texts, wait_parked, wait_parked_again,
};

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

/// Nothing, or no more than to see it; in the middle of the stream, or from the first event on.
async fn parks_what_it_may_not_write(delivery: &str) {
    let mut case = Case::new().await;
    let settings = case.relay_by_password("PLAIN", PASSWORD).set("sink.delivery", delivery);
    let (hidden, seen) = (case.other("hidden").await, case.other("seen").await);
    hidden.allow("User:somebody", Operation::Write).await;
    seen.allow(PRINCIPAL, Operation::Describe).await;
    let relay = settings.start().await;
    let revoked = case.topic.clone();
    let free = case.other("free").await;
    let (t, event) = (&mut case.harness, |topic: &Topic| Event::to(topic.name()).key("k"));
    t.commit([event(&revoked), event(&free), event(&hidden), event(&seen), event(&free)]).await;
    wait_parked(t, |parked| parked == 2).await;
    revoked.allow("User:somebody", Operation::Write).await;
    // Until the broker has heard of it, they are delivered.
    let deadline = Instant::now() + wait::PATIENCE;
    while count_parked(t).await == 2 {
        assert!(Instant::now() < deadline, "it is still allowed");
        t.commit([event(&revoked), event(&free)]).await;
    }
    t.commit([event(&hidden), event(&free)]).await;
    let mut truth = t.committed().await;
    truth.retain(|row| row.topic == free.name());
    free.records_with(truth.into_iter().map(|row| row.id)).await;
    assert!(relay.logs_contain("not_authorised"), "{}", relay.log_text());
    let entries = list(t).await;
    for (reason, error) in texts(&entries, "reason").into_iter().zip(texts(&entries, "error")) {
        let told = reason == "not_authorised" && error.contains("grant");
        assert!(told || reason == "lane_parked", "{reason}: {error}");
    }

    for topic in [&hidden, &seen, &revoked] {
        topic.allow(PRINCIPAL, Operation::Write).await;
    }
    let deadline = Instant::now() + wait::PATIENCE;
    while count_parked(t).await > 0 {
        assert!(Instant::now() < deadline, "{:?}", list(t).await);
        dead_letters(t, &["release", "--all"]).await;
        wait_parked_again(t).await;
    }
    for topic in [&hidden, &seen, &revoked, &free] {
        let mut truth = t.committed().await;
        truth.retain(|row| row.topic == topic.name());
        let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
        let count = check::compare(&truth, &records, 2);
        if delivery == "exactly-once" {
            count.assert_exactly_once();
        } else {
            count.assert_at_least_once();
        }
    }
}

#[tokio::test]
async fn what_the_principal_may_not_write_is_parked_and_comes_once_it_may() {
    parks_what_it_may_not_write("exactly-once").await;
}

#[tokio::test]
async fn with_at_least_once_what_the_principal_may_not_write_is_parked_too() {
    parks_what_it_may_not_write("at-least-once").await;
}

/// Each right of docs/KAFKA-ACLS.md: with the others and without it, `check` and the relay name it
/// and what gives it; once it is given, the relay delivers.
async fn names_what_is_missing(delivery: &str) {
    let rights = [Operation::Read, Operation::Write, Operation::DescribeConfigs];
    for missing in
        [Some(Operation::Read), Some(Operation::Write), Some(Operation::DescribeConfigs), None]
    {
        let mut case = Case::new().await;
        let name = case.harness.database().name().to_owned();
        let progress = Topic::new(case.broker.plain, format!("outbox-relay-progress-{name}"));
        let progress = progress.create_with(1, &[("cleanup.policy", "compact")]).await;
        for right in rights {
            if missing.map(|missing| format!("{missing:?}")) != Some(format!("{right:?}")) {
                progress.allow(PRINCIPAL, right).await;
            }
        }
        let id = format!("outbox-relay-{name}");
        // What an entry speaks of is closed to all others.
        let user = if missing.is_some() { PRINCIPAL } else { "User:somebody" };
        allow_transactions(case.broker.plain, &id, user).await;
        case.topic.allow(PRINCIPAL, Operation::Write).await;

        let settings = case.relay_by_password("PLAIN", PASSWORD).set("sink.delivery", delivery);
        let word = missing.map_or_else(|| "Write".to_owned(), |right| format!("{right:?}"));
        let said = case.refused(&settings).await;
        let command = format!("--allow-principal {PRINCIPAL} --operation {word} ");
        assert!(said.contains(&command) && said.contains(&format!("lacks {word} on")), "{said}");
        let mut relay = settings.spawn();
        relay.wait_for("/readyz", 503).await;
        relay.wait_log(&format!("lacks {word} on")).await;

        match missing {
            Some(right) => progress.allow(PRINCIPAL, right).await,
            None => allow_transactions(case.broker.plain, &id, PRINCIPAL).await,
        }
        relay.wait_ready().await;
        case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
        case.harness.count(&case.topic, 2).await.assert_exactly_once();
        // Asked while it runs, the question about its transactional id fences no one.
        let output = case.relay_by_password("PLAIN", PASSWORD).command(&["check"]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
        case.harness.count(&case.topic, 2).await.assert_exactly_once();
        assert!(!relay.logs_contain("fenced"), "{}", relay.log_text());
    }
}

#[tokio::test]
async fn each_right_that_is_missing_is_named_with_what_gives_it() {
    names_what_is_missing("exactly-once").await;
}

#[tokio::test]
async fn each_right_that_is_missing_is_named_with_at_least_once_too() {
    names_what_is_missing("at-least-once").await;
}

/// The other rights name the topic by then, as whoever obeys the halt before this one gives them.
#[tokio::test]
async fn a_progress_topic_that_may_not_be_created_halts_with_the_command_that_creates_it() {
    let mut case = Case::new().await;
    let name = format!("outbox-relay-progress-{}", case.harness.database().name());
    let progress = Topic::new(case.broker.plain, name.clone());
    for right in [Operation::Read, Operation::Write, Operation::DescribeConfigs] {
        progress.allow(&format!("User:{NEWCOMER}"), right).await;
    }
    let settings = case.relay_of(NEWCOMER, "PLAIN", PASSWORD);
    let said = case.refused(&settings).await;
    let command =
        format!("--create --topic {name} --partitions 1 --config cleanup.policy=compact ");
    assert!(said.contains(&command), "{said}");
    let mut relay = settings.spawn();
    relay.wait_for("/readyz", 503).await;
    relay.wait_log(&command).await;
    assert!(relay.logs_contain("halted"), "{}", relay.log_text());

    progress.create_with(1, &[("cleanup.policy", "compact")]).await;
    relay.wait_ready().await;
    case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
    case.harness.count(&case.topic, 2).await.assert_exactly_once();
}

/// A right, or a setting of the progress topic, is taken away in the middle of the stream and given back:
/// what lacks is named with what gives it, and nothing else has to be done.
async fn goes_on_after(delivery: &str, takes_transactions: bool) {
    let mut case = Case::new().await;
    let name = case.harness.database().name().to_owned();
    let progress = Topic::new(case.broker.plain, format!("outbox-relay-progress-{name}"));
    let id = format!("outbox-relay-{name}");
    let settings = case.relay_by_password("PLAIN", PASSWORD).set("sink.delivery", delivery);
    let mut relay = settings.start().await;
    let topic = case.topic.clone();
    let event = || Event::to(topic.name()).key("k");
    case.harness.commit([event()]).await;

    let lacking = |what: String| format!("lacks Write on the {what}");
    let taken = if takes_transactions {
        // The first entry shuts out all others.
        allow_transactions(case.broker.plain, &id, "User:somebody").await;
        lacking(format!("transactional id {id}"))
    } else {
        progress.allow(PRINCIPAL, Operation::Read).await;
        progress.allow(PRINCIPAL, Operation::DescribeConfigs).await;
        lacking(format!("topic outbox-relay-progress-{name}"))
    };
    not_ready_for(&mut case.harness, &relay, &event, &taken).await;
    case.harness.commit([event(), event()]).await;
    match takes_transactions {
        true => allow_transactions(case.broker.plain, &id, PRINCIPAL).await,
        false => progress.allow(PRINCIPAL, Operation::Write).await,
    }
    relay.wait_ready().await;
    if !takes_transactions {
        let compacted = [("cleanup.policy", "compact")];
        progress.set_beside(&compacted, "max.message.bytes", "150").await;
        let wanted = "--add-config max.message.bytes=";
        not_ready_for(&mut case.harness, &relay, &event, wanted).await;
        progress.set_beside(&compacted, "max.message.bytes", "1048588").await;
        relay.wait_ready().await;
    }
    case.harness.commit([event()]).await;
    let truth = case.harness.committed().await;
    let records = topic.records_with(truth.iter().map(|row| row.id.clone())).await;
    let count = check::compare(&truth, &records, 2);
    match delivery {
        "exactly-once" => count.assert_exactly_once(),
        _ => count.assert_at_least_once(),
    }
    assert_eq!(count_parked(&case.harness).await, 0, "no event is to blame");
}

/// Whoever streams writes progress and reads it at the next start only.
#[tokio::test]
async fn the_right_to_read_progress_is_missed_while_the_relay_streams() {
    let mut case = Case::new().await;
    let name = case.harness.database().name().to_owned();
    let progress = Topic::new(case.broker.plain, format!("outbox-relay-progress-{name}"));
    let relay = case.relay_by_password("PLAIN", PASSWORD).start().await;
    // The first entry shuts out all others.
    progress.allow(PRINCIPAL, Operation::Write).await;
    progress.allow(PRINCIPAL, Operation::DescribeConfigs).await;
    relay.wait_log(&format!("lacks Read on the topic {}", progress.name())).await;
    let page = relay.page("/readyz").await;
    assert!(page.starts_with("ok\nbut") && page.contains("--operation Read"), "{page}");
    case.harness.commit([Event::to(case.topic.name()).key("k")]).await;
    case.harness.count(&case.topic, 2).await.assert_exactly_once();
    progress.allow(PRINCIPAL, Operation::Read).await;
    wait::until("nothing is of concern", wait::PATIENCE, || async {
        let page = relay.page("/readyz").await;
        if page == "ok\n" { Ok(()) } else { Err(page) }
    })
    .await
    .expect("it may read again");
}

/// Until the broker has heard of it events are delivered, so they are written until they are not.
async fn not_ready_for(t: &mut Harness, relay: &Relay, event: &impl Fn() -> Event, wanted: &str) {
    let deadline = Instant::now() + wait::PATIENCE;
    loop {
        let status = relay.status().await;
        let because = status.get("not_ready_because").and_then(|because| because.as_str());
        let because = because.unwrap_or_default();
        if because.contains(wanted) {
            assert!(because.contains("kafka-"), "it says what to type: {because}");
            return;
        }
        assert!(Instant::now() < deadline, "{because}: {}", relay.log_text());
        if because.is_empty() {
            t.commit([event()]).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_keeps_progress_from_being_stored_is_named_while_the_relay_streams() {
    goes_on_after("exactly-once", false).await;
}

#[tokio::test]
async fn with_at_least_once_what_keeps_progress_from_being_stored_is_named_too() {
    goes_on_after("at-least-once", false).await;
}

#[tokio::test]
async fn a_transactional_id_that_is_taken_away_while_the_relay_streams_is_named() {
    goes_on_after("exactly-once", true).await;
}
