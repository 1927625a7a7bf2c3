//! The log: text for people or JSON for machines, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

use crate::config::{LogConfig, LogFormat};

/// Libraries that tell of each attempt what the relay tells once; a filter that names one wins.
const QUIET: [&str; 4] = ["librdkafka=error", "rdkafka=error", "hyper=warn", "tokio_postgres=warn"];

/// Starts logging for this process. A second call, as in tests, changes nothing.
pub fn init(config: &LogConfig) {
    let log = fmt::fmt()
        .with_env_filter(EnvFilter::new(directives(&config.level)))
        .with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Json => log.json().flatten_event(true).finish().try_init(),
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            log.with_ansi(colour).with_target(false).finish().try_init()
        }
    };
    // Somebody else's subscriber is in place: their choice.
    drop(started);
}

fn directives(level: &str) -> String {
    let named = |quiet: &&str| {
        let target = quiet.split('=').next().unwrap_or(quiet);
        !level.split(',').any(|part| part.trim().starts_with(target))
    };
    let quiet: Vec<&str> = QUIET.into_iter().filter(named).collect();
    if quiet.is_empty() { level.to_owned() } else { format!("{level},{}", quiet.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quiet_unless_they_are_named() {
        assert_eq!(
            directives("info"),
            "info,librdkafka=error,rdkafka=error,hyper=warn,tokio_postgres=warn"
        );
        assert_eq!(
            directives("debug, librdkafka=debug"),
            "debug, librdkafka=debug,rdkafka=error,hyper=warn,tokio_postgres=warn"
        );
        assert!(EnvFilter::try_new(directives("debug")).is_ok());
    }
}
