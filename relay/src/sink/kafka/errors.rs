//! Sorts librdkafka's errors by who says so and what the relay must do next.
//!
//! Pure. The rule: only what a *broker* answers of a record refuses that record, and only where
//! it does not pass by itself. What librdkafka says by itself (its own, negative codes) never does: that
//! it knows no such partition means that its knowledge, or ours, is out of date. What a broker says
//! of the producer's epoch fences; all else is "not now", because replay from progress is what helps.

use std::collections::HashMap;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{
    acl,
    context::{Failure, PROGRESS_OPAQUE},
    native::producer::TransactionError,
};
use crate::sink::{BoxError, RefusedRecord, SinkError, unavailable};

/// What an error says of the record that failed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A broker will never take it, or one that it was sent together with: a stable word for why,
    /// what that means, and what a person can do about it.
    Refused(&'static str, &'static str, &'static str),
    /// A broker refused another record of its request, and said so.
    Innocent,
    /// It failed because another did, or because its transaction had failed already.
    Consequence,
    /// What is known of its topic is out of date: look again, and send again.
    Stale,
    /// It may be taken later.
    Passing,
}

/// Whether librdkafka says so by itself; a broker's codes are not negative.
fn is_local(code: RDKafkaErrorCode) -> bool {
    (code as i16) < 0
}

fn fate(code: RDKafkaErrorCode) -> Fate {
    use RDKafkaErrorCode as Code;
    if is_local(code) {
        return match code {
            Code::InvalidDifferentRecord => Fate::Innocent,
            Code::PurgeQueue | Code::PurgeInflight | Code::State => Fate::Consequence,
            Code::UnknownPartition | Code::UnknownTopic => Fate::Stale,
            _ => Fate::Passing,
        };
    }
    match code {
        // librdkafka gives this itself for a record above `message.max.bytes`.
        Code::MessageSizeTooLarge => Fate::Refused(
            "too_large",
            "the record is larger than the topic or the relay's client takes",
            "raise the topic's max.message.bytes (and sink.properties.\"message.max.bytes\" where \
             that is lower), or publish a reference to the data",
        ),
        // A broker's word for RECORD_LIST_TOO_LARGE.
        Code::MessageBatchTooLarge => Fate::Refused(
            "too_large",
            "the record is larger than a segment of the topic's log",
            "raise the topic's segment.bytes (the brokers' default is log.segment.bytes), or publish a reference to the \
             data",
        ),
        Code::TopicAuthorizationFailed => Fate::Refused(
            acl::NOT_AUTHORISED,
            "the relay may not write to the topic",
            "see docs/KAFKA-ACLS.md",
        ),
        Code::InvalidTimestamp => Fate::Refused(
            "invalid_timestamp",
            "the event's time is further from now than the topic allows",
            "raise the topic's message.timestamp.before.max.ms or message.timestamp.after.max.ms",
        ),
        Code::InvalidRecord => Fate::Refused(
            "invalid_record",
            "the topic takes no such record",
            "a compacted topic takes no record without a key, and message.timestamp.before.max.ms \
             or message.timestamp.after.max.ms may bound its time; see the broker's log otherwise",
        ),
        Code::PolicyViolation | Code::UnsupportedForMessageFormat => Fate::Refused(
            "invalid_record",
            "the broker's policy or the topic's message format forbids such a record",
            "see the broker's log",
        ),
        // The look-up decides, and says what to do.
        Code::UnknownTopicOrPartition | Code::InvalidTopic => Fate::Stale,
        _ => Fate::Passing,
    }
}

/// Whether records after one that failed so may still be sent, to learn which are refused.
pub(super) fn is_refusal(code: RDKafkaErrorCode) -> bool {
    matches!(fate(code), Fate::Refused(..))
}

/// What the failed records of a delivery mean.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// None failed.
    Stored,
    /// These were refused; any others were taken back because of them.
    Refused(Vec<RefusedRecord>),
    /// What is known of their topics is out of date.
    Stale(RDKafkaErrorCode),
    /// Some failed for a reason that may pass; `None` when all were only taken back.
    Failed(Option<RDKafkaErrorCode>),
}

/// Judges `failures`, which are in the order of the batch. `place` is the partition that a record
/// was sent to, by the record's index.
///
/// A broker answers for a batch of the wire, which lies in one partition: all of the batch fail
/// alike, unless the broker names the records that it means. So one that failed alone in its
/// partition, or was named beside innocent ones, is refused for certain.
pub(super) fn judge<P: std::hash::Hash + Eq>(
    failures: &[Failure],
    place: impl Fn(usize) -> Option<P>,
) -> Verdict {
    if failures.is_empty() {
        return Verdict::Stored;
    }
    // The progress record is ours: whatever is said of it refuses no event.
    let is_passing = |failure: &&Failure| match fate(failure.code) {
        Fate::Passing => true,
        Fate::Innocent | Fate::Consequence => false,
        Fate::Refused(..) | Fate::Stale => failure.opaque == PROGRESS_OPAQUE,
    };
    if let Some(failure) = failures.iter().find(is_passing) {
        return Verdict::Failed(Some(failure.code));
    }
    if let Some(failure) = failures.iter().find(|failure| fate(failure.code) == Fate::Stale) {
        return Verdict::Stale(failure.code);
    }
    let mut by_place: HashMap<Option<P>, (usize, bool)> = HashMap::new();
    for failure in failures {
        let (refused, innocent) = by_place.entry(place(failure.opaque)).or_default();
        match fate(failure.code) {
            Fate::Refused(..) => *refused += 1,
            Fate::Innocent => *innocent = true,
            _ => {}
        }
    }
    let records: Vec<_> = failures
        .iter()
        .filter_map(|failure| {
            let Fate::Refused(reason, what, remedy) = fate(failure.code) else { return None };
            let (count, innocent) = by_place.get(&place(failure.opaque))?;
            let error = format!("{what} (Kafka's code {:?}): {remedy}", failure.code);
            let certain = *innocent || *count == 1;
            Some(RefusedRecord { certain, ..refused(failure.opaque, reason, error) })
        })
        .collect();
    if records.is_empty() { Verdict::Failed(None) } else { Verdict::Refused(records) }
}

/// A record that is refused for certain, in our words.
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

/// Whether a client could not be made because the system has no thread left, which librdkafka tells in words alone.
pub(super) fn lacks_a_thread(error: &KafkaError) -> bool {
    matches!(error, KafkaError::ClientCreation(reason) if reason.contains("thread"))
}

/// Sorts an error of a client as a whole. `doing` says what was under way, as in "committing a
/// transaction"; `fatal` is the client's own fatal error, if it has one.
pub(super) fn sort(
    doing: &str,
    error: KafkaError,
    fatal: Option<(RDKafkaErrorCode, String)>,
) -> SinkError {
    sort_code(doing, code_of(&error), error.into(), fatal)
}

/// The broker's code, or librdkafka's own. The crate's method gives none of an administrative request.
pub(super) fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        _ => error.rdkafka_error_code(),
    }
}

/// As [`sort`], by the error's code.
pub(super) fn sort_code(
    doing: &str,
    code: Option<RDKafkaErrorCode>,
    error: BoxError,
    fatal: Option<(RDKafkaErrorCode, String)>,
) -> SinkError {
    if let Some((fatal_code, text)) = fatal {
        if is_fence(fatal_code) {
            return SinkError::Fenced(text.into());
        }
        let why = remedy(fatal_code)
            .map_or_else(|| format!("the producer is at its end ({fatal_code:?})"), str::to_owned);
        return unavailable(format!("{doing}: {why}"), text);
    }
    if code.is_some_and(is_fence) {
        return SinkError::Fenced(error);
    }
    match code.and_then(remedy) {
        Some(remedy) => unavailable(format!("{doing}: {remedy}"), error),
        None => unavailable(doing.to_owned(), error),
    }
}

/// What a person can do about it while the relay continues trying.
pub(super) fn remedy(code: RDKafkaErrorCode) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    Some(match code {
        Code::Authentication | Code::SaslAuthenticationFailed => {
            "the broker refuses the credentials: correct sasl.* or ssl.* in sink.properties"
        }
        Code::SSL => "TLS failed: correct security.protocol or ssl.* in sink.properties",
        Code::TransactionalIdAuthorizationFailed => {
            "the principal lacks Write on the transactional id: run `kafka-acls --add \
             --allow-principal User:RELAY --operation Write --transactional-id \
             outbox-relay-<name>`; see docs/KAFKA-ACLS.md"
        }
        Code::TopicAuthorizationFailed => {
            "the principal needs Read, Write and DescribeConfigs on outbox-relay-progress-<name>, and \
             Write on every topic; see docs/KAFKA-ACLS.md"
        }
        Code::ClusterAuthorizationFailed => {
            "the principal needs IdempotentWrite on the cluster (brokers before 2.8)"
        }
        Code::InvalidTransactionTimeout => {
            "transaction.timeout.ms is above the broker's transaction.max.timeout.ms: lower \
             sink.properties.\"transaction.timeout.ms\" to that, and restart the relay"
        }
        Code::ConcurrentTransactions => {
            "the broker has not ended the relay's last transaction yet: nothing is lost. If that lasts longer than a \
             minute, look which partition the broker's log names, and bring its leader back; if all have one, raise \
             max.message.bytes of topics where it is below 1000, which keeps out the broker's own marker, and restart \
             the broker that coordinates the transaction (docs/TROUBLESHOOTING.md)"
        }
        _ => return None,
    })
}

/// Whether an error says no more than that no broker was reached.
pub(in crate::sink) fn is_silence(error: &(dyn std::error::Error + 'static)) -> bool {
    use RDKafkaErrorCode as Code;
    let silent = [Code::BrokerTransportFailure, Code::AllBrokersDown, Code::Resolve];
    let code = |error: &(dyn std::error::Error + 'static)| {
        let kafka = error.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code);
        kafka.or_else(|| error.downcast_ref::<TransactionError>().map(|error| error.code))
    };
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(code)
        .any(|code| silent.contains(&code))
}

#[cfg(test)]
mod tests;
