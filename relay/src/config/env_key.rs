//! The key that a variable of the environment names.

/// What is Kafka's may be written below `sink.kafka`, as each kind's own settings are.
pub(super) const KAFKA: &str = "sink.kafka";
pub(super) const OF_KAFKA: [&str; 3] = ["properties", "properties_file", "create_topics"];

/// `SINK__PROPERTIES__BOOTSTRAP_SERVERS` → `sink.properties.bootstrap.servers`.
pub(super) fn env_key(name: &str) -> String {
    let key = name.to_lowercase().replace("__", ".");
    if let Some((route, own)) = key.strip_prefix("routes.").and_then(|rest| rest.split_once('.')) {
        return format!("routes.{route}.{}", of_relay(own.to_owned()));
    }
    of_relay(key)
}

fn of_relay(mut key: String) -> String {
    if let Some(rest) = key.strip_prefix("sink.kafka.")
        && OF_KAFKA.iter().any(|name| rest.split('.').next() == Some(name))
    {
        key = format!("sink.{rest}");
    }
    match key.strip_prefix("sink.properties.") {
        Some(property) => format!("sink.properties.{}", property.replace('_', ".")),
        None => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_name_keys() {
        for (name, key) in [
            ("NAME", "name"),
            ("BATCH__RECORD_BYTES_MAX", "batch.record_bytes_max"),
            ("SINK__PROPERTIES__BOOTSTRAP_SERVERS", "sink.properties.bootstrap.servers"),
            ("SINK__KAFKA__PROPERTIES__SASL_PASSWORD", "sink.properties.sasl.password"),
            ("SINK__CREATE_TOPICS__PARTITIONS", "sink.create_topics.partitions"),
        ] {
            assert_eq!(env_key(name), key);
        }
    }
}
