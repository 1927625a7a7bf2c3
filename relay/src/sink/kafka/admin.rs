//! The two administrative requests the sink makes: create a topic, describe a topic's settings.
//!
//! Each makes a client and drops it: they are rare, and an idle one would hold threads and
//! connections. Blocking; called on the sink's own thread.

use std::{collections::HashMap, future::Future, time::Duration};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{
    context::Context,
    settings::{Settings, TopicCreation},
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Creates a topic; one that exists already is as good.
pub(super) fn create_topic(
    settings: &Settings,
    name: &str,
    creation: TopicCreation,
    config: &[(&str, &str)],
) -> Result<(), KafkaError> {
    let failed = create_topics(settings, &[name], creation, config, REQUEST_TIMEOUT)?;
    failed.first().map_or(Ok(()), |(_, code)| Err(KafkaError::AdminOp(*code)))
}

/// Creates topics in one request, and returns those that could not be, with the broker's error.
pub(super) fn create_topics(
    settings: &Settings,
    names: &[&str],
    creation: TopicCreation,
    config: &[(&str, &str)],
    limit: Duration,
) -> Result<Vec<(String, RDKafkaErrorCode)>, KafkaError> {
    let topics: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| {
            let replication = TopicReplication::Fixed(creation.replication_factor);
            let topic = NewTopic::new(name, creation.partitions, replication);
            config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
        })
        .collect();
    let client = client(settings)?;
    let options = AdminOptions::new().request_timeout(Some(limit)).operation_timeout(Some(limit));
    let results = block_on(client.create_topics(&topics, &options))?;
    let failed = results.into_iter().filter_map(Result::err);
    Ok(failed.filter(|(_, code)| *code != RDKafkaErrorCode::TopicAlreadyExists).collect())
}

/// Which of these topics could not be created now, and why; creates nothing.
pub(super) fn may_create_topics(
    settings: &Settings,
    names: &[&str],
    creation: TopicCreation,
) -> Result<Vec<(String, RDKafkaErrorCode)>, KafkaError> {
    let topic = |name| {
        let replication = TopicReplication::Fixed(creation.replication_factor);
        NewTopic::new(name, creation.partitions, replication)
    };
    let topics: Vec<NewTopic<'_>> = names.iter().copied().map(topic).collect();
    let client = client(settings)?;
    let results = block_on(client.create_topics(&topics, &options().validate_only(true)))?;
    Ok(results.into_iter().filter_map(Result::err).collect())
}

/// The settings of a topic, by name.
pub(super) fn topic_settings(
    settings: &Settings,
    name: &str,
) -> Result<HashMap<String, String>, KafkaError> {
    let client = client(settings)?;
    let specifier = ResourceSpecifier::Topic(name);
    let resources = block_on(client.describe_configs([&specifier], &options()))?;
    let resource = resources.into_iter().next().ok_or(KafkaError::Canceled)?;
    let entries = resource.map_err(KafkaError::AdminOp)?.entries;
    // The crate keeps a broker's refusal to itself, and gives no entries then.
    if entries.is_empty() {
        return Err(KafkaError::AdminOp(RDKafkaErrorCode::TopicAuthorizationFailed));
    }
    Ok(entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
}

fn client(settings: &Settings) -> Result<AdminClient<Context>, KafkaError> {
    settings.admin_config().create_with_context(Context::new("admin", &settings.reach))
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT))
}

/// The crate's admin calls are futures that its own thread completes; this thread has no runtime.
fn block_on<T>(future: impl Future<Output = Result<T, KafkaError>>) -> Result<T, KafkaError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| KafkaError::AdminOpCreation(error.to_string()))?;
    runtime.block_on(future)
}
