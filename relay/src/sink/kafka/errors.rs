//! Sorts librdkafka's errors by what the relay must do next.
//!
//! Pure. The rule: what a broker says of one record refuses that record; what it says of the
//! producer's epoch fences; all else is "not now", because replay from progress mends it.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::context::{Failure, PROGRESS_OPAQUE};
use crate::sink::{BoxError, RefusedRecord, SinkError};

/// Why a broker, or librdkafka in its place, will never take this very record, and what a person
/// can do about it.
pub(super) fn refusal(code: RDKafkaErrorCode) -> Option<(&'static str, &'static str)> {
    use RDKafkaErrorCode as Code;
    Some(match code {
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => {
            ("too_large", "raise the topic's max.message.bytes, or publish a reference to the data")
        }
        Code::TopicAuthorizationFailed => {
            ("not_authorised", "grant the relay's principal Describe and Write on the topic")
        }
        Code::InvalidTimestamp => (
            "invalid_timestamp",
            "the event's time is further from now than the topic's message.timestamp.before.max.ms \
             or message.timestamp.after.max.ms allows",
        ),
        Code::InvalidRecord => (
            "invalid_record",
            "a compacted topic takes no record without a key; see the broker's log otherwise",
        ),
        Code::InvalidTopic => ("invalid_topic", "a topic can't have this name"),
        Code::UnknownPartition => ("no_such_partition", "the topic has fewer partitions"),
        Code::UnknownTopicOrPartition | Code::UnknownTopic => {
            ("unknown_topic", "create the topic, then release the event")
        }
        _ => return None,
    })
}

/// A record failed because another did, or because its transaction had failed already.
fn is_consequence(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight | RDKafkaErrorCode::State
    )
}

/// What the failed records of a delivery mean.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// None failed.
    Stored,
    /// These were refused; any others were taken back because of them.
    Refused(Vec<RefusedRecord>),
    /// Some failed for a reason that may pass; `None` when all were only taken back.
    Failed(Option<RDKafkaErrorCode>),
}

/// Judges `failures`, which are in the order of the batch.
pub(super) fn judge(failures: &[Failure]) -> Verdict {
    if failures.is_empty() {
        return Verdict::Stored;
    }
    // The progress record is ours: whatever is said of it refuses no event.
    let causes = || failures.iter().filter(|failure| !is_consequence(failure.code));
    let passing = causes()
        .find(|failure| failure.opaque == PROGRESS_OPAQUE || refusal(failure.code).is_none());
    if let Some(failure) = passing {
        return Verdict::Failed(Some(failure.code));
    }
    // Sent in one request with others, it may be one of those that is refused.
    let records: Vec<_> = causes()
        .filter_map(|failure| {
            let (reason, remedy) = refusal(failure.code)?;
            let error = format!("{}: {remedy}", failure.code);
            let record = refused(failure.opaque, reason, error);
            Some(RefusedRecord { certain: false, ..record })
        })
        .collect();
    if records.is_empty() { Verdict::Failed(None) } else { Verdict::Refused(records) }
}

/// A record that is refused for certain, in the broker's words.
pub(super) fn refused(
    index: usize,
    reason: &'static str,
    error: impl std::fmt::Display,
) -> RefusedRecord {
    RefusedRecord { index, reason, error: error.to_string(), certain: true }
}

/// Whether the error says that another producer of our transactional id has taken over. A broker
/// says the same when our transaction outlived its time: either way this producer is at its end.
fn is_fence(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Fenced
            | Code::ProducerFenced
            | Code::InvalidProducerEpoch
            | Code::TransactionCoordinatorFenced
    )
}

/// Sorts an error of a client as a whole. `doing` says what was under way, as in "committing a
/// transaction"; `fatal` is the client's own fatal error, if it has one.
pub(super) fn sort(
    doing: &str,
    error: KafkaError,
    fatal: Option<(RDKafkaErrorCode, String)>,
) -> SinkError {
    let code = error.rdkafka_error_code();
    if let Some((fatal_code, text)) = fatal {
        if is_fence(fatal_code) {
            return SinkError::Fenced(text.into());
        }
        return unavailable(format!("{doing}: the producer is at its end ({fatal_code:?})"), text);
    }
    if code.is_some_and(is_fence) {
        return SinkError::Fenced(error.into());
    }
    match code.and_then(remedy) {
        Some(remedy) => unavailable(format!("{doing}: {remedy}"), error),
        None => unavailable(doing.to_owned(), error),
    }
}

/// "Not now."
pub(super) fn unavailable(doing: impl Into<String>, source: impl Into<BoxError>) -> SinkError {
    SinkError::Unavailable { doing: doing.into(), source: source.into() }
}

/// What a person can do about it while the relay goes on trying.
pub(super) fn remedy(code: RDKafkaErrorCode) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    Some(match code {
        Code::Authentication | Code::SaslAuthenticationFailed => {
            "the broker refuses the credentials: mend sasl.* or ssl.* in sink.properties"
        }
        Code::SSL => "TLS failed: mend security.protocol or ssl.* in sink.properties",
        Code::TransactionalIdAuthorizationFailed => {
            "the principal needs Write and Describe on the transactional id outbox-relay-<name>"
        }
        Code::TopicAuthorizationFailed => {
            "the principal needs Read, Write and Describe on outbox-relay-progress-<name>, and Write \
             and Describe on every topic"
        }
        Code::ClusterAuthorizationFailed => {
            "the principal needs IdempotentWrite on the cluster (brokers before 2.8)"
        }
        Code::InvalidTransactionTimeout => {
            "transaction.timeout.ms is above the broker's transaction.max.timeout.ms"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(opaque: usize, code: RDKafkaErrorCode) -> Failure {
        Failure { opaque, code }
    }

    #[test]
    fn what_is_said_of_a_record_refuses_it_and_not_those_taken_back_with_it() {
        let verdict = judge(&[
            failure(3, RDKafkaErrorCode::PurgeQueue),
            failure(4, RDKafkaErrorCode::MessageSizeTooLarge),
            failure(9, RDKafkaErrorCode::PurgeInflight),
        ]);
        let Verdict::Refused(records) = verdict else { panic!("{verdict:?}") };
        let named: Vec<_> = records.iter().map(|record| (record.index, record.reason)).collect();
        assert_eq!(named, [(4, "too_large")]);
    }

    #[test]
    fn a_failure_that_may_pass_outweighs_a_refusal() {
        let verdict = judge(&[
            failure(1, RDKafkaErrorCode::MessageSizeTooLarge),
            failure(2, RDKafkaErrorCode::MessageTimedOut),
        ]);
        assert_eq!(verdict, Verdict::Failed(Some(RDKafkaErrorCode::MessageTimedOut)));
    }

    #[test]
    fn a_refused_progress_record_refuses_no_event() {
        let verdict =
            judge(&[failure(PROGRESS_OPAQUE, RDKafkaErrorCode::TopicAuthorizationFailed)]);
        assert!(matches!(verdict, Verdict::Failed(Some(_))), "{verdict:?}");
    }

    #[test]
    fn an_epoch_taken_by_another_fences() {
        for code in [
            RDKafkaErrorCode::Fenced,
            RDKafkaErrorCode::ProducerFenced,
            RDKafkaErrorCode::InvalidProducerEpoch,
        ] {
            let error = sort("delivering", KafkaError::Global(code), None);
            assert!(matches!(error, SinkError::Fenced(_)), "{code:?}: {error:?}");
            let fatal = Some((code, "fenced".to_owned()));
            let error = sort("delivering", KafkaError::Global(RDKafkaErrorCode::Fatal), fatal);
            assert!(matches!(error, SinkError::Fenced(_)), "{code:?}: {error:?}");
        }
    }

    #[test]
    fn other_ends_of_a_producer_start_again_from_progress() {
        let fatal = Some((RDKafkaErrorCode::UnknownProducerId, "expired".to_owned()));
        let error = sort("delivering", KafkaError::Global(RDKafkaErrorCode::Fatal), fatal);
        assert!(matches!(error, SinkError::Unavailable { .. }), "{error:?}");
    }

    #[test]
    fn refused_credentials_are_no_reason_to_stop_and_say_what_to_mend() {
        let code = RDKafkaErrorCode::SaslAuthenticationFailed;
        let error = sort("connecting", KafkaError::Global(code), None);
        assert!(error.to_string().contains("mend sasl."), "{error}");
    }
}
