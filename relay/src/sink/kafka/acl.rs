//! Rights at the broker: what gives one, and whether the relay's principal has the one that can't be
//! asked for. `docs/KAFKA-ACLS.md` has the list.

use std::time::Duration;

use rdkafka::{
    error::RDKafkaErrorCode,
    producer::{BaseProducer, Producer as _},
};

use super::{context::Context, settings::Settings};
use crate::{
    core::record::Batch,
    sink::{RefusedRecord, SinkError},
};

/// Above every broker's `transaction.max.timeout.ms` but one that is set to the largest number.
const TIMEOUT_THAT_NO_BROKER_TAKES: &str = "2147483647";

/// The command that allows the relay's principal `operations` on a resource, which is given as
/// kafka-acls takes it.
pub(super) fn grant(settings: &Settings, operations: &[&str], resource: &str) -> String {
    let property = |name: &str| settings.properties.get(name).map(String::as_str);
    let servers = property("bootstrap.servers").unwrap_or("HOST:PORT");
    let mechanism = property("sasl.mechanism").or(property("sasl.mechanisms")).unwrap_or_default();
    let by_name = mechanism.starts_with("PLAIN") || mechanism.starts_with("SCRAM");
    let user = property("sasl.username").filter(|_| by_name).unwrap_or("RELAY");
    let operations: String = operations.iter().map(|one| format!(" --operation {one}")).collect();
    format!(
        "run `kafka-acls --bootstrap-server {servers} --add --allow-principal \
         User:{user}{operations} {resource}`, and see that no deny rule stands against it, which no allow rule \
         outweighs: `kafka-acls --bootstrap-server {servers} --list {resource}`; see docs/KAFKA-ACLS.md"
    )
}

/// What it means at a start that a right lacks.
pub(super) const NOTHING: &str = "nothing can be delivered";

/// A right on a topic that the relay's principal lacks.
pub(super) fn lacking(
    settings: &Settings,
    topic: &str,
    operations: &[&str],
    meaning: &str,
) -> SinkError {
    SinkError::Misconfigured {
        what: format!(
            "the relay's principal lacks {} on the topic {topic}: {meaning}",
            operations.join(", ")
        ),
        remedy: grant(settings, operations, &format!("--topic {topic}")),
    }
}

/// The word for a topic of events that the relay's principal may not write to.
pub(super) const NOT_AUTHORISED: &str = "not_authorised";

/// What it means for a topic's events that they may not be written there, and what gives the right, as
/// docs/KAFKA-ACLS.md has it.
pub(super) fn may_not_write(settings: &Settings, topic: &str) -> String {
    let grant = grant(settings, &["Write", "DescribeConfigs"], &format!("--topic {topic}"));
    format!(
        "the relay's principal lacks Write on the topic {topic}: its events are parked, all others continue; \
         {grant}; then `outbox-relay dead-letters release --topic {topic}`"
    )
}

/// Refusals as brokers' codes tell them, with the topic and what gives the right where that is why.
pub(super) fn with_grants(
    settings: &Settings,
    batch: &Batch,
    mut refused: Vec<RefusedRecord>,
) -> Vec<RefusedRecord> {
    for refused in refused.iter_mut().filter(|refused| refused.reason == NOT_AUTHORISED) {
        if let Some(record) = batch.get(refused.index) {
            refused.error = may_not_write(settings, record.topic);
        }
    }
    refused
}

/// Asks whether the transactional id may be used, and fences no one: a broker looks at the right,
/// then at the transaction's time-out, which is refused, and only then at the id.
///
/// # Errors
/// `Misconfigured` where it may not be used. No other answer says anything.
pub(super) fn may_use_transactional_id(
    settings: &Settings,
    timeout: Duration,
) -> Result<(), SinkError> {
    let mut config = settings.transactional_config();
    config.set("transaction.timeout.ms", TIMEOUT_THAT_NO_BROKER_TAKES);
    let Ok(producer) =
        config.create_with_context::<_, BaseProducer<_>>(Context::new("check", &settings.reach))
    else {
        return Ok(());
    };
    let Err(error) = producer.init_transactions(timeout) else { return Ok(()) };
    let fatal = producer.client().fatal_error().map(|(code, _)| code);
    let is = |code| fatal == Some(code) || error.rdkafka_error_code() == Some(code);
    if is(RDKafkaErrorCode::UnsupportedFeature) || is(RDKafkaErrorCode::UnsupportedVersion) {
        return Err(SinkError::Misconfigured {
            what: "the brokers know no transactions: nothing can be delivered".into(),
            remedy:
                "Apache Kafka 0.11 or later is needed, or a broker that speaks its protocol whole"
                    .into(),
        });
    }
    if !is(RDKafkaErrorCode::TransactionalIdAuthorizationFailed) {
        return Ok(());
    }
    Err(lacking_transactional_id(settings))
}

/// The right on the transactional id, which the relay's principal lacks.
pub(super) fn lacking_transactional_id(settings: &Settings) -> SinkError {
    let id = settings.transactional_id();
    SinkError::Misconfigured {
        what: format!(
            "the relay's principal lacks Write on the transactional id {id}: nothing can be delivered"
        ),
        remedy: grant(settings, &["Write"], &format!("--transactional-id {id}")),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{mocking::MockCluster, types::RDKafkaApiKey};

    use super::{super::settings::sample, *};

    #[test]
    fn brokers_without_transactions_are_named_as_such() {
        let brokers = MockCluster::new(1).expect("a broker of the client library's own");
        let settings = sample(&brokers.bootstrap_servers());
        let asked = || may_use_transactional_id(&settings, Duration::from_secs(5));
        assert!(asked().is_ok());
        brokers.apiversion(RDKafkaApiKey::InitProducerId, None, None).expect("taken away");
        let error = asked().expect_err("it would not work").to_string();
        assert!(error.contains("know no transactions"), "{error}");
    }

    #[test]
    fn a_remedy_names_the_principal_where_it_is_known() {
        let mut settings = sample("kafka:9092");
        let unknown = grant(&settings, &["Read", "Write"], "--topic t");
        let command = "kafka-acls --bootstrap-server kafka:9092 --add --allow-principal User:RELAY \
                       --operation Read --operation Write --topic t`";
        assert!(unknown.contains(command), "{unknown}");
        let list = "no deny rule stands against it, which no allow rule outweighs: `kafka-acls --bootstrap-server \
                    kafka:9092 --list --topic t`";
        assert!(unknown.contains(list), "{unknown}");
        settings.properties.insert("sasl.mechanism".into(), "SCRAM-SHA-512".into());
        settings.properties.insert("sasl.username".into(), "orders".into());
        assert!(grant(&settings, &["Read"], "--topic t").contains("User:orders --operation Read"));
    }
}
