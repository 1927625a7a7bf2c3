//! Environment variables that look like settings and are none: `OUTBOX_RELAY_NAME` for `OUTBOX_RELAY__NAME`.
//!
//! What begins with the whole prefix is a setting or an error. With one underscore the name may be somebody
//! else's, as Kubernetes makes `OUTBOX_RELAY_PORT` for a service of that name: so only those are told of that a
//! setting has but for its underscores.

use super::{
    keys::{ENV_PREFIX, KEYS, env_name},
    sources::Environment,
};

/// Each such variable, and the one that is probably meant.
pub fn misnamed(env: &Environment) -> Vec<(String, String)> {
    let stray = |name: &String| Some((name.clone(), meant(name)?));
    env.keys().filter_map(stray).collect()
}

fn meant(name: &str) -> Option<String> {
    let prefix = ENV_PREFIX.strip_suffix('_')?;
    let rest = name.strip_prefix(prefix).filter(|_| !name.starts_with(ENV_PREFIX))?;
    let joined = rest.to_lowercase().replace("__", "_");
    KEYS.iter().find_map(|key| {
        let flat = key.name.replace('.', "_");
        match flat.strip_suffix('*') {
            None => (joined == flat).then(|| env_name(key.name)),
            Some(open) => {
                let free = joined.strip_prefix(open).filter(|free| !free.is_empty())?;
                let section = env_name(key.name.trim_end_matches('*'));
                Some(format!("{section}{}", free.to_uppercase()))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_with_too_few_underscores_is_known_and_somebody_elses_variable_is_not() {
        for (name, expected) in [
            ("OUTBOX_RELAY_NAME", Some("OUTBOX_RELAY__NAME")),
            ("OUTBOX_RELAY_POSTGRES_URL", Some("OUTBOX_RELAY__POSTGRES__URL")),
            ("OUTBOX_RELAY_POSTGRES__URL", Some("OUTBOX_RELAY__POSTGRES__URL")),
            ("OUTBOX_RELAY_POSTGRES_URL_FILE", Some("OUTBOX_RELAY__POSTGRES__URL_FILE")),
            (
                "OUTBOX_RELAY_SINK_PROPERTIES_BOOTSTRAP_SERVERS",
                Some("OUTBOX_RELAY__SINK__PROPERTIES__BOOTSTRAP_SERVERS"),
            ),
            ("OUTBOX_RELAY__NAME", None),
            ("OUTBOX_RELAY_PORT", None),
            ("OUTBOX_RELAY_SERVICE_HOST", None),
            ("OUTBOX_RELAY_PORT_9464_TCP", None),
            ("OUTBOX_TEST_RELAY", None),
        ] {
            assert_eq!(meant(name).as_deref(), expected, "{name}");
        }
    }
}
