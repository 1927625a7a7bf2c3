use super::*;

fn failure(opaque: usize, code: RDKafkaErrorCode) -> Failure {
    Failure { opaque, code }
}

/// All of one partition, unless a test says otherwise.
fn judged(failures: &[Failure]) -> Verdict {
    judge(failures, |_| Some(0))
}

fn certain(verdict: Verdict) -> Vec<(usize, bool)> {
    let Verdict::Refused(records) = verdict else { panic!("{verdict:?}") };
    records.iter().map(|record| (record.index, record.certain)).collect()
}

#[test]
fn what_is_said_of_a_record_refuses_it_and_not_those_taken_back_with_it() {
    let verdict = judged(&[
        failure(3, RDKafkaErrorCode::PurgeQueue),
        failure(4, RDKafkaErrorCode::MessageSizeTooLarge),
        failure(9, RDKafkaErrorCode::PurgeInflight),
    ]);
    assert_eq!(certain(verdict), [(4, true)], "it was alone in its batch");
}

#[test]
fn records_that_fail_alike_in_one_partition_may_share_the_fate_of_one() {
    let failures = [2, 4, 5].map(|at| failure(at, RDKafkaErrorCode::MessageSizeTooLarge));
    assert_eq!(certain(judged(&failures)), [(2, false), (4, false), (5, false)]);
    let verdict = judge(&failures, |index| Some(index % 2));
    assert_eq!(certain(verdict), [(2, false), (4, false), (5, true)]);
}

#[test]
fn records_that_the_broker_names_beside_innocent_ones_are_refused_for_certain() {
    let verdict = judged(&[
        failure(1, RDKafkaErrorCode::InvalidRecord),
        failure(2, RDKafkaErrorCode::InvalidDifferentRecord),
        failure(3, RDKafkaErrorCode::InvalidRecord),
    ]);
    assert_eq!(certain(verdict), [(1, true), (3, true)]);
}

/// The codes that librdkafka gives by itself are below zero: their whole range is tried.
#[test]
fn what_the_client_library_says_by_itself_refuses_no_record() {
    use RDKafkaErrorCode as Code;
    for code in [
        Code::UnknownPartition,
        Code::UnknownTopic,
        Code::MessageTimedOut,
        Code::InvalidArgument,
        Code::Fail,
        Code::Fatal,
        Code::State,
        Code::PurgeQueue,
        Code::InvalidDifferentRecord,
        Code::QueueFull,
        Code::Authentication,
        Code::UnsupportedFeature,
    ] {
        assert!(is_local(code), "{code:?}");
        assert!(!is_refusal(code), "{code:?}");
        let verdict = judged(&[failure(1, code)]);
        assert!(!matches!(verdict, Verdict::Refused(_)), "{code:?}: {verdict:?}");
    }
    assert!(!is_local(Code::MessageSizeTooLarge) && is_refusal(Code::MessageSizeTooLarge));
}

#[test]
fn a_partition_that_is_gone_asks_for_another_look_and_parks_nothing() {
    for code in [
        RDKafkaErrorCode::UnknownPartition,
        RDKafkaErrorCode::UnknownTopic,
        RDKafkaErrorCode::UnknownTopicOrPartition,
    ] {
        let verdict = judged(&[failure(1, RDKafkaErrorCode::PurgeQueue), failure(2, code)]);
        assert_eq!(verdict, Verdict::Stale(code));
    }
}

#[test]
fn outages_and_limits_of_the_broker_refuse_no_record() {
    use RDKafkaErrorCode as Code;
    for code in [
        Code::NotEnoughReplicas,
        Code::NotEnoughReplicasAfterAppend,
        Code::LeaderNotAvailable,
        Code::NotLeaderForPartition,
        Code::RequestTimedOut,
        Code::ThrottlingQuotaExceeded,
        Code::KafkaStorageError,
        Code::ClusterAuthorizationFailed,
    ] {
        assert_eq!(judged(&[failure(1, code)]), Verdict::Failed(Some(code)));
    }
}

#[test]
fn a_failure_that_may_pass_outweighs_a_refusal() {
    let verdict = judged(&[
        failure(1, RDKafkaErrorCode::MessageSizeTooLarge),
        failure(2, RDKafkaErrorCode::MessageTimedOut),
    ]);
    assert_eq!(verdict, Verdict::Failed(Some(RDKafkaErrorCode::MessageTimedOut)));
}

#[test]
fn a_refused_progress_record_refuses_no_event() {
    let verdict = judged(&[failure(PROGRESS_OPAQUE, RDKafkaErrorCode::TopicAuthorizationFailed)]);
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
    assert!(error.to_string().contains("correct sasl."), "{error}");
}

#[test]
fn only_what_reached_nobody_is_silence() {
    let of = |code| is_silence(&KafkaError::MetadataFetch(code));
    assert!(of(RDKafkaErrorCode::BrokerTransportFailure) && of(RDKafkaErrorCode::Resolve));
    assert!(!of(RDKafkaErrorCode::TopicAuthorizationFailed));
    assert!(!of(RDKafkaErrorCode::MessageTimedOut), "too few replicas say the same");
}
