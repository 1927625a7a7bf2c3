//! The topic that holds how far the relay has come: made and verified here, read by `progress_reader`.
//!
//! Compacted; partition 0 alone is read and written.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rdkafka::error::RDKafkaErrorCode;

use super::{
    acl, admin,
    errors::{code_of, sort},
    limits::{self, Limits},
    lookup::{Found, Lookup},
    settings::{Settings, TopicCreation},
    stop::{SLICE, Stop},
    twin,
};
use crate::{
    fault::{self, Point},
    sink::{PROGRESS_BYTES_MAX, SinkError, unavailable},
};

/// The newest segment is never compacted, so each start reads up to one and what the cleaner has not come to.
const SEGMENT_BYTES: &str = "4194304";
/// As many replicas as is the brokers' default.
const CREATION: TopicCreation = TopicCreation { partitions: 1, replication_factor: -1 };
/// By so much the relay's clock and a broker's may differ, with the time that a record is under way.
const CLOCKS_DIFFER_MS: i64 = 60_000;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a topic just created may take to have a leader.
const CREATION_TIMEOUT: Duration = Duration::from_secs(15);

/// What is known of the progress topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ProgressTopic {
    /// Not there yet; the relay creates it.
    Missing,
    /// There, and no broker that has it is up.
    Leaderless,
    /// There, and compacted.
    Verified,
    /// There; its settings could not be seen, for this reason.
    Unverified(String),
}

/// Looks at the topic without changing anything.
pub(super) fn inspect(settings: &Settings, lookup: &Lookup) -> Result<ProgressTopic, SinkError> {
    let name = settings.progress_topic();
    let found = lookup
        .find(&name, REQUEST_TIMEOUT)
        .map_err(|error| sort(&format!("looking up the progress topic {name}"), error, None))?;
    match found {
        Found::Partitions(partitions) => spare(&name, partitions),
        Found::Missing => return Ok(ProgressTopic::Missing),
        found => return Err(out_of_reach(settings, &name, found)),
    }
    let asked = format!("looking up the progress topic {name}");
    if !lookup.is_led(&name, REQUEST_TIMEOUT).map_err(|error| sort(&asked, error, None))? {
        return Ok(ProgressTopic::Leaderless);
    }
    if !lookup.has_controller(&name, REQUEST_TIMEOUT).map_err(|error| sort(&asked, error, None))? {
        return Ok(ProgressTopic::Unverified("the brokers name no controller to ask".into()));
    }
    let shape = lookup.shape(&name, REQUEST_TIMEOUT);
    let lacks = shape.as_ref().map(Lookup::lacks).unwrap_or_default();
    if !lacks.is_empty() {
        return Err(acl::lacking(settings, &name, &lacks, acl::NOTHING));
    }
    let replicas = shape.map_or(0, |shape| shape.replicas);
    match admin::topic_settings(settings, &name) {
        Ok(found) => verify(settings, &found, replicas).map(|()| ProgressTopic::Verified),
        Err(error) => Ok(ProgressTopic::Unverified(error.to_string())),
    }
}

/// What to do about a topic of which brokers say neither where it is nor that it is missing.
pub(super) fn out_of_reach(settings: &Settings, name: &str, found: Found) -> SinkError {
    if found != Found::NotAuthorised {
        return SinkError::Misconfigured {
            what: format!("the broker refuses the progress topic's name {name}"),
            remedy: "choose another `name`".into(),
        };
    }
    // The brokers don't say whether it is there.
    let needed = ["Read", "Write", "DescribeConfigs"];
    acl::lacking(settings, name, &needed, acl::NOTHING)
        .and_remedy("if the topic does not exist yet, add `--operation Create`, or create it first")
}

/// Creates the topic if it is missing, and verifies it.
pub(super) fn ensure(settings: &Settings, lookup: &Lookup, stop: &Stop) -> Result<(), SinkError> {
    let name = settings.progress_topic();
    let deadline = Instant::now() + CREATION_TIMEOUT;
    let mut created = false;
    loop {
        match inspect(settings, lookup)? {
            ProgressTopic::Verified => return Ok(()),
            ProgressTopic::Unverified(reason) => {
                tracing::warn!(
                    topic = name,
                    reason,
                    "the progress topic's settings could not be verified: it must have \
                     cleanup.policy=compact, or progress is lost with time"
                );
                return Ok(());
            }
            ProgressTopic::Missing | ProgressTopic::Leaderless
                if created && Instant::now() < deadline => {}
            ProgressTopic::Leaderless => return Err(leaderless(settings, &name)),
            ProgressTopic::Missing if created => {
                return Err(unavailable(
                    format!("creating the progress topic {name}"),
                    "it was created, and is still unknown to the broker",
                ));
            }
            ProgressTopic::Missing => {
                create(settings, &name, lookup)?;
                fault::point(Point::ProgressTopicMade);
                created = true;
            }
        }
        if !stop.sleep(SLICE) {
            return Err(unavailable("looking up the progress topic", "asked to stop"));
        }
    }
}

/// No broker leads its partition: what is stored there can't be read, and nothing be added.
pub(super) fn leaderless(settings: &Settings, name: &str) -> SinkError {
    let (what, remedy) = without_leader(settings, name);
    unavailable(format!("looking up the progress topic {name}"), format!("{what}; {remedy}"))
}

/// What that is, and what to do.
pub(super) fn without_leader(settings: &Settings, name: &str) -> (String, String) {
    let servers = settings.servers();
    let what = "it has no leader, because no broker that has its records is up: nothing is lost, and the relay \
                continues when one is";
    let remedy = format!(
        "`kafka-topics --bootstrap-server {servers} --describe --topic {name}` shows which brokers have it"
    );
    (what.into(), remedy)
}

fn create(settings: &Settings, name: &str, lookup: &Lookup) -> Result<(), SinkError> {
    tracing::info!(topic = name, "creating the progress topic");
    let config = [("cleanup.policy", "compact"), ("segment.bytes", SEGMENT_BYTES)];
    let created = admin::create_topic(settings, name, CREATION, &config);
    created.map_err(|error| match code_of(&error) {
        Some(code) if may_not_create(code) => not_created(settings, name),
        Some(RDKafkaErrorCode::InvalidTopic) => in_the_way(settings, name, lookup),
        code => {
            let few = code == Some(RDKafkaErrorCode::InvalidReplicationFactor);
            let few = few.then(|| format!(" ({})", too_few_brokers(settings, name, lookup)));
            let few = few.unwrap_or_default();
            unavailable(format!("creating the progress topic {name}{few}"), error)
        }
    })
}

fn too_few_brokers(settings: &Settings, name: &str, lookup: &Lookup) -> String {
    let brokers = lookup.cluster(name, REQUEST_TIMEOUT).map_or(1, |cluster| cluster.brokers.len());
    format!(
        "there are fewer brokers than their default.replication.factor: start the others, or run `{} \
         --replication-factor {brokers}`",
        creation(settings, name)
    )
}

/// The command that creates it.
fn creation(settings: &Settings, name: &str) -> String {
    let servers = settings.servers();
    format!(
        "kafka-topics --bootstrap-server {servers} --create --topic {name} --partitions 1 --config \
         cleanup.policy=compact --config segment.bytes={SEGMENT_BYTES}"
    )
}

fn may_not_create(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    let refused =
        [Code::TopicAuthorizationFailed, Code::ClusterAuthorizationFailed, Code::PolicyViolation];
    refused.contains(&code)
}

fn not_created(settings: &Settings, name: &str) -> SinkError {
    SinkError::Misconfigured {
        what: format!(
            "the progress topic {name} does not exist, and the relay's principal lacks Create on it"
        ),
        remedy: format!(
            "create it: `{}`; or {}",
            creation(settings, name),
            acl::grant(settings, &["Create"], &format!("--topic {name}"))
        ),
    }
}

/// Brokers refuse the name, which they do beside another that differs in separators alone. Whoever may create
/// topics can have made that one.
fn in_the_way(settings: &Settings, name: &str, lookup: &Lookup) -> SinkError {
    let twins = twin::in_the_way(&[name], lookup, REQUEST_TIMEOUT);
    let servers = settings.servers();
    let (beside, delete) = match twins.get(name) {
        Some(twin) => (
            format!("beside {twin}, whose name differs"),
            format!(
                "if no one needs {twin}, delete it: `kafka-topics --bootstrap-server {servers} --delete \
                 --topic {twin}`"
            ),
        ),
        None => (
            "because a rule of theirs forbids its name, or beside a topic whose name differs"
                .into(),
            "look for such a topic, and delete it if no one needs it".into(),
        ),
    };
    SinkError::Misconfigured {
        what: format!(
            "the progress topic {name} does not exist, and brokers refuse to create it {beside} in '.' and '_' \
             alone: such names collide in the names of metrics; nothing is published"
        ),
        remedy: format!(
            "{delete}; or choose another `name`, if this relay has published nothing yet"
        ),
    }
}

/// Asks whether the topic, which is missing, could be created; creates nothing.
///
/// # Errors
/// `Misconfigured` if not.
pub(super) fn may_create(settings: &Settings, lookup: &Lookup) -> Result<(), SinkError> {
    let name = settings.progress_topic();
    let failed = admin::may_create_topics(settings, &[&name], CREATION).unwrap_or_default();
    match failed.first().map(|(_, code)| *code) {
        Some(code) if may_not_create(code) => Err(not_created(settings, &name)),
        Some(RDKafkaErrorCode::InvalidTopic) => Err(in_the_way(settings, &name, lookup)),
        _ => Ok(()),
    }
}

/// Whether the topic keeps progress, and takes it; `replicas` is how many times it stores a record.
fn verify(
    settings: &Settings,
    found: &HashMap<String, String>,
    replicas: usize,
) -> Result<(), SinkError> {
    let (name, limits) = (settings.progress_topic(), Limits::of(found));
    if let Some((what, remedy)) = limits.unwritable(settings, &name, replicas) {
        return Err(SinkError::Misconfigured { what, remedy });
    }
    let policy = found.get("cleanup.policy").map_or("", String::as_str);
    // All at once: each start that finds one more is a halt more.
    let (mut what, mut config) = (Vec::new(), Vec::new());
    if policy != "compact" {
        what.push(format!("cleanup.policy={policy}, which loses progress"));
        config.push("cleanup.policy=compact");
    }
    if let Some(bytes) = limits.batch_bytes_max.filter(|bytes| *bytes < PROGRESS_BYTES_MAX) {
        what.push(format!(
            "max.message.bytes={bytes}, and a progress record may have {PROGRESS_BYTES_MAX}: nothing more \
             could be delivered once one is too large; nothing is lost"
        ));
        config.push("max.message.bytes=1048588");
    }
    if limits.time_max_ms().is_some_and(|ms| ms < CLOCKS_DIFFER_MS) {
        what.push(format!(
            "a message.timestamp.*.max.ms below {CLOCKS_DIFFER_MS}, by which the broker refuses progress \
             records when clocks differ or a delivery is slow; nothing is lost, and nothing delivered"
        ));
        config.push("message.timestamp.type=LogAppendTime");
    }
    if what.is_empty() {
        return Ok(());
    }
    Err(SinkError::Misconfigured {
        what: format!("the progress topic {name} has {}", what.join("; and ")),
        remedy: format!("run {}", limits::alter_topic(settings, &name, &config.join(","))),
    })
}

/// What the topic's settings and the relay's rights on it are by now; what can't be seen is assumed to be right.
pub(super) fn still_keeps(settings: &Settings, lookup: &Lookup) -> Result<(), SinkError> {
    let name = settings.progress_topic();
    let shape = lookup.shape(&name, REQUEST_TIMEOUT);
    // What streams needs no right to read; the next start does.
    let lacks = shape.as_ref().map(Lookup::lacks).unwrap_or_default();
    if !lacks.is_empty() {
        let meaning = match lacks.contains(&"Write") {
            true => acl::NOTHING,
            false => {
                "the next start can't read progress, or verify the topic, and delivers nothing"
            }
        };
        return Err(acl::lacking(settings, &name, &lacks, meaning));
    }
    let Ok(found) = admin::topic_settings(settings, &name) else { return Ok(()) };
    verify(settings, &found, shape.map_or(0, |shape| shape.replicas))
}

/// An administrator may have given it more partitions than one, which can't be taken away again. They
/// change nothing: what was stored is in partition 0, and so is what will be.
fn spare(name: &str, partitions: i32) {
    if partitions > 1 {
        tracing::warn!(
            topic = name,
            partitions,
            "the progress topic has more partitions than one: nothing is lost by it, partition 0 \
             alone is used, and the others stay empty. There is nothing to do"
        );
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{mocking::MockCluster, types::RDKafkaRespErr};

    use super::{super::settings::sample, *};

    fn policy(value: &str) -> HashMap<String, String> {
        [("cleanup.policy".to_owned(), value.to_owned())].into()
    }

    #[test]
    fn a_name_that_brokers_refuse_is_told_with_what_to_choose() {
        let brokers = MockCluster::new(1).expect("a broker of the client library's own");
        let settings = sample(&brokers.bootstrap_servers());
        let lookup = Lookup::new(&settings).expect("a client");
        let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION;
        brokers.topic_error(&settings.progress_topic(), refused).expect("set");
        let error = inspect(&settings, &lookup).expect_err("it is refused").to_string();
        let told = "the broker refuses the progress topic's name outbox-relay-progress-orders; choose another `name`";
        assert_eq!(error, told);
    }

    #[test]
    fn only_a_compacted_topic_may_hold_progress() {
        let settings = sample("kafka:9092");
        assert!(verify(&settings, &policy("compact"), 1).is_ok());
        for value in ["delete", "compact,delete", ""] {
            let error = verify(&settings, &policy(value), 1).expect_err(value);
            assert!(matches!(error, SinkError::Misconfigured { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_topic_that_would_refuse_progress_is_named_with_what_to_type() {
        let settings = sample("kafka:9092");
        let with = |key: &str, value: &str| {
            let mut found = policy("compact");
            found.insert(key.to_owned(), value.to_owned());
            verify(&settings, &found, 1).map_err(|error| error.to_string())
        };
        for (key, value, remedy) in [
            ("max.message.bytes", "1000", "max.message.bytes=1048588"),
            ("message.timestamp.before.max.ms", "1", "message.timestamp.type=LogAppendTime"),
            ("message.timestamp.after.max.ms", "0", "message.timestamp.type=LogAppendTime"),
            ("message.timestamp.difference.max.ms", "9", "message.timestamp.type=LogAppendTime"),
        ] {
            let said = with(key, value).expect_err(key);
            let command =
                format!("--entity-name outbox-relay-progress-orders --add-config {remedy}`");
            assert!(said.contains(&command), "{said}");
        }
        let mut found = policy("delete");
        found.insert("max.message.bytes".to_owned(), "10".to_owned());
        let said = verify(&settings, &found, 1).expect_err("two are wrong").to_string();
        assert!(
            said.contains("--add-config cleanup.policy=compact,max.message.bytes=1048588`"),
            "{said}"
        );
        assert_eq!(with("max.message.bytes", "1048588"), Ok(()));
        assert_eq!(with("message.timestamp.after.max.ms", "3600000"), Ok(()));
    }

    #[test]
    fn the_remedy_for_a_wrong_policy_is_a_command() {
        let error = verify(&sample("kafka:9092"), &policy("delete"), 1).expect_err("refused");
        let text = error.to_string();
        assert!(
            text.contains("kafka-configs --bootstrap-server kafka:9092 --alter")
                && text.contains("--entity-name outbox-relay-progress-orders"),
            "{text}"
        );
    }
}
