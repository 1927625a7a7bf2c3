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
    let replication = TopicReplication::Fixed(creation.replication_factor);
    let topic = config
        .iter()
        .fold(NewTopic::new(name, creation.partitions, replication), |topic, (key, value)| {
            topic.set(key, value)
        });
    let client = client(settings)?;
    let results = block_on(client.create_topics([&topic], &options()))?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(KafkaError::AdminOp(code)),
        }
    }
    Ok(())
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
    Ok(entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
}

fn client(settings: &Settings) -> Result<AdminClient<Context>, KafkaError> {
    settings.admin_config().create_with_context(Context::new("admin"))
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
