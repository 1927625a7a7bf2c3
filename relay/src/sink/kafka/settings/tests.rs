use super::*;

fn with(name: &str, value: &str) -> Settings {
    let mut settings = sample("127.0.0.1:1");
    settings.properties.insert(name.into(), value.into());
    settings
}

#[test]
fn plain_settings_have_no_problem_in_either_mode() {
    let mut settings = sample("127.0.0.1:1");
    assert_eq!(settings.problems(), []);
    settings.delivery = Delivery::AtLeastOnce;
    assert_eq!(settings.problems(), []);
}

#[test]
fn an_unknown_property_is_named() {
    let problem = with("linger.msec", "5").problems().pop().expect("a problem");
    assert_eq!(problem.key, "sink.properties.linger.msec");
    assert!(problem.what.contains("No such configuration property"), "{problem:?}");
}

#[test]
fn a_combination_that_librdkafka_refuses_is_a_problem() {
    let problem = with("socket.timeout.ms", "60000").problems().pop().expect("a problem");
    assert!(problem.what.contains("socket.timeout.ms"), "{problem:?}");
}

#[test]
fn a_missing_broker_list_is_reported_with_every_other_problem() {
    let mut settings = with("transactional.id", "mine");
    settings.properties.remove("bootstrap.servers");
    let keys: Vec<_> = settings.problems().into_iter().map(|p| p.key).collect();
    assert_eq!(keys, ["sink.properties.transactional.id", "sink.properties.bootstrap.servers"]);
}

#[test]
fn values_of_properties_never_show() {
    let settings = with("sasl.password", "hunter2");
    assert!(!format!("{settings:?}").contains("hunter2"));
}

#[test]
fn a_delivery_ends_before_its_transaction_does() {
    assert_eq!(sample("b:1").delivery_limit(), Duration::from_secs(10));
    assert_eq!(with("transaction.timeout.ms", "3000").delivery_limit(), Duration::from_secs(2));
}

/// librdkafka's own default, a second, is far longer than what this reader has queued lasts.
#[test]
fn the_reader_of_the_progress_topic_rests_for_milliseconds() {
    let rest = |settings: &Settings| {
        let given = settings.reader_config().get("fetch.queue.backoff.ms").map(str::to_owned);
        given.and_then(|ms| ms.parse::<u32>().ok())
    };
    assert!(rest(&sample("b:1")).is_some_and(|ms| ms <= 10));
    assert_eq!(rest(&with("fetch.queue.backoff.ms", "700")), Some(700));
}
